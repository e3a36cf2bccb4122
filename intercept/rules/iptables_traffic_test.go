package rules

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/e2e/netlab"
)

// TestIPTablesReplaceHasNoGap: no connection goes plain while one plan replaces
// another, and those that exist go on.
func TestIPTablesReplaceHasNoGap(t *testing.T) {
	eachIPTables(t, func(t *testing.T, b *iptablesBackend) {
		w := world(t)
		to := at(netlab.Server4, 7000)
		applyWith(t, w.West, b, westPlan())
		openGate(t, w.West)
		silence := watch(t, w.West, netlab.Outer)
		old := []*call{mustDial(t, w.Client, to, captured), mustDial(t, w.West, to, captured)}

		ctx, stop := context.WithCancel(t.Context())
		dialled, ended := make(chan struct{}, 1), make(chan error, 1)
		go func() { // stop ends it, and the test waits
			var err error
			for ctx.Err() == nil && err == nil {
				var conn net.Conn
				if conn, err = w.Client.Dial(ctx, "tcp", to.String()); err == nil {
					conn.SetDeadline(time.Now().Add(patience))
					_, err = io.ReadFull(conn, make([]byte, len(captured)))
					err = errors.Join(err, conn.Close())
				}
				select {
				case dialled <- struct{}{}:
				default:
				}
			}
			if errors.Is(err, context.Canceled) {
				err = nil
			}
			ended <- err
		}()
		for i := range 6 {
			select {
			case <-dialled:
			case err := <-ended:
				t.Fatalf("a connection was not captured: %v", err)
			}
			p := westPlan()
			p.Peers[0].PassUnavailable = i%2 == 0 // the network moves from one set to another
			on(t, w.West, func() error {
				return errors.Join(b.Live(Plan{Peers: []Peer{{PassUnavailable: true}}}), b.Apply(p))
			})
		}
		stop()
		if err := <-ended; err != nil {
			t.Errorf("a connection was not captured: %v", err)
		}
		for _, c := range old {
			if err := c.echo(); err != nil {
				t.Error(err)
			}
		}
		silence()
	})
}

// TestIPTablesNoListener: TPROXY drops, so that the client waits.
func TestIPTablesNoListener(t *testing.T) {
	eachIPTables(t, func(t *testing.T, b *iptablesBackend) {
		w := world(t)
		applyWith(t, w.West, b, westPlan())
		silence := watch(t, w.West, netlab.Outer)
		for _, refused := range []uint64{4, 8} {
			eachFamily(t, func(t *testing.T, a addrs) {
				unanswered(t, w.Client, at(a.server, 7000))
				unanswered(t, w.West, at(a.server, 7000))
			})
			waitCount(t, w.West, b, "refused", refused)
			applyWith(t, w.West, b, westPlan()) // loses no count
		}
		silence()
	})
}

// unanswered dials what must not answer.
func unanswered(t *testing.T, from *netlab.Host, to netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), brief)
	defer cancel()
	conn, err := from.Dial(ctx, "tcp", to.String())
	if err == nil {
		conn.Close()
		t.Errorf("dial %v from %s: answered", to, from.Name())
	}
}

func TestIPTablesOpenPeer(t *testing.T) {
	eachIPTables(t, func(t *testing.T, b *iptablesBackend) {
		w := world(t)
		p := westPlan()
		p.Peers[0].PassUnavailable = true
		applyWith(t, w.West, b, p)
		openGate(t, w.West)
		eachFamily(t, func(t *testing.T, a addrs) {
			to := at(a.server, 7000)
			serve(t, w.Server, to)
			both := func(who string) {
				t.Helper()
				mustDial(t, w.Client, to, who)
				mustDial(t, w.West, to, who)
			}
			both(plain)
			on(t, w.West, func() error { return b.Live(p) })
			both(captured)
			script(t, w.West, "ipset flush wb_live4; ipset flush wb_live6") // its time is over
			both(plain)
		})
	})
}

