package hbone

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestTunnel: two machines carry a connection each way, whatever the distance
// and however the bytes are cut.
func TestTunnel(t *testing.T) {
	testChunkings(t, func(t *testing.T, chunk chunker) {
		for _, delay := range []time.Duration{0, 40 * time.Millisecond} {
			p := newPair(t, pairConfig{delay: delay, chunk: chunk})
			up, down := pattern(300_000), pattern(100_000)
			s := p.open()
			p.client.write(s, up)
			p.client.end(s)
			p.settle()
			far := p.server.rec.known[1]
			p.server.write(far, down)
			p.server.end(far)
			p.advance(time.Minute)
			for _, side := range []*side{p.client, p.server} {
				if e := side.rec.take(); !slices.Contains(e, "end 1") {
					t.Errorf("%s heard %q, want an end", side.name, e)
				}
			}
			if !bytes.Equal(p.server.rec.got[1], up) || !bytes.Equal(p.client.rec.got[1], down) {
				t.Error("the bytes are not what was sent")
			}
			if !s.Gone() || !far.Gone() {
				t.Error("the stream is not gone")
			}
		}
	})
}

// TestStalledReader: one whose reader has stopped holds what its window allows;
// its neighbours go on, for as long as they like.
func TestStalledReader(t *testing.T) {
	p := newPair(t, pairConfig{delay: time.Millisecond})
	stalled, far := p.opened()
	p.server.rec.hold = true
	p.client.write(stalled, pattern(1<<20))
	p.advance(time.Minute)
	if got := len(p.server.rec.got[far.id]); got != 256<<10 {
		t.Errorf("%d bytes for a reader that has stopped, want a window", got)
	}
	p.server.rec.hold = false
	for range 3 { // more than the connection's window in all
		s := p.open()
		p.client.write(s, pattern(6<<20))
		p.client.end(s)
		p.advance(time.Minute)
		if got := len(p.server.rec.got[s.id]); got != 6<<20 {
			t.Fatalf("a neighbour got %d bytes of 6 MiB", got)
		}
		clear(p.server.rec.got)
		p.server.end(p.server.rec.known[s.id])
		p.settle()
	}
	p.server.rec.deliver(far, 256<<10)
	p.client.end(stalled)
	p.advance(time.Minute)
	if got := len(p.server.rec.got[far.id]); got != 1<<20-256<<10 {
		t.Errorf("the rest is %d bytes, want all of it", got)
	}
}

// TestLongLine: on a line of 100 ms the windows grow until they hold nothing
// back; then 4 MiB are on the way at a time.
func TestLongLine(t *testing.T) {
	p := newPair(t, pairConfig{delay: 50 * time.Millisecond})
	s, far := p.opened()
	start := p.now
	p.client.write(s, pattern(32<<20))
	for len(p.server.rec.got[s.id]) < 32<<20 {
		if p.now-start > time.Minute {
			t.Fatalf("%d bytes in a minute", len(p.server.rec.got[s.id]))
		}
		p.advance(100 * time.Millisecond)
	}
	if far.window != 4<<20 {
		t.Errorf("window %d, want 4 MiB", far.window)
	}
	// 8 windows of a round trip each at best, and those it took to grow.
	if took := p.now - start; took > 2*time.Second {
		t.Errorf("32 MiB took %v", took)
	}
}

// TestManyStreams: as many as there may be, at once, all of them whole.
func TestManyStreams(t *testing.T) {
	p := newPair(t, pairConfig{delay: time.Millisecond, client: Config{TunnelBudget: 51 << 20}})
	p.settle()
	data := pattern(70_000)
	for round := range 2 {
		n := 0
		for ; p.client.Room() > 0; n++ {
			s := p.open()
			p.client.write(s, data)
			p.client.end(s)
		}
		if n != 200 {
			t.Fatalf("room for %d streams, want 200", n)
		}
		p.advance(time.Second)
		for _, s := range p.server.rec.known {
			p.server.write(s, data[:1000])
			p.server.end(s)
		}
		p.advance(time.Second)
		if got := p.client.Streams() + p.server.Streams(); got != 0 {
			t.Errorf("round %d: %d streams are left", round, got)
		}
		for id := range p.server.rec.known {
			if !bytes.Equal(p.server.rec.got[id], data) || !bytes.Equal(p.client.rec.got[id], data[:1000]) {
				t.Fatalf("stream %d: the bytes are not what was sent", id)
			}
		}
		clear(p.server.rec.known)
		clear(p.client.rec.known)
	}
}

// TestResetThroughTunnel: a reset overtakes nothing: what was sent before it
// arrives first, and its code says whose it was.
func TestResetThroughTunnel(t *testing.T) {
	p := newPair(t, pairConfig{delay: 20 * time.Millisecond})
	s, far := p.opened()
	p.client.write(s, []byte("last words"))
	p.run()
	s.Reset(http2.ErrCodeConnect)
	p.server.write(far, pattern(1000))
	p.settle()
	p.server.want("in order", "data 1 10", "reset 1 CONNECT_ERROR by peer")
	p.client.want("what was on its way is thrown away")
	if got := p.client.Streams() + p.server.Streams(); got != 0 {
		t.Errorf("%d streams are left", got)
	}
}

// TestSilentServer: requests that nobody answers end by the clock, on both
// sides.
func TestSilentServer(t *testing.T) {
	p := newPair(t, pairConfig{delay: 20 * time.Millisecond, silent: true})
	p.open()
	p.open()
	p.advance(15*time.Second - 1)
	p.client.want("14.9 s")
	p.advance(1)
	p.client.want("15 s", "refused 1 timeout", "refused 3 timeout")
	p.settle()
	p.server.want("and the dials can stop",
		"request 1 10.2.0.5:80 from 10.1.0.7:40000", "request 3 10.2.0.5:80 from 10.1.0.7:40000",
		"reset 1 CANCEL by peer", "reset 3 CANCEL by peer")
}

// TestOverloaded: a process without memory refuses streams; those there are go
// on, and what they leave is used again.
func TestOverloaded(t *testing.T) {
	p := newPair(t, pairConfig{budget: 1 << 20}) // two streams on both sides
	a, _ := p.opened()
	p.opened()
	if _, err := p.client.Open(p.now, testRequest, nil); err != ErrBudget {
		t.Fatalf("open: %v, want %v", err, ErrBudget)
	}
	a.Reset(http2.ErrCodeCancel)
	p.run()
	p.server.rec.take()
	if !p.budget.Take(100 << 10) { // somebody else
		t.Fatal("nothing came back")
	}
	p.client.rec.take()
	s := p.open()
	p.run()
	p.client.want("the server has none", fmt.Sprintf("refused %d overloaded 503", s.id))
	p.server.want("and says so", "overloaded: 10.2.0.5:80")
	p.budget.Give(100 << 10)
	p.opened()
}
