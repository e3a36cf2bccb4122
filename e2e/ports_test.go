package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/e2e/netlab"
)

// connectFrom connects from an address and port of the caller's choice, which need
// not be the host's own; without an address, from one of the host's. The
// connection goes with the test.
func connectFrom(t *testing.T, h *netlab.Host, from, to netip.AddrPort) (*net.TCPConn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	local := net.TCPAddrFromAddrPort(from)
	d := net.Dialer{LocalAddr: local, Control: func(_, _ string, c syscall.RawConn) (err error) {
		controlErr := c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			if err == nil && from.Addr().IsValid() {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			}
		})
		return errors.Join(controlErr, err)
	}}
	var conn net.Conn
	err := h.Do(func() (err error) {
		conn, err = d.DialContext(ctx, "tcp", to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.TCPConn), nil
}

// anyAddr is a port of whatever address the host has.
func anyAddr(port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.Addr{}, port) }

// mustDialFrom is connectFrom where it may not fail.
func mustDialFrom(t *testing.T, h *netlab.Host, from, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := connectFrom(t, h, from, to)
	if err != nil {
		t.Fatalf("connect to %s from %s: %v", to, from, err)
	}
	return c
}

// mustBeSeen fails unless the server sees the client as it is, and the bytes of
// both, through the tunnel.
func (p *pair) mustBeSeen(t *testing.T, client, server *net.TCPConn) {
	t.Helper()
	if got, want := server.RemoteAddr().String(), client.LocalAddr().String(); got != want {
		t.Errorf("the server sees %s, the client is %s", got, want)
	}
	exchange(t, client, server)
	p.mustCarry(addr(client.LocalAddr()), addr(client.RemoteAddr()))
}

// onBackends runs f on a pair with each firewall, over each family.
func onBackends(t *testing.T, f func(t *testing.T, p *pair, client, server netip.Addr), options ...func(west, east *site)) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newPair(t, append(options, onFirewall(backend))...)
			for _, family := range families {
				t.Run(family.name, func(t *testing.T) { f(t, p, family.client, family.server) })
			}
		})
	}
}

// TestSamePortTwoDestinations: one port of a client carries connections to
// several ports, and several hosts, at once.
func TestSamePortTwoDestinations(t *testing.T) {
	onBackends(t, func(t *testing.T, p *pair, _, server netip.Addr) {
		const port = 41000
		onEast := netlab.EastInner4
		if server.Is6() {
			onEast = netlab.EastInner6
		}
		var clients, servers []*net.TCPConn
		for _, s := range []struct {
			host *netlab.Host
			at   netip.AddrPort
		}{
			{p.Server, netip.AddrPortFrom(server, 8080)}, {p.Server, netip.AddrPortFrom(server, 8081)},
			{p.East, netip.AddrPortFrom(onEast, 8080)},
		} {
			ln := listen(t, s.host, s.at)
			clients = append(clients, mustDialFrom(t, p.Client, anyAddr(port), s.at))
			servers = append(servers, accept(t, ln))
		}
		for i := range clients {
			p.mustBeSeen(t, clients[i], servers[i])
		}
	})
}

// closings are the ways that a connection ends, for its last one to go on from.
var closings = []struct {
	name  string
	close func(client, server *net.TCPConn) error
}{
	{"the client closes first", func(c, s *net.TCPConn) error { return closeInTurn(c, s) }},
	{"the server closes first", func(c, s *net.TCPConn) error { return closeInTurn(s, c) }},
	{"the client resets", func(c, s *net.TCPConn) error { return resetBy(c) }},
	{"the server resets", func(c, s *net.TCPConn) error { return resetBy(s) }},
}

// closeInTurn closes a, and then b when it has read the end.
func closeInTurn(a, b *net.TCPConn) error {
	if err := a.CloseWrite(); err != nil {
		return err
	}
	if n, err := b.Read(make([]byte, 1)); n > 0 || fate(err) != "end" {
		return fmt.Errorf("the other reads %d bytes, %v", n, err)
	}
	if err := b.Close(); err != nil {
		return err
	}
	return a.Close()
}

