package pool_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"wishbone/tunnel/pool"
	"wishbone/tunnel/route"
)

func TestTunnelIsShared(t *testing.T) {
	w := newWorld(t, config{}, "a")
	w.get("1")
	w.get("2")
	w.dialling("one dial serves both", "a")
	w.works("a")
	w.want("in their order", "1 on a1", "2 on a1")
	if w.get("3") != nil {
		t.Error("a request that was served at once waits")
	}
	w.want("there is room", "3 on a1")
	w.dialling("so nothing is dialled")
}

func TestAnotherTunnelWhenFull(t *testing.T) {
	w := newWorld(t, config{}, "a")
	w.room = 2
	for i := range 5 {
		w.get(fmt.Sprint(i))
	}
	w.dialling("one at a time", "a")
	w.works("a")
	w.want("as many as it has room for", "0 on a1", "1 on a1")
	w.dialling("those left need another", "a")
	w.works("a")
	w.want("the next", "2 on a2", "3 on a2")
	w.dialling("and another", "a")
	w.ends(w.tunnels["a1"], 1)
	w.want("room serves before the dial does", "4 on a1")
	w.works("a")
	w.want("nobody is left")
	w.dialling("and nobody dials")
}

// A peer that announces its end has tunnels that carry their last streams, and
// will never have room: nobody may wait for that.
func TestPeerDrains(t *testing.T) {
	w := newWorld(t, config{}, "a")
	a1 := w.up()
	a1.streams, a1.draining = 1, true
	w.get("1")
	w.dialling("its tunnel is of no use", "a")
	w.fails("a")
	w.want("nothing else could serve it", "1: peer east: a refused")

	w = newWorld(t, config{}, "a")
	a1 = w.up()
	a1.streams, a1.room = 1, 0
	w.get("1")
	w.dialling("the tunnel is full", "a")
	w.fails("a")
	w.want("it may have room again")
	a1.draining = true
	w.pool.Room(w.peer, a1)
	w.want("it never will", "1: peer east: a refused")
}

func TestFullestTunnelFirst(t *testing.T) {
	w := newWorld(t, config{}, "a")
	a1 := w.up()
	a1.room = 0
	w.get("2")
	a2 := w.works("a")
	w.want("a second tunnel", "2 on a2")
	for _, c := range []struct {
		room1, room2 int
		starved      string
		want         string
	}{
		{5, 50, "", "a1"},
		{50, 5, "", "a2"},
		{0, 50, "", "a2"},
		{50, 0, "", "a1"},
		{5, 50, "a1", "a2"},
		{50, 5, "a2", "a1"},
		{5, 50, "a1 a2", "a1"},
		{50, 5, "a1 a2", "a2"},
		{0, 50, "a2", "a2"},
	} {
		a1.room, a2.room = c.room1, c.room2
		a1.starved = c.starved == "a1" || c.starved == "a1 a2"
		a2.starved = c.starved == "a2" || c.starved == "a1 a2"
		w.get("x")
		w.want(fmt.Sprintf("room %d and %d, starved %q", c.room1, c.room2, c.starved), "x on "+c.want)
	}
}

func TestStarvedTunnelGetsCompany(t *testing.T) {
	w := newWorld(t, config{}, "a")
	a1 := w.up()
	a1.starved = true
	for range 50 {
		w.get("x")
	}
	w.dialling("one dial, however many ask", "a")
	w.got = nil
	w.works("a")
	w.get("y")
	w.want("the tunnel that is not starved", "y on a2")
	w.dialling("is enough")

	w.tunnels["a2"].starved = true
	w.get("z")
	w.dialling("until it starves too", "a")
	w.fails("a")
	w.got = nil
	for range 50 {
		w.get("x")
	}
	w.dialling("a refusal is not followed by a dial for each request")
}

func TestMaxTunnels(t *testing.T) {
	w := newWorld(t, config{MaxTunnels: 2}, "a")
	w.room = 1
	for i := range 4 {
		w.get(fmt.Sprint(i))
	}
	w.works("a")
	w.works("a")
	w.want("two tunnels", "0 on a1", "1 on a2")
	w.advance(5 * time.Second)
	w.dialling("and no third", "a", "a")
	w.ends(w.tunnels["a2"], 1)
	w.want("the others wait for room", "2 on a2")
	w.lost(w.tunnels["a1"])
	w.dialling("or for a loss", "a")
	w.works("a")
	w.want("that is made good", "3 on a3")
}

