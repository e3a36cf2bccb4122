package tunnel

import (
	"net"
	"sync/atomic"
	"testing"
	"time"

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
			w.out.taken = 0
			for range calm - 2 { // and one that the clock may have seen
				w.tidy()
			}
		})
		if minds(other) != 1 {
			t.Error("the entrance is given back at once")
		}
		p.west.on(other, func(w *worker) {
			for range calm {
				w.tidy()
			}
		})
		for _, c := range live {
			c.Close()
		}
		eventually(t, "all are gone", func() bool { return first.captured.Load() == 0 && other.captured.Load() == 0 })
	}
	p.west.Uncapture()
	if err := p.west.Capture(fds...); err == nil {
		t.Error("captures after Uncapture")
	}
	p.west.on(other, func(w *worker) { w.mind(entrance{fds[1], w}) }) // was on its way from another
	if minds(first) != 0 || minds(other) != 0 {
		t.Errorf("uncaptured: the loops mind %d and %d entrances", minds(first), minds(other))
	}
}

// TestRelief: a loop that is full passes connections on to the one that has the least to do, and
// keeps them if none has much less.
func TestRelief(t *testing.T) {
	e := newEnd(t, Config{Loops: 3})
	full := func(w *worker) (stop func()) {
		var done atomic.Bool
		var work func()
		work = func() {
			for began := time.Now(); time.Since(began) < 5*time.Millisecond; {
			}
			if !done.Load() {
				w.loop.Post(work)
			}
		}
		w.loop.Post(work)
		eventually(t, "a loop is full", func() bool { return w.loop.Load() > .9 })
		return func() { done.Store(true) }
	}
	relief := func() (to *worker) {
		e.on(e.workers[0], func(w *worker) { to = w.relief() })
		return to
	}
	w := e.workers
	w[2].captured.Store(1) // more than the others
	if relief() != w[0] {
		t.Error("one that is not full passes on")
	}
	defer full(w[0])()
	defer full(w[1])()
	if relief() != w[2] {
		t.Error("a full one keeps all, though another idles")
	}
	w[2].captured.Store(ahead)
	if relief() != w[0] {
		t.Error("a full one passes on to one that has many")
	}
	w[0].captured.Store(ahead)
	if relief() != w[1] {
		t.Error("one that has many keeps all, though another has none")
	}
}
