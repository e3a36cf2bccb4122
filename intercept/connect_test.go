package intercept

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestConnectFromForeignAddress(t *testing.T) {
	testFamilies(t, func(t *testing.T, s street, a family) {
		ln, to := s.listen(t, a.server)
		for _, port := range []uint16{40000, 1024, 800, 65535} {
			fd := s.connect(t, at(a.client, port), to, Options{})
			c, from := accept(t, ln)
			if from != at(a.client, port) {
				t.Errorf("the server sees %v, want port %d of %v", from, port, a.client)
			}
			wantCarried(t, fd, c)
			wantFlags(t, fd)
			unix.Close(fd)
		}
	})
}

// TestConnectFromAnyPort: a port is chosen for each destination, so that ten of
// them make ten connections to each.
func TestConnectFromAnyPort(t *testing.T) {
	testFamilies(t, func(t *testing.T, s street, a family) {
		if err := s.gateway.Sysctl("net.ipv4.ip_local_port_range", "50000 50009"); err != nil {
			t.Fatal(err)
		}
		var last netip.AddrPort
		for _, server := range []netip.Addr{a.server, a.second} {
			ln, to := s.listen(t, server)
			last = to
			seen := map[uint16]bool{}
			for range 10 {
				fd := s.connect(t, at(a.client, 0), to, Options{})
				defer unix.Close(fd)
				_, from := accept(t, ln)
				if from.Addr() != a.client || from.Port() < 50000 || from.Port() > 50009 || seen[from.Port()] {
					t.Errorf("the server sees %v", from)
				}
				seen[from.Port()] = true
			}
		}
		if _, err := s.begin(t, at(a.client, 0), last, Options{}); !errors.Is(err, ErrPortTaken) {
			t.Errorf("an eleventh: %v, want ErrPortTaken", err)
		}
	})
}

// TestConnectSamePortTwice: a client uses one port towards two servers, and may
// do so; towards one it may not.
func TestConnectSamePortTwice(t *testing.T) {
	testFamilies(t, func(t *testing.T, s street, a family) {
		client := at(a.client, 40000)
		var servers []netip.AddrPort
		for _, server := range []netip.Addr{a.server, a.server, a.second} {
			ln, to := s.listen(t, server)
			servers = append(servers, to)
			fd := s.connect(t, client, to, Options{})
			defer unix.Close(fd)
			if _, from := accept(t, ln); from != client {
				t.Errorf("%v sees %v", to, from)
			}
		}
		for _, to := range servers {
			if _, err := s.begin(t, client, to, Options{}); !errors.Is(err, ErrPortTaken) {
				t.Errorf("to %v again: %v, want ErrPortTaken", to, err)
			}
		}
	})
}

// TestConnectSamePortTwiceWithoutAdmin: and it takes no more than CAP_NET_RAW.
func TestConnectSamePortTwiceWithoutAdmin(t *testing.T) {
	testFamilies(t, func(t *testing.T, s street, a family) {
		_, first := s.listen(t, a.server)
		_, second := s.listen(t, a.second)
		without(t, func() {
			for _, to := range []netip.AddrPort{first, second} {
				err := s.gateway.Do(func() error {
					fd, err := Connect(at(a.client, 40000), to, Options{})
					if err == nil {
						t.Cleanup(func() { unix.Close(fd) })
					}
					return err
				})
				if err != nil {
					t.Errorf("to %v: %v", to, err)
				}
			}
		}, unix.CAP_NET_ADMIN)
	})
}