func TestRetiredTunnelsDoNotCount(t *testing.T) {
	w := newWorld(t, config{MaxTunnels: 2, MaxAge: time.Minute}, "a")
	for i := range 5 { // each keeps a stream for ever
		w.get(fmt.Sprint(i))
		w.works("a")
		w.advance(2 * time.Minute)
	}
	w.want("every request was served", "0 on a1", "1 on a2", "2 on a3", "3 on a4", "4 on a5")
	w.drained("the old ones only carry on", "a1", "a2", "a3", "a4", "a5")
}

func TestMaxTunnelsIsNotPassedByDialsSideBySide(t *testing.T) {
	w := newWorld(t, config{MaxTunnels: 1}, "a")
	w.get("1")
	w.advance(time.Second)
	w.dialling("a slow dial gets company", "a", "a")
	w.works("a")
	w.works("a")
	w.drained("the second is one too many", "a2")
}

func TestStuckDial(t *testing.T) {
	w := newWorld(t, config{}, "a")
	w.get("1")
	w.dialling("the first", "a")
	w.getFrom(peer("west", "x"), "other")
	w.dialling("another peer is not held up", "x")
	w.works("x")
	w.want("by it", "other on x1")
	w.advance(999 * time.Millisecond)
	w.get("2")
	w.dialling("the dial is waited for, for a while")
	w.advance(time.Millisecond)
	w.dialling("and then no longer", "a")
	w.advance(10 * time.Second)
	w.dialling("but there is a limit", "a")
	w.finish("a")
	w.works("a")
	w.want("the one that works serves", "1 on a1", "2 on a1")
}

func TestEndpointsInOrder(t *testing.T) {
	w := newWorld(t, config{}, "a", "b", "c")
	w.get("1")
	w.dialling("the first", "a")
	w.fails("a")
	w.dialling("the second", "b")
	w.fails("b")
	w.dialling("the third", "c")
	w.works("c")
	w.want("works", "1 on c1")
	w.advance(10 * time.Second)
	w.lost(w.tunnels["c1"])
	w.get("2")
	w.dialling("the one that worked is tried first", "c")
	w.fails("c")
	w.dialling("then the others", "a")
	w.works("a")
	w.want("works", "2 on a1")
}

func TestNewRoundBeginsWithTheFirstEndpoint(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	w.get("1")
	w.fails("a")
	b1 := w.works("b")
	w.advance(5 * time.Second)
	w.lost(b1)
	w.get("2")
	w.fails("b")
	w.fails("a")
	w.begun, w.got = nil, nil
	w.advance(time.Second)
	w.get("3")
	w.dialling("nothing that worked is left", "a")
}

func TestFailuresAreForgotten(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	w.get("1").Cancel()
	w.fails("a")
	w.dialling("nobody asks for the second endpoint", "a")
	w.advance(9 * time.Second)
	w.get("2").Cancel()
	w.dialling("it is next for a while", "b")
	w.fails("b")
	w.advance(11 * time.Second)
	w.get("3").Cancel()
	w.fails("a")
	w.advance(11 * time.Second)
	w.get("4")
	w.dialling("but not for ever", "a", "a")
}

func TestSilentEndpointIsPassedBy(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	w.get("1")
	w.advance(time.Second)
	w.dialling("after a second of silence the next is tried as well", "a", "b")
	w.fails("b")
	w.advance(time.Second)
	w.dialling("and again", "b")
	w.works("b")
	w.want("it serves", "1 on b1")
	w.fails("a")
	if err := w.pool.Status("east").Err; err != nil {
		t.Errorf("one endpoint works, and the status is %v", err)
	}
	w.advance(5 * time.Second)
	w.get("2")
	w.want("still", "2 on b1")
	w.dialling("nothing more")
}

func TestSilentAndRefusingEndpoints(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	w.get("1")
	w.advance(time.Second)
	w.fails("b")
	w.dialling("a is silent, b refuses", "a", "b")
	w.want("a may still answer")
	w.advance(time.Second)
	w.dialling("b is asked again, at a second's pace", "b")
	w.fails("b")
	w.dialling("not faster")
	w.fails("a")
	w.want("when both have failed that is the answer", "1: peer east: a refused")
}

