package daemon

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/config"
	"wishbone/identity/authz"
)

// ruledText is a configuration with peers to write rules about; rules begin on
// line 25.
const ruledText = `version: 1
name: west
identity: {workloadAPI: unix:///run/agent.sock}
networks: [10.1.0.0/16, "fd00:1::/64"]
peers:
  - name: east
    ids: [spiffe://mesh.example/gateway/east, spiffe://mesh.example/gateway/east/standby]
    endpoints: ["192.0.2.20:15008"]
    networks: [10.2.0.0/16, "fd00:2::/64"]
  - name: south
    ids: [spiffe://mesh.example/web/south]
    endpoints: ["192.0.2.30:15008"]
    networks: [10.3.0.0/16, 10.2.3.0/24]
    inbound: {source: address}
  - name: north
    ids: [spiffe://other.example/gateway/north, spiffe://mesh.example/gateway/north]
    endpoints: ["192.0.2.40:15008"]
    networks: [10.4.0.0/16]
    inbound: {source: gateway}
  - name: hub
    ids: [spiffe://mesh.example/gateway/hub]
    endpoints: ["192.0.2.50:15008"]
    networks: [0.0.0.0/0, "::/0"]
policy:
  - {name: db-from-web, action: allow, from: {ids: ["spiffe://mesh.example/gateway/*"], networks: [10.2.4.0/24]}, to: {networks: [10.1.9.0/24], ports: [5432, "8000-8100"]}}
  - {name: no-telnet, action: deny, to: {ports: [23]}}
  - {name: no-standby, action: deny, from: {peers: [east], ids: ["spiffe://mesh.example/*/*/*"]}, to: {ports: [22]}}
  - {name: try, action: deny, from: {networks: [10.2.7.0/24]}, dryRun: true}
  - {name: try-south, action: allow, from: {peers: [south]}, to: {networks: [10.1.9.0/24]}, dryRun: true}
`

// explaining is a gateway as far as explanations need one.
func explaining(t testing.TB, cfg *config.Config) *Daemon {
	t.Helper()
	d := &Daemon{addrs: new(hostAddrs)}
	d.addrs.set.Store(&map[netip.Addr]struct{}{netip.MustParseAddr("10.1.0.1"): {}})
	s, err := newSnapshot(cfg, d.addrs.has)
	if err != nil {
		t.Fatal(err)
	}
	d.current.Store(s)
	return d
}

