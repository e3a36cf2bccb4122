package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// cutForPings has a peer's tunnel cut for a flood, once it gets one.
func (s *siege) cutForPings(peer int) {
	s.t.Helper()
	var h *hostile
	eventually(s.t, "it gets in", func() (ok bool) {
		var err error
		h, err = s.knock(peer, eastTunnel)
		return err == nil
	})
	h.begin()
	for range 200 {
		h.check(h.framer.WritePing(false, [8]byte{}))
	}
	h.flush()
	h.await("it is cut", func(s heard) bool { return strings.HasPrefix(s.goaway, "ENHANCE_YOUR_CALM ping: ") })
}

// TestRest: where a peer was cut for a fault, connections are closed for a moment and
// nothing is computed for them. What lives goes on, others get in, and so does the
// peer when the moment is over.
func TestRest(t *testing.T) {
	s := newSiege(t)
	listen(t, s.Server, web)
	live := s.clientAs(0)
	live.open()
	resting := func() float64 { return scrape(t, s.East)[refusedSeries("resting")] }
	rests := 0
	for resting() == 0 { // again if this host was so slow that it was over
		if rests++; rests > 3 {
			t.Fatal("nobody is turned away")
		}
		s.cutForPings(0)
		h, err := s.knock(0, eastTunnel)
		if err == nil {
			h.conn.Close()
		}
	}
	awaitLog(t, s.east, "tunnel refused", "reason=resting", "from="+source(0).String())
	live.alive("it was there before")
	s.clientAs(1).alive("it comes from somewhere else")
	turnedAway := 0
	eventually(t, "it is let in again", func() bool {
		h, err := s.knock(0, eastTunnel)
		if err != nil {
			turnedAway++
			return false
		}
		h.begin()
		h.stream--
		h.open()
		return true
	})
	live.open()
	t.Logf("turned away %d times more", turnedAway)
	if n := strings.Count(s.east.Log(), "reason=resting"); n > rests {
		t.Errorf("it is said %d times, want %d at most", n, rests)
	}
	if n := int(resting()); n < turnedAway+1 {
		t.Errorf("%d are counted, want %d", n, turnedAway+1)
	}
}

// TestTooManyTunnels: a peer has so many tunnels and no more, and rests if it goes on
// asking. Those that it has go on.
func TestTooManyTunnels(t *testing.T) {
	const limit = 256
	s := newSiege(t, quietly)
	listen(t, s.Server, web)
	live := s.clientAs(0)
	for range limit - 1 {
		s.clientAs(0)
	}
	up := fmt.Sprintf(`wishbone_tunnels{direction="inbound",peer=%q}`, "m0")
	eventually(t, "all tunnels are up", func() bool { return scrape(t, s.East)[up] == limit })
	asked := 0
	for scrape(t, s.East)[refusedSeries("resting")] == 0 {
		if asked++; asked > 2*limit {
			t.Fatal("it may ask for ever")
		}
		if h, err := s.knock(0, eastTunnel); err == nil {
			h.conn.Close()
		}
	}
	t.Logf("it rests after it has asked %d times", asked)
	m := scrape(t, s.East)
	if m[refusedSeries("too_many")] == 0 || m[up] != limit {
		t.Errorf("it has %v tunnels, and %v were too many", m[up], m[refusedSeries("too_many")])
	}
	live.open()
	s.clientAs(1).open()
}
