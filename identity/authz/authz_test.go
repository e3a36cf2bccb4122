package authz_test

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/identity/authz"
)

var (
	east  = spiffeid.RequireFromString("spiffe://mesh.example/gateway/east")
	east2 = spiffeid.RequireFromString("spiffe://mesh.example/gateway/east-2")
	south = spiffeid.RequireFromString("spiffe://mesh.example/gateway/south")
	north = spiffeid.RequireFromString("spiffe://mesh.example/gateway/north")
	hub   = spiffeid.RequireFromString("spiffe://mesh.example/gateway/hub")
	other = spiffeid.RequireFromString("spiffe://mesh.example/gateway/other")
)

func prefixes(list ...string) (p []netip.Prefix) {
	for _, s := range list {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

// addrPort reads an address and port; the empty string is none.
func addrPort(s string) netip.AddrPort {
	if s == "" {
		return netip.AddrPort{}
	}
	return netip.MustParseAddrPort(s)
}

// config nests both ways: a peer within a peer, we within a peer, a peer within us.
func config() authz.Config {
	return authz.Config{
		Networks: prefixes("10.1.0.0/16", "10.2.3.0/24", "fd00:1::/64", "fd00:ec2::/64"),
		Peers: []authz.Peer{
			{Name: "east", IDs: []spiffeid.ID{east, east2}, Networks: prefixes("10.2.0.0/16", "10.1.9.0/24", "fd00:2::/64")},
			{Name: "south", IDs: []spiffeid.ID{south}, Networks: prefixes("10.3.0.0/16", "fd00:3::/64"), Source: authz.Address},
			{Name: "north", IDs: []spiffeid.ID{north}, Networks: prefixes("10.4.0.0/16"), Source: authz.Gateway},
			{Name: "hub", IDs: []spiffeid.ID{hub}, Networks: prefixes("0.0.0.0/0", "::/0")},
		},
		Ports: []uint16{15008, 15001},
		Local: func(a netip.Addr) bool {
			return a == netip.MustParseAddr("10.1.0.1") || a == netip.MustParseAddr("10.2.0.200") || a == netip.MustParseAddr("fd00:1::1")
		},
	}
}

func newPolicy(t testing.TB, cfg authz.Config) *authz.Policy {
	t.Helper()
	p, err := authz.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPermit(t *testing.T) {
	p := newPolicy(t, config())
	for name, c := range map[string]struct {
		id             spiffeid.ID
		source, target string
		peer           string
		from, to       string
	}{
		"preserve":                 {east, "10.2.0.5:40000", "10.1.0.7:80", "east", "10.2.0.5:40000", "10.1.0.7:80"},
		"another id":               {east2, "10.2.0.5:40000", "10.1.0.7:80", "east", "10.2.0.5:40000", "10.1.0.7:80"},
		"preserve, IPv6":           {east, "[fd00:2::5]:40000", "[fd00:1::7]:80", "east", "[fd00:2::5]:40000", "[fd00:1::7]:80"},
		"mapped":                   {east, "[::ffff:10.2.0.5]:40000", "[::ffff:10.1.0.7]:80", "east", "10.2.0.5:40000", "10.1.0.7:80"},
		"one of them mapped":       {east, "[::ffff:10.2.0.5]:40000", "10.1.0.7:80", "east", "10.2.0.5:40000", "10.1.0.7:80"},
		"address":                  {south, "10.3.0.5:40000", "10.1.0.7:80", "south", "10.3.0.5:0", "10.1.0.7:80"},
		"address without port":     {south, "10.3.0.5:0", "10.1.0.7:80", "south", "10.3.0.5:0", "10.1.0.7:80"},
		"gateway":                  {north, "", "10.1.0.7:80", "north", "", "10.1.0.7:80"},
		"gateway with source":      {north, "10.4.0.5:40000", "10.1.0.7:80", "north", "", "10.1.0.7:80"},
		"gateway, families differ": {north, "10.4.0.5:40000", "[fd00:1::7]:80", "north", "", "[fd00:1::7]:80"},
		"target ours in a peer's":  {hub, "192.0.2.9:40000", "10.2.3.7:80", "hub", "192.0.2.9:40000", "10.2.3.7:80"},
		"source a peer's in ours":  {east, "10.1.9.5:40000", "10.1.0.7:80", "east", "10.1.9.5:40000", "10.1.0.7:80"},
		"another port of this":     {east, "10.2.0.5:40000", "10.1.0.1:22", "east", "10.2.0.5:40000", "10.1.0.1:22"},
		"our port elsewhere":       {east, "10.2.0.5:40000", "10.1.0.7:15008", "east", "10.2.0.5:40000", "10.1.0.7:15008"},
	} {
		t.Run(name, func(t *testing.T) {
			permit, err := p.Authorize(c.id, addrPort(c.source), addrPort(c.target))
			if err != nil {
				t.Fatal(err)
			}
			if permit.From() != addrPort(c.from) || permit.To() != addrPort(c.to) {
				t.Errorf("from %s to %s, want %q to %s", permit.From(), permit.To(), c.from, c.to)
			}
			if permit.Peer() != c.peer || permit.ID() != c.id {
				t.Errorf("peer %q, id %s", permit.Peer(), permit.ID())
			}
			source := addrPort(c.source)
			if want := netip.AddrPortFrom(source.Addr().Unmap(), source.Port()); permit.Source() != want {
				t.Errorf("source %s, want %s", permit.Source(), want)
			}
		})
	}
}

func TestZeroPermit(t *testing.T) {
	var p authz.Permit
	if p.To().IsValid() || p.From().IsValid() || p.Peer() != "" || !p.ID().IsZero() || p.Source().IsValid() {
		t.Errorf("the zero Permit reaches somewhere: %+v", p)
	}
}

func TestDenied(t *testing.T) {
	p := newPolicy(t, config())
	for name, c := range map[string]struct {
		id             spiffeid.ID
		source, target string
		want           authz.Reason
	}{
		"stranger":                     {other, "10.2.0.5:40000", "10.1.0.7:80", authz.UnknownPeer},
		"nobody":                       {spiffeid.ID{}, "10.2.0.5:40000", "10.1.0.7:80", authz.UnknownPeer},
		"no source":                    {east, "", "10.1.0.7:80", authz.NoSource},
		"no source, address":           {south, "", "10.1.0.7:80", authz.NoSource},
		"source of another":            {east, "10.3.0.5:40000", "10.1.0.7:80", authz.SourceNotOwned},
		"source of one within":         {hub, "10.2.0.5:40000", "10.1.0.7:80", authz.SourceNotOwned},
		"source of one within, mapped": {hub, "[::ffff:10.2.0.5]:40000", "10.1.0.7:80", authz.SourceNotOwned},
		"source of ours":               {hub, "10.1.0.8:40000", "10.1.0.7:80", authz.SourceNotOwned},
		"source of ours within":        {east, "10.2.3.5:40000", "10.1.0.7:80", authz.SourceNotOwned},
		"source of nobody's":           {east, "[2001:db8::1]:1", "[fd00:1::7]:80", authz.SourceNotOwned},
		"source not owned, gateway":    {north, "10.2.0.5:40000", "10.1.0.7:80", authz.SourceNotOwned},
		"source not owned, address":    {south, "10.2.0.5:40000", "10.1.0.7:80", authz.SourceNotOwned},
		"source without port":          {east, "10.2.0.5:0", "10.1.0.7:80", authz.BadSource},
		"source of this host":          {east, "10.2.0.200:40000", "10.1.0.7:80", authz.BadSource},
		"target of the peer":           {east, "10.2.0.5:40000", "10.2.0.6:80", authz.TargetNotServed},
		"target of another":            {east, "10.2.0.5:40000", "10.3.0.6:80", authz.TargetNotServed},
		"target of a peer within":      {hub, "192.0.2.9:40000", "10.1.9.6:80", authz.TargetNotServed},
		"target of the hub":            {east, "10.2.0.5:40000", "198.51.100.1:80", authz.TargetNotServed},
		"target of this host outside":  {east, "10.2.0.5:40000", "10.2.0.200:22", authz.TargetNotServed},
		"target without port":          {east, "10.2.0.5:40000", "10.1.0.7:0", authz.BadTarget},
		"no target":                    {east, "10.2.0.5:40000", "", authz.BadTarget},
		"loop":                         {east, "10.2.0.5:40000", "10.1.0.1:15008", authz.Loop},
		"loop, mapped":                 {east, "10.2.0.5:40000", "[::ffff:10.1.0.1]:15001", authz.Loop},
		"loop, IPv6":                   {east, "[fd00:2::5]:40000", "[fd00:1::1]:15008", authz.Loop},
		"families differ":              {east, "10.2.0.5:40000", "[fd00:1::7]:80", authz.FamilyMismatch},
		"families differ, address":     {south, "[fd00:3::5]:40000", "10.1.0.7:80", authz.FamilyMismatch},
	} {
		t.Run(name, func(t *testing.T) { wantDenied(t, p, c.id, addrPort(c.source), addrPort(c.target), c.want) })
	}
}

func wantDenied(t *testing.T, p *authz.Policy, id spiffeid.ID, source, target netip.AddrPort, want authz.Reason) {
	t.Helper()
	permit, err := p.Authorize(id, source, target)
	denied, ok := errors.AsType[*authz.DeniedError](err)
	if !ok {
		t.Fatalf("%s from %s to %s: %v, want %s", id, source, target, err, want)
	}
	if denied.Reason != want || denied.ID != id {
		t.Errorf("%s from %s to %s: %v, want %s", id, source, target, denied, want)
	}
	if permit != (authz.Permit{}) {
		t.Errorf("a refusal comes with the permit %+v", permit)
	}
	if !slices.Contains(authz.Reasons(), denied.Reason) {
		t.Errorf("%s is not among Reasons", denied.Reason)
	}
}

// TestNever goes through addresses that nobody may reach or speak for, although
// the one who asks owns everything, or we do.
func TestNever(t *testing.T) {
	all := prefixes("0.0.0.0/0", "::/0")
	one := prefixes("198.51.100.0/24", "2001:db8::/64")
	theirs := newPolicy(t, authz.Config{Networks: one, Peers: []authz.Peer{{Name: "hub", IDs: []spiffeid.ID{hub}, Networks: all}}})
	ours := newPolicy(t, authz.Config{Networks: all, Peers: []authz.Peer{{Name: "hub", IDs: []spiffeid.ID{hub}, Networks: one}}})
	for _, s := range []string{
		"0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.255", "169.254.0.1", "169.254.169.254", "169.254.170.23",
		"224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
		"::", "::1", "fe80::1", "febf::1", "fe80::1%eth0", "fd00::1%eth0", "ff02::1", "ff0e::1", "fd00:ec2::254", "fd00:ec2::23",
		"::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:0.0.0.0", "::ffff:255.255.255.255", "::ffff:224.0.0.1",
	} {
		t.Run(s, func(t *testing.T) {
			a := netip.MustParseAddr(s)
			near := map[bool]string{true: "198.51.100.1:80", false: "[2001:db8::1]:80"}[a.Unmap().Is4()]
			wantDenied(t, theirs, hub, netip.AddrPortFrom(a, 4000), addrPort(near), authz.BadSource)
			wantDenied(t, ours, hub, addrPort(near), netip.AddrPortFrom(a, 80), authz.BadTarget)
		})
	}
	zoned := netip.AddrPortFrom(netip.MustParseAddr("::ffff:198.51.100.7").WithZone("eth0"), 80)
	wantDenied(t, ours, hub, addrPort("198.51.100.1:80"), zoned, authz.BadTarget)
}

// TestBesideNever are the neighbours of those, which are in order.
func TestBesideNever(t *testing.T) {
	p := newPolicy(t, authz.Config{
		Networks: prefixes("0.0.0.0/0", "::/0"),
		Peers: []authz.Peer{{Name: "hub", IDs: []spiffeid.ID{hub},
			Networks: prefixes("198.51.100.0/24", "2001:db8::/64")}},
	})
	for _, s := range []string{
		"1.0.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0", "223.255.255.255", "100.64.0.1",
		"::2", "fec0::1", "fd00:ec2::253", "fd00:ec2::255", "64:ff9b::1",
	} {
		a := netip.MustParseAddr(s)
		near := map[bool]string{true: "198.51.100.1:80", false: "[2001:db8::1]:80"}[a.Is4()]
		if _, err := p.Authorize(hub, addrPort(near), netip.AddrPortFrom(a, 80)); err != nil {
			t.Error(err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*authz.Config)
		want   string
	}{
		"prefix twice":        {func(c *authz.Config) { c.Networks = append(c.Networks, c.Peers[0].Networks[0]) }, "already among our own networks"},
		"prefix of two peers": {func(c *authz.Config) { c.Peers[1].Networks[0] = c.Peers[0].Networks[0] }, `already among the networks of peer "east"`},
		"id of two peers":     {func(c *authz.Config) { c.Peers[1].IDs = c.Peers[0].IDs[1:] }, `already an id of peer "east"`},
		"empty id":            {func(c *authz.Config) { c.Peers[0].IDs[0] = spiffeid.ID{} }, "empty SPIFFE ID"},
		"host bits":           {func(c *authz.Config) { c.Networks = prefixes("10.1.0.1/16") }, "canonical"},
		"mapped":              {func(c *authz.Config) { c.Networks = prefixes("::ffff:10.0.0.0/104") }, "canonical"},
		"no prefix":           {func(c *authz.Config) { c.Networks[0] = netip.Prefix{} }, "canonical"},
		"unknown source":      {func(c *authz.Config) { c.Peers[0].Source = 3 }, `peer "east": unknown source(3)`},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config()
			c.change(&cfg)
			_, err := authz.New(cfg)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("New says %v, want %q", err, c.want)
			}
		})
	}
}

func TestDeniedErrorText(t *testing.T) {
	p := newPolicy(t, config())
	_, err := p.Authorize(east, addrPort("10.3.0.5:4000"), addrPort("[::ffff:10.1.0.7]:80"))
	if want := "authorise spiffe://mesh.example/gateway/east, source 10.3.0.5:4000, to 10.1.0.7:80: source_not_owned"; err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
	_, err = p.Authorize(east, netip.AddrPort{}, addrPort("10.1.0.7:80"))
	if want := "authorise spiffe://mesh.example/gateway/east, no source, to 10.1.0.7:80: no_source"; err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
}

func TestAuthorizeAllocatesNothing(t *testing.T) {
	source, target := addrPort("[::ffff:10.2.0.5]:40000"), addrPort("10.1.0.7:80")
	for name, cfg := range map[string]authz.Config{
		"ownership": config(),
		"rules": ruled(authz.Rule{Name: "web", Action: authz.Allow, From: authz.From{Networks: prefixes("10.2.0.0/24")}, To: authz.To{Ports: spans(80)}},
			authz.Rule{Name: "dry", DryRun: true, To: authz.To{Networks: prefixes("10.1.0.7/32")}}),
	} {
		p := newPolicy(t, cfg)
		if permit, err := p.Authorize(east, source, target); err != nil || len(cfg.Rules) > 0 && (permit.Rule() != "web" || permit.DryRun() != "dry") {
			t.Errorf("%s: %+v, %v", name, permit, err)
		}
		if n := testing.AllocsPerRun(100, func() { p.Authorize(east, source, target) }); n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
}

func BenchmarkAuthorize(b *testing.B) {
	p := newPolicy(b, config())
	for name, c := range map[string][2]string{
		"v4":     {"10.2.0.5:40000", "10.1.0.7:80"},
		"v6":     {"[fd00:2::5]:40000", "[fd00:1::7]:80"},
		"denied": {"10.3.0.5:40000", "10.1.0.7:80"},
	} {
		source, target := addrPort(c[0]), addrPort(c[1])
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.Authorize(east, source, target)
			}
		})
	}
}