func TestIPTablesGuard(t *testing.T) {
	eachIPTables(t, func(t *testing.T, b *iptablesBackend) {
		w := world(t)
		silence := watch(t, w.Server, netlab.Inner)
		eachFamily(t, func(t *testing.T, a addrs) {
			applyWith(t, w.East, b, eastPlan())
			serve(t, w.Server, at(a.server, 7000))
			serve(t, w.East, at(a.eastOuter, 7000))
			var dropped uint64
			on(t, w.East, func() error {
				counts, err := b.Counters()
				dropped = counts["guard"]
				return err
			})
			for i, to := range []netip.AddrPort{at(a.server, 7000), at(a.eastOuter, 7000)} {
				unanswered(t, w.Client, to)
				waitCount(t, w.East, b, "guard", dropped+uint64(2*i+1))
				if err := udpAsk(t, w.Client, to, brief); err == nil {
					t.Errorf("a datagram to %v was answered", to)
				}
				waitCount(t, w.East, b, "guard", dropped+uint64(2*i+2))
			}
		})
		silence()
		for _, edit := range []func(*Plan){
			func(p *Plan) { p.Exclude.Networks = prefixes("10.1.0.0/16", "fd00:1::/64") },
			func(p *Plan) { p.Exclude.Ports = []PortRange{{7000, 7000}} },
			func(p *Plan) { p.Peers[0].PassUnavailable = true },
			func(p *Plan) { p.Tunnel = []uint16{1, 7000} },
		} {
			p := eastPlan()
			edit(&p)
			applyWith(t, w.East, b, p)
			eachFamily(t, func(t *testing.T, a addrs) {
				to, host := at(a.server, 7000), w.Server
				if len(p.Tunnel) > 1 {
					to, host = at(a.eastOuter, 7000), w.East
				}
				serve(t, host, to)
				mustDial(t, w.Client, to, plain)
			})
		}
	})
}

// TestIPTablesStray: the connections of a gateway that is gone are reset. Where
// another tool has emptied the filter table they are still not forwarded.
func TestIPTablesStray(t *testing.T) {
	eachIPTables(t, func(t *testing.T, b *iptablesBackend) {
		eachFamily(t, func(t *testing.T, a addrs) {
			w := world(t)
			to := at(a.server, 7000)
			applyWith(t, w.West, b, westPlan())
			g := openGate(t, w.West)
			silence := watch(t, w.West, netlab.Outer)
			calls := []*call{mustDial(t, w.Client, to, captured), mustDial(t, w.West, to, captured)}
			quiet := mustDial(t, w.Client, to, captured)
			g.vanish(t)
			for _, c := range calls {
				if err := c.echo(); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("from %v: %v, want a reset", c.local(), err)
				}
			}
			script(t, w.West, "iptables -F; ip6tables -F")
			if _, err := io.WriteString(quiet, "secret"); err != nil {
				t.Fatal(err)
			}
			waitCount(t, w.West, b, "leak", 1)
			silence()
		})
	})
}

// TestIPTablesForgets: a connection that goes plain is not taken for an older
// one with the same ends that we carried.
func TestIPTablesForgets(t *testing.T) {
	eachIPTables(t, func(t *testing.T, b *iptablesBackend) {
		eachFamily(t, func(t *testing.T, a addrs) {
			w := world(t)
			to := at(a.server, 7000)
			from := &net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(at(a.client, 40000)), Timeout: patience}
			var c *call
			dialAgain := func() {
				t.Helper()
				on(t, w.Client, func() error {
					conn, err := from.Dial("tcp", to.String())
					if err == nil {
						c, err = hear(t, conn)
					}
					return err
				})
			}
			applyWith(t, w.West, b, westPlan())
			g := openGate(t, w.West)
			dialAgain()
			g.vanish(t)
			vanish(t, c.Conn.(*net.TCPConn))

			serve(t, w.Server, to)
			p := westPlan()
			p.Exclude.Ports = []PortRange{{7000, 7000}}
			applyWith(t, w.West, b, p)
			dialAgain()
			if err := c.echo(); err != nil || c.who != plain {
				t.Errorf("answered by %s, %v", c.who, err)
			}
		})
	})
}

