package engine

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// home is the processor that a loop keeps to while it is busy. The kernel does its part of
// a connection where the packet or the call comes from, and wakes whoever waits for
// it there: a loop that stays is not woken across processors, which costs as much as it
// has to do for a short connection. One that has little to do goes where there is
// room.
type home struct {
	cpu    int           // or negative: none
	all    unix.CPUSet   // where the thread may be otherwise
	inside bool          // keeps to cpu
	busy   time.Duration // when the loop was busy last
}

// Of its time that a loop is busy for before it keeps to its processor, and for how
// long it must have been less before it is free again.
const (
	Busy     = .25
	calmTime = time.Second
)

// Home gives the loop a processor to keep to while it is busy. It is for before Run,
// which then keeps its thread to itself, to the end.
func (l *Loop) Home(cpu int) { l.home.cpu = cpu }

// enter is called on the loop's goroutine first.
func (h *home) enter() {
	if h.cpu < 0 {
		return
	}
	runtime.LockOSThread() // not given back: the thread ends with the loop, and its affinity
	if unix.SchedGetaffinity(0, &h.all) != nil {
		h.cpu = -1
	}
}

// look sees how busy the loop is, 0 to 1.
func (h *home) look(now time.Duration, load float64) {
	switch {
	case h.cpu < 0:
	case load >= Busy:
		h.busy = now
		if !h.inside {
			var set unix.CPUSet
			set.Set(h.cpu)
			h.keep(&set, true)
		}
	case h.inside && now-h.busy > calmTime:
		h.keep(&h.all, false)
	}
}

// keep is only about speed: a processor that was taken from us, say, is no reason to fail.
func (h *home) keep(set *unix.CPUSet, inside bool) {
	if unix.SchedSetaffinity(0, set) != nil {
		h.cpu = -1
	}
	h.inside = inside
}
