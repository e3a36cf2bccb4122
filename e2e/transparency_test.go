package e2e

import (
	"io"
	"net"
	"net/netip"
	"testing"

	"wishbone/e2e/netlab"
)

// exchange sends a line each way and fails unless it arrives.
func exchange(t *testing.T, client, server io.ReadWriter) {
	t.Helper()
	for _, way := range []struct {
		name     string
		from, to io.ReadWriter
	}{{"to the server", client, server}, {"to the client", server, client}} {
		const line = "a line of text\n"
		if _, err := io.WriteString(way.from, line); err != nil {
			t.Fatalf("%s: %v", way.name, err)
		}
		got := make([]byte, len(line))
		if _, err := io.ReadFull(way.to, got); err != nil || string(got) != line {
			t.Fatalf("%s: got %q (%v), want %q", way.name, got, err, line)
		}
	}
}

// carried is a connection through the tunnel that lives, with both its ends.
type carried struct{ client, server *net.TCPConn }

// connect connects from a host to a listener, and fails unless both gateways
// carry the connection and the server sees the client's own address and port.
func (p *pair) connect(t *testing.T, from *netlab.Host, ln net.Listener) carried {
	t.Helper()
	c := carried{client: dial(t, from, addr(ln.Addr()))}
	c.server = accept(t, ln)
	if got, want := c.server.RemoteAddr().String(), c.client.LocalAddr().String(); got != want {
		t.Errorf("the server sees %s, the client is %s", got, want)
	}
	exchange(t, c.client, c.server)
	p.mustCarry(addr(c.client.LocalAddr()), addr(ln.Addr()))
	return c
}

// open is connect from the client.
func (p *pair) open(ln net.Listener) carried {
	p.t.Helper()
	return p.connect(p.t, p.Client, ln)
}

// TestForwarded: a host behind west reaches a host behind east, which sees the
// client's own address and port, over both families and with both firewalls, and
// nothing but TLS crosses the underlay.
func TestForwarded(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newPair(t, onFirewall(backend))
			for _, f := range families {
				t.Run(f.name, func(t *testing.T) {
					wire, err := p.West.Capture(netlab.Outer)
					if err != nil {
						t.Fatal(err)
					}
					at := netip.AddrPortFrom(f.server, 8080)
					p.connect(t, p.Client, listen(t, p.Server, at))
					traffic, err := wire.Stop()
					if err != nil {
						t.Fatal(err)
					}
					if v := traffic.OnlyTLS(15008); len(v) > 0 {
						t.Errorf("on the underlay: %v", v)
					}
				})
			}
		})
	}
}

// place is where an end of a connection stands: on a host with the gateway, or
// on one behind it.
type place struct {
	name string
	host func(*pair) *netlab.Host
	addr [2]netip.Addr // v4, v6
}

var (
	clients = []place{
		{"a host behind west", func(p *pair) *netlab.Host { return p.Client }, [2]netip.Addr{netlab.Client4, netlab.Client6}},
		{"west itself", func(p *pair) *netlab.Host { return p.West }, [2]netip.Addr{netlab.WestOuter4, netlab.WestOuter6}},
	}
	servers = []place{
		{"a host behind east", func(p *pair) *netlab.Host { return p.Server }, [2]netip.Addr{netlab.Server4, netlab.Server6}},
		{"east itself, inside", func(p *pair) *netlab.Host { return p.East }, [2]netip.Addr{netlab.EastInner4, netlab.EastInner6}},
		{"east itself, outside", func(p *pair) *netlab.Host { return p.East }, [2]netip.Addr{netlab.EastOuter4, netlab.EastOuter6}},
	}
)

// TestPlaces: it does not matter whether the client or the server is on a host
// with the gateway or behind it, and each way round.
func TestPlaces(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newPair(t, onFirewall(backend))
			for _, c := range clients {
				for _, s := range servers {
					for i, family := range []string{"v4", "v6"} {
						t.Run(c.name+" to "+s.name+" "+family, func(t *testing.T) {
							at := netip.AddrPortFrom(s.addr[i], 8080)
							p.connect(t, c.host(p), listen(t, s.host(p), at))
						})
					}
				}
			}
		})
	}
}