// TestIPTablesExisting makes connections before the rules.
func TestIPTablesExisting(t *testing.T) {
	eachIPTables(t, func(t *testing.T, b *iptablesBackend) {
		for _, want := range []error{nil, unix.ECONNRESET} {
			w := world(t)
			var calls []*call
			for _, to := range []netip.AddrPort{at(netlab.Server4, 7000), at(netlab.Server6, 7000)} {
				serve(t, w.Server, to)
				calls = append(calls, mustDial(t, w.Client, to, plain), mustDial(t, w.West, to, plain))
			}
			p := westPlan()
			p.ResetExisting = want != nil
			applyWith(t, w.West, b, p)
			for _, c := range calls {
				if err := c.echo(); !errors.Is(err, want) {
					t.Errorf("%v to %v: %v, want %v", c.local(), c.RemoteAddr(), err, want)
				}
			}
		}
	})
}

// TestIPTablesDelivery connects from the peer's addresses: to a host behind us
// and to this one. The way back is ours, and resets strays.
func TestIPTablesDelivery(t *testing.T) {
	eachIPTables(t, func(t *testing.T, b *iptablesBackend) {
		eachFamily(t, func(t *testing.T, a addrs) {
			w := world(t)
			p := eastPlan()
			p.ResetExisting = true // deliveries are not taken for older connections
			applyWith(t, w.East, b, p)
			silence := watch(t, w.East, netlab.Outer)
			for _, to := range []struct {
				host *netlab.Host
				addr netip.Addr
			}{{w.Server, a.server}, {w.East, a.eastOuter}} {
				ln, err := to.host.Listen("tcp", at(to.addr, 7000).String())
				if err != nil {
					t.Fatal(err)
				}
				defer ln.Close()
				accepted := make(chan net.Conn, 1)
				go func() { // ends with the listener
					if conn, err := ln.Accept(); err == nil {
						io.WriteString(conn, "hello\n")
						accepted <- conn
					}
				}()
				from := at(a.client, 40000)
				c, err := deliver(t, w.East, from, at(to.addr, 7000))
				if err != nil {
					t.Fatalf("deliver to %v: %v", to.addr, err)
				}
				server := <-accepted
				defer server.Close()
				if got := server.RemoteAddr().String(); got != from.String() {
					t.Errorf("the server saw %s, want %v", got, from)
				}
				vanish(t, c.Conn.(*net.TCPConn))
				server.SetDeadline(time.Now().Add(patience))
				io.WriteString(server, "secret") // what comes of it, the next line sees
				if _, err := io.ReadAll(server); !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("a delivery's server: %v, want a reset", err)
				}
			}
			silence()
		})
	})
}

// TestIPTablesLeak: without the policy routing nothing goes out, whether
// connections are tracked or not. The kernel itself forwards nothing that has a
// socket, so only local packets are dropped by us.
func TestIPTablesLeak(t *testing.T) {
	eachIPTables(t, func(t *testing.T, b *iptablesBackend) {
		w := world(t)
		applyWith(t, w.West, b, westPlan())
		openGate(t, w.West)
		on(t, w.West, func() error { return removeRouting(DefaultRouting) })
		silence := watch(t, w.West, netlab.Outer)
		attempts := func() {
			t.Helper()
			eachFamily(t, func(t *testing.T, a addrs) {
				unanswered(t, w.Client, at(a.server, 7000))
				unanswered(t, w.West, at(a.server, 7000))
			})
		}
		attempts()
		waitCount(t, w.West, b, "leak", 2)
		script(t, w.West, "for i in iptables ip6tables; do $i -t raw -A OUTPUT -p tcp --dport 7000 -j CT --notrack; done")
		attempts()
		waitCount(t, w.West, b, "leak", 4)
		silence()
	})
}
