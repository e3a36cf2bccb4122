package engine

import (
	"slices"
	"testing"
	"time"
)

// TestTimers: timers run in the order of their times, can be moved and
// cancelled, also by one another, and set again from within themselves.
func TestTimers(t *testing.T) {
	l, err := NewLoop()
	if err != nil {
		t.Fatal(err)
	}
	var ran []string
	note := func(name string) func() { return func() { ran = append(ran, name) } }
	at := func(now time.Duration, want ...string) {
		t.Helper()
		ran = nil
		l.now = now
		l.runTimers()
		if !slices.Equal(ran, want) {
			t.Errorf("at %d ran %q, want %q", now, ran, want)
		}
	}
	var a, b, c, d, again Timer
	l.At(&a, 30, note("a"))
	l.At(&b, 10, note("b"))
	l.At(&c, 20, note("c"))
	l.At(&d, 25, func() { l.Cancel(&a); note("d")() })
	l.At(&again, 10, func() {
		note("again")()
		if l.now < 20 {
			l.At(&again, 20, note("once more"))
		}
	})
	l.Cancel(&Timer{})
	at(9)
	l.At(&b, 15, note("moved"))
	at(10, "again")
	at(19, "moved")
	l.At(&c, 40, note("c"))
	at(24, "once more")
	at(30, "d")
	l.Cancel(&c)
	l.Cancel(&c)
	at(100)
	if len(l.timers) != 0 {
		t.Errorf("%d timers are left", len(l.timers))
	}
	l.Stop()
	if err := l.Run(); err != nil {
		t.Error(err)
	}
}
