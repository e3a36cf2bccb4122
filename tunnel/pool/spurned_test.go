package pool_test

import (
	"testing"
	"time"
)

// TestSpurned: a peer that sends requests back untouched, on one fresh tunnel after
// the other, is rested from like one that cannot be reached.
func TestSpurned(t *testing.T) {
	w := newWorld(t, config{}, "a")
	spurn := func(name string) {
		t.Helper()
		w.get(name)
		w.dialling("a request dials", "a")
		a := w.works("a")
		w.want("and is sent back", name+" on "+a.name)
		a.draining = true
		w.pool.Spurned(w.peer, a)
		w.pool.Spurned(w.peer, a) // for another of its streams
	}
	spurn("1")
	spurn("2") // once may be a coincidence
	w.get("3")
	w.want("twice is not", "3: peer east: peer lets each tunnel go")
	w.dialling("nobody is dialled in the pause")
	w.advance(time.Second)
	spurn("4")
	w.get("5")
	w.want("and again", "5: peer east: peer lets each tunnel go")
	w.dialling("and nobody is dialled")
	w.advance(20 * time.Second)
	spurn("6")
	spurn("7") // it was long ago
}

// TestSpurnedLate: a tunnel that has served for a while may end in any way.
func TestSpurnedLate(t *testing.T) {
	w := newWorld(t, config{}, "a")
	for range 3 {
		w.get("1")
		w.dialling("a request dials", "a")
		a := w.works("a")
		w.want("and has a tunnel", "1 on "+a.name)
		w.advance(3 * time.Second)
		a.draining = true
		w.pool.Spurned(w.peer, a)
	}
}

// TestSpurnedByFormerGateway: it says nothing of the present one, which may have fewer
// endpoints.
func TestSpurnedByFormerGateway(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	w.room = 1
	w.get("1")
	w.fails("a")
	former := []*tunnel{w.works("b")}
	w.get("2")
	former = append(former, w.works("b"))
	w.peer = peer("east", "c")
	w.get("3")
	for _, b := range former {
		b.draining = true
		w.pool.Spurned(w.peer, b)
	}
	w.works("c")
	w.want("the present one is used", "1 on b1", "2 on b2", "3 on c1")
}

// TestSpurnedInDrain: while the pool drains its tunnels take no more because we have
// said so, and requests that come back say nothing of the peer.
func TestSpurnedInDrain(t *testing.T) {
	w := newWorld(t, config{}, "a")
	w.room = 1
	for _, name := range []string{"1", "2", "3"} {
		w.get(name)
	}
	w.dialling("for them", "a")
	w.pool.Drain()
	for _, served := range []string{"1 on a1", "2 on a2"} {
		tn := w.works("a")
		w.want("one is served", served)
		w.dialling("for the next", "a")
		w.pool.Spurned(w.peer, tn)
		w.want("the others wait")
	}
	w.works("a")
	w.want("the last one too", "3 on a3")
}
