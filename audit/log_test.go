package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var (
	client = netip.MustParseAddrPort("10.1.0.2:40000")
	target = netip.MustParseAddrPort("10.2.0.2:8080")
)

// shelf is a sink that keeps what it takes.
type shelf struct {
	mu      sync.Mutex
	refuse  error // what it says instead of taking anything
	room    int   // how many it takes before it refuses; -1 for any number
	records []Record
	writes  int
	closed  bool
}

func (s *shelf) write(records []Record) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes++
	n := len(records)
	if s.refuse != nil && s.room < n {
		n = s.room
	}
	s.records = append(s.records, records[:n]...)
	if n < len(records) {
		s.room = 0
		return n, s.refuse
	}
	return n, nil
}

func (s *shelf) close() error {
	s.closed = true
	return nil
}

// now is refused with err from now on, after room more; or nothing if err is nil.
func (s *shelf) now(err error, room int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse, s.room = err, room
}

// all gives what is there, by Sent: the tests' numbers.
func (s *shelf) all() (numbers []uint64, dropped []uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.records {
		if r.Event == Dropped {
			dropped = append(dropped, r.Dropped)
			continue
		}
		numbers = append(numbers, r.Sent)
	}
	return numbers, dropped
}

func write(l *Log, from, to uint64) {
	for i := from; i < to; i++ {
		l.Write(Record{Event: Cut, Sent: i})
	}
}

func count(to uint64) (numbers []uint64) {
	for i := range to {
		numbers = append(numbers, i)
	}
	return numbers
}

// TestWriteGathers: records are written in their order, many at once, soon after
// the first; and nothing stirs where there are none.
func TestWriteGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{}
		l := begin(s, Config{Gateway: "west"})
		began := time.Now()
		write(l, 0, 1000)
		time.Sleep(gather)
		synctest.Wait()
		if n, _ := s.all(); !slices.Equal(n, count(1000)) || s.writes != 4 {
			t.Errorf("%d records in %d writes, want 1000 in 4, in order", len(n), s.writes)
		}
		for _, r := range s.records {
			if r.Gateway != "west" || !r.Time.Equal(began) || r.Time.Location() != time.UTC {
				t.Fatalf("record %+v", r)
			}
		}
		time.Sleep(time.Hour)
		if s.writes != 4 {
			t.Errorf("%d writes of nothing", s.writes-4)
		}
		write(l, 1000, 1001)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if n, _ := s.all(); len(n) != 1001 || !s.closed {
			t.Errorf("%d records after Close, want 1001; closed: %t", len(n), s.closed)
		}
		if st := l.Stats(); st.Written[Cut] != 1001 || st.Dropped != 0 || st.Err != nil || len(st.Written) != len(Events()) {
			t.Errorf("stats %+v", st)
		}
	})
}

// TestSinkFails: while the sink takes nothing, records wait, then are dropped and
// counted; when it takes them again, those that have waited come first and whole,
// and then a record of how many are missing.
func TestSinkFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{}
		l := begin(s, Config{Queue: 512})
		full := errors.New("no space left on device")
		s.now(full, 10)
		const wait = 512 + batchSize // in the queue, and in the writer's hand
		write(l, 0, batchSize)
		time.Sleep(gather)
		synctest.Wait() // in its hand now
		write(l, batchSize, wait+100)
		time.Sleep(10 * time.Second)
		if st := l.Stats(); st.Written[Cut] != 10 || st.Dropped != 100 || !errors.Is(st.Err, full) {
			t.Errorf("while it fails: %d written, %d dropped, %v", st.Written[Cut], st.Dropped, st.Err)
		}
		s.now(nil, 0)
		time.Sleep(retry)
		synctest.Wait()
		n, dropped := s.all()
		if !slices.Equal(n, count(wait)) || !slices.Equal(dropped, []uint64{100}) {
			t.Errorf("%d records, missing %v, want the first %d and 100 missing", len(n), dropped, wait)
		}
		if last := s.records[len(s.records)-1]; last.Event != Dropped {
			t.Errorf("the last record is %+v", last)
		}
		if st := l.Stats(); st.Written[Cut] != wait || st.Written[Dropped] != 1 || st.Dropped != 100 || st.Err != nil {
			t.Errorf("afterwards: %+v", st)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestCloseLoses: what a sink does not take before the end is counted and told.
func TestCloseLoses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &shelf{}
		l := begin(s, Config{})
		s.now(errors.New("gone"), 3)
		write(l, 0, 1000)
		began := time.Now()
		if err := l.Close(); err == nil || err.Error() != "close audit: 997 records are lost: gone" {
			t.Errorf("Close says %v", err)
		}
		if took := time.Since(began); took > lastWords {
			t.Errorf("Close took %s", took)
		}
		if n, _ := s.all(); l.Stats().Dropped != 997 || len(n) != 3 || !s.closed {
			t.Errorf("%d dropped, %d written", l.Stats().Dropped, len(n))
		}
	})
}

