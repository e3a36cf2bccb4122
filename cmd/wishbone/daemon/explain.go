package daemon

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/config"
	"wishbone/identity"
	"wishbone/identity/authz"
	"wishbone/tunnel"
)

// Explanation is what would become of a connection.
type Explanation struct {
	Source netip.AddrPort `json:"source"`
	Target netip.AddrPort `json:"target"`
	// ID is whose tunnel it was judged as of, where one would bring it here.
	ID      string   `json:"id,omitempty"`
	Verdict string   `json:"verdict"`
	Steps   []string `json:"steps"`
	// Reason, Rule and DryRun are those of the judgement, as in the log; RuleAt is
	// where the rule stands, as file:line.
	Reason authz.Reason `json:"reason,omitempty"`
	Rule   string       `json:"rule,omitempty"`
	RuleAt string       `json:"rule_at,omitempty"`
	DryRun string       `json:"dry_run,omitempty"`
	// RefusedNow is the reason for which a connection that would be carried is refused
	// all the same, as long as things are as they were when the peer was last dialled.
	RefusedNow string `json:"refused_now,omitempty"`
}

func (d *Daemon) answerExplain(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	source, err := ParseSource(query.Get("source"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	target, err := netip.ParseAddrPort(query.Get("target"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !query.Has("as") {
		answerJSON(w, d.Explain(source, target))
		return
	}
	id, err := spiffeid.FromString(query.Get("as"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answerJSON(w, d.ExplainAs(id, source, target))
}

// ExplainAs says what would become of a connection that a tunnel of id brings,
// and why.
func (d *Daemon) ExplainAs(id spiffeid.ID, source, target netip.AddrPort) Explanation {
	e := Explanation{Source: source, Target: target}
	s := d.current.Load()
	i := slices.IndexFunc(s.cfg.Peers, func(p config.Peer) bool { return slices.Contains(p.IDs, id) })
	if i >= 0 {
		e.step("%s is peer %s", id, s.cfg.Peers[i].Name)
		e.judge(s, id, s.cfg.Peers[i])
		return e
	}
	e.ID, e.Reason = id.String(), authz.UnknownPeer
	e.conclude("refused", "no peer has the id %s: there is no tunnel that could bring it", id)
	return e
}

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
	case e.excluded(c.Exclude):
	case local && !c.Local:
		e.conclude("left alone", "%s is this host's, and capture.from does not say local", e.Source.Addr())
	case !local && !c.Forwarded:
		e.conclude("left alone", "%s is not this host's, and capture.from does not say forwarded", e.Source.Addr())
	case !local && !within(from, e.Source.Addr()):
		e.conclude("left alone", "%s is not in capture.sources (default: networks)", e.Source.Addr())
	case !s.routes.Ours(e.Source.Addr()):
		e.conclude("captured, and refused by the peer", "%s is not in our networks: the peer will not believe it", e.Source.Addr())
	case s.revokes(name):
		e.Reason = authz.Reason(identity.Revoked)
		e.conclude("refused", "every id of peer %s is in revoked.ids: there is no tunnel to it", name)
	default:
		e.conclude("carried to "+name, "captured, and carried to peer %s; it decides about %s itself", name, e.Target)
		if d.serving.Load() {
			d.explainNow(e, s, name)
		}
	}
}

// explainNow says what keeps a connection from being carried to a peer at present.
func (d *Daemon) explainNow(e *Explanation, s *snapshot, name string) {
	_, own := d.own()
	peer := d.gateway.Stats().Peers[name]
	switch missing := d.source.missing(); {
	case identity.ReasonOf(own) == identity.OwnExpired:
		e.refusedNow(tunnel.ReasonIdentityExpired, "no tunnel can be dialled: our own identity: %v", own)
	case peer.Endpoint != "": // tunnels are up
	case missing != nil:
		e.refusedNow(tunnel.ReasonPeerDown, "it waits for our own identity, for %v at most: %v", waitTimeout(s.cfg), missing)
	case own != nil:
		e.refusedNow(tunnel.ReasonPeerDown, "no tunnel can be dialled: our own identity: %v", own)
	case peer.Err != nil:
		e.refusedNow(tunnel.ReasonPeerDown, "%s could not be reached when it was last dialled: %v", name, peer.Err)
	}
}

// refusedNow is a step that says so.
func (e *Explanation) refusedNow(reason, format string, args ...any) {
	e.RefusedNow = reason
	e.step(format, args...)
}

// revokes says whether no id of a peer counts.
func (s *snapshot) revokes(peer string) bool {
	i := slices.IndexFunc(s.cfg.Peers, func(p config.Peer) bool { return p.Name == peer })
	return !slices.ContainsFunc(s.cfg.Peers[i].IDs, func(id spiffeid.ID) bool { return !s.revoked.Has(id) })
}

// excluded concludes what is excluded, and says whether it is. The far gateway
// has to exclude it too.
func (e *Explanation) excluded(x config.Exclude) bool {
	const both = "it goes in the clear, as far as both gateways exclude it"
	switch {
	case within(x.Networks, e.Target.Addr()) || within(x.Networks, e.Source.Addr()):
		e.conclude("left alone", "it is in capture.exclude.networks: %s", both)
	case excludedPort(x.Ports, e.Target.Port()):
		e.conclude("left alone", "port %d is in capture.exclude.ports: %s", e.Target.Port(), both)
	default:
		return false
	}
	return true
}

// explainInbound judges what peers may bring us.
func (d *Daemon) explainInbound(e *Explanation, s *snapshot) {
	if e.excluded(s.cfg.Capture.Exclude) {
		return
	}
	owner, ok := s.routes.Lookup(e.Source.Addr())
	if !ok {
		e.conclude("left alone", "%s belongs to no peer: no gateway may bring it, and nothing keeps it from coming by itself", e.Source.Addr())
		return
	}
	e.step("%s is in the networks of peer %s", e.Source.Addr(), owner.Name)
	i := slices.IndexFunc(s.cfg.Peers, func(p config.Peer) bool { return p.Name == owner.Name })
	e.judge(s, owner.IDs[0], s.cfg.Peers[i])
	permitted := e.permitted(s, owner.IDs[0])
	for _, other := range owner.IDs[1:] {
		if e.permitted(s, other) != permitted {
			e.step("as %s it would be otherwise: ask with --as", other)
		}
	}
}

// authorize asks the policy as the data path does. A source without a port has
// any.
func (e *Explanation) authorize(s *snapshot, id spiffeid.ID) (authz.Permit, error) {
	source := e.Source
	if source.IsValid() && source.Port() == 0 {
		source = netip.AddrPortFrom(source.Addr(), 1)
	}
	return s.policy.Authorize(id, source, e.Target)
}

// permitted says whether a tunnel that has proved id may bring it.
func (e *Explanation) permitted(s *snapshot, id spiffeid.ID) bool {
	_, err := e.authorize(s, id)
	return err == nil && !s.revoked.Has(id)
}

// judge explains what the policy says of it, on a tunnel of peer's that has
// proved id.
func (e *Explanation) judge(s *snapshot, id spiffeid.ID, peer config.Peer) {
	e.ID = id.String()
	if s.revoked.Has(id) {
		e.Reason = authz.Reason(identity.Revoked)
		e.conclude("refused", "%s is in revoked.ids: there is no tunnel that could bring it", id)
		return
	}
	p, err := e.authorize(s, id)
	if denied, ok := errors.AsType[*authz.DeniedError](err); ok {
		e.refused(s, denied)
		return
	}
	e.step("from the tunnel of %s it is permitted", peer.Name)
	e.byRule(s, p.Rule(), p.DryRun())
	switch {
	case e.Rule != "":
		e.step("rule %s (%s) allows it", e.Rule, e.RuleAt)
	case len(s.cfg.Policy) > 0:
		e.step("no deny rule matches it, and no allow rule names %s", e.Target)
	}
	if e.DryRun != "" {
		e.step("rule %s (%s) is in dry run: in force, it would refuse it", e.DryRun, s.ruleAt(e.DryRun))
	}
	e.step("it is delivered with source: %s", peer.Inbound.Source)
	e.conclude("delivered to "+p.To().String(), "without a tunnel the guard %s it", guard(peer))
}

// byRule notes which rules a judgement was made by.
func (e *Explanation) byRule(s *snapshot, rule, dryRun string) {
	e.Rule, e.DryRun = rule, dryRun
	if rule != "" {
		e.RuleAt = s.ruleAt(rule)
	}
}

// refused explains a refusal.
func (e *Explanation) refused(s *snapshot, denied *authz.DeniedError) {
	e.Reason = denied.Reason
	e.byRule(s, denied.Rule, denied.DryRun)
	switch denied.Reason {
	case authz.PolicyDeny:
		e.step("rule %s (%s) denies it", e.Rule, e.RuleAt)
	case authz.PolicyDefaultDeny:
		e.step("rule %s (%s) names %s, and neither it nor another allow rule matches", e.Rule, e.RuleAt, e.Target)
	}
	if e.DryRun != "" {
		e.step("rule %s (%s) is in dry run: in force, it would permit it", e.DryRun, s.ruleAt(e.DryRun))
	}
	e.conclude("refused", "%s", denied)
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