// TestConnectFromListenersPort: clients do not know which ports we listen on.
func TestConnectFromListenersPort(t *testing.T) {
	testFamilies(t, func(t *testing.T, s street, a family) {
		wild := s.gatewayListens(t, "[::]:15008")
		s.gatewayListens(t, at(a.loopback, 15001).String())
		s.gatewayListens(t, "0.0.0.0:15020")
		ln, to := s.listen(t, a.server)
		ln2, to2 := s.listen(t, a.second)
		for _, port := range []uint16{15008, 15001, 15020} {
			client := at(a.client, port)
			first := s.connect(t, client, to, Options{})
			defer unix.Close(first)
			second := s.connect(t, client, to2, Options{})
			defer unix.Close(second)
			c, from := accept(t, ln)
			_, from2 := accept(t, ln2)
			if from != client || from2 != client {
				t.Errorf("the servers see %v and %v, want %v", from, from2, client)
			}
			wantCarried(t, first, c)
			if _, err := s.begin(t, client, to, Options{}); !errors.Is(err, ErrPortTaken) {
				t.Errorf("from %v to %v again: %v, want ErrPortTaken", client, to, err)
			}
			wantOptions(t, second, option{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}, option{"TCP_REPAIR", unix.SOL_TCP, unix.TCP_REPAIR, 0})
		}
		// The listener is none the worse for it.
		peer := s.dial(t, at(a.gateway, 15008))
		if _, from := accept(t, wild); from.Port() != netip.MustParseAddrPort(peer.LocalAddr().String()).Port() {
			t.Errorf("the listener took %v", from)
		}
	})
}

// gatewayListens opens a listener of the gateway's, as net.Listen makes them.
func (s street) gatewayListens(t *testing.T, address string) *net.TCPListener {
	t.Helper()
	ln, err := s.gateway.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}

// TestConnectAgain: a client may use its port again as soon as its connection
// has ended, whoever ended it, and however.
func TestConnectAgain(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(t *testing.T, fd int, c *net.TCPConn)
	}{
		{"we close first", func(t *testing.T, fd int, c *net.TCPConn) { // we are in TIME_WAIT
			unix.Close(fd)
			wantEOF(t, c)
			c.Close()
		}},
		{"the server closes first", func(t *testing.T, fd int, c *net.TCPConn) { // it is in TIME_WAIT
			c.Close()
			wantRead(t, fd, nil)
			unix.Close(fd)
		}},
		{"we reset", func(t *testing.T, fd int, c *net.TCPConn) {
			if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
				t.Fatal(err)
			}
			unix.Close(fd)
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Fatal(err)
			}
			c.Close()
		}},
		{"the server resets", func(t *testing.T, fd int, c *net.TCPConn) {
			if err := c.SetLinger(0); err != nil {
				t.Fatal(err)
			}
			c.Close()
			wantRead(t, fd, unix.ECONNRESET)
			unix.Close(fd)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testFamilies(t, func(t *testing.T, s street, a family) {
				ln, to := s.listen(t, a.server)
				client := at(a.client, 40000)
				for range 3 {
					fd := s.connect(t, client, to, Options{})
					c, from := accept(t, ln)
					if from != client {
						t.Fatalf("the server sees %v", from)
					}
					wantCarried(t, fd, c)
					tc.end(t, fd, c)
				}
			})
		})
	}
}

// TestConnectAgainTooEarly: as long as the server may still send, a client's port
// is in use towards it, as it would be on the client.
func TestConnectAgainTooEarly(t *testing.T) {
	testFamilies(t, func(t *testing.T, s street, a family) {
		ln, to := s.listen(t, a.server)
		client := at(a.client, 40000)
		fd := s.connect(t, client, to, Options{})
		if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		c, _ := accept(t, ln)
		wantEOF(t, c)
		if _, err := s.begin(t, client, to, Options{}); !errors.Is(err, ErrPortTaken) {
			t.Errorf("%v, want ErrPortTaken", err)
		}
		c.Close()
		wantRead(t, fd, nil)
		unix.Close(fd)
		unix.Close(s.connect(t, client, to, Options{}))
	})
}

func wantEOF(t *testing.T, c *net.TCPConn) {
	t.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Fatalf("read %d, %v, want the end", n, err)
	}
}

// wantRead reads the end of a connection, or an error.
func wantRead(t *testing.T, fd int, want error) {
	t.Helper()
	if !ready(t, fd, unix.POLLIN) {
		t.Fatal("nothing to read")
	}
	if n, err := unix.Read(fd, make([]byte, 1)); n > 0 || err != want {
		t.Fatalf("read %d, %v, want %v", n, err, want)
	}
}