func resetBy(c *net.TCPConn) error {
	if err := c.SetLinger(0); err != nil {
		return err
	}
	return c.Close()
}

// TestPortReuse: a port is used again and again towards the same destination,
// each time as soon as the client's own kernel allows it.
func TestPortReuse(t *testing.T) {
	onBackends(t, func(t *testing.T, p *pair, _, server netip.Addr) {
		at := netip.AddrPortFrom(server, 8080)
		ln := listen(t, p.Server, at)
		for i, c := range closings {
			t.Run(c.name, func(t *testing.T) {
				for range 10 {
					var client *net.TCPConn
					eventually(t, "the client's kernel gives the port again", func() bool {
						var err error
						client, err = connectFrom(t, p.Client, anyAddr(uint16(42000+i)), at)
						if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
							t.Fatal(err)
						}
						return err == nil
					})
					accepted := accept(t, ln)
					p.mustBeSeen(t, client, accepted)
					if err := c.close(client, accepted); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	})
}

// TestPortOfGateway: a client's port may be one that the gateways listen on, and
// so may the server's.
func TestPortOfGateway(t *testing.T) {
	onBackends(t, func(t *testing.T, p *pair, _, server netip.Addr) {
		for _, port := range []uint16{15008, 15001} {
			for _, to := range []uint16{8080, 15008, 15001} {
				t.Run(fmt.Sprintf("from %d to %d", port, to), func(t *testing.T) {
					at := netip.AddrPortFrom(server, to)
					ln := listen(t, p.Server, at)
					client := mustDialFrom(t, p.Client, anyAddr(port), at)
					p.mustBeSeen(t, client, accept(t, ln))
				})
			}
		}
		// A program on west's own host has the ports that its kernel gives it: not
		// one that is listened on at all addresses.
		from, at := netlab.WestOuter4, netip.AddrPortFrom(server, 8080)
		if server.Is6() {
			from = netlab.WestOuter6
		}
		ln := listen(t, p.Server, at)
		p.mustBeSeen(t, mustDialFrom(t, p.West, netip.AddrPortFrom(from, 15001), at), accept(t, ln))
		if _, err := connectFrom(t, p.West, netip.AddrPortFrom(from, 15008), at); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("a program on west binds to the port of west's tunnels: %v", err)
		}
	})
}

// TestFewPorts: ten ports are enough for ten connections to each destination, at
// once, for a client and for a gateway that chooses ports for it; and the server
// sees what the peer's inbound.source says.
func TestFewPorts(t *testing.T) {
	for _, source := range []string{"preserve", "address", "gateway"} {
		t.Run(source, func(t *testing.T) {
			onBackends(t, func(t *testing.T, p *pair, client, server netip.Addr) { testFewPorts(t, p, source, client, server) },
				func(west, east *site) { east.peerSource = source })
		})
	}
}

func testFewPorts(t *testing.T, p *pair, source string, client, server netip.Addr) {
	for _, h := range []*netlab.Host{p.Client, p.East} {
		if err := h.Sysctl("net.ipv4.ip_local_port_range", "40000 40009"); err != nil { // for both families
			t.Fatal(err)
		}
	}
	gateway := netlab.EastInner4
	if server.Is6() {
		gateway = netlab.EastInner6
	}
	want := map[string]netip.Addr{"preserve": client, "address": client, "gateway": gateway}[source]
	var clients, servers []*net.TCPConn
	for port := range uint16(3) {
		ln := listen(t, p.Server, netip.AddrPortFrom(server, 8080+port))
		for range 10 {
			clients = append(clients, dial(t, p.Client, addr(ln.Addr())))
			servers = append(servers, accept(t, ln))
		}
	}
	for i, c := range clients {
		got := addr(servers[i].RemoteAddr())
		if got.Addr() != want || source == "preserve" && got != addr(c.LocalAddr()) {
			t.Errorf("the server sees %s, the client is %s", got, c.LocalAddr())
		}
		exchange(t, c, servers[i])
		p.mustCarry(addr(c.LocalAddr()), addr(c.RemoteAddr()))
	}
}

// TestNeverFromGateway: where the client's address and port cannot be had at
// east, the connection is refused; it does not reach the server from east's own.
func TestNeverFromGateway(t *testing.T) {
	p := newPair(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) { testNeverFromGateway(t, p, f.client, f.server) })
	}
}

