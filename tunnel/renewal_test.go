package tunnel

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wishbone/tunnel/engine"
	"wishbone/tunnel/route"
)

// roots are those by which one gateway's peers prove themselves, each by a name that
// a session bears in place of a time.
type roots struct {
	mu   sync.Mutex
	gone []time.Time // guarded by mu
}

// root is the time that stands for a root.
func root(n int) time.Time { return time.Unix(int64(n), 0) }

// by bends sessions: their peers have proved themselves by a root.
func by(n int) func(*Session) { return func(s *Session) { s.Proved = root(n) } }

func (r *roots) withdraw(n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.gone = append(r.gone, root(n))
}

func (r *roots) withdrawn(s Session) *Withdrawal {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.ContainsFunc(r.gone, s.Proved.Equal) {
		return nil
	}
	return &Withdrawal{Reason: "root_withdrawn", Err: errors.New("signed by nobody"), Renewable: true}
}

// TestRootWithdrawn: when the root goes by which a peer has proved itself, what lives
// goes on if and only if its ID proves itself by another, whichever side has dialled;
// new streams take another tunnel in any case.
func TestRootWithdrawn(t *testing.T) {
	serve(t)
	for _, tt := range []struct {
		judges string // the side whose roots change
		anew   bool
	}{{"west", true}, {"west", false}, {"east", true}, {"east", false}} {
		name := tt.judges + " judges, and the peer is silent"
		if tt.anew {
			name = tt.judges + " judges, and the peer proves itself anew"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel() // some of these wait for a clock
			var p *pair
			var dials, next atomic.Int64
			next.Store(1)
			rs := &roots{}
			west := Config{Withdrawn: rs.withdrawn, Dial: func(ctx context.Context, _ *route.Peer, _ string) (Session, error) {
				if n := dials.Add(1); n > 1 && !tt.anew && tt.judges == "west" {
					return Session{}, errors.New("nobody there")
				}
				now := time.Now()
				return join(t, ctx, "west", p.east, by(int(next.Load())), func(s *Session) { s.Shown = now })
			}}
			east := Config{Withdrawn: rs.withdrawn}
			if tt.judges == "east" {
				west.Withdrawn = nil
			} else {
				east.Withdrawn = nil
			}
			p = newPair(t, west, east)
			judging := map[string]*end{"west": p.west, "east": p.east}[tt.judges]
			c := newSide(t, p.west).dial(0)
			exchange(t, c, "before")
			if tt.anew {
				next.Store(2)
				if tt.judges == "east" {
					p.west.Renewed() // as it is told of its new certificate
					eventually(t, "east has a new proof", func() bool { return p.east.Stats().Inbound["west"] == 2 })
				}
			}
			rs.withdraw(1)
			judging.Judge()
			eventually(t, "the tunnel takes no new streams", func() bool { return judging.closedToNew() == 1 })
			if !tt.anew {
				wantReset(t, c)
				if s := judging.Stats(); s.Withdrawn["root_withdrawn"] != 1 || s.Closed[engine.Cut] != 1 {
					t.Errorf("withdrawn %v, ended %v", s.Withdrawn, s.Closed)
				}
				return
			}
			peer := map[string]string{"west": "east", "east": "west"}[tt.judges]
			eventually(t, "the peer has proved itself anew", func() bool {
				proof := judging.proofs.last(idOf(peer))
				return proof != nil && proof.Proved.Equal(root(2))
			})
			judging.overdue()
			exchange(t, c, "after")
			if s := judging.Stats(); len(s.Withdrawn) > 0 || s.Closed[engine.Cut] > 0 {
				t.Errorf("withdrawn %v, ended %v", s.Withdrawn, s.Closed)
			}
			if dials.Load() != 2 {
				t.Errorf("%d dials, want 2", dials.Load())
			}
		})
	}
}

