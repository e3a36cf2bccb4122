package daemon

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/config"
	"wishbone/identity"
	"wishbone/identity/authz"
	"wishbone/intercept/rules"
	"wishbone/tunnel/route"
)

// snapshot is everything that a configuration decides about connections. It is
// immutable; a reload makes another.
type snapshot struct {
	cfg       *config.Config
	routes    *route.Table
	policy    *authz.Policy
	peers     map[spiffeid.ID]string // who a SPIFFE ID is
	rulesAt   map[string]string      // where each rule stands, as file:line
	ports     []uint16               // that we listen on
	endpoints []netip.AddrPort       // of peers, as far as they are literal
	revoked   *identity.Revocations  // who is refused whatever they prove
}

// newSnapshot makes one of a configuration; local says which addresses are this
// host's.
func newSnapshot(cfg *config.Config, local func(netip.Addr) bool) (*snapshot, error) {
	s := &snapshot{cfg: cfg, rulesAt: rulesAt(cfg), peers: make(map[spiffeid.ID]string), ports: listenPorts(cfg)}
	s.revoked = identity.NewRevocations(cfg.Revoked.IDs, cfg.Revoked.Serials)
	routes := route.Config{Networks: cfg.Networks}
	policy := authz.Config{Networks: cfg.Networks, Ports: s.ports, Local: local, Rules: policyRules(cfg)}
	for _, p := range cfg.Peers {
		routes.Peers = append(routes.Peers, route.Peer{Name: p.Name, IDs: p.IDs, Endpoints: p.Endpoints, Networks: p.Networks})
		policy.Peers = append(policy.Peers, authz.Peer{Name: p.Name, IDs: p.IDs, Networks: p.Networks, Source: sources[p.Inbound.Source]})
		for _, id := range p.IDs {
			s.peers[id] = p.Name
		}
		s.endpoints = append(s.endpoints, literal(p.Endpoints)...)
	}
	var err error
	if s.routes, err = route.New(routes); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if s.policy, err = authz.New(policy); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return s, nil
}

var sources = map[config.Source]authz.Source{
	config.Preserve: authz.Preserve,
	config.Address:  authz.Address,
	config.Gateway:  authz.Gateway,
}

var ruleActions = map[config.RuleAction]authz.Action{
	config.Allow: authz.Allow,
	config.Deny:  authz.Deny,
}

// policyRules are the rules of a configuration, with the SPIFFE IDs that each is
// about in place of patterns and of peers' names.
func policyRules(cfg *config.Config) (list []authz.Rule) {
	for _, r := range cfg.Policy {
		rule := authz.Rule{
			Name: r.Name, Action: ruleActions[r.Action], DryRun: r.DryRun,
			From: authz.From{IDs: cfg.Subjects(r.From), Networks: r.From.Networks},
			To:   authz.To{Networks: r.To.Networks},
		}
		for _, p := range r.To.Ports {
			rule.To.Ports = append(rule.To.Ports, authz.PortRange(p))
		}
		list = append(list, rule)
	}
	return list
}

// ruleAt is where a rule stands, as file:line.
func (s *snapshot) ruleAt(name string) string {
	return s.rulesAt[name]
}

// listenPorts are the ports of all listeners.
func listenPorts(cfg *config.Config) []uint16 {
	ports := []uint16{cfg.Listen.Transparent}
	for _, a := range append(slices.Clone(cfg.Listen.Tunnel), cfg.Listen.Metrics, cfg.Listen.Ready) {
		if a.IsValid() {
			ports = append(ports, a.Port())
		}
	}
	return ports
}

// literal are those of the endpoints that are addresses, not names.
func literal(endpoints []string) (list []netip.AddrPort) {
	for _, e := range endpoints {
		if a, err := netip.ParseAddrPort(e); err == nil {
			list = append(list, netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
		}
	}
	return list
}

// accept says whether a SPIFFE ID is any peer's.
func (s *snapshot) accept(id spiffeid.ID) error {
	if _, known := s.peers[id]; !known {
		return fmt.Errorf("no peer has this id")
	}
	return nil
}

// loops says that carrying a connection to target would end here again: it is
// for this host outside its networks, for a listener of ours, or for a peer's.
func (s *snapshot) loops(target netip.AddrPort, local func(netip.Addr) bool) bool {
	if slices.Contains(s.endpoints, target) {
		return true
	}
	return local(target.Addr()) && (slices.Contains(s.ports, target.Port()) || !s.routes.Ours(target.Addr()))
}

// resolveTime bounds the look-up of peers' names for the rules.
const resolveTime = 2 * time.Second

// Plan is what the kernel has to do for a configuration. Names of endpoints are
// looked up as far as that works now: the rules know them only to leave other
// hosts' own tunnels alone.
func Plan(ctx context.Context, cfg *config.Config) rules.Plan {
	ctx, cancel := context.WithTimeout(ctx, resolveTime)
	defer cancel()
	p := rules.Plan{
		Own:           cfg.Networks,
		Forwarded:     cfg.Capture.Forwarded,
		Local:         cfg.Capture.Local,
		Sources:       cfg.Capture.Sources,
		ResetExisting: cfg.Capture.ResetExisting,
		Transparent:   cfg.Listen.Transparent,
		Routing: rules.Routing{
			Captured: cfg.Routing.Mark, Own: ownMark(cfg), Mask: cfg.Routing.Mask,
			Table: cfg.Routing.Table, Priority: cfg.Routing.Priority,
		},
		Exclude: rules.Exclude{
			Networks: cfg.Capture.Exclude.Networks,
			UIDs:     cfg.Capture.Exclude.UIDs,
			Cgroups:  cfg.Capture.Exclude.Cgroups,
		},
	}
	for _, r := range cfg.Capture.Exclude.Ports {
		p.Exclude.Ports = append(p.Exclude.Ports, rules.PortRange(r))
	}
	for _, a := range cfg.Listen.Tunnel {
		if !slices.Contains(p.Tunnel, a.Port()) {
			p.Tunnel = append(p.Tunnel, a.Port())
		}
	}
	for _, peer := range cfg.Peers {
		p.Peers = append(p.Peers, rules.Peer{
			Name: peer.Name, Networks: peer.Networks, Endpoints: resolve(ctx, peer.Endpoints),
			PassUnavailable: peer.Outbound.Unavailable == config.Pass,
			PassUncarried:   peer.Outbound.Uncarried == config.Pass,
		})
	}
	return p
}

// ownMark is the other bit of the mask.
func ownMark(cfg *config.Config) uint32 { return cfg.Routing.Mask &^ cfg.Routing.Mark }

func resolve(ctx context.Context, endpoints []string) []netip.AddrPort {
	list := literal(endpoints)
	if len(list) == len(endpoints) {
		return list
	}
	for _, e := range endpoints {
		host, port, err := net.SplitHostPort(e)
		if err != nil {
			continue
		}
		number, err := net.DefaultResolver.LookupPort(ctx, "tcp", port)
		if err != nil {
			continue
		}
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			continue
		}
		for _, a := range addrs {
			list = append(list, netip.AddrPortFrom(a.Unmap(), uint16(number)))
		}
	}
	slices.SortFunc(list, netip.AddrPort.Compare)
	return slices.Compact(list)
}
