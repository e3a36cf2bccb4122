package tunnel

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/tunnel/engine"
	"wishbone/tunnel/hbone"
)

// worker is one loop with both directions on it. Everything but load belongs
// to the loop.
type worker struct {
	g     *Gateway
	loop  *engine.Loop
	out   *outbound
	in    *inbound
	flows map[*engine.Flow]*carried
	// sessions are those of all tunnels, whoever dialled.
	sessions map[*engine.Tunnel]*living
	judged   time.Duration // when they were last judged anew; 0 for never
	round    int           // the round of that
	anew     engine.Timer  // while peers are waited for that must prove themselves anew
	leaf     time.Time     // since when our own certificate is the present one
	stats    Stats
	load     atomic.Int64 // accepted tunnels
	captured atomic.Int64 // live captured connections
	sweep    engine.Timer
	idle     func() // called once, when draining, the last flow has ended, and peers have no tunnel here
}

func newWorker(g *Gateway) (*worker, error) {
	loop, err := engine.NewLoop()
	if err != nil {
		return nil, err
	}
	w := &worker{g: g, loop: loop, flows: make(map[*engine.Flow]*carried), sessions: make(map[*engine.Tunnel]*living)}
	w.stats.init()
	w.out = newOutbound(w)
	w.in = newInbound(w)
	return w, nil
}

// run is the loop's goroutine; Gateway.Close waits for it.
func (w *worker) run() {
	w.loop.Post(w.everySecond)
	if err := w.loop.Run(); err != nil {
		w.g.cfg.Log.Error("event loop failed", "error", err)
	}
}

func (w *worker) everySecond() {
	w.out.pool.Sweep()
	w.tidy()
	w.expire(time.Now())
	w.loop.After(&w.sweep, time.Second, w.everySecond)
}

// leaves notes that a tunnel of a peer's, accepted for this loop, is no more. It was
// counted in a.
func (w *worker) leaves(id spiffeid.ID, a *admitted) {
	w.load.Add(-1)
	a.leave(id.String())
}

// drain stops new connections; idle is called when there are none left, and none can
// come: a peer's tunnel ends when the peer has heard that it takes no more.
func (w *worker) drain(idle func()) {
	w.idle = idle
	w.out.drain()
	w.in.drain()
	w.checkIdle()
}

func (w *worker) checkIdle() {
	if w.idle != nil && len(w.flows) == 0 && len(w.in.tunnels) == 0 {
		w.in.close() // nothing may begin any more
		w.idle()
		w.idle = nil
	}
}

var errShutdown = errors.New("gateway is stopping")

// cut ends all flows, and the tunnels of peers, so that there are no more. It returns
// how many there were that had come to be: what is still on its way is refused.
func (w *worker) cut() (n int) {
	for f, c := range w.flows {
		if c.state == stateOpen {
			n++
		}
		c.cut = string(hbone.Draining)
		f.Abort(engine.Cut, errShutdown)
	}
	w.in.close()
	return n
}

func (w *worker) close() {
	w.cut()
	w.out.close()
	// Tunnels close in their next turn, which still belongs to this round.
	w.loop.Post(w.loop.Stop)
}

// reload asks again for every live tunnel and flow, and forgets peers that are gone.
func (w *worker) reload(round int) {
	w.out.reload()
	w.judge(round)
	for f, c := range w.flows {
		if err := c.allowed(w.g); err != nil {
			w.forbid(f, c, err)
		}
	}
}
