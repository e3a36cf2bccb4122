package rules

import (
	"net/netip"
	"testing"
)

// TestKept: the mark that rules are meant to stay says whose plan they are,
// outlives their replacement, and goes with them.
func TestKept(t *testing.T) {
	for _, b := range []struct {
		name    string
		program string
		open    func() (Backend, error)
	}{{"nftables", "", NFTables}, {"iptables", "iptables", IPTables}} {
		t.Run(b.name, func(t *testing.T) {
			if b.program != "" && !have(t, b.program) {
				return
			}
			t.Setenv("XTABLES_LOCKFILE", t.TempDir()+"/lock")
			h := newHost(t)
			var backend Backend
			on(t, h, func() (err error) {
				backend, err = b.open()
				return err
			})
			kept := func(when string, want uint32) {
				t.Helper()
				on(t, h, func() error {
					got, err := Kept(DefaultRouting)
					if got != want {
						t.Errorf("%s: kept is %#x, want %#x", when, got, want)
					}
					return err
				})
			}
			other := westPlan()
			other.Own = other.Own[1:]
			kept("without any rules", 0)
			on(t, h, func() error { return backend.Apply(westPlan()) })
			kept("after Apply", 0)
			on(t, h, func() error { return Keep(westPlan()) })
			on(t, h, func() error { return Keep(westPlan()) })
			kept("after Keep", westPlan().Digest())
			on(t, h, func() error { return backend.Apply(other) })
			kept("after another Apply", westPlan().Digest())
			on(t, h, func() error { return Keep(other) })
			kept("after another Keep", other.Digest())
			on(t, h, func() error { return backend.Remove(DefaultRouting) })
			kept("after Remove", 0)
		})
	}
}

// TestDigest: what the rules are made of counts, what a name stands for today
// does not.
func TestDigest(t *testing.T) {
	p := westPlan()
	if p.Digest() == 0 || p.Digest() != westPlan().Digest() {
		t.Errorf("digests of one plan: %#x and %#x", p.Digest(), westPlan().Digest())
	}
	q := westPlan()
	q.Peers[0].Endpoints = []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:15008")}
	if q.Digest() != p.Digest() {
		t.Error("an endpoint counts")
	}
	if len(q.Peers[0].Endpoints) != 1 {
		t.Error("the plan has lost its endpoints")
	}
	for name, change := range map[string]func(*Plan){
		"network": func(p *Plan) { p.Peers[0].Networks = p.Peers[0].Networks[1:] },
		"pass":    func(p *Plan) { p.Peers[0].PassUncarried = !p.Peers[0].PassUncarried },
		"port":    func(p *Plan) { p.Transparent++ },
		"mark":    func(p *Plan) { p.Routing.Captured <<= 2 },
	} {
		q := westPlan()
		change(&q)
		if q.Digest() == p.Digest() {
			t.Errorf("%s does not count", name)
		}
	}
}