func TestLateTunnelToLaterEndpointIsNotWanted(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	w.get("1")
	w.advance(time.Second)
	w.works("a")
	w.want("a was only slow", "1 on a1")
	w.works("b")
	w.drained("b is not needed", "b1")
	if s := w.pool.Status("east"); s.Endpoint != "a" || s.Tunnels != 1 {
		t.Errorf("status %+v", s)
	}
}

func TestLaterEndpointHelpsOut(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	w.room = 1
	a1 := w.up()
	w.get("2")
	w.advance(time.Second)
	w.dialling("a is full and silent", "a", "b")
	w.works("b")
	w.want("b serves who waits", "2 on b1")
	w.drained("for a while")
	if s := w.pool.Status("east"); s.Endpoint != "a" {
		t.Errorf("status %+v", s)
	}
	w.advance(time.Second)
	w.drained("and retires since a still works", "b1")
	w.ends(a1, 1)
	w.get("3")
	w.want("a", "3 on a1")
}

func TestFailBack(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	w.get("1")
	w.fails("a")
	w.works("b")
	w.want("on the second endpoint", "1 on b1")
	w.advance(59 * time.Second)
	w.get("2")
	w.dialling("not yet", "a", "b")
	w.advance(time.Second)
	w.get("3")
	w.get("4")
	w.dialling("after 60 s the first is tried once", "a")
	w.fails("a")
	w.advance(59 * time.Second)
	w.get("5")
	w.dialling("its failure leaves things as they are")
	w.advance(time.Second)
	w.get("6")
	w.dialling("for another 60 s", "a")
	w.works("a")
	w.drained("a new tunnel has to prove itself")
	w.advance(3 * time.Second)
	w.drained("then the other retires", "b1")
	w.got = nil
	w.get("7")
	w.want("back on the first endpoint", "7 on a1")
}

func TestFullTunnelsGrowWhereTheyAre(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	w.get("1")
	w.fails("a")
	b1 := w.works("b")
	w.advance(59 * time.Second)
	b1.room = 0
	w.get("2")
	w.fails("b")
	w.fails("a")
	w.begun = nil
	w.advance(time.Second)
	w.dialling("a request that waits is served from the endpoint in use", "b")
}

func TestFailBackToEndpointThatDoesNotLast(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	w.get("1")
	w.fails("a")
	b1 := w.works("b")
	w.advance(time.Minute)
	w.get("2")
	a1 := w.works("a")
	w.advance(time.Second)
	w.lost(a1)
	w.advance(5 * time.Second)
	w.get("3")
	w.want("the second endpoint was never let go", "1 on b1", "2 on b1", "3 on b1")
	w.drained("nor will be")
	w.dialling("so far", "a", "b", "a")
	w.advance(time.Minute)
	w.get("4")
	w.dialling("the next attempt is in a minute", "a")
	if s := w.pool.Status("east"); b1.draining || s.Endpoint != "b" {
		t.Errorf("status %+v", s)
	}
}

func TestStuckFailBackHoldsNothingUp(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	w.get("1")
	w.fails("a")
	b1 := w.works("b")
	w.advance(time.Minute)
	b1.room = 1
	w.get("2")
	w.get("3")
	w.dialling("a probe and at once a dial", "a", "b", "a", "b")
	w.fails("b")
	w.dialling("nor does it count as trying a", "a")
}

func TestFailBackOfFullTunnels(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	w.get("1")
	w.fails("a")
	b1 := w.works("b")
	w.advance(time.Minute)
	b1.room = 0
	w.get("2")
	w.dialling("the first endpoint is tried, and the one in use asked for more", "a", "b", "a", "b")
	w.fails("a")
	w.fails("b")
	w.dialling("the failure of the try is not one of this round", "a")
}

func TestUnusedPeerIsDialledFromTheFirstEndpoint(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	w.get("1")
	w.fails("a")
	w.works("b")
	w.advance(10 * time.Second)
	w.lost(w.tunnels["b1"])
	w.advance(time.Minute)
	w.get("2")
	w.dialling("an hour later it is a again", "a", "b", "a")
}

