package cli

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"time"
)

// logWriter passes lines on to where the log goes, and never makes those wait who
// log: event loops do, and what the log goes to may be a pipe that nobody reads.
// Lines that there is no room for, or that cannot be written, are dropped and counted.
type logWriter struct {
	out  io.Writer
	wake chan struct{} // holds one: there are lines
	much chan struct{} // holds one: there are many
	stop chan struct{} // closed by Close
	done chan struct{} // closed when the last line is written

	mu      sync.Mutex
	lines   []byte               // guarded by mu
	dropped uint64               // guarded by mu
	told    func(dropped uint64) // hears of lines that are missing; guarded by mu
}

const (
	logRoom   = 1 << 20                // bytes of lines that may wait
	logGather = 100 * time.Millisecond // between writes, so that one is many lines when there are many
	logMuch   = 128 << 10              // bytes that do not wait for that
	lastLines = 2 * time.Second        // for Close
)

// newLogWriter begins to write to out. The caller closes it.
func newLogWriter(out io.Writer) *logWriter {
	w := &logWriter{out: out, wake: make(chan struct{}, 1), much: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	go w.run() // ends with Close
	return w
}

// Write takes a line. It does not fail.
func (w *logWriter) Write(line []byte) (int, error) {
	w.mu.Lock()
	if len(w.lines)+len(line) > logRoom {
		w.dropped++
	} else {
		w.lines = append(w.lines, line...)
	}
	much := len(w.lines) >= logMuch
	w.mu.Unlock()
	poke(w.wake)
	if much {
		poke(w.much)
	}
	return len(line), nil
}

// poke puts a token into a channel that holds one, unless it has one already.
func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Dropped is how many lines were dropped so far.
func (w *logWriter) Dropped() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dropped
}

// tell has f hear of lines that are missing, how many since the last time. F may
// write some.
func (w *logWriter) tell(f func(dropped uint64)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = f
}

// run writes what there is until Close.
func (w *logWriter) run() {
	defer close(w.done)
	b := new(logBatch)
	for stopping := false; !stopping; {
		select {
		case <-w.wake:
			w.flush(b)
			stopping = w.gather()
		case <-w.stop:
			stopping = true
		}
	}
	w.flush(b)
	w.flush(b) // what told has written
}

// logBatch is the writer's own.
type logBatch struct {
	lines   []byte
	dropped uint64 // that were told of
}

func (w *logWriter) flush(b *logBatch) {
	w.mu.Lock()
	b.lines, w.lines = w.lines, b.lines[:0]
	missing, told := w.dropped-b.dropped, w.told
	w.mu.Unlock()
	if len(b.lines) == 0 {
		return
	}
	if n, err := w.out.Write(b.lines); err != nil { // there is nobody to tell, now
		w.mu.Lock()
		defer w.mu.Unlock()
		w.dropped += uint64(bytes.Count(b.lines[n:], []byte("\n")))
		return
	}
	b.dropped += missing
	if missing > 0 && told != nil {
		told(missing)
	}
}

// gather waits for more, and reports whether Close was called.
func (w *logWriter) gather() (stopping bool) {
	t := time.NewTimer(logGather)
	defer t.Stop()
	select {
	case <-t.C:
		return false
	case <-w.much:
		return false
	case <-w.stop:
		return true
	}
}

// Close writes what there is, for two seconds at most. Nothing may be written
// afterwards.
func (w *logWriter) Close() error {
	close(w.stop)
	select {
	case <-w.done:
		return nil
	case <-time.After(lastLines):
		return errors.New("the last lines of the log could not be written")
	}
}
