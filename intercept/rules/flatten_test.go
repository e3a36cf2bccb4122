package rules

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/gaissmai/bart"
	"github.com/google/go-cmp/cmp"
)

func prefixes(ss ...string) []netip.Prefix {
	var ps []netip.Prefix
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func TestFlatten(t *testing.T) {
	for _, tc := range []struct {
		name string
		plan Plan
		want owned
	}{
		{name: "nothing"},
		{
			name: "apart",
			plan: Plan{
				Own:   prefixes("10.1.0.0/16", "fd00:1::/64"),
				Peers: []Peer{{Networks: prefixes("10.2.0.0/16", "fd00:2::/64")}},
			},
			want: owned{
				own4: prefixes("10.1.0.0/16"), own6: prefixes("fd00:1::/64"),
				reject4: prefixes("10.2.0.0/16"), reject6: prefixes("fd00:2::/64"),
			},
		},
		{
			name: "a peer inside our network",
			plan: Plan{
				Own:   prefixes("10.0.0.0/14"),
				Peers: []Peer{{Networks: prefixes("10.2.0.0/16")}},
			},
			want: owned{
				own4:    prefixes("10.0.0.0/15", "10.3.0.0/16"),
				reject4: prefixes("10.2.0.0/16"),
			},
		},
		{
			name: "we inside a peer's network",
			plan: Plan{
				Own:   prefixes("10.0.0.0/8"),
				Peers: []Peer{{Networks: prefixes("8.0.0.0/6")}},
			},
			want: owned{
				own4:    prefixes("10.0.0.0/8"),
				reject4: prefixes("8.0.0.0/7", "11.0.0.0/8"),
			},
		},
		{
			name: "three deep, with all kinds",
			plan: Plan{
				Own: prefixes("10.0.0.0/24"),
				Peers: []Peer{
					{Networks: prefixes("10.0.0.0/23"), PassUncarried: true},
					{Networks: prefixes("10.0.0.7/32"), PassUnavailable: true},
				},
			},
			want: owned{
				own4: prefixes("10.0.0.0/30", "10.0.0.4/31", "10.0.0.6/32", "10.0.0.8/29", "10.0.0.16/28",
					"10.0.0.32/27", "10.0.0.64/26", "10.0.0.128/25"),
				reject4: prefixes("10.0.1.0/24"),
				open4:   prefixes("10.0.0.7/32"), uncarried4: prefixes("10.0.0.7/32"),
				pass4: prefixes("10.0.1.0/24"),
			},
		},
		{
			name: "neighbours of two peers become one",
			plan: Plan{Peers: []Peer{
				{Networks: prefixes("10.0.1.0/24", "10.0.1.128/25")},
				{Networks: prefixes("10.0.0.0/24"), PassUncarried: true},
			}},
			want: owned{reject4: prefixes("10.0.0.0/23"), uncarried4: prefixes("10.0.1.0/24"), pass4: prefixes("10.0.0.0/24")},
		},
		{
			name: "the ends of the address space",
			plan: Plan{
				Own:   prefixes("255.255.255.255/32"),
				Peers: []Peer{{Networks: prefixes("255.255.255.254/31", "ffff::/16")}},
			},
			want: owned{
				own4:    prefixes("255.255.255.255/32"),
				reject4: prefixes("255.255.255.254/32"), reject6: prefixes("ffff::/16"),
			},
		},
		{
			name: "sources are a part of ours",
			plan: Plan{
				Own:     prefixes("10.1.0.0/16"),
				Peers:   []Peer{{Networks: prefixes("10.1.1.128/25")}},
				Sources: prefixes("10.1.1.0/24", "10.1.7.1/32", "10.9.0.0/16", "fd00::/8"),
			},
			want: owned{
				own4: prefixes("10.1.0.0/24", "10.1.1.0/25", "10.1.2.0/23", "10.1.4.0/22", "10.1.8.0/21",
					"10.1.16.0/20", "10.1.32.0/19", "10.1.64.0/18", "10.1.128.0/17"),
				reject4:  prefixes("10.1.1.128/25"),
				sources4: prefixes("10.1.1.0/25", "10.1.7.1/32"),
			},
		},
		{
			name: "exclusions overlap as they please",
			plan: Plan{Exclude: Exclude{Networks: prefixes("10.2.0.9/16", "10.2.3.0/24", "0.0.0.0/0")}},
			want: owned{exclude4: prefixes("0.0.0.0/1", "128.0.0.0/1")},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if len(tc.plan.Sources) == 0 {
				tc.want.sources4, tc.want.sources6 = tc.want.own4, tc.want.own6
			}
			if tc.want.uncarried4 == nil && tc.want.uncarried6 == nil {
				tc.want.uncarried4, tc.want.uncarried6 = tc.want.reject4, tc.want.reject6
			}
			got := flatten(tc.plan)
			if d := cmp.Diff(tc.want, got, cmp.AllowUnexported(owned{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
				t.Errorf("flatten: (-want +got)\n%s", d)
			}
		})
	}
}

// TestFlattenHub has a peer that owns everything: everything that a router
// forwards, and is not ours.
func TestFlattenHub(t *testing.T) {
	o := flatten(Plan{Own: prefixes("10.1.0.0/16"), Peers: []Peer{
		{Networks: prefixes("0.0.0.0/0", "::/0")},
		{Networks: prefixes("169.254.7.0/24"), PassUnavailable: true},
	}})
	for addr, want := range map[string]string{
		"1.0.0.0": "reject", "9.255.255.255": "reject", "10.0.255.255": "reject", "10.1.0.0": "own", "10.1.255.255": "own",
		"10.2.0.0": "reject", "0.255.255.255": "", "126.255.255.255": "reject", "127.0.0.1": "", "128.0.0.0": "reject",
		"169.253.255.255": "reject", "169.254.0.1": "", "169.254.7.1": "open", "169.254.8.0": "", "169.255.0.0": "reject",
		"223.255.255.255": "reject", "224.0.0.251": "", "240.0.0.0": "reject", "255.255.255.254": "reject", "255.255.255.255": "",
		"::": "", "::1": "", "::2": "reject", "2001:db8::1": "reject", "fe7f::": "reject", "fe80::1": "", "febf::": "", "fec0::": "reject",
		"feff::": "reject", "ff02::1": "",
	} {
		a, got := netip.MustParseAddr(addr), ""
		for name, set := range map[string][]netip.Prefix{
			"own": slices.Concat(o.own4, o.own6), "reject": slices.Concat(o.reject4, o.reject6), "open": slices.Concat(o.open4, o.open6),
		} {
			requireDisjoint(t, name, set)
			if slices.ContainsFunc(set, func(p netip.Prefix) bool { return p.Contains(a) }) {
				got += name
			}
		}
		if got != want {
			t.Errorf("%s belongs to %q, want %q", addr, got, want)
		}
	}
}

// TestFlattenLongestPrefix compares the sets with a longest-prefix-match table,
// at every address where a set may begin or end.
func TestFlattenLongestPrefix(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 11))
	for range 150 {
		p, table := randomPlan(rnd)
		o := flatten(p)
		sets := map[string][]netip.Prefix{
			"own":       slices.Concat(o.own4, o.own6),
			"reject":    slices.Concat(o.reject4, o.reject6),
			"open":      slices.Concat(o.open4, o.open6),
			"uncarried": slices.Concat(o.uncarried4, o.uncarried6),
			"pass":      slices.Concat(o.pass4, o.pass6),
		}
		for name, set := range sets {
			requireDisjoint(t, name, set)
		}
		for _, a := range borders(p) {
			want := map[string]bool{}
			if owner, ok := table.Lookup(a); ok {
				want["own"] = owner == ourselves
				want["reject"] = owner >= 0 && !p.Peers[owner].PassUnavailable
				want["open"] = owner >= 0 && p.Peers[owner].PassUnavailable
				want["uncarried"] = owner >= 0 && !p.Peers[owner].PassUncarried
				want["pass"] = owner >= 0 && p.Peers[owner].PassUncarried
			}
			for name, set := range sets {
				got := slices.ContainsFunc(set, func(p netip.Prefix) bool { return p.Contains(a) })
				if got != want[name] {
					t.Fatalf("%v in %s: %v, want %v\nplan %+v\nsets %v", a, name, got, want[name], p, sets)
				}
			}
		}
	}
}

