package authz_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/identity/authz"
)

// naiveOutcome is the twin: it looks at every network, then at the rules one by one.
func naiveOutcome(cfg authz.Config, id spiffeid.ID, source, target netip.AddrPort) outcome {
	if reason := naive(cfg, id, source, target); reason != "" {
		return outcome{reason: reason}
	}
	o := naiveRules(cfg, false, id, source, target)
	if would := naiveRules(cfg, true, id, source, target); (would.reason == "") != (o.reason == "") {
		o.dry = would.rule
	}
	return o
}

func naiveRules(cfg authz.Config, dry bool, id spiffeid.ID, source, target netip.AddrPort) outcome {
	var denied, allowed, named []string
	for _, r := range cfg.Rules {
		if r.DryRun && !dry {
			continue
		}
		to := (r.To.Networks == nil || slices.ContainsFunc(r.To.Networks, func(n netip.Prefix) bool { return n.Contains(target.Addr().Unmap()) })) &&
			(r.To.Ports == nil || slices.ContainsFunc(r.To.Ports, func(s authz.PortRange) bool { return s.First <= target.Port() && target.Port() <= s.Last }))
		from := (r.From.IDs == nil || slices.Contains(r.From.IDs, id)) && (r.From.Networks == nil || naiveSource(cfg, r, id, source))
		switch {
		case !to:
		case r.Action == authz.Deny && from:
			denied = append(denied, r.Name)
		case r.Action == authz.Allow && from:
			allowed = append(allowed, r.Name)
		case r.Action == authz.Allow:
			named = append(named, r.Name)
		}
	}
	switch {
	case denied != nil:
		return outcome{reason: authz.PolicyDeny, rule: denied[0]}
	case allowed != nil:
		return outcome{rule: allowed[0]}
	case named != nil:
		return outcome{reason: authz.PolicyDefaultDeny, rule: named[0]}
	}
	return outcome{}
}

func naiveSource(cfg authz.Config, r authz.Rule, id spiffeid.ID, source netip.AddrPort) bool {
	if source.IsValid() {
		return slices.ContainsFunc(r.From.Networks, func(n netip.Prefix) bool { return n.Contains(source.Addr().Unmap()) })
	}
	i := slices.IndexFunc(cfg.Peers, func(p authz.Peer) bool { return slices.Contains(p.IDs, id) })
	for _, n := range r.From.Networks {
		if r.Action == authz.Deny && slices.ContainsFunc(cfg.Peers[i].Networks, n.Overlaps) {
			return true
		}
	}
	return false
}

// owner finds the longest prefix by looking at all.
func owner(cfg authz.Config, a netip.Addr) string {
	best, name := -1, ""
	look := func(who string, networks []netip.Prefix) {
		for _, n := range networks {
			if n.Contains(a) && n.Bits() > best {
				best, name = n.Bits(), who
			}
		}
	}
	look("us", cfg.Networks)
	for _, p := range cfg.Peers {
		look(p.Name, p.Networks)
	}
	return name
}

// forbidden are the networks of which no address is a target or a source.
var forbidden = prefixes("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
	"::/128", "::1/128", "fe80::/10", "ff00::/8", "fd00:ec2::254/128", "fd00:ec2::23/128")

func isForbidden(a netip.Addr) bool {
	if !a.IsValid() || a.Zone() != "" {
		return true
	}
	for _, n := range forbidden {
		if n.Contains(a.Unmap()) {
			return true
		}
	}
	return false
}

// naive is the twin without rules.
func naive(cfg authz.Config, id spiffeid.ID, source, target netip.AddrPort) authz.Reason {
	var peer *authz.Peer
	for i, p := range cfg.Peers {
		for _, known := range p.IDs {
			if known.String() == id.String() {
				peer = &cfg.Peers[i]
			}
		}
	}
	from, to := source.Addr().Unmap(), target.Addr().Unmap()
	switch {
	case peer == nil:
		return authz.UnknownPeer
	case target.Port() == 0 || isForbidden(target.Addr()):
		return authz.BadTarget
	case cfg.Local(to) && (target.Port() == 15008 || target.Port() == 15001):
		return authz.Loop
	case owner(cfg, to) != "us":
		return authz.TargetNotServed
	case source == netip.AddrPort{} && peer.Source == authz.Gateway:
		return ""
	case source == netip.AddrPort{}:
		return authz.NoSource
	case isForbidden(source.Addr()) || cfg.Local(from) || (peer.Source == authz.Preserve && source.Port() == 0):
		return authz.BadSource
	case owner(cfg, from) != peer.Name:
		return authz.SourceNotOwned
	case peer.Source != authz.Gateway && from.Is4() != to.Is4():
		return authz.FamilyMismatch
	}
	return ""
}

