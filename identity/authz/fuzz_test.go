package authz_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/identity/authz"
)

// FuzzAuthorize holds a Policy against a naive twin, which looks at every
// network and writes out every rule.
func FuzzAuthorize(f *testing.F) {
	f.Add(byte(0), byte(0), []byte("\x0a\x02\x00\x05"), uint16(40000), []byte("\x0a\x01\x00\x07"), uint16(80))
	f.Add(byte(1), byte(0), []byte("\x0a\x03\x00\x05"), uint16(0), []byte("\x0a\x01\x00\x07"), uint16(80))
	f.Add(byte(2), byte(0), []byte(""), uint16(0), []byte("\x0a\x01\x00\x07"), uint16(80))
	f.Add(byte(3), byte(3), []byte("\x0a\x02\x00\x05"), uint16(1), []byte("\x0a\x02\x03\x07"), uint16(80))
	cfg := config()
	policy := newPolicy(f, cfg)
	ids := []spiffeid.ID{east, south, north, hub, east2, other}
	f.Fuzz(func(t *testing.T, who, zone byte, source []byte, sport uint16, target []byte, tport uint16) {
		id := ids[int(who)%len(ids)]
		from, to := drawn(source, sport, zone&1 != 0), drawn(target, tport, zone&2 != 0)
		permit, err := policy.Authorize(id, from, to)
		want := naive(cfg, id, from, to)
		denied, isDenied := errors.AsType[*authz.DeniedError](err)
		switch {
		case want == "" && err != nil:
			t.Fatalf("%v, want a permit", err)
		case want != "" && !isDenied:
			t.Fatalf("%s from %s to %s: permit %+v, error %v, want %s", id, from, to, permit, err, want)
		case want != "" && denied.Reason != want:
			t.Fatalf("%v, want %s", err, want)
		case want == "":
			checkPermit(t, cfg, permit, from, to)
		}
	})
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

// owner finds the longest prefix by looking at all.
func owner(cfg authz.Config, a netip.Addr) string {
	best, name := -1, ""
	look := func(who string, networks []netip.Prefix) {
		for _, n := range networks {
			if n.Contains(a) && n.Bits() > best {
				best, name = n.Bits(), who
			}
		}
	}
	look("us", cfg.Networks)
	for _, p := range cfg.Peers {
		look(p.Name, p.Networks)
	}
	return name
}

// forbidden are the networks of which no address is a target or a source.
var forbidden = prefixes("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "240.0.0.0/4",
	"::/128", "::1/128", "fe80::/10", "ff00::/8", "fd00:ec2::254/128", "fd00:ec2::23/128")

func isForbidden(a netip.Addr) bool {
	if !a.IsValid() || a.Zone() != "" {
		return true
	}
	for _, n := range forbidden {
		if n.Contains(a.Unmap()) {
			return true
		}
	}
	return false
}

// naive is the twin.
func naive(cfg authz.Config, id spiffeid.ID, source, target netip.AddrPort) authz.Reason {
	var peer *authz.Peer
	for i, p := range cfg.Peers {
		for _, known := range p.IDs {
			if known.String() == id.String() {
				peer = &cfg.Peers[i]
			}
		}
	}
	from, to := source.Addr().Unmap(), target.Addr().Unmap()
	switch {
	case peer == nil:
		return authz.UnknownPeer
	case target.Port() == 0 || isForbidden(target.Addr()):
		return authz.BadTarget
	case cfg.Local(to) && (target.Port() == 15008 || target.Port() == 15001):
		return authz.Loop
	case owner(cfg, to) != "us":
		return authz.TargetNotServed
	case source == netip.AddrPort{} && peer.Source == authz.Gateway:
		return ""
	case source == netip.AddrPort{}:
		return authz.NoSource
	case isForbidden(source.Addr()) || cfg.Local(from) || (peer.Source == authz.Preserve && source.Port() == 0):
		return authz.BadSource
	case owner(cfg, from) != peer.Name:
		return authz.SourceNotOwned
	case peer.Source != authz.Gateway && from.Is4() != to.Is4():
		return authz.FamilyMismatch
	}
	return ""
}