// hung is a sink that never comes back.
type hung struct{ forever chan struct{} }

func (h hung) write([]Record) (int, error) { <-h.forever; return 0, nil }
func (h hung) close() error                { return nil }

// TestSinkHangs: a sink that never comes back, as a dead NFS server's, holds up
// neither Write nor the end.
func TestSinkHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := hung{make(chan struct{})}
		l := begin(s, Config{Queue: 64})
		write(l, 0, 10)
		time.Sleep(time.Minute)
		write(l, 0, 1000)
		if d := l.Stats().Dropped; d != 936 {
			t.Errorf("%d dropped, want 936", d)
		}
		if err := l.Close(); err == nil {
			t.Error("Close says nothing of what is lost")
		}
		close(s.forever)
	})
}

// TestManyWriters: whoever writes, nothing is lost, nothing doubled, and each one's
// records keep their order.
func TestManyWriters(t *testing.T) {
	const writers, each = 8, 5000
	s := &shelf{}
	l := begin(s, Config{Queue: 64})
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				l.Write(Record{Event: Allowed, Sent: uint64(i), Peer: fmt.Sprint(w)})
			}
		})
	}
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	last := map[string]int{}
	var written, missing uint64
	for _, r := range s.records {
		if r.Event == Dropped {
			missing += r.Dropped
			continue
		}
		written++
		if before, seen := last[r.Peer]; seen && int(r.Sent) <= before {
			t.Fatalf("writer %s: %d after %d", r.Peer, r.Sent, before)
		}
		last[r.Peer] = int(r.Sent)
	}
	if st := l.Stats(); written+missing != writers*each || missing != st.Dropped || written != st.Written[Allowed] {
		t.Errorf("%d written and %d missing of %d; stats %+v", written, missing, writers*each, st)
	}
}

// TestNil: a gateway without an audit writes to nothing.
func TestNil(t *testing.T) {
	var l *Log
	l.Write(Record{Event: Allowed})
	if st := l.Stats(); len(st.Written) != len(Events()) || st.Dropped != 0 {
		t.Errorf("stats %+v", st)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Open(Config{}); err == nil {
		t.Error("a log that goes nowhere was opened")
	}
}

// TestJSON: one line, in which every field says what it was given.
func TestJSON(t *testing.T) {
	r := full()
	line := r.appendJSON(nil)
	if bytes.Count(line, []byte("\n")) != 1 || line[len(line)-1] != '\n' {
		t.Errorf("not one line: %q", line)
	}
	var back Record
	if err := json.Unmarshal(line, &back); err != nil || back != r {
		t.Errorf("%s is read as %+v, %v", line, back, err)
	}
}

// full is a record with every field.
func full() Record {
	return Record{
		Time: time.Date(2026, 11, 25, 12, 0, 0, 123456789, time.UTC), Event: Denied, Gateway: "west", Direction: "inbound",
		Peer: "east", ID: "spiffe://mesh.example/gateway/east", Serial: "1f", Client: client, Target: target,
		From: netip.MustParseAddrPort("[2001:db8::1]:5000"), Reason: "policy_deny", Rule: "no-telnet", RuleAt: "/etc/<a&b>\n/west.yaml:7",
		Sent: 1, Received: 2, Dropped: 3,
	}
}

// BenchmarkWrite is what a decision costs the one who makes it; the others write at
// the same time.
func BenchmarkWrite(b *testing.B) {
	for _, bench := range []struct {
		name string
		sink sink
	}{{"taken", &null{}}, {"stalled", hung{make(chan struct{})}}} {
		b.Run(bench.name, func(b *testing.B) {
			l := begin(bench.sink, Config{Gateway: "west"})
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					l.Write(Record{Event: Allowed, Direction: "inbound", Peer: "east", ID: "spiffe://mesh.example/gateway/east", Client: client, Target: target})
				}
			})
		})
	}
}

// null takes everything, in its line of JSON.
type null struct{ buf []byte }

func (n *null) write(records []Record) (int, error) {
	for i := range records {
		n.buf = records[i].appendJSON(n.buf[:0])
	}
	return len(records), nil
}

func (n *null) close() error { return nil }
