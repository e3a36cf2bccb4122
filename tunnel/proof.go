package tunnel

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/tunnel/engine"
)

// A live stream belongs to a SPIFFE ID, not to a certificate. So a certificate's
// end stops new streams on its tunnel only; those that live go on as long as the ID
// is proved anew. What was withdrawn ends at once with all that is on it.

// Withdrawal says why a peer's proof of who it is does not count any more.
type Withdrawal struct {
	// Reason is one word, of a closed list.
	Reason string
	// Err says more.
	Err error
}

func (w *Withdrawal) Error() string { return w.Err.Error() }

// Unwrap gives what lies beneath.
func (w *Withdrawal) Unwrap() error { return w.Err }

// ReasonIdentityExpired is why connections are cut, or tunnels not used, whose peer
// has not proved its ID anew after its certificate's time.
const ReasonIdentityExpired = "identity_expired"

// living is a session in use, in either direction.
type living struct {
	Session
	over bool // a certificate has expired: there are no new streams
}

// expired says whether the session is good for no new streams any more. It goes by
// the wall clock, as certificates do: after a suspension all may be over at once.
func (s *living) expired(now time.Time) bool {
	return !s.Expires.IsZero() && now.After(s.Expires)
}

// longestHandshake bounds the time between the verification of a peer and its
// tunnel's use.
const longestHandshake = 2 * time.Minute

// begins notes that a tunnel with this session is in use.
func (w *worker) begins(t *engine.Tunnel, s Session) *living {
	l := &living{Session: s}
	w.sessions[t] = l
	w.g.proofs.add(s.ID, s.ProofExpires)
	return l
}

// late is what was withdrawn between a handshake and its tunnel's use. Only a
// handshake that ran during the last judgement may have missed the change.
func (w *worker) late(s Session) error {
	if w.judged == 0 || w.loop.Now()-w.judged > longestHandshake {
		return nil
	}
	if wd := w.g.cfg.Withdrawn(s); wd != nil {
		w.stats.Withdrawn[wd.Reason]++
		return errors.Join(fmt.Errorf("withdrawn since its handshake: %w", wd), s.Close())
	}
	return nil
}

// judge ends every tunnel whose peer's proof was withdrawn.
func (w *worker) judge() {
	w.judged = w.loop.Now()
	gone := make(map[*engine.Tunnel]*Withdrawal)
	for t, s := range w.sessions {
		if wd := w.g.cfg.Withdrawn(s.Session); wd != nil {
			gone[t] = wd
		}
	}
	w.withdraw(gone)
}

// expire stops new streams on tunnels whose certificates' time is over, and ends
// those whose peer has not proved its ID anew in time. Now is the wall clock's.
func (w *worker) expire(now time.Time) {
	gone := make(map[*engine.Tunnel]*Withdrawal)
	for t, s := range w.sessions {
		if s.expired(now) {
			w.retire(t, s)
		}
		until := w.g.proofs.until(s.ID, s.ProofExpires)
		if !until.IsZero() && now.After(until.Add(w.g.cfg.Grace)) {
			gone[t] = &Withdrawal{ReasonIdentityExpired,
				fmt.Errorf("%s was proved until %s, and not since", s.ID, until.UTC().Format(time.RFC3339))}
		}
	}
	w.withdraw(gone)
}

// retire lets no new streams begin on a tunnel, once.
func (w *worker) retire(t *engine.Tunnel, s *living) {
	if s.over {
		return
	}
	s.over = true
	w.g.cfg.Log.Debug("tunnel's certificate has expired", "peer", s.Peer, "id", s.ID, "expired", s.Expires)
	w.drainTunnel(t)
}

// drainTunnel lets no new streams begin, and the pool know: it looks for another
// then, if we have dialled this one.
func (w *worker) drainTunnel(t *engine.Tunnel) {
	t.Drain()
	w.out.Room(t)
}

// withdraw cuts the flows on tunnels, then the tunnels.
func (w *worker) withdraw(gone map[*engine.Tunnel]*Withdrawal) {
	if len(gone) == 0 {
		return
	}
	for f, c := range w.flows {
		if wd := gone[f.Tunnel()]; wd != nil {
			c.cut = wd.Reason
			f.Abort(engine.Cut, wd)
		}
	}
	for t, wd := range gone {
		s := w.sessions[t]
		w.g.proofs.forget(s.ID)
		w.stats.Withdrawn[wd.Reason]++
		w.g.cfg.Log.Warn("tunnel withdrawn", "peer", s.Peer, "id", s.ID, "reason", wd.Reason, "error", wd.Err)
		w.drainTunnel(t) // so that its end is no failure of the endpoint
		t.Close(wd)
	}
}

// proofs are until when SPIFFE IDs have proved themselves, over all loops and both
// directions. There are as many as peers have IDs.
type proofs struct {
	mu sync.Mutex
	m  map[spiffeid.ID]time.Time // guarded by mu
}

// add notes a proof.
func (p *proofs) add(id spiffeid.ID, until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil {
		p.m = make(map[spiffeid.ID]time.Time)
	}
	if until.After(p.m[id]) {
		p.m[id] = until
	}
}

// until is the end of the latest proof: own is that of a session that has it, and
// zero if it has no end.
func (p *proofs) until(id spiffeid.ID, own time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if latest := p.m[id]; !own.IsZero() && latest.After(own) {
		return latest
	}
	return own
}

// forget takes back what an ID has proved: some of it does not count any more. Each
// session of its that stays still has its own proof.
func (p *proofs) forget(id spiffeid.ID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.m, id)
}
