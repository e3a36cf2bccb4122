package route_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/tunnel/route"
)

func prefixes(list ...string) (p []netip.Prefix) {
	for _, s := range list {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

func newTable(t testing.TB, cfg route.Config) *route.Table {
	t.Helper()
	table, err := route.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// nested has every kind of nesting: a peer within a peer, a peer within us, us
// within a peer, and us within a peer within us.
func nested(t testing.TB) *route.Table {
	return newTable(t, route.Config{
		Networks: prefixes("10.1.0.0/16", "10.2.3.0/24", "10.1.5.64/26", "fd00:1::/64"),
		Peers: []route.Peer{
			{Name: "hub", Networks: prefixes("0.0.0.0/0", "::/0")},
			{Name: "east", Networks: prefixes("10.2.0.0/16", "10.1.5.0/24", "fd00:2::/64", "fd00:1::5/128")},
		},
	})
}

func TestLookup(t *testing.T) {
	table := nested(t)
	const ours = "ourselves"
	for addr, want := range map[string]string{
		"10.1.0.1":                ours,
		"10.2.0.1":                "east",
		"10.2.3.1":                ours, // ours within the peer's
		"10.1.5.1":                "east",
		"10.1.5.65":               ours, // ours within the peer's within ours
		"10.3.0.1":                "hub",
		"::ffff:10.2.0.1":         "east",
		"fd00:1::4":               ours,
		"fd00:1::5":               "east",
		"fd00:2::1":               "east",
		"fd00:3::1":               "hub",
		"fe80::1%eth0":            "",
		"fd00:2::1%eth0":          "",
		"::ffff:10.2.0.1%eth0":    "",
		"ffff:ffff:ffff:ffff::":   "hub",
		"255.255.255.255":         "hub",
		"::ffff:0:0":              "hub",
		"::":                      "hub",
		"0:0:0:0:0:fffe:10.2.0.1": "hub",
		"64:ff9b::10.2.0.1":       "hub",
	} {
		t.Run(addr, func(t *testing.T) {
			a := netip.MustParseAddr(strings.TrimSuffix(addr, "%eth0"))
			if strings.HasSuffix(addr, "%eth0") {
				a = a.WithZone("eth0")
			}
			got := ""
			p, ok := table.Lookup(a)
			switch {
			case ok:
				got = p.Name
			case p != nil:
				t.Errorf("Lookup found nobody, and peer %q", p.Name)
			case table.Ours(a):
				got = ours
			}
			if got != want {
				t.Errorf("%s belongs to %q, want %q", a, got, want)
			}
			if ok && table.Ours(a) {
				t.Errorf("%s is a peer's and ours", a)
			}
		})
	}
}

func TestNobody(t *testing.T) {
	table := newTable(t, route.Config{Networks: prefixes("10.1.0.0/16")})
	for _, a := range []netip.Addr{{}, netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("fd00::1")} {
		if p, ok := table.Lookup(a); ok || p != nil || table.Ours(a) {
			t.Errorf("%v has an owner", a)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	peer := func(name string, networks ...string) route.Peer {
		return route.Peer{Name: name, Networks: prefixes(networks...)}
	}
	for name, c := range map[string]struct {
		cfg  route.Config
		want string
	}{
		"two peers":      {route.Config{Peers: []route.Peer{peer("a", "10.0.0.0/8"), peer("b", "10.0.0.0/8")}}, `the networks of peer "b": network 10.0.0.0/8 is already among the networks of peer "a"`},
		"peer and ours":  {route.Config{Networks: prefixes("fd00::/8"), Peers: []route.Peer{peer("a", "fd00::/8")}}, `the networks of peer "a": network fd00::/8 is already among our own networks`},
		"twice in one":   {route.Config{Networks: prefixes("10.0.0.0/8", "10.0.0.0/8")}, "already among our own networks"},
		"host bits":      {route.Config{Networks: prefixes("10.0.0.1/8")}, "write 10.0.0.0/8"},
		"mapped":         {route.Config{Peers: []route.Peer{peer("a", "::ffff:10.0.0.0/104")}}, "write it as IPv4"},
		"invalid":        {route.Config{Networks: []netip.Prefix{{}}}, "not valid"},
		"all the mapped": {route.Config{Networks: prefixes("::ffff:0:0/96")}, "write it as IPv4"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := route.New(c.cfg)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("New says %v, want %q", err, c.want)
			}
		})
	}
}

// TestTableKeepsCopies changes what New was given.
func TestTableKeepsCopies(t *testing.T) {
	id := spiffeid.RequireFromString("spiffe://mesh.example/gateway/east")
	cfg := route.Config{Peers: []route.Peer{{
		Name: "east", IDs: []spiffeid.ID{id}, Endpoints: []string{"192.0.2.20:15008"}, Networks: prefixes("10.2.0.0/16"),
	}}}
	table := newTable(t, cfg)
	want := route.Peer{Name: "east", IDs: []spiffeid.ID{id}, Endpoints: []string{"192.0.2.20:15008"}, Networks: prefixes("10.2.0.0/16")}
	cfg.Peers[0].IDs[0] = spiffeid.ID{}
	cfg.Peers[0].Endpoints[0] = "changed"
	cfg.Peers[0].Networks[0] = netip.Prefix{}
	table.Peers()[0] = nil
	same := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	if diff := cmp.Diff(want, *table.Peers()[0], same, cmp.Comparer(func(a, b spiffeid.ID) bool { return a == b })); diff != "" {
		t.Errorf("the table has changed (-want +got):\n%s", diff)
	}
	p, ok := table.Lookup(netip.MustParseAddr("10.2.0.1"))
	if !ok || p != table.Peers()[0] {
		t.Error("Lookup and Peers give different peers")
	}
}

func TestLookupAllocatesNothing(t *testing.T) {
	table := nested(t)
	a, b := netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("::ffff:10.1.5.65")
	if n := testing.AllocsPerRun(100, func() { table.Lookup(a); table.Ours(b) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func BenchmarkLookup(b *testing.B) {
	table := nested(b)
	for _, s := range []string{"10.1.5.1", "fd00:1::5", "10.3.0.1"} {
		a := netip.MustParseAddr(s)
		b.Run(s, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				table.Lookup(a)
			}
		})
	}
}
