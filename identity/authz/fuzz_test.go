package authz_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"wishbone/identity/authz"
)

// FuzzAuthorize holds a Policy, with rules that a fuzzer makes, against its naive
// twin.
func FuzzAuthorize(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 4))
	for n, c := range []struct {
		who, zone byte
		source    string
		sport     uint16
		target    string
		tport     uint16
	}{
		{0, 0, "\x0a\x02\x00\x05", 40000, "\x0a\x01\x00\x07", 80},
		{1, 0, "\x0a\x03\x00\x05", 0, "\x0a\x01\x00\x07", 80},
		{2, 0, "", 0, "\x0a\x01\x00\x07", 80},
		{3, 3, "\x0a\x02\x00\x05", 1, "\x0a\x02\x03\x07", 80},
		{5, 2, "\xfe\x80" + string(make([]byte, 14)), 1, "\xfd\x00\x00\x01" + string(make([]byte, 12)), 15008},
	} {
		for size := range 5 {
			rules := make([]byte, 40*size*(n+1))
			for i := range rules {
				rules[i] = byte(r.Uint32())
			}
			f.Add(rules, c.who, c.zone, []byte(c.source), c.sport, []byte(c.target), c.tport)
		}
	}
	f.Fuzz(func(t *testing.T, rules []byte, who, zone byte, source []byte, sport uint16, target []byte, tport uint16) {
		p := bytewise(rules)
		cfg := ruled(somePolicy(p)...)
		policy := newPolicy(t, cfg)
		for range 8 {
			checkTwin(t, cfg, policy, p)
		}
		id := append(someIDs, other)[int(who)%(len(someIDs)+1)]
		from, to := drawn(source, sport, zone&1 != 0), drawn(target, tport, zone&2 != 0)
		got, want := judge(t, policy, id, from, to), naiveOutcome(cfg, id, from, to)
		if got != want {
			t.Fatalf("%s from %s to %s: %s, want %s; rules %+v", id, from, to, got, want, cfg.Rules)
		}
		if permit, err := policy.Authorize(id, from, to); err == nil {
			checkPermit(t, cfg, permit, from, to)
		}
	})
}

// bytewise chooses by a byte a time, and the first when there are none left.
func bytewise(data []byte) pick {
	return func(n int) int {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return int(b) % n
	}
}

// drawn makes an address of 4 or 16 bytes; of any other length it is none.
func drawn(b []byte, port uint16, zone bool) netip.AddrPort {
	a, _ := netip.AddrFromSlice(b)
	if zone && a.Is6() {
		a = a.WithZone("eth0")
	}
	return netip.AddrPortFrom(a, port)
}

// checkPermit is what must hold of every permit, however it came about.
func checkPermit(t *testing.T, cfg authz.Config, p authz.Permit, source, target netip.AddrPort) {
	t.Helper()
	if p.To().Addr() != target.Addr().Unmap() || p.To().Port() != target.Port() {
		t.Fatalf("asked for %s, permitted %s", target, p.To())
	}
	if owner(cfg, p.To().Addr()) != "us" {
		t.Fatalf("%s is not ours", p.To())
	}
	if from := p.From(); from.IsValid() && (from.Addr() != source.Addr().Unmap() || owner(cfg, from.Addr()) != p.Peer()) {
		t.Fatalf("%s came as %s and goes on as %s", p.Peer(), source, from)
	}
}
