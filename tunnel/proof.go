package tunnel

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"wishbone/tunnel/engine"
)

// A live stream belongs to a SPIFFE ID, not to a certificate. So the end of a
// certificate, or of the root that signed it, stops new streams on its tunnels
// only; those that live go on as long as the ID is proved anew. What is revoked
// ends at once with all that is on it.

// Withdrawal says why a peer's proof of who it is does not count any more.
type Withdrawal struct {
	// Reason is one word, of a closed list.
	Reason string
	// Err says more.
	Err error
	// Renewable says that this proof does not count, while another of the same
	// SPIFFE ID may: connections go on if there is one, or comes at once.
	Renewable bool
}

func (w *Withdrawal) Error() string { return w.Err.Error() }

// Unwrap gives what lies beneath.
func (w *Withdrawal) Unwrap() error { return w.Err }

// ReasonIdentityExpired is why connections are cut, refused, or tunnels not used,
// where a certificate's time is over: the peer's, who has not proved its ID anew,
// or our own.
const ReasonIdentityExpired = "identity_expired"

// ErrIdentityExpired is among the errors of a Config.Dial that has no valid
// certificate of ours to show.
var ErrIdentityExpired = errors.New("our own certificate has expired")

// living is a session in use, in either direction.
type living struct {
	Session
	direction Direction
	serial    string        // of the peer's certificate
	over      bool          // a certificate has expired: there are no new streams
	withdrawn *Withdrawal   // why the session's own proof does not count; nil if it does
	unproved  time.Duration // since when no proof of its ID has counted; 0 if one does
	asked     time.Duration // when the peer was last dialled for the sake of a proof
	pause     time.Duration // before that is done again
}

// expired says whether the session is good for no new streams any more. It goes by
// the wall clock, as certificates do: after a suspension all may be over at once.
func (s *living) expired(now time.Time) bool {
	return !s.Expires.IsZero() && now.After(s.Expires)
}

// never is later than any certificate's end (RFC 5280 §4.1.2.5).
var never = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)

// longestHandshake bounds the time between the verification of a peer and its
// tunnel's use.
const longestHandshake = 2 * time.Minute

// anewWithin is how soon an ID has to prove itself anew whose proofs were all
// withdrawn, and anewPause how often that is looked for.
const (
	anewWithin = 1500 * time.Millisecond
	anewPause  = 250 * time.Millisecond
)

// maxPause bounds the pause between dials for the sake of a proof that is missed
// without haste.
const maxPause = time.Minute

// begins notes that a tunnel with this session is in use.
func (w *worker) begins(t *engine.Tunnel, d Direction, s Session) *living {
	if s.ProofExpires.IsZero() {
		s.ProofExpires = never
	}
	l := &living{Session: s, direction: d, serial: serialOf(s)}
	w.sessions[t] = l
	w.decideTunnel(TunnelOpened, l, "")
	w.g.proofs.add(s, w.round)
	return l
}

// late is what was withdrawn between a handshake and its tunnel's use. Only a
// handshake that ran during the last judgement may have missed the change.
func (w *worker) late(d Direction, s Session) error {
	if w.judged == 0 || w.loop.Now()-w.judged > longestHandshake {
		return nil
	}
	if wd := w.g.cfg.Withdrawn(s); wd != nil {
		w.stats.Withdrawn[wd.Reason]++
		w.decideTunnel(TunnelWithdrawn, &living{Session: s, direction: d, serial: serialOf(s)}, wd.Reason)
		return errors.Join(fmt.Errorf("withdrawn since its handshake: %w", wd), s.Close())
	}
	return nil
}

