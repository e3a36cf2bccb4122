package tunnel

import (
	"errors"
	"net/netip"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/identity/authz"
	"wishbone/tunnel/engine"
)

// Decision is what was decided about a connection or a tunnel. It holds nothing of
// what connections carry.
type Decision struct {
	Verdict   Verdict
	Direction Direction
	// Peer is the peer's name, ID what it has proved and Serial the number of the
	// certificate that it did it with, as far as that is known.
	Peer   string
	ID     spiffeid.ID
	Serial string
	// Client and Target are the connection's. Both are zero for tunnels, and where a
	// request could not be understood; Client where the peer has named none.
	Client, Target netip.AddrPort
	// From is where a tunnel that the peer has opened came from.
	From netip.AddrPort
	// Reason is why, in a word of a closed list; empty for Allowed.
	Reason string
	// Rule is the policy's that has decided: for DryRun, that would have.
	Rule string
	// Sent and Received are the bytes of a connection that was cut, out of and into
	// its local socket.
	Sent, Received uint64
}

// Verdict is what a Decision says, of a closed list.
type Verdict string

// The verdicts. A connection is Allowed or Denied once, when it is judged; one that
// no tunnel comes for is only Failed, or nothing if its client goes first. What is
// Allowed may be Denied all the same when it is judged again, or Failed, or CutOff.
const (
	Allowed         Verdict = "allowed"
	Denied          Verdict = "denied"
	DryRun          Verdict = "dry_run"          // a rule in dry run would have decided otherwise
	Failed          Verdict = "failed"           // it could not be carried
	CutOff          Verdict = "cut"              // we have ended it: Why engine.Cut
	TunnelOpened    Verdict = "tunnel_opened"    // a peer's proof was good
	TunnelWithdrawn Verdict = "tunnel_withdrawn" // and is not any more
	TunnelCut       Verdict = "tunnel_cut"       // for what the peer did: Reason is one of Faults
)

// Verdicts lists every Verdict.
func Verdicts() []Verdict {
	return []Verdict{Allowed, Denied, DryRun, Failed, CutOff, TunnelOpened, TunnelWithdrawn, TunnelCut}
}

// Reasons of DryRun: what the rule would have done.
const (
	wouldAllow = "would_allow"
	wouldDeny  = "would_deny"
)

// decide tells of a decision about a connection.
func (w *worker) decide(v Verdict, c *carried, reason string, e engine.End) {
	d := Decision{
		Verdict: v, Direction: c.direction, Peer: c.peer, ID: c.id, Serial: c.serial, Client: c.client, Target: c.target,
		Reason: reason, Rule: c.rule,
	}
	switch v {
	case DryRun:
		d.Rule = c.dryRun
	case CutOff:
		d.Sent, d.Received = e.Sent, e.Received
	}
	w.g.cfg.Decided(d)
}

// decideFirst tells of the first judgement of a connection. A denial is told of at
// its end, which is the next thing.
func (w *worker) decideFirst(c *carried, err error) {
	otherwise := wouldAllow
	if err == nil {
		otherwise = wouldDeny
		w.decide(Allowed, c, "", engine.End{})
	}
	if c.dryRun != "" {
		w.decide(DryRun, c, otherwise, engine.End{})
	}
}

// decideEnd tells of an end that was a decision of ours.
func (w *worker) decideEnd(c *carried, e engine.End, reason string) {
	switch {
	case e.Why == engine.Cut:
		w.decide(CutOff, c, c.cut, e)
	case e.Why != engine.Unserved:
	case c.denied:
		w.decide(Denied, c, reason, e)
	default:
		w.decide(Failed, c, reason, e)
	}
}

// forbid cuts a live flow that the present routes or policy do not allow.
func (w *worker) forbid(f *engine.Flow, c *carried, err error) {
	c.cut = reasonNoRoute
	if e, ok := errors.AsType[*authz.DeniedError](err); ok {
		c.cut, c.rule = string(e.Reason), e.Rule
	}
	f.Abort(engine.Cut, err)
}

// decideTunnel tells of a decision about a tunnel.
func (w *worker) decideTunnel(v Verdict, s *living, reason string) {
	w.g.cfg.Decided(Decision{Verdict: v, Direction: s.direction, Peer: s.Peer, ID: s.ID, Serial: s.serial, From: s.From, Reason: reason})
}

// serialOf is the number of the certificate that a peer has proved itself with, in
// hexadecimal.
func serialOf(s Session) string {
	if len(s.Chain) == 0 {
		return ""
	}
	return s.Chain[0].SerialNumber.Text(16)
}