// TestConnectFromOwnAddress: the zero from is whatever the host would take.
func TestConnectFromOwnAddress(t *testing.T) {
	testFamilies(t, func(t *testing.T, s street, a family) {
		ln, to := s.listen(t, a.server)
		fd := s.connect(t, netip.AddrPort{}, to, Options{})
		defer unix.Close(fd)
		c, from := accept(t, ln)
		if from.Addr() != a.gateway {
			t.Errorf("the server sees %v, want %v", from, a.gateway)
		}
		wantCarried(t, fd, c)
	})
}

func TestConnectFails(t *testing.T) {
	testFamilies(t, func(t *testing.T, s street, a family) {
		ln, closed := s.listen(t, a.server)
		ln.Close()
		for _, from := range []netip.AddrPort{{}, at(a.client, 0), at(a.client, 40000)} {
			fd, err := s.begin(t, from, closed, Options{})
			if err == nil {
				err = ended(t, fd)
				unix.Close(fd)
			}
			if !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("from %v to a closed port: %v", from, err)
			}
			_, err = s.begin(t, from, at(a.nowhere, 80), Options{})
			if !errors.Is(err, unix.ENETUNREACH) || errors.Is(err, ErrPortTaken) || strings.Contains(err.Error(), "invalid") {
				t.Errorf("from %v to where no route leads: %v", from, err)
			}
		}
	})
}

// TestConnectToNobody: a server that is gone is unreachable as soon as the
// neighbour has been asked for in vain. The kernel says so by ICMP to the source,
// so that only connections from our own address hear of it; others wait.
func TestConnectToNobody(t *testing.T) {
	testFamilies(t, func(t *testing.T, s street, a family) {
		for _, name := range []string{"net.ipv4.neigh.inner.retrans_time_ms", "net.ipv6.neigh.inner.retrans_time_ms"} {
			if err := s.gateway.Sysctl(name, "20"); err != nil {
				t.Fatal(err)
			}
		}
		fd, err := s.begin(t, netip.AddrPort{}, at(a.second.Next(), 80), Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := ended(t, fd); !errors.Is(err, unix.EHOSTUNREACH) {
			t.Errorf("%v, want EHOSTUNREACH", err)
		}
	})
}

// TestConnectEnds: what is no source, or none towards this destination, is a
// mistake, and never a connection from or to this host itself.
func TestConnectEnds(t *testing.T) {
	s := newStreet(t)
	v4, v6 := families[0], families[1]
	for _, tc := range []struct{ from, to netip.AddrPort }{
		{at(v4.client, 40000), at(v6.server, 80)},
		{at(v6.client, 40000), at(v4.server, 80)},
		{at(netip.AddrFrom16(v4.client.As16()), 40000), at(v4.server, 80)},
		{at(v4.client, 40000), at(netip.AddrFrom16(v4.server.As16()), 80)},
		{at(netip.AddrFrom16(v4.client.As16()), 40000), at(netip.AddrFrom16(v4.server.As16()), 80)},
		{netip.AddrPort{}, at(netip.AddrFrom16(v4.server.As16()), 80)},
		{at(netip.IPv4Unspecified(), 40000), at(v4.server, 80)},
		{at(netip.IPv4Unspecified(), 0), at(v4.server, 80)},
		{at(netip.IPv6Unspecified(), 40000), at(v6.server, 80)},
		{at(netip.MustParseAddr("224.0.0.1"), 40000), at(v4.server, 80)},
		{at(netip.MustParseAddr("ff02::1"), 40000), at(v6.server, 80)},
		{at(v4.client, 40000), at(netip.IPv4Unspecified(), 80)},
		{at(v6.client, 40000), at(netip.IPv6Unspecified(), 80)},
		{netip.AddrPort{}, at(netip.IPv4Unspecified(), 80)},
		{at(v4.client, 40000), netip.AddrPort{}},
		{netip.AddrPort{}, netip.AddrPort{}},
	} {
		fd, err := s.begin(t, tc.from, tc.to, Options{})
		if err == nil {
			unix.Close(fd)
		}
		if err == nil || errors.Is(err, ErrPortTaken) || errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("from %v to %v: %v", tc.from, tc.to, err)
		}
	}
}
