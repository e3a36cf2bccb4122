package authz_test

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/identity/authz"
)

// manyRules is how many rules the benchmarks have.
const manyRules = 10_000

// host is the ith address of a network, as a prefix of its own.
func host(network string, i int) []netip.Prefix {
	a := netip.MustParseAddr(network).As4()
	a[2], a[3] = byte(i>>8), byte(i)
	return []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4(a), 32)}
}

// manyIDs are as many peers, in networks of their own.
func manyIDs() (cfg authz.Config) {
	cfg.Networks = prefixes("10.1.0.0/16")
	for i := range manyRules {
		cfg.Peers = append(cfg.Peers, authz.Peer{
			Name: fmt.Sprintf("peer-%d", i), Networks: host("10.2.0.0", i),
			IDs: []spiffeid.ID{spiffeid.RequireFromString(fmt.Sprintf("spiffe://mesh.example/gateway/%d", i))},
		})
	}
	return cfg
}

// BenchmarkRules judges by 10,000 rules of each shape, one of ten in dry run, so
// that all are gone through twice: a connection that the last rule is about, and
// one with another's ID and source. MB is what the policy takes.
func BenchmarkRules(b *testing.B) {
	web := []authz.PortRange{{443, 443}}
	for _, shape := range []struct {
		name string
		rule func(i int, id spiffeid.ID) authz.Rule
	}{
		{"targets", func(i int, _ spiffeid.ID) authz.Rule {
			return authz.Rule{To: authz.To{Networks: host("10.1.0.0", i), Ports: web}}
		}},
		{"sources", func(i int, _ spiffeid.ID) authz.Rule {
			return authz.Rule{From: authz.From{Networks: host("10.2.0.0", i)}, To: authz.To{Networks: prefixes("10.1.0.0/16"), Ports: web}}
		}},
		{"ids", func(_ int, id spiffeid.ID) authz.Rule {
			return authz.Rule{From: authz.From{IDs: []spiffeid.ID{id}}, To: authz.To{Networks: prefixes("10.1.0.0/16"), Ports: web}}
		}},
		{"ports", func(i int, _ spiffeid.ID) authz.Rule {
			return authz.Rule{To: authz.To{Ports: []authz.PortRange{{uint16(1 + i), uint16(1 + i + 100)}}}}
		}},
		{"everything", func(i int, id spiffeid.ID) authz.Rule {
			return authz.Rule{From: authz.From{IDs: []spiffeid.ID{id}, Networks: host("10.2.0.0", i)},
				To: authz.To{Networks: host("10.1.0.0", i), Ports: []authz.PortRange{{uint16(1 + i), uint16(1 + i)}}}}
		}},
	} {
		b.Run(shape.name, func(b *testing.B) { benchmarkShape(b, shape.rule) })
	}
}

func benchmarkShape(b *testing.B, rule func(int, spiffeid.ID) authz.Rule) {
	cfg := manyIDs()
	for i, p := range cfg.Peers {
		r := rule(i, p.IDs[0])
		r.Name, r.Action, r.DryRun = fmt.Sprintf("rule-%d", i), authz.Allow, i%10 == 0
		cfg.Rules = append(cfg.Rules, r)
	}
	before := heap()
	policy := newPolicy(b, cfg)
	size := float64(heap()-before) / (1 << 20)
	last := manyRules - 1
	id, port := cfg.Peers[last].IDs[0], uint16(443)
	if spans := cfg.Rules[last].To.Ports; spans[0].First != 443 {
		port = spans[0].First
	}
	source := netip.AddrPortFrom(host("10.2.0.0", last)[0].Addr(), 40000)
	target := netip.AddrPortFrom(host("10.1.0.0", last)[0].Addr(), port)
	other, otherID := netip.AddrPortFrom(host("10.2.0.0", last-9)[0].Addr(), 40000), cfg.Peers[last-9].IDs[0]
	if permit, err := policy.Authorize(id, source, target); err != nil || permit.Rule() == "" {
		b.Fatal(permit, err)
	}
	for _, who := range []struct {
		name   string
		id     spiffeid.ID
		source netip.AddrPort
	}{{"named", id, source}, {"another", otherID, other}} {
		b.Run(who.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				policy.Authorize(who.id, who.source, target)
			}
			b.ReportMetric(size, "MB")
		})
	}
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
