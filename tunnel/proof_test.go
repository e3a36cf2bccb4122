package tunnel

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"wishbone/tunnel/engine"
	"wishbone/tunnel/hbone"
	"wishbone/tunnel/route"
)

// until bends a session of a peer whose certificate expires then, at the far end.
func until(at time.Time) func(*Session) {
	return func(s *Session) {
		if s.Peer == "west" {
			s.Expires, s.ProofExpires = at, at
		}
	}
}

// joining are dials of west's to p's east, one after the other, with sessions bent
// by each of bends; the last for all that follow.
func joining(t *testing.T, p **pair, n *atomic.Int64, bends ...func(*Session)) Config {
	return Config{Dial: func(ctx context.Context, _ *route.Peer, _ string) (Session, error) {
		i := min(int(n.Add(1)), len(bends))
		return join(t, ctx, "west", (*p).east, bends[i-1])
	}}
}

// expire is what a gateway does in the second after now.
func (e *end) expire(now time.Time) {
	e.each(func(w *worker) { w.expire(now) })
}

// TestDeclined: a request on a tunnel whose certificate has expired is carried all
// the same, since the peer asks again on a new tunnel.
func TestDeclined(t *testing.T) {
	serve(t)
	var p *pair
	var dials atomic.Int64
	now := time.Now()
	cfg := joining(t, &p, &dials, until(now.Add(-time.Second)), until(now.Add(time.Hour)))
	p = newPair(t, cfg, Config{})
	exchange(t, newSide(t, p.west).dial(0), "hello")
	if s := p.east.Stats(); s.Refused[ReasonIdentityExpired] != 1 || s.Closed[engine.Unserved] != 1 || dials.Load() != 2 {
		t.Errorf("refused %v after %d dials", s.Refused, dials.Load())
	}
	if s := p.west.Stats(); len(s.Refused) > 0 {
		t.Errorf("west has refused %v", s.Refused)
	}
	eventually(t, "the expired tunnel is gone", func() bool { return p.west.Stats().Peers["east"].Tunnels == 1 })
}

// TestDeclinedAsWithdrawn: likewise on a tunnel whose proof was withdrawn, if the
// request comes before the peer has heard that it takes none.
func TestDeclinedAsWithdrawn(t *testing.T) {
	serve(t)
	p := newPair(t, Config{}, Config{})
	side := newSide(t, p.west)
	exchange(t, side.dial(0), "before")
	tunnels := p.dials.Load()
	p.east.each(func(w *worker) {
		for _, s := range w.sessions {
			s.withdrawn = &Withdrawal{Reason: "root_withdrawn", Err: errors.New("signed by nobody"), Renewable: true}
			w.g.proofs.add(s.Session, 0) // which has another
		}
	})
	eventually(t, "a request is declined", func() bool {
		exchange(t, side.dial(0), "after")
		return p.east.Stats().Refused[ReasonIdentityExpired] > 0
	})
	if n := p.dials.Load(); n <= tunnels {
		t.Errorf("%d dials, want another", n)
	}
	if s := p.west.Stats(); len(s.Refused) > 0 {
		t.Errorf("west has refused %v", s.Refused)
	}
}

// TestNoNewStreams: a tunnel takes no new streams when either side's wall clock says
// that its certificates' time is over, which the other is told by GOAWAY; what lives
// on it goes on, and new streams have another tunnel.
func TestNoNewStreams(t *testing.T) {
	serve(t)
	for _, first := range []string{"west", "east"} {
		var p *pair
		var dials atomic.Int64
		hour := time.Now().Add(time.Hour)
		p = newPair(t, joining(t, &p, &dials, func(s *Session) { s.Expires = hour }, func(*Session) {}), Config{})
		side := newSide(t, p.west)
		c := side.dial(0)
		exchange(t, c, "before")
		both := map[string]*end{"west": p.west, "east": p.east}
		for name, e := range both {
			e.expire(hour.Add(-time.Second))
			if n := e.closedToNew(); n != 0 {
				t.Errorf("%s: %d tunnels are over before their time", name, n)
			}
		}
		both[first].expire(hour.Add(time.Second))
		if n := both[first].closedToNew(); n != 1 {
			t.Errorf("%s: %d tunnels are over, want 1", first, n)
		}
		for _, e := range both {
			eventually(t, "the tunnel is over on both sides", func() bool { return e.closedToNew() == 1 })
		}
		exchange(t, c, "goes on")
		exchange(t, side.dial(0), "on another tunnel")
		if dials.Load() != 2 {
			t.Errorf("%d dials, want 2", dials.Load())
		}
	}
}

// closedToNew counts the tunnels that are up and take no new streams.
func (e *end) closedToNew() (n int) {
	e.each(func(w *worker) {
		for tunnel := range w.sessions {
			if tunnel.Draining() {
				n++
			}
		}
	})
	return n
}