func TestExplainPolicy(t *testing.T) {
	d := explaining(t, parse(t, ruledText))
	for _, tt := range []struct {
		as, source, target string
		verdict            string
		reason             authz.Reason
		rule, dry          string
		because            []string
	}{
		{"", "10.2.4.1", "10.1.9.9:5432", "delivered to 10.1.9.9:5432", "", "db-from-web@25", "", []string{"rule db-from-web (west.yaml:25) allows it"}},
		{"", "10.2.5.1", "10.1.9.9:8100", "refused", authz.PolicyDefaultDeny, "db-from-web@25", "",
			[]string{"rule db-from-web (west.yaml:25) names 10.1.9.9:8100, and neither it nor another allow rule matches", "policy_default_deny by rule db-from-web"}},
		{"", "10.2.5.1", "10.1.9.9:8101", "delivered to 10.1.9.9:8101", "", "", "try-south", []string{"no allow rule names 10.1.9.9:8101", "rule try-south (west.yaml:29) is in dry run: in force, it would refuse it"}},
		{"", "10.3.0.1", "10.1.9.9:8100", "refused", authz.PolicyDefaultDeny, "db-from-web@25", "try-south", []string{"try-south (west.yaml:29) is in dry run: in force, it would permit it"}},
		{"", "10.2.5.1", "10.1.8.8:23", "refused", authz.PolicyDeny, "no-telnet@26", "", []string{"rule no-telnet (west.yaml:26) denies it"}},
		{"", "10.2.5.1", "10.1.8.8:22", "delivered to 10.1.8.8:22", "", "", "", []string{"as spiffe://mesh.example/gateway/east/standby it would be otherwise: ask with --as"}},
		{"spiffe://mesh.example/gateway/east/standby", "10.2.5.1", "10.1.8.8:22", "refused", authz.PolicyDeny, "no-standby@27", "", []string{"is peer east"}},
		{"spiffe://mesh.example/gateway/east", "10.2.7.1:4000", "10.1.8.8:22", "delivered to 10.1.8.8:22", "", "", "try", []string{"rule try (west.yaml:28) is in dry run"}},
		{"spiffe://mesh.example/web/south", "10.2.5.1", "10.1.8.8:22", "refused", authz.SourceNotOwned, "", "", []string{"source_not_owned"}},
		{"spiffe://mesh.example/gateway/east", "10.2.5.1", "10.3.8.8:22", "refused", authz.TargetNotServed, "", "", []string{"target_not_served"}},
		{"spiffe://mesh.example/gateway/west", "10.2.5.1", "10.1.8.8:22", "refused", authz.UnknownPeer, "", "", []string{"no peer has the id spiffe://mesh.example/gateway/west"}},
	} {
		source, err := ParseSource(tt.source)
		if err != nil {
			t.Fatal(err)
		}
		e := d.Explain(source, netip.MustParseAddrPort(tt.target))
		if tt.as != "" {
			e = d.ExplainAs(spiffeid.RequireFromString(tt.as), source, netip.MustParseAddrPort(tt.target))
		}
		rule, at := e.Rule, ""
		if e.RuleAt != "" {
			at = strings.Replace(e.RuleAt, "west.yaml:", "@", 1)
		}
		if e.Verdict != tt.verdict || e.Reason != tt.reason || rule+at != tt.rule || e.DryRun != tt.dry || e.ID == "" || tt.as != "" && e.ID != tt.as {
			t.Errorf("%s from %s to %s: %+v, want %+v", tt.as, tt.source, tt.target, e, tt)
		}
		for _, because := range tt.because {
			if !strings.Contains(strings.Join(e.Steps, "\n"), because) {
				t.Errorf("%s from %s to %s: %q, want %q", tt.as, tt.source, tt.target, e.Steps, because)
			}
		}
	}
}

// pick chooses one of n, from 0.
type pick func(n int) int

// some are up to three of list, which may be none.
func some[T any](p pick, list []T) (chosen []T) {
	for range p(4) {
		chosen = append(chosen, list[p(len(list))])
	}
	return chosen
}

var (
	somePatterns = []config.IDPattern{"spiffe://mesh.example/gateway/east", "spiffe://mesh.example/gateway/*", "spiffe://mesh.example/**", "spiffe://mesh.example/gateway/**",
		"spiffe://mesh.example/*/*", "spiffe://mesh.example/*/east/*", "spiffe://other.example/**", "spiffe://other.example/gateway/north", "spiffe://mesh.example/web/*"}
	someNames  = []string{"east", "south", "north", "hub"}
	somePlaces = []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.1.9.0/24"), netip.MustParsePrefix("10.1.9.9/32"),
		netip.MustParsePrefix("10.2.0.0/15"), netip.MustParsePrefix("10.2.3.0/24"), netip.MustParsePrefix("10.4.4.0/24"), netip.MustParsePrefix("::/0"), netip.MustParsePrefix("fd00:1::/64"),
	}
	someSpans   = []config.PortRange{{First: 1, Last: 65535}, {First: 22, Last: 23}, {First: 80, Last: 80}, {First: 8000, Last: 8100}, {First: 80, Last: 8000}}
	someSources = []string{"10.2.0.2", "10.2.3.3", "10.3.0.2", "10.4.0.2", "10.4.4.4", "192.0.2.77", "198.51.100.7", "fd00:2::2", "2001:db8::7", "10.1.0.9"}
	someTargets = []string{"10.1.9.9", "10.1.9.8", "10.1.8.8", "fd00:1::9", "10.2.0.2", "10.1.0.1"}
	somePorts   = []uint16{1, 22, 23, 79, 80, 8000, 8050, 8101, 15008, 65535}
	someIDs     = []string{"spiffe://mesh.example/gateway/east", "spiffe://mesh.example/gateway/east/standby", "spiffe://mesh.example/web/south",
		"spiffe://other.example/gateway/north", "spiffe://mesh.example/gateway/north", "spiffe://mesh.example/gateway/hub", "spiffe://mesh.example/gateway/stranger"}
)