func TestBackoff(t *testing.T) {
	w := newWorld(t, config{}, "a")
	// The pause after the n-th round is between half of its bound and its bound.
	for n, bound := range []time.Duration{50, 100, 200, 400, 800, 1000, 1000, 1000} {
		bound *= time.Millisecond
		w.get("x")
		w.dialling("a round", "a")
		w.fails("a")
		w.want("fails its request at once", "x: peer east: a refused")
		failed := w.now
		w.now = failed + bound/2 - 1
		w.get("y")
		w.want("requests in the pause fail with the cause", "y: peer east: a refused (next attempt in ")
		w.dialling(fmt.Sprintf("round %d: nothing is dialled in the pause", n))
		w.now = failed + bound - 1
	}
	w.get("x")
	w.works("a")
	w.want("it works", "x on a1")
	if err := w.pool.Status("east").Err; err != nil {
		t.Errorf("status after success: %v", err)
	}
	w.advance(20 * time.Second)
	w.lost(w.tunnels["a1"])
	w.get("x")
	w.fails("a")
	w.now += 50 * time.Millisecond
	w.begun = nil
	w.get("x")
	w.dialling("after a time of health the pause is short again", "a")
}

func TestTunnelThatDoesNotLastIsAFailure(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	w.get("1")
	w.lost(w.works("a")) // as when the peer does not know our certificate's root
	w.get("2")
	w.dialling("the next endpoint is next", "a", "b")
	w.lost(w.works("b"))
	w.get("3")
	w.want("both are of no use", "1 on a1", "2 on b1", "3: peer east: tunnel was closed as soon as it was up")
	w.dialling("and there is a pause")
}

// TestWhyItDidNotLast: those who wait and those who look are told why a tunnel was
// lost as soon as it was up, and what to look for.
func TestWhyItDidNotLast(t *testing.T) {
	w := newWorld(t, config{}, "a")
	w.get("1")
	a1 := w.works("a")
	a1.streams, a1.room = 0, 0
	cause := errors.New("remote error: tls: bad certificate")
	want := "tunnel was closed as soon as it was up: remote error: tls: bad certificate (does the peer accept this gateway's identity?)"
	if err := w.pool.Loss(w.peer, a1, cause); !errors.Is(err, cause) || err.Error() != want {
		t.Errorf("its end is %q, want %q", err, want)
	}
	w.pool.Gone(w.peer, a1, cause)
	if err := w.pool.Loss(w.peer, a1, cause); err != cause {
		t.Errorf("the end of a tunnel that the pool does not have is %q", err)
	}
	err := w.pool.Status("east").Err
	if !errors.Is(err, cause) || err.Error() != want {
		t.Errorf("status has %q, want %q", err, want)
	}
	w.pool.Get(w.peer, func(_ *tunnel, err error) {
		if !errors.Is(err, cause) || !strings.HasPrefix(err.Error(), "peer east: "+want) {
			t.Errorf("the next request is told %q", err)
		}
	})
}

func TestRollingRestart(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	a1 := w.up()
	w.lost(a1)
	w.get("1")
	w.fails("a")
	b1 := w.works("b")
	w.want("b takes over", "1 on b1")
	w.begun = nil
	w.advance(4 * time.Second)
	w.lost(b1)
	w.get("2")
	w.fails("b")
	w.dialling("that a failed before b worked is of the past", "b", "a")
	w.works("a")
	w.want("a takes over", "2 on a2")
}

func TestHangingDialWhenAllElseFailed(t *testing.T) {
	w := newWorld(t, config{}, "a")
	w.get("1")
	w.advance(time.Second)
	w.dialling("the first hangs", "a", "a")
	hanging := w.finish("a")
	w.fails("a")
	w.want("the second's refusal is news enough", "1: peer east: a refused")
	w.get("2")
	w.want("in the pause too", "2: peer east: a refused (next attempt in")
	w.advance(200 * time.Millisecond)
	w.get("3")
	w.dialling("the pause is not longer for it", "a")
	w.fails("a")
	w.got = nil
	late := &tunnel{name: "late", room: 1}
	hanging.done(late, nil)
	w.get("4")
	w.want("what comes late is still welcome", "4 on late")
}

func TestWaitersOfALivePeerOutlastFailedDials(t *testing.T) {
	w := newWorld(t, config{}, "a")
	w.room = 1
	a1 := w.up()
	w.get("2")
	w.fails("a")
	w.get("3")
	w.want("there is a tunnel that may have room")
	w.ends(a1, 1)
	w.want("as it has", "2 on a1")
	w.advance(time.Second)
	w.dialling("after a pause another dial", "a", "a")
	w.lost(a1)
	w.want("may still help")
	w.fails("a")
	w.want("there is no hope", "3: peer east: a refused")
}