// TestProofWithdrawnToo: what lives by a second proof ends with that, also if the
// tunnel that has brought it is no more.
func TestProofWithdrawnToo(t *testing.T) {
	serve(t)
	var p *pair
	rs := &roots{}
	p = newPair(t, Config{Dial: func(ctx context.Context, _ *route.Peer, _ string) (Session, error) {
		return join(t, ctx, "west", p.east, by(1))
	}}, Config{Withdrawn: rs.withdrawn})
	c := newSide(t, p.west).dial(0)
	exchange(t, c, "before")
	second, err := join(t, t.Context(), "west", p.east, by(2))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "there is another tunnel", func() bool { return p.east.Stats().Inbound["west"] == 2 })
	second.Close()
	eventually(t, "it is gone", func() bool { return p.east.Stats().Inbound["west"] == 1 })
	rs.withdraw(1)
	p.east.Judge()
	eventually(t, "the first takes no new streams", func() bool { return p.east.closedToNew() == 1 })
	p.east.overdue()
	exchange(t, c, "by the second")
	rs.withdraw(2)
	p.east.Judge()
	p.east.overdue()
	wantReset(t, c)
}

// TestOlderProof: what was proved before the last, and still counts, is enough.
func TestOlderProof(t *testing.T) {
	serve(t)
	var p *pair
	rs := &roots{}
	p = newPair(t, Config{Dial: func(ctx context.Context, _ *route.Peer, _ string) (Session, error) {
		return join(t, ctx, "west", p.east, by(2))
	}}, Config{Withdrawn: rs.withdrawn})
	c := newSide(t, p.west).dial(0)
	exchange(t, c, "before")
	older, err := join(t, t.Context(), "west", p.east, by(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { older.Close() })
	eventually(t, "there is another tunnel", func() bool { return p.east.Stats().Inbound["west"] == 2 })
	rs.withdraw(2)
	p.east.Judge()
	eventually(t, "the first takes no new streams", func() bool { return p.east.closedToNew() == 1 })
	p.east.overdue()
	exchange(t, c, "by the older")
}

// overdue lets the time be over, on every loop, in which IDs may prove themselves anew.
func (e *end) overdue() {
	e.each(func(w *worker) {
		for _, s := range w.sessions {
			if s.unproved != 0 {
				s.unproved = w.loop.Now() - anewWithin
			}
		}
		w.expire(time.Now())
	})
}

// TestShown: a gateway shows its new certificate to every peer that it has live
// streams to, and to no other, whatever it takes.
func TestShown(t *testing.T) {
	serve(t)
	var p *pair
	var dials, failures atomic.Int64
	p = newPair(t, Config{Dial: func(ctx context.Context, _ *route.Peer, _ string) (Session, error) {
		dials.Add(1)
		if failures.Add(-1) >= 0 {
			return Session{}, errors.New("not now")
		}
		shown := time.Now()
		return join(t, ctx, "west", p.east, func(s *Session) { s.Shown, s.Proved = shown, time.Now() })
	}}, Config{})
	c := newSide(t, p.west).dial(0)
	exchange(t, c, "before")
	p.west.Renewed()
	eventually(t, "east is dialled anew", func() bool { return p.east.Stats().Inbound["west"] == 2 })
	failures.Store(2)
	p.west.Renewed()
	eventually(t, "until it works", func() bool {
		p.west.each(func(w *worker) {
			for _, s := range w.sessions {
				s.asked = 0 // the pause is over
			}
			w.expire(time.Now())
		})
		return p.east.Stats().Inbound["west"] == 3
	})
	p.west.expire(time.Now())
	if n := dials.Load(); n != 5 {
		t.Errorf("%d dials, want 5", n)
	}
	exchange(t, c, "after")
	c.Close()
	eventually(t, "nothing lives", func() bool { return len(p.west.Flows()) == 0 })
	p.west.Renewed()
	p.west.expire(time.Now())
	if n := dials.Load(); n != 5 {
		t.Errorf("%d dials with nothing to show for, want 5", n)
	}
}

// TestLonelyStream: one stream that nobody ever joins outlives certificates: the
// peer is asked for a proof when the last has expired.
func TestLonelyStream(t *testing.T) {
	serve(t)
	var p *pair
	var dials atomic.Int64
	const grace = 10 * time.Minute
	hour := func(n int) time.Time { return time.Now().Add(time.Duration(n) * time.Hour) }
	p = newPair(t, Config{Grace: grace, Dial: func(ctx context.Context, _ *route.Peer, _ string) (Session, error) {
		n := int(dials.Add(1))
		return join(t, ctx, "west", p.east, by(n), func(s *Session) { s.Expires, s.ProofExpires = hour(n), hour(n) })
	}}, Config{Grace: grace})
	c := newSide(t, p.west).dial(0)
	for n := 1; n < 4; n++ {
		exchange(t, c, "alone")
		for _, e := range []*end{p.west, p.east} {
			e.expire(hour(n).Add(time.Second))
		}
		eventually(t, "there is another proof of each", func() bool {
			return p.east.proofs.last(idOf("west")).Proved.Equal(root(n+1)) && p.west.proofs.last(idOf("east")).Proved.Equal(root(n+1))
		})
		for _, e := range []*end{p.west, p.east} {
			e.expire(hour(n).Add(grace + time.Second))
		}
	}
	exchange(t, c, "alone")
}

// TestProofs: the last proof counts, and only those that the present round of
// judgements has seen.
func TestProofs(t *testing.T) {
	var p proofs
	id := idOf("west")
	wants := func(why string, n int) {
		t.Helper()
		last := p.last(id)
		if n == 0 && last != nil || n > 0 && (last == nil || !last.Proved.Equal(root(n))) {
			t.Errorf("%s: the last proof is %+v, want %d", why, last, n)
		}
	}
	proof := func(n int) Session { return Session{ID: id, Proved: root(n)} }
	rs := &roots{}
	wants("nothing was proved", 0)
	p.add(proof(1), 0)
	p.add(proof(3), 0)
	p.add(proof(2), 0)
	wants("the last is not the one that was told last", 3)
	if p.last(idOf("east")) != nil {
		t.Error("another ID has proved something")
	}
	if round := p.judge(rs.withdrawn); round != 1 {
		t.Errorf("round %d, want 1", round)
	}
	wants("nothing was withdrawn", 3)
	rs.withdraw(3)
	p.judge(rs.withdrawn)
	wants("it was", 0)
	p.add(proof(4), 1)
	wants("it may be withdrawn: nobody has looked", 0)
	p.add(proof(2), 2)
	wants("an older one that counts", 2)
}

// TestIdentityExpired: without a valid certificate of our own, connections are
// refused at once, by that reason, and served again when there is one.
func TestIdentityExpired(t *testing.T) {
	serve(t)
	var p *pair
	var expired atomic.Bool
	expired.Store(true)
	p = newPair(t, Config{Dial: func(ctx context.Context, _ *route.Peer, _ string) (Session, error) {
		if expired.Load() {
			return Session{}, ErrIdentityExpired
		}
		return join(t, ctx, "west", p.east)
	}}, Config{})
	side := newSide(t, p.west)
	for range 20 {
		side.wantReset(0)
	}
	if s := p.west.Stats(); s.Refused[ReasonIdentityExpired] != 20 || len(s.Refused) != 1 {
		t.Errorf("refused %v", s.Refused)
	}
	expired.Store(false)
	p.west.Renewed()
	p.west.each(func(*worker) {}) // it has heard of it
	exchange(t, side.dial(0), "hello")
}

// TestNoIdentityYet: connections wait for a first identity.
func TestNoIdentityYet(t *testing.T) {
	serve(t)
	var missing atomic.Bool
	missing.Store(true)
	p := newPair(t, Config{Hold: func() error {
		if missing.Load() {
			return errors.New("no identity yet")
		}
		return nil
	}}, Config{})
	c := newSide(t, p.west).dial(0)
	eventually(t, "it waits", func() bool { return p.west.Stats().Peers["east"].Waiting == 1 })
	if n := p.dials.Load(); n != 0 {
		t.Errorf("%d dials without an identity", n)
	}
	missing.Store(false)
	p.west.Renewed()
	exchange(t, c, "hello")
}
