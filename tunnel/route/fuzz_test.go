package route_test

import (
	"fmt"
	"net/netip"
	"testing"

	"wishbone/tunnel/route"
)

// FuzzTable holds the Table against a naive twin: networks drawn from data, then
// addresses near them.
func FuzzTable(f *testing.F) {
	f.Add([]byte("\x00\x08\x0a\x00\x00\x00\x01\x10\x0a\x02\x00\x00\x02\x18\x0a\x02\x03\x00"), []byte("\x0a\x02\x03\x04"))
	f.Fuzz(func(t *testing.T, networks, addr []byte) {
		if len(networks) > 600 {
			return // a hundred networks show what there is to see
		}
		cfg := draw(networks)
		table, err := route.New(cfg)
		if err != nil {
			if !repeated(cfg) {
				t.Fatalf("New refuses %v: %v", cfg, err)
			}
			return
		}
		if repeated(cfg) {
			t.Fatalf("New takes %v", cfg)
		}
		for _, a := range nearby(cfg, addr) {
			want, got := naive(cfg, a), actual(table, a)
			if got != want {
				t.Fatalf("%s in %v belongs to %q, want %q", a, cfg, got, want)
			}
		}
	})
}

// draw reads six bytes a network: owner, bits, and four of the address, which
// for every fourth owner is an IPv6 one.
func draw(data []byte) (cfg route.Config) {
	cfg.Peers = []route.Peer{{Name: "a"}, {Name: "b"}, {Name: "c"}}
	for ; len(data) >= 6; data = data[6:] {
		addr := netip.AddrFrom4([4]byte(data[2:6]))
		if data[0]&4 != 0 {
			addr = netip.AddrFrom16([16]byte{0: data[2], 1: data[3], 7: data[4], 15: data[5]})
		}
		n := netip.PrefixFrom(addr, int(data[1])%(addr.BitLen()+1)).Masked()
		if owner := data[0] & 3; owner == 3 {
			cfg.Networks = append(cfg.Networks, n)
		} else {
			cfg.Peers[owner].Networks = append(cfg.Peers[owner].Networks, n)
		}
	}
	return cfg
}

// owned calls f for each network with its owner's name; ours is "us".
func owned(cfg route.Config, f func(owner string, n netip.Prefix)) {
	for _, n := range cfg.Networks {
		f("us", n)
	}
	for _, p := range cfg.Peers {
		for _, n := range p.Networks {
			f(p.Name, n)
		}
	}
}

func repeated(cfg route.Config) bool {
	seen := make(map[netip.Prefix]bool)
	var twice bool
	owned(cfg, func(_ string, n netip.Prefix) {
		twice = twice || seen[n]
		seen[n] = true
	})
	return twice
}

// nearby are addresses worth asking for: what the fuzzer gives, and those at
// each network's edges, each in every form.
func nearby(cfg route.Config, data []byte) (list []netip.Addr) {
	if a, ok := netip.AddrFromSlice(data); ok {
		list = append(list, a)
	}
	owned(cfg, func(_ string, n netip.Prefix) {
		first := n.Addr()
		list = append(list, first, first.Prev(), first.Next())
	})
	for _, a := range list {
		if a.Is4() {
			list = append(list, netip.AddrFrom16(a.As16()))
		}
	}
	return list
}

// naive is the twin: it looks at every network.
func naive(cfg route.Config, a netip.Addr) string {
	best, owner := -1, ""
	owned(cfg, func(name string, n netip.Prefix) {
		if n.Contains(a.Unmap()) && n.Bits() > best {
			best, owner = n.Bits(), name
		}
	})
	return owner
}

func actual(table *route.Table, a netip.Addr) string {
	p, ok := table.Lookup(a)
	switch ours := table.Ours(a); {
	case ok && ours:
		return fmt.Sprintf("both us and %s", p.Name)
	case ours:
		return "us"
	case ok:
		return p.Name
	}
	return ""
}
