package rules

import (
	"cmp"
	"net/netip"
	"slices"
)

// owned is a Plan's networks as the kernel can use them. Its sets know only
// "contained", not "longest prefix": so the sets of own, reject and open share
// no address, and every address is in the set of whoever owns it by longest
// prefix. Each list is sorted and as short as it can be. There is never a prefix
// of length 0, which ipset does not take; two halves stand for it.
type owned struct {
	own4, own6             []netip.Prefix
	reject4, reject6       []netip.Prefix // of peers that new connections wait for
	open4, open6           []netip.Prefix // of peers with PassUnavailable
	uncarried4, uncarried6 []netip.Prefix // of peers without PassUncarried; overlaps reject and open
	pass4, pass6           []netip.Prefix // of peers with PassUncarried: the rest of reject and open
	sources4, sources6     []netip.Prefix // the part of own that forwarded capture is for
	exclude4, exclude6     []netip.Prefix // Exclude.Networks; may overlap any other
}

// flatten decides who owns which address. A prefix that two claim, which the
// configuration forbids, is ours, or else the first peer's.
func flatten(p Plan) owned {
	var o owned
	spans := assign(claims(p))
	owner := func(want func(Peer) bool) (v4, v6 []netip.Prefix) {
		return split(spans, func(s span) bool { return s.owner >= 0 && want(p.Peers[s.owner]) })
	}
	o.own4, o.own6 = split(spans, func(s span) bool { return s.owner == ourselves })
	o.reject4, o.reject6 = owner(func(p Peer) bool { return !p.PassUnavailable })
	o.open4, o.open6 = owner(func(p Peer) bool { return p.PassUnavailable })
	o.uncarried4, o.uncarried6 = owner(func(p Peer) bool { return !p.PassUncarried })
	o.pass4, o.pass6 = owner(func(p Peer) bool { return p.PassUncarried })
	o.exclude4, o.exclude6 = disjoint(p.Exclude.Networks)
	o.sources4, o.sources6 = o.own4, o.own6
	if len(p.Sources) > 0 {
		v4, v6 := disjoint(p.Sources)
		o.sources4, o.sources6 = common(o.own4, v4), common(o.own6, v6)
	}
	return o
}

// Owners that are not peers; those are numbered from 0.
const (
	ourselves = -1
	nobody    = -2
)

// unroutable is what nobody owns who does not name it: a peer with 0.0.0.0/0
// owns no loopback, no link and no group. No router forwards these (RFC 1122
// §3.2.1.3, RFC 3927 §2.7, RFC 4291 §2.5.6); neighbour discovery, DHCP and
// routing protocols live there.
var unroutable = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("::/127"), // unspecified and loopback
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// claim is one prefix of one owner.
type claim struct {
	prefix netip.Prefix
	owner  int
}

// span is a run of addresses of one family, both ends included.
type span struct {
	first, last netip.Addr
	owner       int
}

// claims lists all prefixes, in the order in which they are believed.
func claims(p Plan) []claim {
	var all []claim
	for _, n := range p.Own {
		all = append(all, claim{n.Masked(), ourselves})
	}
	for i, peer := range p.Peers {
		for _, n := range peer.Networks {
			all = append(all, claim{n.Masked(), i})
		}
	}
	for _, n := range unroutable {
		all = append(all, claim{n, nobody})
	}
	return all
}

// assign cuts the address spaces into spans by longest prefix, sorted, IPv4
// first. Of equal prefixes the earlier claim wins.
func assign(claims []claim) []span {
	slices.SortStableFunc(claims, func(a, b claim) int {
		return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
	})
	claims = slices.CompactFunc(claims, func(a, b claim) bool { return a.prefix == b.prefix })

	var (
		spans  []span
		around []claim    // the prefixes that contain the present one, the widest first
		next   netip.Addr // the first address of around that is not in a span yet
	)
	// upTo gives what is left up to last to the innermost prefix.
	upTo := func(last netip.Addr) {
		if next.IsValid() && next.Compare(last) <= 0 {
			spans = append(spans, span{next, last, around[len(around)-1].owner})
			next = last.Next() // invalid behind the end of the address space
		}
	}
	leave := func() {
		upTo(lastAddr(around[len(around)-1].prefix))
		around = around[:len(around)-1]
	}
	for _, c := range claims {
		first := c.prefix.Addr()
		for len(around) > 0 && !around[len(around)-1].prefix.Contains(first) {
			leave()
		}
		if len(around) > 0 && next.Less(first) {
			upTo(first.Prev())
		}
		around, next = append(around, c), first
	}
	for len(around) > 0 {
		leave()
	}
	return spans
}

// split gives the prefixes of the chosen spans by family.
func split(spans []span, want func(span) bool) (v4, v6 []netip.Prefix) {
	var chosen []span
	for _, s := range spans {
		if want(s) {
			chosen = append(chosen, s)
		}
	}
	for _, s := range join(chosen) {
		if s.first.Is4() {
			v4 = appendPrefixes(v4, s)
		} else {
			v6 = appendPrefixes(v6, s)
		}
	}
	return v4, v6
}

// disjoint is split for prefixes that need no owner.
func disjoint(ps []netip.Prefix) (v4, v6 []netip.Prefix) {
	var all []claim
	for _, p := range ps {
		all = append(all, claim{p.Masked(), ourselves})
	}
	return split(assign(all), func(span) bool { return true })
}

// common gives what two sorted, disjoint lists of one family have in common.
func common(a, b []netip.Prefix) []netip.Prefix {
	var both []netip.Prefix
	for len(a) > 0 && len(b) > 0 {
		// Two prefixes are nested or apart.
		if a[0].Overlaps(b[0]) {
			both = append(both, narrower(a[0], b[0]))
		}
		if lastAddr(a[0]).Less(lastAddr(b[0])) {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return both
}

func narrower(a, b netip.Prefix) netip.Prefix {
	if a.Bits() > b.Bits() {
		return a
	}
	return b
}

// ranges joins sorted prefixes to the fewest spans, as nftables wants them.
func ranges(ps []netip.Prefix) []span {
	spans := make([]span, 0, len(ps))
	for _, p := range ps {
		spans = append(spans, span{first: p.Addr(), last: lastAddr(p)})
	}
	return join(spans)
}

// join puts neighbours together, whoever they belong to.
func join(spans []span) []span {
	var joined []span
	for _, s := range spans {
		if n := len(joined); n > 0 && joined[n-1].last.Next() == s.first {
			joined[n-1].last = s.last
			continue
		}
		joined = append(joined, span{first: s.first, last: s.last})
	}
	return joined
}

// appendPrefixes cuts a span into the fewest prefixes, none of length 0.
func appendPrefixes(ps []netip.Prefix, s span) []netip.Prefix {
	for first := s.first; first.IsValid() && first.Compare(s.last) <= 0; {
		p := netip.PrefixFrom(first, first.BitLen())
		for p.Bits() > 1 {
			wider := netip.PrefixFrom(first, p.Bits()-1)
			if wider.Masked().Addr() != first || s.last.Less(lastAddr(wider)) {
				break
			}
			p = wider
		}
		ps = append(ps, p)
		first = lastAddr(p).Next()
	}
	return ps
}

// lastAddr is the highest address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ := netip.AddrFromSlice(b) // 4 or 16 bytes, as it was
	return last
}