// someRules are rules that may or may not ever match; none is about nobody.
func someRules(c *config.Config, p pick) (rules []config.Rule) {
	for i := range p(12) {
		r := config.Rule{
			Name: fmt.Sprintf("r%d", i), Line: 100 + i, Action: []config.RuleAction{config.Allow, config.Deny}[p(2)], DryRun: p(4) == 0,
			From: config.From{IDs: some(p, somePatterns), Peers: some(p, someNames), Networks: some(p, somePlaces)},
			To:   config.To{Networks: some(p, somePlaces), Ports: some(p, someSpans)},
		}
		if ids := c.Subjects(r.From); ids == nil || len(ids) > 0 {
			rules = append(rules, r)
		}
	}
	return rules
}

// told is all that a judgement tells.
type told struct {
	permitted bool
	reason    authz.Reason
	rule, dry string
}

// checkExplain asks the data path, the explanation and the naive twin about one
// connection.
func checkExplain(t *testing.T, d *Daemon, p pick) told {
	t.Helper()
	s := d.current.Load()
	id := spiffeid.RequireFromString(someIDs[p(len(someIDs))])
	source := netip.AddrPortFrom(netip.MustParseAddr(someSources[p(len(someSources))]), 40000)
	if p(10) == 0 {
		source = netip.AddrPort{} // the peer names none
	}
	target := netip.AddrPortFrom(netip.MustParseAddr(someTargets[p(len(someTargets))]), somePorts[p(len(somePorts))])

	var path told
	permit, err := s.policy.Authorize(id, source, target)
	if denied, ok := errors.AsType[*authz.DeniedError](err); ok {
		path = told{false, denied.Reason, denied.Rule, denied.DryRun}
	} else {
		path = told{true, "", permit.Rule(), permit.DryRun()}
	}
	e := d.ExplainAs(id, source, target)
	explained := told{strings.HasPrefix(e.Verdict, "delivered to "), e.Reason, e.Rule, e.DryRun}
	if explained != path || !explained.permitted && e.Verdict != "refused" {
		t.Fatalf("%s from %s to %s: explained as %+v, and is %+v", id, source, target, e, path)
	}
	if path.rule != "" && e.RuleAt != fmt.Sprintf("west.yaml:%d", 100+number(path.rule)) {
		t.Fatalf("rule %s is at %s", path.rule, e.RuleAt)
	}
	if path.reason == "" || path.reason == authz.PolicyDeny || path.reason == authz.PolicyDefaultDeny {
		if want := twin(s.cfg, id, source, target); path != want {
			t.Fatalf("%s from %s to %s: %+v, want %+v by %+v", id, source, target, path, want, s.cfg.Policy)
		}
	}
	return path
}

// number is that of a rule from someRules.
func number(rule string) (n int) {
	if _, err := fmt.Sscanf(rule, "r%d", &n); err != nil {
		return -1
	}
	return n
}

// twin goes through the rules of the file one by one.
func twin(c *config.Config, id spiffeid.ID, source, target netip.AddrPort) told {
	got := twinOf(c, false, id, source, target)
	if would := twinOf(c, true, id, source, target); would.permitted != got.permitted {
		got.dry = would.rule
	}
	return got
}

