package authz

import (
	"cmp"
	"fmt"
	"maps"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// ruleset judges a connection by all rules at once. For each thing that a rule
// may name it knows the set of rules that take it; the rules that match are in
// all four sets. So what a judgement costs depends on how many rules there are,
// 64 at a step, and not on what they look like.
type ruleset struct {
	names   []string
	sources places
	targets places
	ports   ports
	// enforced decides; with those in dry run is what would decide.
	enforced, all actions
	dry           bool // there are rules in dry run
}

// actions are the rules of each action.
type actions struct{ deny, allow set }

// verdict is what rules make of a connection: why they refuse it, or empty, and
// the name of the rule that decides, or empty. It has names, for it is kept with
// a flow, and must not keep a ruleset that has been replaced.
type verdict struct {
	reason Reason
	rule   string
}

// newRuleset indexes rules, which have been checked.
func newRuleset(rules []Rule) *ruleset {
	n := len(rules)
	rs := &ruleset{
		sources:  newPlaces(rules, func(r *Rule) []netip.Prefix { return r.From.Networks }),
		targets:  newPlaces(rules, func(r *Rule) []netip.Prefix { return r.To.Networks }),
		ports:    newPorts(rules),
		enforced: actions{newSet(n), newSet(n)},
		all:      actions{newSet(n), newSet(n)},
	}
	for i, r := range rules {
		rs.names = append(rs.names, r.Name)
		rs.all.of(r.Action).add(i)
		if r.DryRun {
			rs.dry = true
			continue
		}
		rs.enforced.of(r.Action).add(i)
	}
	return rs
}

func (a actions) of(what Action) set {
	if what == Deny {
		return a.deny
	}
	return a.allow
}

// enterIDs gives each SPIFFE ID the set of rules that are about it.
func enterIDs(rules []Rule, ids map[spiffeid.ID]subject) {
	anyone := newSet(len(rules))
	named := make(map[spiffeid.ID][]int)
	for i, r := range rules {
		if r.From.IDs == nil {
			anyone.add(i)
		}
		for _, id := range r.From.IDs {
			named[id] = append(named[id], i)
		}
	}
	for id, s := range ids {
		s.rules = anyone.with(named[id])
		ids[id] = s
	}
}

// unknown is the set of rules that take a source which owner has not named: as
// one that may be anywhere in its networks for deny rules, nowhere for others.
func unknown(rules []Rule, anywhere set, owner *Peer) set {
	s := slices.Clone(anywhere)
	for i, r := range rules {
		if r.Action == Deny && overlap(r.From.Networks, owner.Networks) {
			s.add(i)
		}
	}
	return s
}

func overlap(a, b []netip.Prefix) bool {
	return slices.ContainsFunc(a, func(n netip.Prefix) bool { return slices.ContainsFunc(b, n.Overlaps) })
}

// judge finds the verdict on what ownership permits, and the rule in dry run
// that would turn it around if those in dry run were enforced, or empty. A zero
// source means that the peer named none.
func (rs *ruleset) judge(s subject, source, target netip.AddrPort) (v verdict, dry string) {
	if rs == nil {
		return verdict{}, ""
	}
	m := matching{ids: s.rules, sources: s.peer.unknown, targets: rs.targets.at(target.Addr()), ports: rs.ports.at(target.Port())}
	if source.IsValid() {
		m.sources = rs.sources.at(source.Addr())
	}
	v = rs.decide(m, rs.enforced)
	if rs.dry {
		if would := rs.decide(m, rs.all); (would.reason == "") != (v.reason == "") {
			dry = would.rule
		}
	}
	return v, dry
}

// decide is the order of things: a deny rule that matches wins; then an allow
// rule that matches; then one that names the destination closes it.
func (rs *ruleset) decide(m matching, by actions) verdict {
	if i := m.first(by.deny); i >= 0 {
		return verdict{PolicyDeny, rs.names[i]}
	}
	if i := m.first(by.allow); i >= 0 {
		return verdict{"", rs.names[i]}
	}
	if i := m.naming().first(by.allow); i >= 0 {
		return verdict{PolicyDefaultDeny, rs.names[i]}
	}
	return verdict{}
}

// matching are the rules that take each part of a connection.
type matching struct{ ids, sources, targets, ports set }

// naming is m without regard to who asks.
func (m matching) naming() matching { return matching{m.targets, m.targets, m.targets, m.ports} }

// first is the first rule of those in which all of m meet, or -1.
func (m matching) first(of set) int {
	n := len(of)
	ids, sources, targets, ports := m.ids[:n], m.sources[:n], m.targets[:n], m.ports[:n]
	for i, word := range of {
		if word &= ids[i] & sources[i] & targets[i] & ports[i]; word != 0 {
			return i*64 + bits.TrailingZeros64(word)
		}
	}
	return -1
}

// set is a set of rules by their number: bit i%64 of word i/64.
type set []uint64

// newSet makes an empty set for n rules.
func newSet(n int) set { return make(set, (n+63)/64) }

func (s set) add(i int) { s[i/64] |= 1 << (i % 64) }

// with is s and others besides; where there are none it is s itself.
func (s set) with(others []int) set {
	if len(others) == 0 {
		return s
	}
	s = slices.Clone(s)
	for _, i := range others {
		s.add(i)
	}
	return s
}

// places finds the rules that take an address, by its longest prefix: each
// prefix has the rules of those around it, too.
type places struct {
	table    *bart.Table[set]
	anywhere set // rules that name no network
}

func newPlaces(rules []Rule, networks func(*Rule) []netip.Prefix) places {
	p := places{new(bart.Table[set]), newSet(len(rules))}
	named := make(map[netip.Prefix][]int)
	for i := range rules {
		list := networks(&rules[i])
		if list == nil {
			p.anywhere.add(i)
		}
		for _, n := range list {
			named[n] = append(named[n], i)
		}
	}
	wideFirst := func(a, b netip.Prefix) int { return cmp.Compare(a.Bits(), b.Bits()) }
	for _, n := range slices.SortedFunc(maps.Keys(named), wideFirst) {
		around, found := p.table.LookupPrefix(n)
		if !found {
			around = p.anywhere
		}
		p.table.Insert(n, around.with(named[n]))
	}
	return p
}

func (p places) at(a netip.Addr) set {
	if s, found := p.table.Lookup(a); found {
		return s
	}
	return p.anywhere
}

// ports finds the rules that take a port: all from one start to the next have
// the same.
type ports struct {
	starts []uint16 // the first is 0
	rules  []set
}

func newPorts(rules []Rule) ports {
	anyPort := newSet(len(rules))
	starts := []uint16{0}
	for i, r := range rules {
		if r.To.Ports == nil {
			anyPort.add(i)
		}
		for _, span := range r.To.Ports {
			starts = append(starts, span.First, span.Last+1) // 0 after 65535
		}
	}
	slices.Sort(starts)
	p := ports{starts: slices.Compact(starts)}
	for range p.starts {
		p.rules = append(p.rules, slices.Clone(anyPort))
	}
	for i, r := range rules {
		for _, span := range r.To.Ports {
			from, to := p.find(span.First), p.find(span.Last)
			for _, s := range p.rules[from : to+1] {
				s.add(i)
			}
		}
	}
	return p
}

// find is which of the starts port comes after, or is.
func (p ports) find(port uint16) int {
	i, found := slices.BinarySearch(p.starts, port)
	if found {
		return i
	}
	return i - 1
}

func (p ports) at(port uint16) set { return p.rules[p.find(port)] }

// ruled adds the rules to a policy that knows its peers.
func (p *Policy) ruled(cfg *Config) error {
	if len(cfg.Rules) == 0 {
		return nil
	}
	names := make(map[string]bool)
	for i := range cfg.Rules {
		r := &cfg.Rules[i]
		if r.Name == "" || names[r.Name] {
			return fmt.Errorf("rule %d: the name %q is empty, or another's", i, r.Name)
		}
		names[r.Name] = true
		if err := r.check(p.ids); err != nil {
			return fmt.Errorf("rule %q: %w", r.Name, err)
		}
	}
	p.rules = newRuleset(cfg.Rules)
	enterIDs(cfg.Rules, p.ids)
	for i := range cfg.Peers {
		if c := &cfg.Peers[i]; c.Source == Gateway && len(c.IDs) > 0 {
			p.ids[c.IDs[0]].peer.unknown = unknown(cfg.Rules, p.rules.sources.anywhere, c)
		}
	}
	return nil
}
