package e2e

import (
	"errors"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
)

// Addresses of east's networks that nobody has: what is bound for them ends at
// a route that says so, or on one that says nothing.
var (
	noRoute4, noRoute6 = netip.MustParsePrefix("10.2.9.0/24"), netip.MustParsePrefix("fd00:2::9:0/112")
	told4, told6       = netip.MustParsePrefix("10.2.8.0/24"), netip.MustParsePrefix("fd00:2::8:0/112")
	silent4, silent6   = netip.MustParsePrefix("10.2.7.0/24"), netip.MustParsePrefix("fd00:2::7:0/112")
)

// sink gives a host a route that ends there: RTN_UNREACHABLE, RTN_BLACKHOLE.
func sink(t *testing.T, h *netlab.Host, kind int, dst netip.Prefix) {
	t.Helper()
	if err := h.Do(func() error { return netlink.RouteAdd(&netlink.Route{Dst: netlab.IPNet(dst), Type: kind}) }); err != nil {
		t.Fatalf("host %s: end %s: %v", h.Name(), dst, err)
	}
}

// deadEnds makes all of them: the first on east itself, the others behind it.
func deadEnds(t *testing.T, p *pair) {
	t.Helper()
	via4, via6 := netlab.Server4, netlab.Server6
	if err := errors.Join(p.Server.Forward(),
		p.East.Route(told4, via4), p.East.Route(told6, via6),
		p.East.Route(silent4, via4), p.East.Route(silent6, via6)); err != nil {
		t.Fatal(err)
	}
	for _, s := range []struct {
		host *netlab.Host
		kind int
		dst  netip.Prefix
	}{
		{p.East, unix.RTN_UNREACHABLE, noRoute4}, {p.East, unix.RTN_UNREACHABLE, noRoute6},
		{p.Server, unix.RTN_UNREACHABLE, told4}, {p.Server, unix.RTN_UNREACHABLE, told6},
		{p.Server, unix.RTN_BLACKHOLE, silent4}, {p.Server, unix.RTN_BLACKHOLE, silent6},
	} {
		sink(t, s.host, s.kind, s.dst)
	}
}

// in is an address and port within a prefix.
func in(p netip.Prefix) netip.AddrPort { return netip.AddrPortFrom(p.Addr().Next(), 8080) }

// refused connects and fails unless the connection is reset, with nothing
// received. The reset may come while the client's program still waits for
// connect(2), which then reports it.
func refused(t *testing.T, from *netlab.Host, to netip.AddrPort) {
	t.Helper()
	client, err := tryDial(t, from, to)
	if err == nil {
		_, err = client.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client of %s is told %v, want a reset", to, err)
	}
}

// mustSay fails unless both gateways have logged why they refused the only
// connection to a target, and east what the kernel said.
func mustSay(t *testing.T, p *pair, to netip.AddrPort, reason, cause string) {
	t.Helper()
	target := "target=" + to.String()
	reason = "reason=" + reason
	awaitLog(t, p.west, "connection refused", target, reason, "direction=outbound", "spiffe://mesh.example/gateway/east")
	awaitLog(t, p.east, "connection refused", target, reason, "direction=inbound", "spiffe://mesh.example/gateway/west", cause)
}

// TestUnreachable: a destination that cannot be reached is a reset to the
// client, and both logs say why. What a router behind east says about it, by
// ICMP and to the client's address, reaches east's socket.
func TestUnreachable(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newPair(t, onFirewall(backend))
			deadEnds(t, p)
			for _, c := range []struct {
				name  string
				to    netip.Prefix
				cause string
			}{
				{"no route/v4", noRoute4, "no route to host"},
				{"no route/v6", noRoute6, "no route to host"},
				{"a router says so/v4", told4, "no route to host"},
				// ICMPv6 has a word of its own for it (RFC 4443 §3.1, code 0). The kernel
				// forgets what comes while connect(2) still runs, as it may without a real
				// wire; then the next SYN, a second later, is told again.
				{"a router says so/v6", told6, "network is unreachable"},
			} {
				t.Run(c.name, func(t *testing.T) {
					refused(t, p.Client, in(c.to))
					mustSay(t, p, in(c.to), "unreachable", c.cause)
				})
			}
			if n := status(t, p.east).Refused["unreachable"]; n != 4 {
				t.Errorf("east has counted %d, want 4", n)
			}
		})
	}
}

// TestNoAnswer: so is one that does not answer in time.
func TestNoAnswer(t *testing.T) {
	p := newPair(t, func(west, east *site) { east.extra = "timeouts: {connect: 100ms}" })
	deadEnds(t, p)
	for _, to := range []netip.Prefix{silent4, silent6} {
		t.Run(to.String(), func(t *testing.T) {
			refused(t, p.Client, in(to))
			mustSay(t, p, in(to), "timeout", "no answer in 100ms")
		})
	}
}

// TestRefusalWaitsForNobody: a refusal is there while a connection that was
// asked for before has no answer yet.
func TestRefusalWaitsForNobody(t *testing.T) {
	p := newPair(t)
	deadEnds(t, p)
	for i, f := range families {
		t.Run(f.name, func(t *testing.T) {
			at := in([2]netip.Prefix{silent4, silent6}[i])
			waiting := dial(t, p.Client, at)
			connecting := func(f daemon.Flow) bool {
				return f.Client == addr(waiting.LocalAddr()) && f.Target == at && f.State == "connecting"
			}
			eventually(t, "east tries to connect", func() bool { return slices.ContainsFunc(flows(t, p.east), connecting) })
			refused(t, p.Client, netip.AddrPortFrom(f.server, 9))
			for _, g := range []*lab.Gateway{p.west, p.east} {
				if !slices.ContainsFunc(flows(t, g), connecting) {
					t.Errorf("%s does not wait any more for %s: this shows nothing", g.Name, at)
				}
			}
		})
	}
}
