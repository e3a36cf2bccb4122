package tunnel

import (
	"net"
	"testing"

	"wishbone/intercept"
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

// TestEntrances: the first loop leaves an entrance to its own loop when it has many more
// live connections than that, and gets it back when hardly anybody comes. Nobody who
// connects meanwhile is lost.
func TestEntrances(t *testing.T) {
	serve(t)
	p := newPair(t, Config{}, Config{})
	var fds []int
	clients := newSideOn(t, p.west, func() (_ []int, err error) {
		fds, err = intercept.ListenOn(target, intercept.Options{}, []int{0, 0})
		return fds, err
	})
	first, other := p.west.workers[0], p.west.workers[1]
	minds := func(w *worker) (n int) {
		p.west.on(w, func(w *worker) { n = len(w.out.entrances) })
		return n
	}
	for range 2 {
		if minds(first) != 2 || minds(other) != 0 {
			t.Fatalf("the loops mind %d and %d entrances", minds(first), minds(other))
		}
		var live []net.Conn
		for range 4 * ahead { // they come through both, by chance
			c := clients.dial(0)
			exchange(t, c, "hello")
			live = append(live, c)
		}
		if minds(first) != 1 || minds(other) != 1 {
			t.Errorf("many came: the loops mind %d and %d entrances", minds(first), minds(other))
		}
		if a, b := first.captured.Load(), other.captured.Load(); a+b != 4*ahead || max(a-b, b-a) > ahead+1 {
			t.Errorf("the loops have %d and %d of %d connections", a, b, 4*ahead)
		}
		p.west.on(other, func(w *worker) {
			for range calm + 1 { // the first second is that in which they came
				w.tidy()
			}
		})
		for _, c := range live {
			c.Close()
		}
		eventually(t, "all are gone", func() bool { return first.captured.Load() == 0 && other.captured.Load() == 0 })
	}
	p.west.Uncapture()
	p.west.on(other, func(w *worker) { w.mind(entrance{fds[1], w}) }) // was on its way from another
	if minds(first) != 0 || minds(other) != 0 {
		t.Errorf("uncaptured: the loops mind %d and %d entrances", minds(first), minds(other))
	}
}
