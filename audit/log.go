package audit

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"
)

// Config says where records go: to one of File, Syslog and Journald.
type Config struct {
	// File is the path of a file for lines of JSON.
	File string
	// Syslog is the datagram socket of a syslog daemon, /dev/log.
	Syslog string
	// Journald is that of systemd's journal, /run/systemd/journal/socket.
	Journald string
	// Gateway is the name that records have.
	Gateway string
	// Queue is how many records may wait for the sink: a power of two. 0 means
	// 8192, which is 2.3 MiB.
	Queue int
	// Log is told when records cannot be written, and when they can again. Nil
	// discards.
	Log *slog.Logger
}

// Times of the writer.
const (
	gather    = 10 * time.Millisecond // from the first record of a batch to its writing
	retry     = time.Second           // between attempts when the sink fails
	patience  = time.Second           // for a sink to take a batch
	lastWords = 2 * time.Second       // for Close
)

// batchSize is how many records are written at once, at most.
const batchSize = 256

// sink is where records go. Only the writer calls it.
type sink interface {
	// write writes records, and says how many it has. After an error the rest is
	// tried again, as it is.
	write(records []Record) (int, error)
	close() error
}

// Log takes records from any goroutine and writes them in one of its own. All
// methods may be called on a nil Log, which keeps nothing.
type Log struct {
	cfg     Config
	sink    sink
	queue   *queue
	waiting atomic.Bool   // the writer waits for wake
	wake    chan struct{} // holds one
	stop    chan struct{} // closed by Close
	done    chan struct{} // closed when the writer has ended

	counts  []atomic.Uint64 // written, as events has them
	dropped atomic.Uint64
	failing atomic.Pointer[error] // nil while the sink takes records

	told uint64 // of dropped, in records that are written; the writer's
}

// Open opens the sink and begins to write. The caller ends it with Close.
func Open(cfg Config) (*Log, error) {
	s, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return begin(s, cfg), nil
}

func open(cfg Config) (sink, error) {
	switch {
	case cfg.File != "":
		return openFile(cfg.File)
	case cfg.Syslog != "":
		return openDatagram(cfg.Syslog, syslogMessage())
	case cfg.Journald != "":
		return openDatagram(cfg.Journald, journalMessage)
	}
	return nil, errors.New("nowhere to write to")
}

func begin(s sink, cfg Config) *Log {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &Log{
		cfg: cfg, sink: s, queue: newQueue(cmp.Or(cfg.Queue, 8192)),
		counts: make([]atomic.Uint64, len(events)),
		wake:   make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{}),
	}
	go l.run() // ends with Close
	return l
}

// Write keeps r, with the present time. It never waits: without room in the queue
// r is dropped, and counted.
func (l *Log) Write(r Record) {
	if l == nil {
		return
	}
	r.Time, r.Gateway = time.Now().UTC(), l.cfg.Gateway
	if !l.queue.put(&r) {
		l.dropped.Add(1)
	}
	if l.waiting.Load() && l.waiting.CompareAndSwap(true, false) {
		select {
		case l.wake <- struct{}{}:
		default: // somebody has woken it already
		}
	}
}

// Stats are what has become of records.
type Stats struct {
	// Written counts records that the sink has taken.
	Written map[Event]uint64
	// Dropped counts those that it never will.
	Dropped uint64
	// Err is why it takes none now; nil while it does.
	Err error
}

// Stats tells how the log does. Every event is in Written.
func (l *Log) Stats() Stats {
	s := Stats{Written: make(map[Event]uint64)}
	for i, e := range events {
		s.Written[e] = 0
		if l != nil {
			s.Written[e] = l.counts[i].Load()
		}
	}
	if l != nil {
		s.Dropped = l.dropped.Load()
		if err := l.failing.Load(); err != nil {
			s.Err = *err
		}
	}
	return s
}

// Close writes what there is, if the sink takes it, and closes the sink. It takes
// two seconds at most, and nothing may be written afterwards. The error says how
// much was lost.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	before := l.dropped.Load()
	close(l.stop)
	select {
	case <-l.done:
	case <-time.After(lastWords):
		return errors.New("close audit: the sink takes nothing, and records are lost")
	}
	if lost := l.dropped.Load() - before; lost > 0 {
		return fmt.Errorf("close audit: %d records are lost: %w", lost, l.Stats().Err)
	}
	return nil
}

// run is the writer.
func (l *Log) run() {
	defer close(l.done)
	batch := make([]Record, 0, batchSize)
	for l.await() {
		for batch = l.fill(batch); len(batch) > 0; batch = l.fill(batch[:0]) {
			l.writeAll(batch)
		}
	}
	if err := l.sink.close(); err != nil {
		l.cfg.Log.Warn("close audit", "error", err)
	}
}

// stopping says whether Close was called.
func (l *Log) stopping() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

// await returns true when there is something to write, some time after the first
// record so that few batches are many records: each costs a system call. It
// returns false when all is written and there will be no more.
func (l *Log) await() bool {
	l.waiting.Store(true) // before looking: who writes later sees it
	if !l.more() {
		select {
		case <-l.wake:
		case <-l.stop:
		}
	}
	l.waiting.Store(false)
	pause(gather, l.stop)
	return !l.stopping() || l.more()
}

// more says whether there is something to write.
func (l *Log) more() bool { return !l.queue.empty() || l.dropped.Load() != l.told }

// pause waits, or less if stop is closed.
func pause(d time.Duration, stop <-chan struct{}) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-stop:
	}
}

// fill takes a batch from the queue, and adds a record about those that are missing
// once all that came before them is taken.
func (l *Log) fill(batch []Record) []Record {
	batch = l.queue.take(batch[:0])
	if n := l.dropped.Load(); n > l.told && len(batch) < cap(batch) {
		batch = append(batch, Record{Time: time.Now().UTC(), Event: Dropped, Gateway: l.cfg.Gateway, Dropped: n - l.told})
		l.told = n
	}
	return batch
}

// writeAll writes a batch, however long that takes, or gives it up when the log is
// being closed.
func (l *Log) writeAll(batch []Record) {
	for {
		n, err := l.sink.write(batch)
		for i := range batch[:n] {
			l.count(batch[i].Event)
		}
		batch = batch[n:]
		l.report(err)
		if len(batch) == 0 {
			return
		}
		if l.stopping() {
			l.giveUp(batch)
			return
		}
		pause(retry, l.stop)
	}
}

func (l *Log) count(e Event) {
	if i := slices.Index(events, e); i >= 0 {
		l.counts[i].Add(1)
	}
}

// report tells of the first failure, and of its end.
func (l *Log) report(err error) {
	was := l.failing.Load()
	switch {
	case err != nil:
		l.failing.Store(&err)
		if was == nil {
			l.cfg.Log.Error("audit records cannot be written, and are kept for as long as there is room", "error", err)
		}
	case was != nil:
		l.failing.Store(nil)
		l.cfg.Log.Warn("audit records are written again", "dropped", l.dropped.Load()-l.told)
	}
}

// giveUp drops what could not be written before the end.
func (l *Log) giveUp(batch []Record) {
	for {
		for i := range batch {
			if batch[i].Event == Dropped {
				continue // stands for records that are counted
			}
			l.dropped.Add(1)
		}
		if batch = l.queue.take(batch[:0]); len(batch) == 0 {
			l.told = l.dropped.Load()
			return
		}
	}
}