func twinOf(c *config.Config, dry bool, id spiffeid.ID, source, target netip.AddrPort) told {
	peer := c.Peers[slices.IndexFunc(c.Peers, func(p config.Peer) bool { return slices.Contains(p.IDs, id) })]
	allowed, named := "", ""
	for _, r := range c.Policy {
		if r.DryRun && !dry || !anyOf(r.To.Networks, func(n netip.Prefix) bool { return n.Contains(target.Addr()) }) ||
			!anyOf(r.To.Ports, func(s config.PortRange) bool { return s.First <= target.Port() && target.Port() <= s.Last }) {
			continue
		}
		from := anyOf(r.From.Peers, func(name string) bool { return name == peer.Name }) &&
			anyOf(r.From.IDs, func(p config.IDPattern) bool { return twinMatches(string(p), id.String()) }) &&
			anyOf(r.From.Networks, func(n netip.Prefix) bool {
				if !source.IsValid() {
					return r.Action == config.Deny && slices.ContainsFunc(peer.Networks, n.Overlaps)
				}
				return n.Contains(source.Addr())
			})
		if from && r.Action == config.Deny {
			return told{reason: authz.PolicyDeny, rule: r.Name}
		}
		if from && allowed == "" {
			allowed = r.Name
		}
		if r.Action == config.Allow && named == "" {
			named = r.Name
		}
	}
	switch {
	case allowed != "":
		return told{permitted: true, rule: allowed}
	case named != "":
		return told{reason: authz.PolicyDefaultDeny, rule: named}
	}
	return told{permitted: true}
}

// anyOf says whether one of list is so, or the list has none.
func anyOf[T any](list []T, so func(T) bool) bool {
	return len(list) == 0 || slices.ContainsFunc(list, so)
}

// twinMatches compares a pattern with an ID by lists of their segments.
func twinMatches(pattern, id string) bool {
	want, have := strings.Split(pattern, "/"), strings.Split(id, "/")
	if last := len(want) - 1; want[last] == "**" {
		if len(have) <= last {
			return false
		}
		want, have = want[:last], have[:last]
	}
	return slices.EqualFunc(want, have, func(w, h string) bool { return w == "*" || w == h })
}

// TestExplainIsTheDataPath: 100,000 connections, under policies of all kinds, are
// explained as they fare, and fare as the rules say, read one by one.
func TestExplainIsTheDataPath(t *testing.T) {
	p := pick(rand.New(rand.NewPCG(7, 8)).IntN)
	seen := map[string]int{}
	for range 500 {
		cfg := parse(t, ruledText)
		cfg.Policy = someRules(cfg, p)
		d := explaining(t, cfg)
		for range 200 {
			c := checkExplain(t, d, p)
			seen[fmt.Sprintf("%t %s rule %t dry %t", c.permitted, c.reason, c.rule != "", c.dry != "")]++
		}
	}
	for _, kind := range []string{
		"true  rule false dry false", "true  rule true dry false", "true  rule false dry true", "true  rule true dry true",
		"false policy_deny rule true dry false", "false policy_default_deny rule true dry false", "false policy_default_deny rule true dry true",
		"false unknown_peer rule false dry false", "false source_not_owned rule false dry false", "false loop rule false dry false",
	} {
		if seen[kind] < 50 {
			t.Errorf("%q came out %d times", kind, seen[kind])
		}
	}
}

// FuzzExplain is TestExplainIsTheDataPath with choices that a fuzzer makes.
func FuzzExplain(f *testing.F) {
	r := rand.New(rand.NewPCG(9, 10))
	for n := range 20 {
		data := make([]byte, 16*n)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		p := pick(func(n int) int {
			if len(data) == 0 {
				return 0
			}
			b := data[0]
			data = data[1:]
			return int(b) % n
		})
		cfg := parse(t, ruledText)
		cfg.Policy = someRules(cfg, p)
		d := explaining(t, cfg)
		for range 8 {
			checkExplain(t, d, p)
		}
	})
}