// requireDisjoint holds a set to its promises: sorted, apart, never everything.
func requireDisjoint(t *testing.T, name string, set []netip.Prefix) {
	t.Helper()
	for i, p := range set {
		if p.Bits() == 0 || p != p.Masked() {
			t.Fatalf("%s has %v", name, p)
		}
		if i > 0 && set[i-1].Addr().Is4() == p.Addr().Is4() && !lastAddr(set[i-1]).Less(p.Addr()) {
			t.Fatalf("%s: %v does not lie behind %v", name, p, set[i-1])
		}
	}
}

// randomPlan crowds prefixes of all lengths into few bits, so that they nest.
func randomPlan(rnd *rand.Rand) (Plan, *bart.Table[int]) {
	p := Plan{Peers: []Peer{{}, {PassUnavailable: true}, {PassUncarried: true}}}
	table := new(bart.Table[int])
	for _, n := range unroutable {
		table.Insert(n, nobody)
	}
	for range 1 + rnd.IntN(14) {
		n := randomPrefix(rnd)
		if owner, taken := table.Get(n); taken && owner != nobody {
			continue
		}
		owner := rnd.IntN(4) - 1
		table.Insert(n, owner)
		if owner == ourselves {
			p.Own = append(p.Own, n)
		} else {
			p.Peers[owner].Networks = append(p.Peers[owner].Networks, n)
		}
	}
	return p, table
}

