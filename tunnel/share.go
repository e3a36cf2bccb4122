package tunnel

import (
	"time"

	"golang.org/x/sys/unix"

	"wishbone/intercept"
	"wishbone/tunnel/engine"
)

// Each loop has an entrance: the listener for connections that arrive on its processor.
// The first loop minds all of them for as long as it can well do so by itself: a loop
// that is awake takes the next connection for less than another takes to wake up, and
// one tunnel to a peer is always warm, and carries all in fewer and larger writes. When
// it is busy, or has many more live connections than another loop, which may all be idle
// now and busy later, and never change their loop, it leaves to that other its
// entrance. What comes through it then wakes no other processor. A loop that hardly
// anybody comes to gives its entrance back.
//
// All may come from one processor, as from a network card with a single queue: a loop
// that minds no entrance but its own passes single connections on.

const (
	busy    = .25 // of the first loop's time
	crowded = .7  // of a loop's time, and another has less than half to do
	ahead   = 32  // live connections more than another loop has
	hardly  = 10  // connections in a second
	calm    = 10  // seconds of that
)

// entrance is one listener. The descriptor stays that of Capture's caller.
type entrance struct {
	fd   int
	home *worker // whose processor's connections arrive there
}

// place gives a connection to the loop that it is to live on. It runs on the loop that
// minds the entrance.
func (w *worker) place(e entrance, in intercept.Flow) {
	to := e.home
	switch {
	case to == w:
		to = w.relief()
	case w.many(to), w.loop.Load() >= busy && to.loop.Load() < w.loop.Load():
		w.hand(to)
	default:
		to = w
	}
	if to == w {
		w.out.carry(in)
		return
	}
	to.captured.Add(1) // so that the next one is not placed as if this were not there
	if !to.loop.Post(func() { to.captured.Add(-1); to.out.carry(in) }) {
		w.g.cfg.Log.Warn("captured connection lost", "client", in.Client, "target", in.Target, "error", errShutdown)
		unix.Close(in.FD)
	}
}

// relief is the loop that has the fewest live captured connections, or the least to do, if
// that makes much of a difference; else w.
func (w *worker) relief() *worker {
	fewest, idlest := w, w
	for _, other := range w.g.workers {
		if other.captured.Load() < fewest.captured.Load() {
			fewest = other
		}
		if other.loop.Load() < idlest.loop.Load() {
			idlest = other
		}
	}
	switch load := w.loop.Load(); {
	case w.many(fewest):
		return fewest
	case load >= crowded && idlest.loop.Load() < load/2 && !idlest.many(w):
		return idlest
	}
	return w
}

// many says that w has many more live connections than another.
func (w *worker) many(other *worker) bool { return w.captured.Load() >= other.captured.Load()+ahead }

// hand leaves to another loop the entrances that w minds and that are its own, or to
// the first loop all.
func (w *worker) hand(to *worker) {
	for e := range w.out.entrances {
		if e.home == to || to == w.g.workers[0] {
			w.out.leave(e)
			to.loop.Post(func() { to.mind(e) }) // a loop that has ended takes nobody anyway
		}
	}
}

// mind takes over an entrance. If the kernel has no room for that just now, those who come
// wait.
func (w *worker) mind(e entrance) {
	w.out.calm = 0
	if err := w.out.listen(e); err != nil && err != errShutdown {
		w.g.cfg.Log.Warn("captured connections wait: their listener cannot be watched just now", "error", err)
		w.loop.After(new(engine.Timer), time.Second, func() { w.mind(e) })
	}
}

// everySecond's part: an entrance that is hardly used goes back to the first loop.
func (w *worker) tidy() {
	o := w.out
	o.calm++
	if o.taken > hardly {
		o.calm = 0
	}
	o.taken = 0
	if first := w.g.workers[0]; w != first && o.calm >= calm && len(o.entrances) > 0 {
		w.hand(first)
	}
}

// count keeps captured.
func (w *worker) count(d Direction, n int64) {
	if d == OutboundFlow {
		w.captured.Add(n)
	}
}
