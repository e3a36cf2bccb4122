package tunnel

import (
	"golang.org/x/sys/unix"

	"wishbone/intercept"
)

// The first loop takes captured connections off their listener, and keeps them for
// as long as it can well do so by itself: a loop that is awake takes the next one for
// less than another takes to wake up, and one tunnel carries them in fewer and larger
// writes. Others get them while the first is busy most of the time, and where it
// would have many more of the live ones than they: those may all be idle now and
// busy later, and never change their loop.

const (
	busy  = .7 // of its time
	ahead = 32 // live connections more than another loop has
)

// place gives a captured connection to the loop that it is to live on. It runs on
// the first.
func (g *Gateway) place(in intercept.Flow) {
	first := g.workers[0]
	w := g.least()
	if w == first || first.captured.Load() < w.captured.Load()+ahead && first.loop.Load() < busy {
		first.out.carry(in)
		return
	}
	w.captured.Add(1) // so that the next one is not placed as if this were not there
	if !w.loop.Post(func() { w.captured.Add(-1); w.out.carry(in) }) {
		g.cfg.Log.Warn("captured connection lost", "client", in.Client, "target", in.Target, "error", errShutdown)
		unix.Close(in.FD)
	}
}

// least is the loop, the first apart if there is another, with the fewest live
// captured connections.
func (g *Gateway) least() *worker {
	least := g.workers[len(g.workers)-1]
	for _, w := range g.workers[1:] {
		if w.captured.Load() < least.captured.Load() {
			least = w
		}
	}
	return least
}

// count keeps captured.
func (w *worker) count(d Direction, n int64) {
	if d == OutboundFlow {
		w.captured.Add(n)
	}
}