func TestLossInAPauseFailsThoseWhoWait(t *testing.T) {
	w := newWorld(t, config{}, "a")
	w.room = 1
	a1 := w.up()
	w.get("2")
	w.fails("a")
	w.want("hope")
	w.lost(a1)
	w.want("and none", "2: peer east: a refused")
}

func TestWaitIsBounded(t *testing.T) {
	w := newWorld(t, config{Wait: 3 * time.Second}, "a")
	w.get("1")
	w.advance(1500 * time.Millisecond)
	w.get("2")
	w.advance(1400 * time.Millisecond)
	w.want("not yet")
	w.advance(600 * time.Millisecond)
	w.want("after 3 s", "1: peer east: "+pool.ErrWait.Error())
	w.advance(1500 * time.Millisecond)
	w.want("after 3 s, at the next sweep", "2: peer east: "+pool.ErrWait.Error())
}

func TestCancel(t *testing.T) {
	w := newWorld(t, config{}, "a")
	var ws []*pool.Waiter[*tunnel]
	for i := range 5 {
		ws = append(ws, w.get(fmt.Sprint(i)))
	}
	for _, i := range []int{2, 0, 4, 2} {
		ws[i].Cancel()
	}
	if n := w.pool.Status("east").Waiting; n != 2 {
		t.Errorf("%d wait, want 2", n)
	}
	w.works("a")
	w.want("the others, in order", "1 on a1", "3 on a1")
	ws[1].Cancel()
	w.want("cancelled too late")
}

func TestCancelledWaitersAreNotKept(t *testing.T) {
	w := newWorld(t, config{MaxWaiting: 3}, "a")
	for range 1000 { // clients that come and go while a dial hangs
		w.get("x").Cancel()
	}
	w.get("1")
	w.get("2")
	w.get("3")
	w.want("none is refused")
	w.get("4")
	w.want("until there are too many", "4: peer east: "+pool.ErrOverloaded.Error())
	w.works("a")
	w.want("the others are served", "1 on a1", "2 on a1", "3 on a1")
}

