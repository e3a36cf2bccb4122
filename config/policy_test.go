package config

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestIDPattern(t *testing.T) {
	for pattern, c := range map[string]struct{ yes, no string }{
		"spiffe://mesh.example/gateway/east": {"spiffe://mesh.example/gateway/east",
			"spiffe://mesh.example/gateway/east2 spiffe://mesh.example/gateway/eas spiffe://mesh.example/gateway spiffe://mesh.example/gateway/east/a spiffe://mesh.exampl/gateway/east spiffe://mesh.example.org/gateway/east spiffe://mesh.example/gateway/East"},
		"spiffe://mesh.example/gateway/*": {"spiffe://mesh.example/gateway/east spiffe://mesh.example/gateway/a.b-c_d",
			"spiffe://mesh.example/gateway spiffe://mesh.example/gateway/east/a spiffe://mesh.example/gateways/east spiffe://other.example/gateway/east spiffe://mesh.example"},
		"spiffe://mesh.example/*/east": {"spiffe://mesh.example/gateway/east spiffe://mesh.example/web/east",
			"spiffe://mesh.example/gateway/west spiffe://mesh.example/east spiffe://mesh.example/a/b/east spiffe://mesh.example/a/east/b"},
		"spiffe://mesh.example/gateway/**": {"spiffe://mesh.example/gateway/east spiffe://mesh.example/gateway/a/b/c",
			"spiffe://mesh.example/gateway spiffe://mesh.example/gatewayeast spiffe://mesh.example/web/gateway/east"},
		"spiffe://mesh.example/*/b/**": {"spiffe://mesh.example/a/b/c spiffe://mesh.example/a/b/c/d", "spiffe://mesh.example/a/b spiffe://mesh.example/a/c/b"},
		"spiffe://mesh.example/**":     {"spiffe://mesh.example/a spiffe://mesh.example/a/b", "spiffe://mesh.example spiffe://mesh.example.org/a spiffe://amesh.example/a"},
		"spiffe://mesh.example/a.c":    {"spiffe://mesh.example/a.c", "spiffe://mesh.example/abc"}, // no regular expression
		"spiffe://mesh.example/*/*":    {"spiffe://mesh.example/a/b", "spiffe://mesh.example/a spiffe://mesh.example/a/b/c"},
	} {
		p, m := idPattern(pattern)
		if m != nil {
			t.Fatalf("%s: %s", pattern, m.msg)
		}
		for id := range strings.FieldsSeq(c.yes) {
			if !p.Matches(spiffeid.RequireFromString(id)) {
				t.Errorf("%s does not match %s", pattern, id)
			}
		}
		for id := range strings.FieldsSeq(c.no) {
			if p.Matches(spiffeid.RequireFromString(id)) {
				t.Errorf("%s matches %s", pattern, id)
			}
		}
	}
}

func TestSubjects(t *testing.T) {
	text := strings.Replace(base+second, "ids: [spiffe://mesh.example/gateway/east]", "ids: [spiffe://mesh.example/gateway/east, spiffe://mesh.example/standby/east]", 1)
	c, err := parseHere(t, text)
	if err != nil {
		t.Fatal(err)
	}
	const east, standby, south = "spiffe://mesh.example/gateway/east", "spiffe://mesh.example/standby/east", "spiffe://mesh.example/gateway/south"
	for name, tt := range map[string]struct {
		from From
		want []string
	}{
		"any":               {From{}, nil},
		"any, by networks":  {From{Networks: prefixes("10.2.0.0/24")}, nil},
		"a peer":            {From{Peers: []string{"east"}}, []string{east, standby}},
		"a pattern":         {From{IDs: []IDPattern{"spiffe://mesh.example/gateway/*"}}, []string{east, south}},
		"both":              {From{IDs: []IDPattern{"spiffe://mesh.example/gateway/*"}, Peers: []string{"east"}}, []string{east}},
		"several":           {From{IDs: []IDPattern{south, standby}}, []string{standby, south}},
		"none, which is no": {From{IDs: []IDPattern{south}, Peers: []string{"east"}}, []string{}},
	} {
		var got []string
		ids := c.Subjects(tt.from)
		if ids != nil {
			got = []string{}
		}
		for _, id := range ids {
			got = append(got, id.String())
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestRulesThatCanMatch are near to those that cannot.
func TestRulesThatCanMatch(t *testing.T) {
	for _, rule := range []string{
		"{name: a, action: deny}",
		"{name: a, action: allow, from: {}, to: {}, dryRun: false}",
		"{name: a, action: deny, from: {networks: [0.0.0.0/0]}, to: {networks: [0.0.0.0/0]}}",
		"{name: a, action: deny, from: {networks: [10.2.0.0/32, 10.0.0.0/8]}, to: {networks: [10.1.255.255/32]}}",
		`{name: a, action: deny, from: {networks: [10.2.0.0/32, "fd00:2::/64"]}}`,
		"{name: a, action: deny, from: {peers: [south, east], networks: [10.3.0.0/24]}, to: {ports: [1-65535]}}",
		`{name: a, action: deny, from: {ids: ["spiffe://mesh.example/*/*", "spiffe://mesh.example/**"]}}`,
		`{name: a, action: deny, from: {peers: [west], networks: ["fd00:4::/64"]}, to: {networks: [10.1.0.0/24]}}`,
	} {
		const third = `  - name: west
    ids: [spiffe://mesh.example/gateway/west]
    endpoints: ["192.0.2.40:15008"]
    networks: ["fd00:4::/64"]
    inbound: {source: gateway}
`
		if _, err := parseHere(t, base+second+third+"policy: ["+rule+"]\n"); err != nil {
			t.Errorf("%s: %v", rule, err)
		}
	}
}

// TestReachTwin asks whose addresses are in a prefix, and looks at them one by
// one, in networks of 16 addresses.
func TestReachTwin(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	draw := func() netip.Prefix {
		a := netip.AddrFrom4([4]byte{10, 1, 0, byte(r.IntN(16))})
		p, err := a.Prefix(28 + r.IntN(5))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	yes := 0
	for range 2000 {
		var all []owned
		for range r.IntN(8) {
			if n := draw(); !slices.ContainsFunc(all, func(o owned) bool { return o.Prefix == n }) {
				all = append(all, owned{n, r.IntN(3)})
			}
		}
		w := new(reach)
		w.set(all)
		p, owner := draw(), r.IntN(3)
		want := false
		for a := p.Addr(); p.Contains(a); a = a.Next() {
			longest := owned{owner: -2}
			for _, o := range w.owners {
				if o.Contains(a) && (longest.owner == -2 || o.Bits() > longest.Bits()) {
					longest = o
				}
			}
			want = want || longest.owner == owner
		}
		if got := w.has(p, func(o int) bool { return o == owner }); got != want {
			t.Fatalf("%s of %d: %t, want %t among %v", p, owner, got, want, w.owners)
		}
		if want {
			yes++
		}
	}
	if yes < 200 || yes > 1800 {
		t.Errorf("%d of 2000 were so", yes)
	}
}