func randomPrefix(rnd *rand.Rand) netip.Prefix {
	b := make([]byte, []int{4, 16}[rnd.IntN(2)])
	b[0], b[len(b)-1] = []byte{0, 0x80, 0xff}[rnd.IntN(3)], byte(rnd.IntN(4))
	a, _ := netip.AddrFromSlice(b)
	bits := []int{rnd.IntN(4), a.BitLen() - rnd.IntN(4)}[rnd.IntN(2)]
	return netip.PrefixFrom(a, bits).Masked()
}

// borders are the addresses on both sides of every end of every prefix.
func borders(p Plan) []netip.Addr {
	var addrs []netip.Addr
	for _, c := range claims(p) {
		for _, a := range []netip.Addr{c.prefix.Addr(), lastAddr(c.prefix)} {
			addrs = append(addrs, a)
			for _, near := range []netip.Addr{a.Prev(), a.Next()} {
				if near.IsValid() {
					addrs = append(addrs, near)
				}
			}
		}
	}
	return addrs
}

func TestRanges(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   []netip.Prefix
		want []span
	}{
		{name: "nothing"},
		{"halves", prefixes("0.0.0.0/1", "128.0.0.0/1"), []span{{first: netip.MustParseAddr("0.0.0.0"), last: netip.MustParseAddr("255.255.255.255")}}},
		{"a gap", prefixes("10.0.0.0/32", "10.0.0.2/31"), []span{
			{first: netip.MustParseAddr("10.0.0.0"), last: netip.MustParseAddr("10.0.0.0")},
			{first: netip.MustParseAddr("10.0.0.2"), last: netip.MustParseAddr("10.0.0.3")},
		}},
	} {
		if got := ranges(tc.in); !slices.Equal(got, tc.want) {
			t.Errorf("%s: ranges(%v) = %v, want %v", tc.name, tc.in, got, tc.want)
		}
	}
}
