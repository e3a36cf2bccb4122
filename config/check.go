package config

import (
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// check looks at what only several keys together can get wrong. Fields that
// could not be read are zero, and left alone here.
func check(c *Config, r *reader) {
	checkIdentity(r)
	checkAudit(r)
	checkFederation(c, r)
	checkNetworks(c, r)
	checkPeers(c, r)
	checkListen(c.Listen, r)
	checkSources(c, r)
	checkRouting(c.Routing, r)
	checkPolicy(c, r)
}

// checkIdentity wants one of the two, no more and no less.
func checkIdentity(r *reader) {
	api, files := r.has("identity.workloadAPI"), r.has("identity.files")
	switch {
	case api && files:
		r.fail("identity", wrong("keep one of them", "has both workloadAPI (%s) and files (%s)", r.line("identity.workloadAPI"), r.line("identity.files")))
	case !api && !files && r.has("identity"):
		r.fail("identity", wrong("add workloadAPI: unix:///run/spire/sockets/agent.sock", "has neither workloadAPI nor files"))
	}
}

// checkFederation wants one bundle for each trust domain, and for each that a peer
// is of. Files have that of one which is not named here, our own, and the Workload
// API has what its agent will give.
func checkFederation(c *Config, r *reader) {
	known := make(map[spiffeid.TrustDomain]string)
	for i, f := range c.Identity.Federation {
		path := index("identity.federation", i) + ".trustDomain"
		if first, twice := known[f.TrustDomain]; twice && !f.TrustDomain.IsZero() {
			r.fail(path, wrong("keep one of them; its file may hold several roots", "%s is there twice, first on line %d", f.TrustDomain, r.where(first).line))
			continue
		}
		known[f.TrustDomain] = path
	}
	if c.Identity.Files == nil || r.bad("identity.federation") {
		return
	}
	var own claim // what can only be ours
	for i, p := range c.Peers {
		for j, id := range p.IDs {
			td, at := id.TrustDomain(), index(peerPath(i, "ids"), j)
			if _, federated := known[td]; id.IsZero() || federated {
				continue
			}
			known[td] = at // told once
			if own.what == "" {
				own = claim{what: td.Name(), path: at}
				continue
			}
			r.fail(at, wrong(fmt.Sprintf("one of them is not ours: add its bundle to identity, as federation: [{trustDomain: %s, bundle: %s.pem}]", td, td),
				"%s is of another trust domain than %s (%s), and identity.files has the bundle of one", id, own.what, r.line(own.path)))
		}
	}
}

// checkAudit wants one place, no more and no less.
func checkAudit(r *reader) {
	var has []string
	for _, k := range []string{"file", "syslog", "journald"} {
		if path := "audit." + k; r.has(path) {
			has = append(has, fmt.Sprintf("%s (%s)", k, r.line(path)))
		}
	}
	switch {
	case len(has) > 1:
		r.fail("audit", wrong("keep one of them", "has %s", strings.Join(has, " and ")))
	case len(has) == 0 && r.has("audit"):
		r.fail("audit", wrong("add file: /var/log/wishbone/audit.log, or remove audit", "has none of file, syslog and journald"))
	}
}

// claim is what has something that only one may have, and where.
type claim struct {
	owner int // a peer's number, or ourselves
	what  string
	path  string
}

// ourselves is no peer.
const ourselves = -1

// claims finds what two have. The same twice with one is for many to find.
type claims[T comparable] map[T]claim

// add notes that c has v.
func (cs claims[T]) add(r *reader, v T, c claim, hint string) {
	var none T
	if v == none {
		return
	}
	other, taken := cs[v]
	switch {
	case !taken:
		cs[v] = c
	case other.owner != c.owner:
		r.fail(c.path, wrong(hint, "%v is already among %s (%s)", v, other.what, r.line(other.path)))
	}
}

// checkNetworks wants one owner for each network. Those within each other are
// well: the longest prefix decides.
func checkNetworks(c *Config, r *reader) {
	const hint = "each network has one owner; nesting is fine"
	owners := make(claims[netip.Prefix])
	for i, n := range c.Networks {
		owners.add(r, n, claim{ourselves, "our own networks", index("networks", i)}, hint)
	}
	for i, p := range c.Peers {
		for j, n := range p.Networks {
			owners.add(r, n, claim{i, "the networks of peer " + peerName(i, p), index(peerPath(i, "networks"), j)}, hint)
		}
	}
}

// checkPeers wants names, IDs and endpoints to be of one peer each.
func checkPeers(c *Config, r *reader) {
	const hint = "a gateway is one peer; that may have several ids and endpoints"
	first := make(map[string]int)
	ids, endpoints := make(claims[string]), make(claims[string])
	for i, p := range c.Peers {
		if j, taken := first[p.Name]; taken && p.Name != "" {
			r.fail(peerPath(i, "name"), wrong("give each peer a name of its own", "%s is already the name of peers[%d] (%s)", p.Name, j, r.line(peerPath(j, "name"))))
		} else {
			first[p.Name] = i
		}
		for j, id := range p.IDs {
			if !id.IsZero() {
				ids.add(r, id.String(), claim{i, "the ids of peer " + peerName(i, p), index(peerPath(i, "ids"), j)}, hint)
			}
		}
		for j, e := range p.Endpoints {
			endpoints.add(r, e, claim{i, "the endpoints of peer " + peerName(i, p), index(peerPath(i, "endpoints"), j)}, hint)
		}
	}
}

// peerPath is the path of a key of the ith peer.
func peerPath(i int, key string) string { return fmt.Sprintf("peers[%d].%s", i, key) }

// peerName is a peer's name, or its number if it has none.
func peerName(i int, p Peer) string {
	if p.Name == "" {
		return fmt.Sprintf("%d", i)
	}
	return p.Name
}

// maxListeners bounds the listeners for peers.
const maxListeners = 64

// checkListen wants listeners apart.
func checkListen(l Listen, r *reader) {
	if len(l.Tunnel) > maxListeners {
		r.fail("listen.tunnel", wrong("[::] stands for all addresses", "has more than %d addresses", maxListeners))
		return
	}
	taken := []listener{{"listen.transparent", netip.AddrPortFrom(netip.IPv6Unspecified(), l.Transparent)}}
	if l.Transparent == 0 {
		taken = nil
	}
	add := func(path string, at netip.AddrPort) {
		if !at.IsValid() {
			return
		}
		for _, t := range taken {
			if t.clashes(at) {
				r.clash(listener{path, at}, t)
				return
			}
		}
		taken = append(taken, listener{path, at})
	}
	for i, at := range l.Tunnel {
		if !slices.Contains(l.Tunnel[:i], at) { // many has told
			add(index("listen.tunnel", i), at)
		}
	}
	add("listen.metrics", l.Metrics)
	add("listen.ready", l.Ready)
	if r.has("listen.tunnel") && len(l.Tunnel) == 0 && !r.bad("listen.tunnel") {
		r.fail("listen.tunnel", wrong(`the default is ["[::]:15008"]`, "is an empty list: no peer could reach us"))
	}
}

// listener is an address that is taken, by the key at path.
type listener struct {
	path string
	at   netip.AddrPort
}

// clashes says whether both cannot listen. An unspecified address takes its port
// on all addresses; that of IPv6 takes IPv4's as well (ipv6(7), IPV6_V6ONLY off).
func (l listener) clashes(at netip.AddrPort) bool {
	a, b := l.at.Addr(), at.Addr()
	return l.at.Port() == at.Port() && (a == b || all(a, b) || all(b, a))
}

// all says whether a stands for all addresses, b among them.
func all(a, b netip.Addr) bool { return a.IsUnspecified() && (a.Is6() || b.Is4()) }

// clash tells of two listeners, at the one that the file names.
func (r *reader) clash(a, b listener) {
	if !r.has(a.path) {
		a, b = b, a
	}
	hint := "give each a port of its own"
	if strings.HasPrefix(a.path, "listen.tunnel") && strings.HasPrefix(b.path, "listen.tunnel") {
		hint = "an address of all zeros stands for all; [::] does for those of IPv4, too"
	}
	r.fail(a.path, wrong(hint, "port %d clashes with %s (%s)", a.at.Port(), b.path, r.line(b.path)))
}

// checkSources wants sources to narrow what they can.
func checkSources(c *Config, r *reader) {
	if len(c.Capture.Sources) > 0 && !c.Capture.Forwarded && !r.bad("capture.from") {
		r.fail("capture.sources", wrong("add forwarded to capture.from, or remove sources", "narrows forwarded capture, which capture.from does not have"))
	}
	if r.bad("networks") {
		return
	}
	ours := make(map[netip.Prefix]bool)
	for _, n := range c.Networks {
		ours[n] = true
	}
	for i, s := range c.Capture.Sources {
		if s.IsValid() && !within(s, ours) {
			r.fail(index("capture.sources", i), wrong("peers believe only sources that we own: add it to networks", "%s is not within networks", s))
		}
	}
}

// within says whether one of networks contains all of p.
func within(p netip.Prefix, networks map[netip.Prefix]bool) bool {
	for bits := p.Bits(); bits >= 0; bits-- {
		if networks[netip.PrefixFrom(p.Addr(), bits).Masked()] {
			return true
		}
	}
	return false
}

// checkRouting wants the two marks in their field.
func checkRouting(rt Routing, r *reader) {
	if rt.Mask == 0 || rt.Mark == 0 {
		return
	}
	switch {
	case bits.OnesCount32(rt.Mask) != 2:
		r.fail("routing.mask", wrong("two bits that nobody else uses, as 0x0c000000", "0x%08x does not have two bits", rt.Mask))
	case bits.OnesCount32(rt.Mark) != 1 || rt.Mark&^rt.Mask != 0:
		at := "routing.mark"
		if !r.has(at) {
			at = "routing.mask"
		}
		high := uint32(1) << (31 - bits.LeadingZeros32(rt.Mask))
		r.note("routing.mark", r.where(at), wrong(fmt.Sprintf("write mark: 0x%08x or mark: 0x%08x", high, rt.Mask&^high),
			"0x%08x is not one of the two bits of the mask 0x%08x", rt.Mark, rt.Mask))
	}
}
