package pool_test

import (
	"errors"
	"testing"
	"time"
)

// TestRenew: a tunnel's endpoint is dialled for the sake of the handshake, whether or
// not anybody waits; what comes of it is used where it can be.
func TestRenew(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	a1 := w.up()
	w.pool.Renew(w.peer, a1)
	w.dialling("its endpoint is dialled", "a")
	w.pool.Renew(w.peer, a1)
	w.dialling("one dial is enough for all")
	w.fails("a")
	w.get("1")
	w.want("a failure means nothing", "1 on a1")
	w.pool.Renew(w.peer, a1)
	w.dialling("so it is tried again", "a")
	w.works("a")
	a1.draining = true
	w.get("2")
	w.want("and is as good as any other", "2 on a2")
}

// TestRenewBesideSlowDials: a dial that hangs gets company, and not much.
func TestRenewBesideSlowDials(t *testing.T) {
	w := newWorld(t, config{}, "a")
	a1 := w.up()
	for range 10 {
		w.pool.Renew(w.peer, a1)
		w.advance(time.Second)
	}
	w.dialling("a few", "a", "a", "a")
}

// TestRenewElsewhere: the endpoint is the tunnel's own, also where others have taken
// its place; then the new tunnel is not kept.
func TestRenewElsewhere(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	w.get("1")
	w.fails("a")
	b1 := w.works("b")
	w.want("only b works", "1 on b1")
	w.advance(2 * time.Minute)
	w.get("2")
	w.begun = nil
	w.works("a") // it is back
	w.want("on what there is", "2 on b1")
	w.advance(5 * time.Second)
	w.drained("the first endpoint is preferred", "b1")
	w.pool.Renew(w.peer, b1)
	w.dialling("what lives on the second needs the second", "b")
	w.works("b")
	w.drained("which has done its part", "b1", "b2")
	w.get("3")
	w.want("new ones go to the first", "3 on a1")
}

func TestRenewOfStrangers(t *testing.T) {
	w := newWorld(t, config{}, "a")
	a1 := w.up()
	w.pool.Renew(w.peer, &tunnel{name: "stranger"})
	w.pool.Renew(peer("other"), a1)
	w.getFrom(peer("east", "x", "y"), "1") // the peer's gateway is another now
	w.dialling("the new one", "x")
	x1 := w.works("x")
	w.pool.Renew(w.peer, a1)
	w.dialling("the former gateway is not this one")
	w.pool.Drain()
	w.pool.Renew(w.peer, x1)
	w.dialling("what lives on it needs that all the same", "x")
	w.works("x")
	w.drained("and nobody else", "a1", "x1", "x2")
}

// TestWake: a pause is over as soon as its cause may be.
func TestWake(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	for range 5 { // until the pause is long
		w.get("1")
		w.fails("a")
		w.fails("b")
		w.advance(time.Second)
	}
	w.get("1")
	w.fails("a")
	w.fails("b")
	w.got, w.begun = nil, nil
	w.get("2")
	w.want("there is a pause", "2: peer east: b refused (next attempt in")
	w.pool.Wake()
	w.get("3")
	w.dialling("it is over", "a")
	w.works("a")
	w.want("and so is the failure", "3 on a1")
}

// TestHold: requests wait as long as dialing makes no sense, and are served as soon
// as it does.
func TestHold(t *testing.T) {
	missing := errors.New("no identity")
	w := newWorld(t, config{Wait: 5 * time.Second, Hold: func() error { return missing }}, "a")
	w.get("1")
	w.advance(3 * time.Second)
	w.get("2")
	w.dialling("nobody dials")
	w.advance(2 * time.Second)
	w.want("not for ever", "1: peer east: no tunnel in time: no identity")
	missing = nil
	w.pool.Wake()
	w.dialling("now it makes sense", "a")
	w.works("a")
	w.want("the other is served", "2 on a1")
}
