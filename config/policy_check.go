package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// checkPolicy wants names apart, and rules that can match something: one that
// cannot was meant to be another.
func checkPolicy(c *Config, r *reader) {
	first := make(map[string]int)
	for i := range c.Policy {
		rule := &c.Policy[i]
		path := index("policy", i)
		rule.Line = r.where(path).line
		if j, taken := first[rule.Name]; taken && rule.Name != "" {
			r.fail(path+".name", wrong("give each rule a name of its own", "%s is already the name of policy[%d] (%s)", rule.Name, j, r.line(index("policy", j)+".name")))
		} else {
			first[rule.Name] = i
		}
	}
	switch {
	case r.bad("peers"), r.bad("networks"), len(c.Policy) == 0: // what rules are held against is not known
		return
	case len(c.Networks) == 0:
		r.fail("policy", wrong("add networks, or remove policy", "can never match: networks is empty, and so nothing is delivered"))
		return
	}
	reach := newReach(c)
	for i, rule := range c.Policy {
		if path := index("policy", i); !r.bad(path) && !r.full() {
			reach.check(rule, path, r)
		}
	}
}

// reach is what rules are held against: which connections there can be at all.
type reach struct {
	*Config
	owners   []owned              // each before those within it
	owner    map[netip.Prefix]int // a peer's number, or ourselves
	families map[int]families     // of what each owns
}

// families are the address families that there are.
type families struct{ v4, v6 bool }

// owned is a network and whose it is.
type owned struct {
	netip.Prefix
	owner int
}

func newReach(c *Config) *reach {
	networks := map[int][]netip.Prefix{ourselves: c.Networks}
	for i, p := range c.Peers {
		networks[i] = p.Networks
	}
	var all []owned
	for owner, list := range networks {
		for _, n := range list {
			all = append(all, owned{n, owner})
		}
	}
	w := &reach{Config: c, families: make(map[int]families)}
	w.set(all)
	for owner, list := range networks {
		w.families[owner] = w.familiesIn(list, owner)
	}
	return w
}

// set makes all, no network twice, what is owned.
func (w *reach) set(all []owned) {
	slices.SortFunc(all, compareNetworks)
	w.owners, w.owner = all, make(map[netip.Prefix]int)
	for _, o := range all {
		w.owner[o.Prefix] = o.owner
	}
}

func compareNetworks(a, b owned) int { return a.Compare(b.Prefix) }

// familiesIn are those of what an owner has in networks.
func (w *reach) familiesIn(networks []netip.Prefix, owner int) (f families) {
	for _, n := range networks {
		there := w.has(n, func(o int) bool { return o == owner })
		f.v4, f.v6 = f.v4 || there && n.Addr().Is4(), f.v6 || there && n.Addr().Is6()
	}
	return f
}

// check tells of what cannot match: a part of the rule that is about nobody and
// nothing, or else the rule as a whole.
func (w *reach) check(rule Rule, path string, r *reader) {
	before := len(r.errs)
	for i, id := range rule.From.IDs {
		if len(w.Subjects(From{IDs: []IDPattern{id}})) == 0 {
			r.fail(index(path+".from.ids", i), wrong(w.nearID(id), "no peer has an id like %s", id))
		}
	}
	for i, name := range rule.From.Peers {
		if !slices.ContainsFunc(w.Peers, func(p Peer) bool { return p.Name == name }) {
			r.fail(index(path+".from.peers", i), wrong(w.nearPeer(name), "there is no peer %s", name))
		}
	}
	if len(r.errs) > before {
		return
	}
	who := w.subjects(rule.From)
	if len(who) == 0 {
		r.fail(path+".from", wrong("a rule matches what all of its keys match; write two rules", "ids and peers have no peer in common"))
		return
	}
	for i, n := range rule.From.Networks {
		if !w.has(n, func(owner int) bool { return slices.Contains(who, owner) }) {
			r.fail(index(path+".from.networks", i), wrong("only sources that a peer owns are believed", "%s lies outside of the networks of %s", n, w.names(who)))
		}
	}
	for i, n := range rule.To.Networks {
		if !w.has(n, isOurs) {
			r.fail(index(path+".to.networks", i), wrong("peers reach only what is in networks", "%s lies outside of our own networks", n))
		}
	}
	if len(r.errs) == before && !slices.ContainsFunc(who, func(i int) bool { return w.meets(rule, i) }) {
		r.fail(path, wrong("a connection has one address family: write a rule for each", "can never match: no source and no destination of it are of the same address family"))
	}
}

