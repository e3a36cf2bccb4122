package authz

import (
	"net/netip"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Permit is a judgement in somebody's favour: who may reach what, from where.
// Only Authorize makes one that reaches anywhere; the zero Permit has no target.
type Permit struct {
	id               spiffeid.ID
	peer             *peer
	from, to, source netip.AddrPort
	rule, dry        string
}

// From is where delivery comes from: address and port (Preserve), the address
// with port 0 for any (Address), or zero for the gateway's own (Gateway).
func (p Permit) From() netip.AddrPort { return p.from }

// To is where delivery goes, unmapped.
func (p Permit) To() netip.AddrPort { return p.to }

// Peer is the name of the peer whose stream it is; empty in the zero Permit.
func (p Permit) Peer() string {
	if p.peer == nil {
		return ""
	}
	return p.peer.name
}

// ID is the SPIFFE ID that the peer proved.
func (p Permit) ID() spiffeid.ID { return p.id }

// Source is what the peer claimed, unmapped; zero if it claimed nothing.
func (p Permit) Source() netip.AddrPort { return p.source }

// Rule is the name of the allow rule that let it pass; empty where no rule names
// the target, and ownership alone decided.
func (p Permit) Rule() string { return p.rule }

// DryRun is the name of the rule in dry run that would have refused it, if those
// in dry run were enforced; mostly empty.
func (p Permit) DryRun() string { return p.dry }

// Authorize judges a stream of the peer that proved id. A zero source means that
// the peer named none. The error is a *DeniedError, always. A permit allocates
// nothing.
func (p *Policy) Authorize(id spiffeid.ID, source, target netip.AddrPort) (Permit, error) {
	source, target = unmap(source), unmap(target)
	who := p.ids[id]
	if reason := p.refusal(who.peer, source, target); reason != "" { // rules do not widen what ownership permits
		return Permit{}, &DeniedError{Reason: reason, ID: id, Source: source, Target: target}
	}
	v, dry := p.rules.judge(who, source, target)
	if v.reason != "" {
		return Permit{}, &DeniedError{Reason: v.reason, ID: id, Source: source, Target: target, Rule: v.rule, DryRun: dry}
	}
	return Permit{id: id, peer: who.peer, from: who.peer.from(source), to: target, source: source, rule: v.rule, dry: dry}, nil
}

// refusal is why peer may not reach target as source, or empty if it may.
func (p *Policy) refusal(peer *peer, source, target netip.AddrPort) Reason {
	if peer == nil {
		return UnknownPeer
	}
	if reason := p.refuseTarget(target); reason != "" {
		return reason
	}
	if source == (netip.AddrPort{}) {
		return peer.refuseAbsent()
	}
	if reason := p.refuseSource(peer, source); reason != "" {
		return reason
	}
	if peer.source != Gateway && source.Addr().Is4() != target.Addr().Is4() {
		return FamilyMismatch
	}
	return ""
}

// refuseTarget is why nobody may reach target, or empty.
func (p *Policy) refuseTarget(target netip.AddrPort) Reason {
	switch {
	case target.Port() == 0, never(target.Addr()):
		return BadTarget
	case slices.Contains(p.ports, target.Port()) && p.local(target.Addr()):
		return Loop
	}
	if owner, owned := p.owners.Lookup(target.Addr()); !owned || owner != nil {
		return TargetNotServed
	}
	return ""
}

// refuseSource is why peer may not claim source, or empty.
func (p *Policy) refuseSource(peer *peer, source netip.AddrPort) Reason {
	switch {
	case never(source.Addr()), p.local(source.Addr()):
		return BadSource
	case peer.source == Preserve && source.Port() == 0:
		return BadSource
	}
	// The owner must be this very peer; a nil owner is ourselves.
	if owner, owned := p.owners.Lookup(source.Addr()); !owned || owner != peer {
		return SourceNotOwned
	}
	return ""
}

// refuseAbsent is why the peer must name a source, or empty.
func (p *peer) refuseAbsent() Reason {
	if p.source == Gateway {
		return ""
	}
	return NoSource
}

// from is where the peer's stream with this source is delivered from.
func (p *peer) from(source netip.AddrPort) netip.AddrPort {
	switch p.source {
	case Preserve:
		return source
	case Address:
		return netip.AddrPortFrom(source.Addr(), 0)
	}
	return netip.AddrPort{}
}