// pick chooses one of n, from 0.
type pick func(n int) int

// some are up to three of list, or any.
func some[T any](p pick, list []T) (chosen []T) {
	for range p(4) {
		chosen = append(chosen, list[p(len(list))])
	}
	return chosen
}

var (
	somePlaces = prefixes("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/24", "10.1.0.7/32", "10.1.9.0/24", "10.2.0.0/16", "10.2.0.0/24",
		"10.2.0.5/32", "10.2.3.0/24", "10.3.0.0/16", "10.4.0.0/16", "10.4.0.5/32", "192.0.2.0/24", "::/0", "fd00:1::/64", "fd00:1::7/128", "fd00:2::/64", "fd00:2::4/126")
	someSpans   = []authz.PortRange{{1, 65535}, {80, 80}, {80, 443}, {443, 443}, {8000, 8100}, {8100, 65535}, {1, 1}, {65535, 65535}}
	someIDs     = []spiffeid.ID{east, east2, south, north, hub}
	someSources = []string{"10.2.0.5:1", "10.2.0.6:1", "10.2.1.5:1", "10.1.9.5:1", "10.3.0.5:1", "10.4.0.5:1", "10.4.1.5:1", "192.0.2.9:1", "198.51.100.1:1",
		"[fd00:2::5]:1", "[fd00:2::9]:1", "[fd00:3::5]:1", "[2001:db8::1]:1", "[::ffff:10.2.0.5]:1", ""}
	someTargets = []string{"10.1.0.7", "10.1.0.8", "10.1.1.7", "10.2.3.7", "fd00:1::7", "fd00:1::8", "::ffff:10.1.0.7", "10.2.0.5"}
	somePorts   = []uint16{1, 2, 79, 80, 81, 442, 443, 444, 7999, 8000, 8050, 8100, 8101, 65534, 65535}
)

// somePolicy makes rules.
func somePolicy(p pick) (rules []authz.Rule) {
	for i := range p(90) { // more than a word of them at times
		rules = append(rules, authz.Rule{
			Name: fmt.Sprintf("r%d", i), Action: authz.Action(p(2)), DryRun: p(4) == 0,
			From: authz.From{IDs: some(p, someIDs), Networks: some(p, somePlaces)},
			To:   authz.To{Networks: some(p, somePlaces), Ports: some(p, someSpans)},
		})
	}
	return rules
}

// checkTwin holds one judgement against the naive twin's.
func checkTwin(t *testing.T, cfg authz.Config, policy *authz.Policy, p pick) outcome {
	t.Helper()
	id, source := someIDs[p(len(someIDs))], addrPort(someSources[p(len(someSources))])
	target := netip.AddrPortFrom(netip.MustParseAddr(someTargets[p(len(someTargets))]), somePorts[p(len(somePorts))])
	got, want := judge(t, policy, id, source, target), naiveOutcome(cfg, id, source, target)
	if got != want {
		t.Fatalf("%s from %s to %s: %s, want %s; rules %+v", id, source, target, got, want, cfg.Rules)
	}
	return got
}

// TestTwin judges at random, and sees that it has come upon all there is.
func TestTwin(t *testing.T) {
	p := pick(rand.New(rand.NewPCG(1, 2)).IntN)
	seen := make(map[string]int)
	for range 200 {
		cfg := ruled(somePolicy(p)...)
		policy := newPolicy(t, cfg)
		for range 500 {
			o := checkTwin(t, cfg, policy, p)
			kind := string(o.reason)
			if o.dry != "" {
				kind += " dry"
			}
			if o.reason == "" && o.rule != "" {
				kind += " allowed"
			}
			seen[kind]++
		}
	}
	for _, kind := range []string{"", " allowed", " dry", " dry allowed", "policy_deny", "policy_default_deny", "policy_default_deny dry", "source_not_owned"} {
		if seen[kind] < 100 {
			t.Errorf("%q came out %d times", kind, seen[kind])
		}
	}
}
