package engine

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// home is the processor that a loop keeps to while flows begin on it all the time. The
// kernel does its part of a connection on the processor of the call or the packet, and
// wakes whoever waits for it there: to wake a loop on another one costs as much as it has to
// do for a short connection. One that carries bytes, or has little to do, goes where
// there is room.
type home struct {
	cpu    int           // or negative: none
	inside bool          // keeps to cpu
	back   unix.CPUSet   // where the thread may be otherwise
	begun  int           // flows since look
	often  time.Duration // when flows began often last
}

const (
	often    = 500         // flows that begin in a second
	calmTime = time.Second // that fewer do before the loop is free again
)

// Home gives the loop a processor to keep to while flows begin often. It is for before
// Run, which then keeps its thread to itself, to the end.
func (l *Loop) Home(cpu int) { l.home.cpu = cpu }

// enter is called on the loop's goroutine first.
func (h *home) enter() {
	if h.cpu >= 0 {
		runtime.LockOSThread() // not given back: the thread ends with the loop, and its affinity
	}
}

// look sees how many flows have begun in a while.
func (h *home) look(now, past time.Duration) {
	begun := h.begun
	h.begun = 0
	switch {
	case h.cpu < 0:
	case begun >= int(often*past/time.Second):
		h.often = now
		if !h.inside {
			h.keep()
		}
	case h.inside && now-h.often > calmTime:
		h.leave()
	}
}

// keep keeps the thread to the processor, if it may be there at present. Failures are of
// no account: all this is only about speed.
func (h *home) keep() {
	if unix.SchedGetaffinity(0, &h.back) != nil || !h.back.IsSet(h.cpu) {
		return
	}
	// A thread that may go wherever its cpuset lets it also may when that changes.
	if all := every(); unix.SchedSetaffinity(0, &all) == nil && affinity() == h.back {
		h.back = all
	}
	h.inside = unix.SchedSetaffinity(0, h.only()) == nil
}

// leave lets the thread go where it could, unless somebody else has said since where.
func (h *home) leave() {
	h.inside = false
	if affinity() == *h.only() {
		_ = unix.SchedSetaffinity(0, &h.back) // as in keep
	}
}

func (h *home) only() *unix.CPUSet {
	var set unix.CPUSet
	set.Set(h.cpu)
	return &set
}

// affinity is where the thread may be; nowhere if that cannot be said.
func affinity() (set unix.CPUSet) {
	_ = unix.SchedGetaffinity(0, &set)
	return set
}

// every is all processors that there can be; the kernel takes those that there are
// (sched_setaffinity(2)).
func every() (set unix.CPUSet) {
	for i := range set {
		set[i] = ^set[i]
	}
	return set
}
