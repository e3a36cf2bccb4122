package daemon

import (
	"fmt"
	"net/netip"
	"slices"

	"wishbone/config"
)

// Explain says what would become of a connection, and why.
func (d *Daemon) Explain(source, target netip.AddrPort) Explanation {
	e := Explanation{Source: source, Target: target}
	s := d.current.Load()
	switch peer, ok := s.routes.Lookup(target.Addr()); {
	case slices.Contains(s.endpoints, target):
		e.conclude("left alone", "%s is a peer's endpoint: connections to it are its tunnels", target)
	case s.loops(target, d.addrs.has):
		d.explainSelf(&e, s)
	case ok:
		e.step("%s is in the networks of peer %s", target.Addr(), peer.Name)
		d.explainOutbound(&e, s, peer.Name)
	case s.routes.Ours(target.Addr()):
		e.step("%s is in our own networks", target.Addr())
		d.explainInbound(&e, s)
	default:
		e.conclude("left alone", "no peer owns %s, and neither do we", target.Addr())
	}
	return e
}

func (e *Explanation) step(format string, args ...any) {
	e.Steps = append(e.Steps, fmt.Sprintf(format, args...))
}

// conclude is the last step, and the verdict.
func (e *Explanation) conclude(verdict, format string, args ...any) {
	e.step(format, args...)
	e.Verdict = verdict
}

// explainSelf judges a connection to this host, outside of what it serves.
func (d *Daemon) explainSelf(e *Explanation, s *snapshot) {
	if owner, ok := s.routes.Lookup(e.Source.Addr()); ok {
		e.conclude("closed as a loop", "%s is this gateway itself: what %s brings for it is not delivered", e.Target, owner.Name)
		return
	}
	e.conclude("left alone", "%s is this gateway itself: connections to it are not captured", e.Target)
}

// explainOutbound judges a connection to a peer.
func (d *Daemon) explainOutbound(e *Explanation, s *snapshot, name string) {
	c := s.cfg.Capture
	from := c.Sources
	if len(from) == 0 {
		from = s.cfg.Networks
	}
	local := d.addrs.has(e.Source.Addr())
	switch {
	case within(c.Exclude.Networks, e.Target.Addr()) || within(c.Exclude.Networks, e.Source.Addr()):
		e.conclude("left alone", "it is in capture.exclude.networks")
	case excludedPort(c.Exclude.Ports, e.Target.Port()):
		e.conclude("left alone", "port %d is in capture.exclude.ports", e.Target.Port())
	case local && !c.Local:
		e.conclude("left alone", "%s is this host's, and capture.from does not say local", e.Source.Addr())
	case !local && !c.Forwarded:
		e.conclude("left alone", "%s is not this host's, and capture.from does not say forwarded", e.Source.Addr())
	case !local && !within(from, e.Source.Addr()):
		e.conclude("left alone", "%s is not in capture.sources (default: networks)", e.Source.Addr())
	case !s.routes.Ours(e.Source.Addr()):
		e.conclude("captured, and refused by the peer", "%s is not in our networks: the peer will not believe it", e.Source.Addr())
	default:
		e.conclude("carried to "+name, "captured, and carried to peer %s; it decides about %s itself", name, e.Target)
	}
}

// explainInbound judges what peers may bring us.
func (d *Daemon) explainInbound(e *Explanation, s *snapshot) {
	owner, ok := s.routes.Lookup(e.Source.Addr())
	if !ok {
		e.conclude("left alone", "%s belongs to no peer: no gateway may bring it, and nothing keeps it from coming by itself", e.Source.Addr())
		return
	}
	source := e.Source
	if source.Port() == 0 {
		source = netip.AddrPortFrom(source.Addr(), 1)
	}
	e.step("%s is in the networks of peer %s", e.Source.Addr(), owner.Name)
	p, err := s.policy.Authorize(owner.IDs[0], source, e.Target)
	if err != nil {
		e.conclude("refused", "%s", err)
		return
	}
	e.step("from the tunnel of %s it is permitted", owner.Name)
	i := slices.IndexFunc(s.cfg.Peers, func(p config.Peer) bool { return p.Name == owner.Name })
	e.step("it is delivered with source: %s", s.cfg.Peers[i].Inbound.Source)
	e.conclude("delivered to "+p.To().String(), "without a tunnel the guard %s it", guard(s.cfg.Peers[i]))
}

func guard(p config.Peer) string {
	if p.Outbound.Unavailable == config.Pass {
		return "lets pass (unavailable: pass: its addresses prove nothing)"
	}
	return "drops"
}

func within(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

func excludedPort(list []config.PortRange, port uint16) bool {
	return slices.ContainsFunc(list, func(r config.PortRange) bool { return r.First <= port && port <= r.Last })
}
