package cli

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// stalled takes nothing until it is released.
type stalled struct {
	release chan struct{}
	mu      sync.Mutex
	got     bytes.Buffer // guarded by mu
}

func (s *stalled) Write(p []byte) (int, error) {
	<-s.release
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.Write(p)
}

// TestLogNeverWaits: a log that nobody reads costs lines, and nobody's time; the
// lines that are missing are told of.
func TestLogNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &stalled{release: make(chan struct{})}
		w := newLogWriter(out)
		w.tell(func(n uint64) { fmt.Fprintf(w, "%d are missing\n", n) })
		line := strings.Repeat("x", 1023) + "\n"
		write := func() {
			if n, err := io.WriteString(w, line); n != len(line) || err != nil {
				t.Fatal(n, err)
			}
		}
		write()
		<-time.After(2 * logGather) // it hangs in the first write now
		const room = logRoom / 1024
		for range room + 7 {
			write()
		}
		if n := w.Dropped(); n != 7 {
			t.Errorf("%d lines are dropped, want 7", n)
		}
		close(out.release)
		synctest.Wait()
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if got := out.got.String(); strings.Count(got, line) != room+1 || !strings.HasSuffix(got, "7 are missing\n") {
			t.Errorf("%d lines, the last %.50q", strings.Count(got, line), got[len(got)-50:])
		}
	})
}

// broken is a log that cannot be written, until it is mended.
type broken struct {
	bytes.Buffer
	mended atomic.Bool
}

func (b *broken) Write(p []byte) (int, error) {
	if !b.mended.Load() {
		return 0, io.ErrClosedPipe
	}
	return b.Buffer.Write(p)
}

// TestLogBreaks: lines that could not be written are counted, and told of when that
// is possible again.
func TestLogBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out broken
		w := newLogWriter(&out)
		w.tell(func(n uint64) { fmt.Fprintf(w, "%d are missing\n", n) })
		for range 2 {
			fmt.Fprint(w, "one\ntwo\n")
			<-time.After(2 * logGather)
		}
		if n := w.Dropped(); n != 4 {
			t.Errorf("%d lines are dropped, want 4", n)
		}
		out.mended.Store(true)
		fmt.Fprintln(w, "five")
		<-time.After(2 * logGather)
		if err := w.Close(); err != nil || out.String() != "five\n4 are missing\n" {
			t.Errorf("%q, %v", out.String(), err)
		}
	})
}

// TestLogEnds: what was said last is written, if it can be.
func TestLogEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		w := newLogWriter(&out)
		fmt.Fprintln(w, "last words")
		if err := w.Close(); err != nil || out.String() != "last words\n" {
			t.Errorf("%q, %v", out.String(), err)
		}
		hung := &stalled{release: make(chan struct{})}
		w = newLogWriter(hung)
		fmt.Fprintln(w, "last words")
		if err := w.Close(); err == nil {
			t.Error("it says that they are written")
		}
		close(hung.release)
		<-w.done
	})
}

// TestLogGathers: a line is written at once, those that follow soon wait for company, and
// many do not wait.
func TestLogGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &stalled{release: make(chan struct{})}
		close(out.release)
		w := newLogWriter(out)
		defer w.Close()
		written := 0
		write := func(n, want int) {
			t.Helper()
			if _, err := io.WriteString(w, strings.Repeat("x", n)); err != nil {
				t.Fatal(err)
			}
			written += n
			synctest.Wait()
			if got := out.len(); got != want {
				t.Errorf("%d bytes are written of %d, want %d", got, written, want)
			}
		}
		write(10, 10)
		write(20, 10)
		<-time.After(logGather)
		write(0, 30)
		write(logMuch-1, 30)
		write(1, 30+logMuch)
	})
}

func (s *stalled) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.Len()
}