// TestProvedAnew: what lives on a tunnel whose certificate has expired goes on while
// the peer's ID is proved on another one, and for the grace after that.
func TestProvedAnew(t *testing.T) {
	serve(t)
	for _, anew := range []bool{false, true} {
		var p *pair
		var dials atomic.Int64
		minute, hour := time.Now().Add(time.Minute), time.Now().Add(time.Hour)
		const grace = 10 * time.Minute
		p = newPair(t, joining(t, &p, &dials, until(minute)), Config{Grace: grace})
		c := newSide(t, p.west).dial(0)
		exchange(t, c, "before")
		last := minute
		if anew {
			last = hour
			s, err := join(t, t.Context(), "west", p.east, until(hour))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			eventually(t, "there is another tunnel", func() bool { return p.east.Stats().Inbound["west"] == 2 })
		}
		p.east.expire(minute.Add(time.Second))
		exchange(t, c, "expired")
		p.east.expire(last.Add(grace - time.Second))
		exchange(t, c, "not proved for long")
		p.east.expire(last.Add(grace + time.Second))
		wantReset(t, c)
		s := p.east.Stats()
		if s.Closed[engine.Cut] != 1 || s.Withdrawn[ReasonIdentityExpired] == 0 {
			t.Errorf("anew %v: cut: %v, withdrawn: %v", anew, s.Closed, s.Withdrawn)
		}
		eventually(t, "no tunnel is left", func() bool { return p.east.Stats().Inbound["west"] == 0 })
	}
}

// TestWithdrawn: a judgement ends the tunnels that it falls on, with what they carry,
// in either direction; others of the same peer go on, and a tunnel that comes into
// use right after the change is seen to.
func TestWithdrawn(t *testing.T) {
	serve(t)
	for _, side := range []string{"west", "east"} {
		t.Run(side, func(t *testing.T) {
			var bad atomic.Pointer[time.Time] // sessions proved then are withdrawn
			judge := func(s Session) *Withdrawal {
				if at := bad.Load(); at != nil && s.Proved.Equal(*at) {
					return &Withdrawal{Reason: "revoked", Err: errors.New("by its number")}
				}
				return nil
			}
			var p *pair
			var dials atomic.Int64
			begin := time.Now()
			proved := func(i int64) time.Time { return begin.Add(time.Duration(i) * time.Hour) }
			west := Config{Withdrawn: judge, Dial: func(ctx context.Context, _ *route.Peer, _ string) (Session, error) {
				at := proved(dials.Add(1))
				return join(t, ctx, "west", p.east, func(s *Session) { s.Proved = at })
			}}
			p = newPair(t, west, Config{Withdrawn: judge})
			judging := map[string]*end{"west": p.west, "east": p.east}[side]
			clients := newSide(t, p.west)
			gone := clients.dial(0)
			exchange(t, gone, "before")
			judging.Judge()
			exchange(t, gone, "nothing is withdrawn")
			stays := clients.dial(0)
			exchange(t, stays, "maybe on the same tunnel")
			for dials.Load() < 2 { // until the other loop has dialled, too
				stays = clients.dial(0)
				exchange(t, stays, "on another tunnel")
			}
			first := proved(1)
			bad.Store(&first)
			judging.Judge()
			wantReset(t, gone)
			exchange(t, stays, "still there")
			if s := judging.Stats(); s.Withdrawn["revoked"] != 1 || s.Closed[engine.Cut] == 0 {
				t.Errorf("withdrawn %v, ended %v", s.Withdrawn, s.Closed)
			}

			late, err := join(t, t.Context(), "west", p.east, func(s *Session) { s.Proved = first })
			if err != nil {
				t.Fatal(err)
			}
			defer late.Close()
			if side == "east" {
				if err := await(late); err == nil {
					t.Error("a tunnel that was withdrawn before its use lives")
				}
				if n := p.east.Stats().Withdrawn["revoked"]; n != 2 {
					t.Errorf("%d withdrawn, want 2", n)
				}
			}
		})
	}
}

// TestJudgementsCross: two changes at once may be told in either order. What is proved
// after both counts.
func TestJudgementsCross(t *testing.T) {
	serve(t)
	p := newPair(t, Config{}, Config{})
	g := p.east.Gateway
	nothing := func(Session) *Withdrawal { return nil }
	first, second := g.proofs.judge(nothing), g.proofs.judge(nothing)
	for _, round := range []int{second, first} {
		p.east.each(func(w *worker) { w.judge(round) })
	}
	c := newSide(t, p.west).dial(0)
	exchange(t, c, "hello")
	if p.east.proofs.last(idOf("west")) == nil {
		t.Error("west has proved itself since, and that is not noted")
	}
}

// TestWithdrawnServesNobody: what ends on a tunnel that is withdrawn leaves no room on
// it for those that wait.
func TestWithdrawnServesNobody(t *testing.T) {
	serve(t)
	var gone atomic.Bool
	begin := time.Now()
	judge := func(s Session) *Withdrawal {
		if gone.Load() && s.Proved.Equal(begin) {
			return &Withdrawal{Reason: "revoked", Err: errors.New("by its number")}
		}
		return nil
	}
	var p *pair
	var dials atomic.Int64
	judged := make(chan struct{})
	west := Config{Withdrawn: judge, Tunnel: hbone.Config{MaxStreams: 1}, Dial: func(ctx context.Context, _ *route.Peer, _ string) (Session, error) {
		n := dials.Add(1)
		if n > 1 {
			<-judged
		}
		return join(t, ctx, "west", p.east, func(s *Session) { s.Proved = begin.Add(time.Duration(n-1) * time.Hour) })
	}}
	p = newPair(t, west, Config{})
	clients := newSide(t, p.west)
	first := clients.dial(0)
	exchange(t, first, "before")
	second := clients.dial(0)
	eventually(t, "it waits", func() bool { return p.west.Stats().Peers["east"].Waiting == 1 })
	gone.Store(true)
	p.west.Judge()
	wantReset(t, first)
	eventually(t, "the tunnel is withdrawn", func() bool { return p.west.Stats().Withdrawn["revoked"] == 1 })
	close(judged)
	exchange(t, second, "on another tunnel")
}
