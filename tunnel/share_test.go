package tunnel

import (
	"net"
	"testing"
)

// TestLoopsShare: live connections do not pile up on the first loop.
func TestLoopsShare(t *testing.T) {
	serve(t)
	p := newPair(t, Config{}, Config{})
	clients := newSide(t, p.west)
	first, other := p.west.workers[0], p.west.workers[1]
	var live []net.Conn
	for range 3 * ahead {
		c := clients.dial(0)
		exchange(t, c, "hello")
		live = append(live, c)
	}
	a, b := first.captured.Load(), other.captured.Load()
	if a+b != 3*ahead || a > b+ahead {
		t.Errorf("the loops have %d and %d of %d connections", a, b, 3*ahead)
	}
	for _, c := range live {
		c.Close()
	}
	eventually(t, "all are gone", func() bool { return first.captured.Load() == 0 && other.captured.Load() == 0 })
}