func isOurs(owner int) bool { return owner == ourselves }

// subjects are the numbers of the peers that f is about.
func (w *reach) subjects(f From) (who []int) {
	for i, p := range w.Peers {
		if len(f.of(p)) > 0 {
			who = append(who, i)
		}
	}
	return who
}

// meets says whether a source of peer i and a destination, both of the rule, can
// be of one family. Delivered from the gateway's own address they need not be.
func (w *reach) meets(rule Rule, i int) bool {
	if w.Peers[i].Inbound.Source == Gateway {
		return true
	}
	from, to := w.families[i], w.families[ourselves]
	if len(rule.From.Networks) > 0 {
		from = w.familiesIn(rule.From.Networks, i)
	}
	if len(rule.To.Networks) > 0 {
		to = w.familiesIn(rule.To.Networks, ourselves)
	}
	return from.v4 && to.v4 || from.v6 && to.v6
}

// has says whether an address of p belongs to one of those.
func (w *reach) has(p netip.Prefix, those func(owner int) bool) bool {
	first, found := slices.BinarySearchFunc(w.owners, owned{Prefix: p}, compareNetworks)
	if found {
		first++
	}
	within := w.owners[first:]
	for i, o := range within {
		if !p.Contains(o.Addr()) {
			within = within[:i]
			break
		}
		if last := i+1 == len(within) || !o.Contains(within[i+1].Addr()); last && those(o.owner) {
			return true // all of it, with nothing within: most networks are so
		}
	}
	return hasWithin(p, w.around(p), within, those)
}

// around is the longest prefix that holds p, with its owner.
func (w *reach) around(p netip.Prefix) owned {
	for bits := p.Bits(); bits >= 0; bits-- {
		n := netip.PrefixFrom(p.Addr(), bits).Masked()
		if owner, found := w.owner[n]; found {
			return owned{n, owner}
		}
	}
	return owned{}
}

// hasWithin is has where the longest prefix around p is known, and those within.
func hasWithin(p netip.Prefix, around owned, within []owned, those func(owner int) bool) bool {
	if len(within) == 0 {
		return around.IsValid() && those(around.owner)
	}
	for _, half := range halves(p) {
		around, inner := around, []owned(nil)
		for _, o := range within {
			switch {
			case o.Prefix == half:
				around = o
			case half.Contains(o.Addr()):
				inner = append(inner, o)
			}
		}
		if hasWithin(half, around, inner, those) {
			return true
		}
	}
	return false
}

// halves are the two prefixes that p, which is no single address, consists of.
func halves(p netip.Prefix) [2]netip.Prefix {
	high := p.Addr().AsSlice()
	high[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	a, _ := netip.AddrFromSlice(high) // it has the length of an address
	return [2]netip.Prefix{netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(a, p.Bits()+1)}
}

// nearID helps one who meant another ID.
func (w *reach) nearID(id IDPattern) string {
	var all []string
	for _, p := range w.Peers {
		for _, known := range p.IDs {
			all = append(all, known.String())
		}
	}
	if near := nearest(string(id), all); near != "" && !strings.Contains(string(id), "*") {
		return "did you mean " + near + "?"
	}
	return "rules are about the ids of peers; * is one segment of a path, and ** at the end all that are left"
}

// nearPeer helps one who meant another peer.
func (w *reach) nearPeer(name string) string {
	var all []string
	for _, p := range w.Peers {
		all = append(all, p.Name)
	}
	if near := nearest(name, all); near != "" {
		return "did you mean " + near + "?"
	}
	return "the peers are " + strings.Join(all, ", ")
}

// names lists peers by their numbers, not too many of them.
func (w *reach) names(who []int) string {
	const most = 3
	if len(who) == len(w.Peers) && len(who) > 1 {
		return "any peer"
	}
	var all []string
	for _, i := range who[:min(len(who), most)] {
		all = append(all, w.Peers[i].Name)
	}
	if len(who) > most {
		return fmt.Sprintf("peers %s and %d more", strings.Join(all, ", "), len(who)-most)
	}
	if len(who) == 1 {
		return "peer " + all[0]
	}
	return "peers " + strings.Join(all, ", ")
}