// judge ends every tunnel whose peer was revoked, and has those prove themselves
// anew whose proof was withdrawn.
func (w *worker) judge(round int) {
	w.judged, w.round = w.loop.Now(), max(w.round, round) // two may cross on their way here
	gone := make(map[*engine.Tunnel]*Withdrawal)
	for t, s := range w.sessions {
		wd, before := w.g.cfg.Withdrawn(s.Session), s.withdrawn
		s.withdrawn = wd
		switch {
		case wd == nil:
			w.g.proofs.add(s.Session, w.round)
		case !wd.Renewable:
			gone[t] = wd
		case before == nil:
			w.g.cfg.Log.Warn("tunnel takes no new connections: its peer must prove itself anew",
				"peer", s.Peer, "id", s.ID, "reason", wd.Reason, "error", wd.Err)
			w.drainTunnel(t)
		}
	}
	w.withdraw(gone)
	w.expire(time.Now())
}

// renewed is told since when our own certificate is the present one. Peers that
// live connections lead to get to see it before they miss it.
func (w *worker) renewed(since time.Time) {
	w.leaf = since
	for _, s := range w.sessions {
		s.asked, s.pause = 0, 0
	}
	w.out.pool.Wake()
	w.expire(time.Now())
}

// expire stops new streams on tunnels whose certificates' time is over, ends those
// whose peer has not proved its ID anew in time, and sees to it that it can. Now is
// the wall clock's.
func (w *worker) expire(now time.Time) {
	gone := make(map[*engine.Tunnel]*Withdrawal)
	var wait time.Duration // until the next look at those that must prove themselves anew
	for t, s := range w.sessions {
		if s.expired(now) {
			w.retire(t, s)
		}
		until, shown, ok := w.proved(s)
		switch {
		case !ok:
			s.unproved = cmp.Or(s.unproved, w.loop.Now())
			left := s.unproved + anewWithin - w.loop.Now()
			if left <= 0 {
				gone[t] = s.withdrawn
				continue
			}
			wait = min(cmp.Or(wait, anewPause), left)
			w.out.renew(t)
		case now.After(until.Add(w.g.cfg.Grace)):
			gone[t] = &Withdrawal{Reason: ReasonIdentityExpired,
				Err: fmt.Errorf("%s was proved until %s, and not since", s.ID, until.UTC().Format(time.RFC3339))}
		case now.After(until), shown.Before(w.leaf):
			s.unproved = 0
			w.ask(t, s)
		default:
			s.unproved, s.asked, s.pause = 0, 0, 0
		}
	}
	w.withdraw(gone)
	if wait > 0 {
		w.loop.After(&w.anew, wait, func() { w.expire(time.Now()) })
	}
}

// proved is until when a session's ID has proved itself, on this tunnel or another,
// and how old the certificate may be that its peer has last seen of us. It is not ok
// if no proof counts.
func (w *worker) proved(s *living) (until, shown time.Time, ok bool) {
	if s.withdrawn == nil {
		until, shown, ok = s.ProofExpires, s.Shown, true
	}
	if last := w.g.proofs.last(s.ID); last != nil {
		shown, ok = last.Shown, true
		if last.ProofExpires.After(until) {
			until = last.ProofExpires
		}
	}
	return until, shown, ok
}

// ask dials a tunnel's peer anew for the sake of a proof, ever more seldom.
func (w *worker) ask(t *engine.Tunnel, s *living) {
	now := w.loop.Now()
	if s.asked != 0 && now-s.asked < s.pause {
		return
	}
	s.asked, s.pause = now, min(max(2*s.pause, time.Second), maxPause)
	w.out.renew(t)
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
	for t := range gone { // before what ends leaves room for others; and its end is no failure of the endpoint
		w.drainTunnel(t)
	}
	for f, c := range w.flows {
		if wd := gone[f.Tunnel()]; wd != nil {
			c.cut = wd.Reason
			f.Abort(engine.Cut, wd)
		}
	}
	for t, wd := range gone {
		s := w.sessions[t]
		w.stats.Withdrawn[wd.Reason]++
		w.decideTunnel(TunnelWithdrawn, s, wd.Reason)
		w.g.cfg.Log.Warn("tunnel withdrawn", "peer", s.Peer, "id", s.ID, "reason", wd.Reason, "error", wd.Err)
		t.Close(wd)
	}
}