func TestOverloadedIsAnErrorByName(t *testing.T) {
	w := newWorld(t, config{MaxWaiting: 1}, "a")
	w.get("1")
	w.pool.Get(w.peer, func(_ *tunnel, err error) {
		if !errors.Is(err, pool.ErrOverloaded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestOrderIsKeptWhereRoomWasNotTold(t *testing.T) {
	w := newWorld(t, config{}, "a")
	w.room = 1
	a1 := w.up()
	w.get("1")
	a1.room = 2 // as when the peer allows more streams
	w.get("2")
	w.want("who waits longer is first", "1 on a1", "2 on a1")
}

func TestRetirement(t *testing.T) {
	for name, c := range map[string]struct {
		cfg config
		age func(*world, *tunnel)
	}{
		"age":             {config{MaxAge: 10 * time.Minute, Idle: time.Hour}, func(w *world, _ *tunnel) { w.now += 10 * time.Minute }},
		"certificates":    {config{Life: lives(10 * time.Minute), Idle: time.Hour}, func(w *world, _ *tunnel) { w.now += 10 * time.Minute }},
		"age before them": {config{Life: lives(time.Hour), MaxAge: 10 * time.Minute, Idle: time.Hour}, func(w *world, _ *tunnel) { w.now += 10 * time.Minute }},
		"records":         {config{MaxRecords: 1000}, func(_ *world, t *tunnel) { t.records = 1000 }},
		"records default": {config{}, func(_ *world, t *tunnel) { t.records = 1 << 23 }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, c.cfg, "a")
			a1 := w.up()
			a1.records = 999
			w.now += time.Second
			w.get("2")
			w.want("still in use", "2 on a1")
			c.age(w, a1)
			w.get("3")
			w.dialling("a new one", "a")
			w.drained("for the old one", "a1")
			w.works("a")
			w.want("takes over", "3 on a2")
			w.lost(a1)
			w.dialling("the end of the old one is in order")
		})
	}
}

func lives(d time.Duration) func(*tunnel) time.Duration {
	return func(*tunnel) time.Duration { return d }
}

func TestEndOfRetiredTunnelIsNoFailure(t *testing.T) {
	w := newWorld(t, config{}, "a")
	w.get("1")
	a1 := w.works("a")
	a1.records = 1 << 23 // within a second
	w.get("2")
	w.lost(a1)
	w.works("a")
	w.want("the next is waited for", "1 on a1", "2 on a2")
}

func TestRetirementBySweep(t *testing.T) {
	w := newWorld(t, config{}, "a")
	a1 := w.up()
	a1.records = 1 << 23
	w.advance(time.Second)
	w.drained("nobody has to ask for it", "a1")
}

func TestIdleTunnelIsReleased(t *testing.T) {
	w := newWorld(t, config{Idle: time.Minute}, "a")
	a1 := w.up()
	w.advance(10 * time.Minute)
	w.drained("not while it has a stream")
	w.ends(a1, 1)
	w.advance(59 * time.Second)
	w.get("2")
	w.ends(a1, 1)
	w.advance(59 * time.Second)
	w.drained("not before it has had none for a minute")
	w.advance(2 * time.Second)
	w.drained("but then", "a1")
}

func TestTunnelWhoseStreamWasNotOpenedIsReleased(t *testing.T) {
	w := newWorld(t, config{Idle: time.Minute}, "a")
	a1 := w.up()
	w.ends(a1, 1)
	w.pool.Get(w.peer, func(*tunnel, error) {})
	w.advance(59 * time.Second)
	w.drained("it was asked for just now")
	w.advance(3 * time.Second)
	w.drained("but not used", "a1")
}

func TestUnusedTunnelIsReleased(t *testing.T) {
	w := newWorld(t, config{Idle: time.Minute}, "a")
	w.get("1").Cancel()
	w.works("a")
	w.advance(61 * time.Second)
	w.drained("one that nobody came to use", "a1")
}

func TestDrain(t *testing.T) {
	w := newWorld(t, config{}, "a")
	w.room = 1
	w.up()
	w.get("2")
	w.get("3")
	w.dialling("for those who wait", "a")
	w.pool.Drain()
	w.drained("the tunnels end", "a1")
	w.want("who waits goes on")
	w.works("a")
	w.want("on what was being dialled", "2 on a2")
	w.drained("which ends as well", "a1", "a2")
	w.dialling("for the other", "a")
	w.works("a")
	w.want("it has one too", "3 on a3")
	w.get("4")
	w.dialling("for one whose peer has sent it back", "a")
	w.works("a")
	w.want("it is served", "4 on a4")
	w.dialling("for nobody")
	w.drained("all end", "a1", "a2", "a3", "a4")
	w.lost(w.tunnels["a1"])
	w.advance(time.Minute)
	w.dialling("nothing is dialled any more")
}

// nobody is what routes without peers know.
func nobody(string) *route.Peer { return nil }

func TestKeep(t *testing.T) {
	w := newWorld(t, config{}, "a")
	w.room = 1
	a1 := w.up()
	other := peer("north", "n")
	w.getFrom(other, "n")
	w.works("n")
	w.get("2")
	w.got, w.begun = nil, nil
	w.pool.Keep(func(name string) *route.Peer {
		if name == "north" {
			return other
		}
		return nil
	})
	w.want("who waits for what is gone is told", "2: peer east: not configured any more")
	w.drained("its tunnels end", "a1")
	w.works("a")
	w.drained("and what was being dialled", "a1", "a2")
	if s := w.pool.Status("east"); s != (pool.Status{}) {
		t.Errorf("status of a peer that is gone: %+v", s)
	}
	w.get("3")
	w.dialling("one that comes back begins anew", "a")
	w.lost(a1)
	w.works("a")
	w.want("and works", "3 on a3")
}

func TestChangedGateway(t *testing.T) {
	w := newWorld(t, config{}, "a")
	a1 := w.up()
	w.room = 1

	same := *w.peer
	w.peer = &same
	w.get("2")
	w.want("a new table with the same gateway changes nothing", "2 on a1")

	w.peer = peer("east", "b")
	w.get("3")
	w.drained("another endpoint does", "a1")
	w.dialling("it is dialled", "b")
	w.works("b")
	w.want("and used", "3 on b1")
	w.lost(a1)

	ids := *w.peer
	ids.IDs = peer("elsewhere").IDs
	w.peer = &ids
	w.get("4")
	w.drained("so does another identity", "a1", "b1")
	w.dialling("it is dialled", "b")
}

// TestKeepElsewhere: who waits for a peer that is another gateway now does not get
// the former one.
func TestKeepElsewhere(t *testing.T) {
	w := newWorld(t, config{}, "a")
	w.room = 1
	a1 := w.up()
	w.get("2")
	w.dialling("it waits", "a")
	w.peer = peer("east", "b")
	w.pool.Keep(func(string) *route.Peer { return w.peer })
	w.drained("the former tunnel ends", "a1")
	w.dialling("where it is now is dialled", "b")
	w.ends(a1, 1)
	w.works("a")
	w.want("what leads to the former is not for it")
	w.works("b")
	w.want("this is", "2 on b1")
}

func TestChangeWhileDialling(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	w.get("1")
	w.advance(2 * time.Second)
	w.dialling("three dials hang", "a", "b", "a")
	w.peer = peer("east", "c")
	w.get("2")
	w.dialling("the new gateway is not held up by them", "c")
	w.works("a")
	w.drained("what reaches the old gateway is let go", "a1")
	w.fails("b")
	w.want("and its failures are nobody's")
	w.works("c")
	w.want("both get the new one", "1 on c1", "2 on c1")
	w.fails("a")
	w.get("3")
	w.want("still", "3 on c1")
}

func TestChangeEndsThePause(t *testing.T) {
	w := newWorld(t, config{}, "a")
	w.get("1")
	w.fails("a")
	w.peer = peer("east", "b")
	w.get("2")
	w.dialling("the new endpoint has not failed", "a", "b")
}

func TestPeerWithoutEndpoints(t *testing.T) {
	w := newWorld(t, config{})
	w.get("1")
	w.want("one that only dials us", "1: peer east: no endpoint to dial")
	w.peer = peer("east", "a")
	w.get("2")
	w.peer = peer("east")
	w.get("3")
	w.advance(time.Second)
	w.want("or became so", "3: peer east: no endpoint to dial")
	w.dialling("nothing more than", "a")
}

func TestLossWhileDialling(t *testing.T) {
	w := newWorld(t, config{}, "a")
	w.room = 1
	a1 := w.up()
	w.get("2")
	w.dialling("full", "a")
	w.lost(a1)
	w.dialling("a dial is on its way already")
	w.works("a")
	w.want("it serves", "2 on a2")
}

func TestTellingOfStrangers(t *testing.T) {
	w := newWorld(t, config{}, "a")
	stranger := &tunnel{name: "stranger", room: 5}
	w.pool.Gone(w.peer, stranger, nil)
	w.pool.Room(w.peer, stranger)
	w.up()
	w.pool.Gone(w.peer, stranger, nil)
	w.pool.Room(w.peer, stranger)
	w.get("2")
	w.want("changes nothing", "2 on a1")
}

// What a request's function does to the pool must not upset it.
func TestTakeMayCallThePool(t *testing.T) {
	t.Run("get", func(t *testing.T) {
		w := newWorld(t, config{}, "a")
		w.pool.Get(w.peer, func(tn *tunnel, err error) {
			w.take("1")(tn, err)
			w.get("3")
		})
		w.get("2")
		w.works("a")
		w.want("the newcomer is last", "1 on a1", "2 on a1", "3 on a1")
	})
	t.Run("get without recursion", func(t *testing.T) {
		w := newWorld(t, config{}, "a")
		w.pool.Get(w.peer, func(tn *tunnel, err error) {
			w.take("1")(tn, err)
			w.get("3")
			w.want("others are not called from within", "1 on a1")
		})
		w.get("2")
		w.works("a")
		w.want("but after", "2 on a1", "3 on a1")
	})
	t.Run("cancel", func(t *testing.T) {
		w := newWorld(t, config{}, "a")
		var second *pool.Waiter[*tunnel]
		w.pool.Get(w.peer, func(tn *tunnel, err error) {
			w.take("1")(tn, err)
			second.Cancel()
		})
		second = w.get("2")
		w.get("3")
		w.works("a")
		w.want("the second has gone", "1 on a1", "3 on a1")
	})
	t.Run("drain", func(t *testing.T) {
		w := newWorld(t, config{}, "a")
		w.pool.Get(w.peer, func(tn *tunnel, err error) {
			w.take("1")(tn, err)
			w.pool.Drain()
		})
		w.get("2")
		w.works("a")
		w.want("the others wait", "1 on a1")
		w.works("a")
		w.want("and are served", "2 on a2")
		w.drained("by what ends after them", "a1", "a2")
	})
	t.Run("keep", func(t *testing.T) {
		w := newWorld(t, config{}, "a")
		w.pool.Get(w.peer, func(tn *tunnel, err error) {
			w.take("1")(tn, err)
			w.pool.Keep(nobody)
		})
		w.get("2")
		w.works("a")
		w.want("the others hear of it", "1 on a1", "2: peer east: not configured any more")
	})
	t.Run("retry of a failure", func(t *testing.T) {
		w := newWorld(t, config{}, "a")
		w.pool.Get(w.peer, func(*tunnel, error) { w.get("again") })
		w.get("2")
		w.fails("a")
		w.want("is not dialled for", "again: peer east: a refused (next", "2: peer east: a refused")
		w.dialling("but once", "a")
	})
	t.Run("cancel of a failure", func(t *testing.T) {
		w := newWorld(t, config{}, "a")
		var second *pool.Waiter[*tunnel]
		w.pool.Get(w.peer, func(*tunnel, error) { second.Cancel() })
		second = w.get("2")
		w.fails("a")
		w.want("the second is not called")
	})
	t.Run("loss", func(t *testing.T) {
		w := newWorld(t, config{}, "a")
		w.pool.Get(w.peer, func(tn *tunnel, err error) {
			w.take("1")(tn, err)
			w.lost(tn)
		})
		w.get("2")
		w.works("a")
		w.want("the others share the fate of a tunnel that does not last",
			"1 on a1", "2: peer east: tunnel was closed as soon as it was up")
	})
}

func TestStatus(t *testing.T) {
	w := newWorld(t, config{}, "a", "b")
	if s := w.pool.Status("east"); s != (pool.Status{}) {
		t.Errorf("a peer that nobody asked for: %+v", s)
	}
	w.get("1")
	want := pool.Status{Waiting: 1, Dialing: 1}
	if s := w.pool.Status("east"); s != want {
		t.Errorf("dialling: %+v", s)
	}
	w.fails("a")
	w.works("b")
	want = pool.Status{Tunnels: 1, Streams: 1, Endpoint: "b"}
	if s := w.pool.Status("east"); s != want {
		t.Errorf("up: %+v", s)
	}
	w.lost(w.tunnels["b1"])
	w.get("2")
	for len(w.running) > 0 {
		w.fails(w.running[0].endpoint)
	}
	if s := w.pool.Status("east"); s.Err == nil || s.Waiting+s.Tunnels+s.Dialing != 0 {
		t.Errorf("down: %+v", s)
	}
}

func TestNarrowWay(t *testing.T) {
	w := newWorld(t, config{}, "a")
	w.get("1")
	w.dialling("the first", "a")
	w.works("a")
	w.want("it is used", "1 on a1")
	w.get("2")
	w.want("one tunnel is enough", "2 on a1")
	w.dialling("on a good way")

	w.tunnels["a1"].narrow = true
	w.get("3")
	w.want("nobody waits for more", "3 on a1")
	w.dialling("another beside a narrow one", "a")
	w.works("a")
	w.dialling("and another, while there are more streams than tunnels", "a")
	w.works("a")
	w.dialling("as many tunnels as streams are enough")
	for i := 4; i <= 8; i++ {
		name := fmt.Sprint(i)
		w.get(name)
		w.want("the emptiest is used", fmt.Sprintf("%d on a%d", i, i-2))
		w.dialling("more streams than tunnels", "a")
		w.works("a")
	}
	w.get("9")
	w.want("the emptiest is used", "9 on a7")
	w.advance(time.Second)
	w.dialling("eight tunnels are all")
}

func TestSweepWidens(t *testing.T) {
	w := newWorld(t, config{}, "a")
	for _, name := range []string{"1", "2"} {
		w.get(name)
	}
	w.dialling("one for both", "a")
	w.works("a")
	w.want("both are served", "1 on a1", "2 on a1")
	w.advance(time.Second)
	w.dialling("as long as the way is good")
	w.tunnels["a1"].narrow = true
	w.advance(time.Second)
	w.dialling("for those who come next", "a")
}