func testNeverFromGateway(t *testing.T, p *pair, client, server netip.Addr) {
	const port = 44000
	at := netip.AddrPortFrom(server, 8080)
	ln := listen(t, p.Server, at)
	lan, err := p.Server.Capture(netlab.Inner)
	if err != nil {
		t.Fatal(err)
	}
	// Another transparent program on east has them already.
	squatter := mustDialFrom(t, p.East, netip.AddrPortFrom(client, port), at)
	exchange(t, squatter, accept(t, ln))
	c, err := connectFrom(t, p.Client, anyAddr(port), at)
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the client is told %v, want a reset", err)
	}
	mustSay(t, p, at, "no_port", "source address and port are in use")
	traffic, err := lan.Stop()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range traffic.Flows() {
		switch {
		case f.Proto != netlab.TCP || f.Dst != at:
		case f.Src == netip.AddrPortFrom(client, port):
			seen++
		default:
			t.Errorf("reached the server: %s", f)
		}
	}
	if seen != 1 {
		t.Error("the capture has not seen the other program: it proves nothing")
	}
}

// TestReplaced: west's machine is gone without a word, and comes back. Its
// clients use their ports again, for which east still has connections: these are
// dead, and make room.
func TestReplaced(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			const port = 45000
			p := newWorld(t)
			at := netip.AddrPortFrom(f.server, 8080)
			ln := listen(t, p.Server, at)
			wire, err := p.West.Capture(netlab.Outer)
			if err != nil {
				t.Fatal(err)
			}
			p.startWest()
			p.startEast()
			before := mustDialFrom(t, p.Client, anyAddr(port), at)
			client := addr(before.LocalAddr())
			stale := accept(t, ln)
			p.mustBeSeen(t, before, stale)
			traffic, err := wire.Stop()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range traffic.Flows() {
				if f.Proto == netlab.TCP && f.Dst.Port() == 15008 {
					silence(t, p.West, f.Src.Port())
				}
			}
			if err := p.west.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := resetBy(before); err != nil {
				t.Fatal(err)
			}
			p.startWest()
			if !slices.ContainsFunc(flows(t, p.east), func(f daemon.Flow) bool { return f.Client == client }) {
				t.Fatal("east knows already that the connection is dead: this shows nothing")
			}
			after := mustDialFrom(t, p.Client, anyAddr(port), at)
			p.mustBeSeen(t, after, accept(t, ln))
			if _, err := stale.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("on the old connection the server reads %v, want a reset", err)
			}
			awaitLog(t, p.east, "connection closed", "client="+client.String(), "why=replaced")
			if n := status(t, p.east).Closed["replaced"]; n != 1 {
				t.Errorf("east has counted %d connections replaced, want 1", n)
			}
		})
	}
}

// silence lets nothing out any more from a TCP port of a host (ip-rule(8)).
func silence(t *testing.T, h *netlab.Host, port uint16) {
	t.Helper()
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Type = netlink.FAMILY_V4, 1, unix.RTN_BLACKHOLE
	rule.IPProto, rule.Sport = unix.IPPROTO_TCP, netlink.NewRulePortRange(port, port)
	if err := h.Do(func() error { return netlink.RuleAdd(rule) }); err != nil {
		t.Fatal(err)
	}
}
