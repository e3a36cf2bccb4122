package tunnel

import (
	"errors"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/tunnel/engine"
)

var errReplaced = errors.New("the client began a new connection from the same port")

// tuples knows which delivery holds which 4-tuple, over all loops.
type tuples struct {
	mu   sync.Mutex
	held map[tuple]*delivery // guarded by mu
}

// register notes the 4-tuple of a delivery whose port is the client's own.
func (d *delivery) register() {
	if d.permit.From().Port() == 0 {
		return
	}
	d.tuple = tuple{d.permit.From(), d.permit.To()}
	t := &d.pt.in.w.g.tuples
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held == nil {
		t.held = make(map[tuple]*delivery)
	}
	t.held[d.tuple] = d
}

func (d *delivery) unregister() {
	if d.tuple == (tuple{}) {
		return
	}
	t := &d.pt.in.w.g.tuples
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held[d.tuple] == d {
		delete(t.held, d.tuple)
	}
}

// holder is the delivery that has d's 4-tuple, or nil.
func (d *delivery) holder() *delivery {
	t := &d.pt.in.w.g.tuples
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.held[tuple{d.permit.From(), d.permit.To()}]
}

// Attempts at a 4-tuple that is in use wait twice as long each, a second in all.
const (
	firstWait = time.Millisecond
	lastWait  = 512 * time.Millisecond
)

// again delivers once more if the 4-tuple was in use (connect(2), EADDRNOTAVAIL),
// and reports whether it will. An earlier connection of the same client must be
// in the way, and must be dead, since the client would not use the port again
// otherwise. If it is still ours it is ended. If not, it is the kernel's until
// the server has acknowledged its end (RFC 9293 §3.3.2, LAST-ACK), which takes a
// round trip. What another peer holds is never touched.
func (d *delivery) again(err error) bool {
	if !errors.Is(err, unix.EADDRNOTAVAIL) || d.permit.From().Port() == 0 || d.wait >= lastWait {
		return false
	}
	old, first := d.holder(), d.wait == 0
	d.wait = max(firstWait, 2*d.wait)
	switch {
	case old == nil:
		d.pt.in.w.loop.After(&d.timer, d.wait, d.deliverAgain)
		return true
	case old.info.peer == d.info.peer && first:
		return d.replace(old)
	}
	return false
}

// replace ends old, which may belong to another loop, and delivers d.
func (d *delivery) replace(old *delivery) bool {
	back := d.pt.in.w.loop
	return old.pt.in.w.loop.Post(func() {
		old.flow.Abort(engine.Replaced, errReplaced)
		back.Post(d.deliverAgain)
	})
}

func (d *delivery) deliverAgain() {
	if !d.flow.Done() {
		d.deliver(d.permit)
	}
}
