package rules

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wishbone/e2e/netlab"
	"wishbone/intercept"
)

// one is a prefix of a single address.
func one(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// TestCapture dials the server from a host behind the gateway, and from the
// gateway.
func TestCapture(t *testing.T) { eachBackend(t, testCapture) }

func testCapture(t *testing.T) {
	for _, tc := range []struct {
		name             string
		edit             func(*Plan, addrs)
		forwarded, local string // who answers
	}{
		{"both", func(*Plan, addrs) {}, captured, captured},
		{"forwarded only", func(p *Plan, _ addrs) { p.Local = false }, captured, plain},
		{"local only", func(p *Plan, _ addrs) { p.Forwarded = false }, plain, captured},
		{"port excluded", func(p *Plan, _ addrs) { p.Exclude.Ports = []PortRange{{1, 1}, {6999, 7001}} }, plain, plain},
		{"another port excluded", func(p *Plan, _ addrs) { p.Exclude.Ports = []PortRange{{7001, 7001}} }, captured, captured},
		{"network excluded", func(p *Plan, a addrs) { p.Exclude.Networks = []netip.Prefix{one(a.server)} }, plain, plain},
		{"user excluded", func(p *Plan, _ addrs) { p.Exclude.UIDs = []uint32{0} }, captured, plain},
		{"client among the sources", func(p *Plan, a addrs) { p.Sources = []netip.Prefix{one(a.client)} }, captured, captured},
		{"client not among the sources", func(p *Plan, a addrs) { p.Sources = []netip.Prefix{one(a.westOuter)} }, plain, captured},
		{"client's network is not ours", func(p *Plan, a addrs) { p.Own = []netip.Prefix{one(a.westOuter)} }, plain, captured},
		{"server is an endpoint", func(p *Plan, a addrs) { p.Peers[0].Endpoints = []netip.AddrPort{at(a.server, 7000)} }, plain, plain},
		{"open peer, gateway not alive", func(p *Plan, _ addrs) { p.Peers[0].PassUnavailable = true }, plain, plain},
		{"server's network nested in ours", func(p *Plan, _ addrs) { p.Own = append(p.Own, prefixes("10.0.0.0/8", "fd00::/16")...) }, captured, captured},
		{"server in our network, nested in a hub's", func(p *Plan, a addrs) {
			p.Peers[0].Networks = prefixes("0.0.0.0/0", "::/0")
			p.Own = append(p.Own, one(a.server))
		}, plain, plain},
		{"a hub", func(p *Plan, _ addrs) { p.Peers[0].Networks = prefixes("0.0.0.0/0", "::/0") }, captured, captured},
		{"other numbers", func(p *Plan, _ addrs) { p.Routing = Routing{0x200, 0x100, 0x300, 77, 99} }, captured, captured},
	} {
		t.Run(tc.name, func(t *testing.T) { dialBoth(t, tc.edit, tc.forwarded, tc.local) })
	}
}

// TestCaptureOtherUser: only nftables lets a rule name a user that a namespace
// does not have.
func TestCaptureOtherUser(t *testing.T) {
	dialBoth(t, func(p *Plan, _ addrs) { p.Exclude.UIDs = []uint32{77} }, captured, captured)
}

// dialBoth sees who answers a connection from behind the gateway, and one from the
// gateway, under a plan.
func dialBoth(t *testing.T, edit func(*Plan, addrs), forwarded, local string) {
	t.Helper()
	w := world(t)
	g := openGate(t, w.West)
	eachFamily(t, func(t *testing.T, a addrs) {
		serve(t, w.Server, at(a.server, 7000))
		p := westPlan()
		edit(&p, a)
		p.ResetExisting = true // nothing that is plain may be taken for older
		apply(t, w.West, p)
		for _, from := range []struct {
			host *netlab.Host
			who  string
		}{{w.Client, forwarded}, {w.West, local}} {
			c := mustDial(t, from.host, at(a.server, 7000), from.who)
			if err := c.echo(); err != nil {
				t.Errorf("echo to %s: %v", from.host.Name(), err)
			}
			if from.who != captured {
				continue
			}
			f := g.last(t)
			if f.Client != c.local() || f.Target != at(a.server, 7000) {
				t.Errorf("captured %v > %v, want %v > %v", f.Client, f.Target, c.local(), at(a.server, 7000))
			}
		}
	})
}

// TestExcludedCgroup makes a socket inside of a cgroup. Only root may make one.
func TestExcludedCgroup(t *testing.T) {
	var root string
	for _, r := range cgroupRoots {
		var fs unix.Statfs_t
		if unix.Statfs(r, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			root = r
		}
	}
	if root == "" {
		t.Logf("WARNING: NOT tested: no cgroup v2 hierarchy is mounted")
		return
	}
	home := cgroupNow(t)
	name := fmt.Sprintf("wishbone-test-%d/inner", os.Getpid())
	if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
		t.Logf("WARNING: NOT tested: this user may not make cgroups: %v", err)
		return
	}
	move := func(to string) {
		if err := os.WriteFile(filepath.Join(root, to, "cgroup.procs"), []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		move(home)
		if err := errors.Join(os.Remove(filepath.Join(root, name)), os.Remove(filepath.Join(root, filepath.Dir(name)))); err != nil {
			t.Error(err)
		}
	})
	eachFamily(t, func(t *testing.T, a addrs) {
		w := world(t)
		serve(t, w.Server, at(a.server, 7000))
		p := westPlan()
		p.Exclude.Cgroups = []string{"/" + filepath.Dir(name)}
		apply(t, w.West, p)
		openGate(t, w.West)
		move(name)
		mustDial(t, w.West, at(a.server, 7000), plain)
		move(home)
		mustDial(t, w.West, at(a.server, 7000), captured)
	})
}

// cgroupNow is the cgroup that this process is in (cgroups(7), /proc/pid/cgroup).
func cgroupNow(t *testing.T) string {
	t.Helper()
	all, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(all)) {
		if path, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(path)
		}
	}
	t.Fatalf("no cgroup v2 in %q", all)
	return ""
}

// TestNoListener refuses at once.
func TestNoListener(t *testing.T) {
	eachFamily(t, func(t *testing.T, a addrs) {
		w := world(t)
		serve(t, w.Server, at(a.server, 7000))
		apply(t, w.West, westPlan())
		for n, h := range []*netlab.Host{w.Client, w.West} {
			if _, err := dial(t, h, at(a.server, 7000)); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("dial from %s: %v, want refused", h.Name(), err)
			}
			wantCount(t, w.West, "refused", uint64(n))
			apply(t, w.West, westPlan()) // keeps the counts
		}
	})
}

// TestOpenPeer is captured while the gateway is alive.
func TestOpenPeer(t *testing.T) {
	eachFamily(t, func(t *testing.T, a addrs) {
		w := world(t)
		serve(t, w.Server, at(a.server, 7000))
		p := westPlan()
		p.Peers[0].PassUnavailable = true
		apply(t, w.West, p)
		g := openGate(t, w.West)
		on(t, w.West, func() error { return nft(t).Live(p) })
		var calls []*call
		for _, h := range []*netlab.Host{w.Client, w.West} {
			calls = append(calls, mustDial(t, h, at(a.server, 7000), captured))
		}
		// The gateway dies: what it carried ends, and nothing of it goes plain.
		capture, err := w.West.Capture(netlab.Outer)
		if err != nil {
			t.Fatal(err)
		}
		g.vanish(t)
		for _, c := range calls {
			if err := c.echo(); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("connection of a dead gateway: %v, want reset", err)
			}
		}
		seen, err := capture.Stop()
		if err != nil {
			t.Fatal(err)
		}
		if packets, _ := seen.Count(netlab.TCP, 0); packets > 0 {
			t.Errorf("left in the clear:\n%v", seen)
		}
		mustDial(t, w.Client, at(a.server, 7000), plain)
	})
}

// TestOpenPeerTuple: a tuple that was ours once, and is now a plain
// connection's, is not ours any more.
func TestOpenPeerTuple(t *testing.T) {
	eachFamily(t, func(t *testing.T, a addrs) {
		w := world(t)
		serve(t, w.Server, at(a.server, 7000))
		serve(t, w.Client, at(a.client, 7000))
		p := westPlan()
		p.Peers[0].PassUnavailable = true
		apply(t, w.West, p)
		openGate(t, w.West)
		on(t, w.West, func() error { return nft(t).Live(p) })
		for _, from := range []struct {
			host *netlab.Host
			addr netip.Addr
		}{{w.Client, a.client}, {w.West, a.westOuter}} {
			first := mustDialFrom(t, from.host, at(from.addr, 4000), at(a.server, 7000), captured)
			first.forget(t)
		}
		first, err := deliver(t, w.West, at(a.server, 4000), at(a.client, 7000))
		if err != nil {
			t.Fatal(err)
		}
		first.forget(t)

		// As if LiveFor had passed.
		on(t, w.West, func() error {
			return transact(func(c *nftables.Conn) error {
				return c.SetDeleteElements(&nftables.Set{Table: table(), Name: "live"}, []nftables.SetElement{{Key: []byte{unix.IPPROTO_TCP}}})
			})
		})
		for _, ends := range []struct {
			host     *netlab.Host
			from, to netip.Addr
		}{{w.Client, a.client, a.server}, {w.West, a.westOuter, a.server}, {w.Server, a.server, a.client}} {
			again := mustDialFrom(t, ends.host, at(ends.from, 4000), at(ends.to, 7000), plain)
			if err := again.echo(); err != nil {
				t.Errorf("from %s: %v", ends.host.Name(), err)
			}
		}
	})
}

// TestGuard lets nobody but the tunnel speak for a peer.
func TestGuard(t *testing.T) {
	for _, tc := range []struct {
		name     string
		edit     func(*Plan, addrs)
		tcp, udp bool // pass
	}{
		{"guarded", func(*Plan, addrs) {}, false, false},
		{"local only", func(p *Plan, _ addrs) { p.Forwarded = false }, false, false},
		{"this host outside our networks", func(p *Plan, a addrs) { p.Own = []netip.Prefix{one(a.client)} }, false, false},
		{"server's address is not the peer's", func(p *Plan, a addrs) { p.Own = append(p.Own, one(a.server)) }, true, true},
		{"port excluded", func(p *Plan, _ addrs) { p.Exclude.Ports = []PortRange{{7000, 7000}} }, true, false},
		{"network excluded", func(p *Plan, a addrs) { p.Exclude.Networks = []netip.Prefix{one(a.server)} }, true, true},
		{"open peer", func(p *Plan, _ addrs) { p.Peers[0].PassUnavailable = true; p.Peers[0].PassUncarried = true }, true, true},
		{"uncarried passes", func(p *Plan, _ addrs) { p.Peers[0].PassUncarried = true }, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, a addrs) {
				w := world(t)
				p := westPlan()
				tc.edit(&p, a)
				apply(t, w.West, p)
				openGate(t, w.West)
				targets := map[netip.Addr]*netlab.Host{a.client: w.Client, a.westInner: w.West, a.westOuter: w.West}
				for addr, h := range targets {
					serve(t, h, at(addr, 7000))
					udpEcho(t, h, at(addr, 7000))
					if tc.tcp {
						mustDial(t, w.Server, at(addr, 7000), plain)
					} else {
						wantDropped(t, w.Server, at(addr, 7000), w.West, "guard")
					}
					before := counters(t, w.West)["guard"]
					if tc.udp {
						if err := udpAsk(t, w.Server, at(addr, 7000), patience); err != nil {
							t.Errorf("datagram to %v: %v", addr, err)
						}
					} else {
						if err := udpAsk(t, w.Server, at(addr, 7000), brief); !errors.Is(err, os.ErrDeadlineExceeded) {
							t.Errorf("datagram to %v: %v, want no answer", addr, err)
						}
						wantCount(t, w.West, "guard", before)
					}
				}
			})
		})
	}
}

// wantDropped wants a connection attempt to get no answer, and to be counted on
// the gateway.
func wantDropped(t *testing.T, from *netlab.Host, to netip.AddrPort, gateway *netlab.Host, counter string) {
	t.Helper()
	before := counters(t, gateway)[counter]
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	result := make(chan error, 1)
	go func() { // ends with ctx
		conn, err := from.Dial(ctx, "tcp", to.String())
		if err == nil {
			conn.Close()
		}
		result <- err
	}()
	if err := until(func() (bool, error) { return counters(t, gateway)[counter] > before, nil }); err != nil {
		t.Errorf("dial %v from %s: counter %s does not count: %v", to, from.Name(), counter, err)
	}
	cancel()
	if err := <-result; err == nil {
		t.Errorf("dial %v from %s: answered", to, from.Name())
	}
}

// TestGuardSpares the tunnel's port, errors, and the inside.
func TestGuardSpares(t *testing.T) {
	eachFamily(t, func(t *testing.T, a addrs) {
		w := world(t)
		p := westPlan()
		p.Exclude.UIDs = []uint32{0} // so that west's datagram goes out
		apply(t, w.West, p)
		serve(t, w.West, at(a.westOuter, 15008))
		mustDial(t, w.Server, at(a.westOuter, 15008), plain)
		serve(t, w.West, at(a.westInner, 7000))
		mustDial(t, w.Client, at(a.westInner, 7000), plain)
		if err := udpAsk(t, w.West, at(a.server, 9), patience); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("datagram to a closed port: %v, want the peer's error", err)
		}
		if n := counters(t, w.West)["guard"]; n != 0 {
			t.Errorf("the guard dropped %d packets", n)
		}
	})
}

// TestUncarried answers what is not TCP.
func TestUncarried(t *testing.T) { eachBackend(t, testUncarried) }

func testUncarried(t *testing.T) {
	for _, tc := range []struct {
		name             string
		edit             func(*Plan, addrs)
		forwarded, local bool // pass
	}{
		{"refused", func(*Plan, addrs) {}, false, false},
		{"forwarded only", func(p *Plan, _ addrs) { p.Local = false; p.Exclude.Networks = nil }, false, true},
		{"local only", func(p *Plan, _ addrs) { p.Forwarded = false }, true, false},
		{"open peer", func(p *Plan, _ addrs) { p.Peers[0].PassUnavailable = true }, false, false},
		{"passes", func(p *Plan, _ addrs) { p.Peers[0].PassUncarried = true }, true, true},
		{"network excluded", func(p *Plan, a addrs) { p.Exclude.Networks = []netip.Prefix{one(a.server)} }, true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, a addrs) {
				w := world(t)
				udpEcho(t, w.Server, at(a.server, 7000))
				p := westPlan()
				tc.edit(&p, a)
				apply(t, w.West, p)
				for _, from := range []struct {
					host *netlab.Host
					pass bool
				}{{w.Client, tc.forwarded}, {w.West, tc.local}} {
					capture, err := w.East.Capture(netlab.Outer)
					if err != nil {
						t.Fatal(err)
					}
					before := counters(t, w.West)
					err = udpAsk(t, from.host, at(a.server, 7000), brief)
					after := counters(t, w.West)
					seen, stopErr := capture.Stop()
					if stopErr != nil {
						t.Fatal(stopErr)
					}
					packets, _ := seen.Count(netlab.UDP, 7000)
					if from.pass {
						// The answer is another matter: it claims the peer's address.
						if packets == 0 || after["uncarried"] != before["uncarried"] {
							t.Errorf("from %s: %d packets, %v, want it to pass", from.host.Name(), packets, err)
						}
						continue
					}
					if packets > 0 || after["uncarried"] == before["uncarried"] || !isProhibited(err) {
						t.Errorf("from %s: %d packets, %v, want it refused", from.host.Name(), packets, err)
					}
				}
			})
		})
	}
}

// isProhibited: "administratively prohibited" is told to a program as
// EHOSTUNREACH (ICMP) or EACCES (ICMPv6), and to a local one first as EPERM.
func isProhibited(err error) bool {
	return errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM)
}

// TestUncarriedAnswers: where both sides let it pass, a datagram is answered.
func TestUncarriedAnswers(t *testing.T) { eachBackend(t, testUncarriedAnswers) }

func testUncarriedAnswers(t *testing.T) {
	eachFamily(t, func(t *testing.T, a addrs) {
		w := world(t)
		udpEcho(t, w.Server, at(a.server, 7000))
		p := westPlan()
		p.Peers[0].PassUncarried = true
		apply(t, w.West, p)
		for _, h := range []*netlab.Host{w.Client, w.West} {
			if err := udpAsk(t, h, at(a.server, 7000), patience); err != nil {
				t.Errorf("from %s: %v", h.Name(), err)
			}
		}
	})
}

// TestLeases renews one with a server that a peer owns.
func TestLeases(t *testing.T) { eachBackend(t, testLeases) }

func testLeases(t *testing.T) {
	eachFamily(t, func(t *testing.T, a addrs) {
		w := world(t)
		client, server := uint16(68), uint16(67)
		if a.server.Is6() {
			client, server = 546, 547
		}
		udpEcho(t, w.Server, at(a.server, server))
		apply(t, w.West, westPlan())
		if err := udpAskFrom(t, w.West, at(a.westOuter, client), at(a.server, server), patience); err != nil {
			t.Errorf("lease of the gateway: %v", err)
		}
		if err := udpAskFrom(t, w.West, at(a.westOuter, 69), at(a.server, server), brief); !isProhibited(err) {
			t.Errorf("from another port: %v, want it refused", err)
		}
		if err := udpAskFrom(t, w.Client, at(a.client, client), at(a.server, server), brief); !isProhibited(err) {
			t.Errorf("lease through the gateway: %v, want it refused", err)
		}
		before := counters(t, w.West)["guard"]
		if err := udpAskFrom(t, w.Server, at(a.server, client), at(a.client, client), brief); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a lease for a host behind us: %v, want no answer", err)
		}
		wantCount(t, w.West, "guard", before)
	})
}

// TestStray: the connections of a gateway that is gone are reset, and nothing
// of them is forwarded.
func TestStray(t *testing.T) {
	eachFamily(t, func(t *testing.T, a addrs) {
		w := world(t)
		serve(t, w.Server, at(a.server, 7000))
		apply(t, w.West, westPlan())
		g := openGate(t, w.West)
		calls := []*call{mustDial(t, w.Client, at(a.server, 7000), captured), mustDial(t, w.West, at(a.server, 7000), captured)}
		capture, err := w.East.Capture(netlab.Outer)
		if err != nil {
			t.Fatal(err)
		}
		g.vanish(t)
		for i, c := range calls {
			if err := c.echo(); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("connection %d of a gateway that is gone: %v, want reset", i, err)
			}
			wantCount(t, w.West, "stray", uint64(i))
		}
		seen, err := capture.Stop()
		if err != nil {
			t.Fatal(err)
		}
		if packets, _ := seen.Count(0, 0); packets > 0 {
			t.Errorf("left in the clear:\n%v", seen)
		}
	})
}

// TestExisting makes connections before the rules.
func TestExisting(t *testing.T) {
	for _, tc := range []struct {
		name string
		edit func(*Plan, addrs)
		// reset says that the connections end.
		forwarded, local bool
	}{
		{"pass", func(p *Plan, _ addrs) { p.ResetExisting = false }, false, false},
		{"reset", func(*Plan, addrs) {}, true, true},
		{"reset, forwarded only", func(p *Plan, _ addrs) { p.Local = false }, true, false},
		{"reset, local only", func(p *Plan, _ addrs) { p.Forwarded = false }, false, true},
		{"port excluded", func(p *Plan, _ addrs) { p.Exclude.Ports = []PortRange{{7000, 7000}} }, false, false},
		{"network excluded", func(p *Plan, a addrs) { p.Exclude.Networks = []netip.Prefix{one(a.server)} }, false, false},
		{"user excluded", func(p *Plan, _ addrs) { p.Exclude.UIDs = []uint32{0} }, true, false},
		{"open peer", func(p *Plan, _ addrs) { p.Peers[0].PassUnavailable = true }, false, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, a addrs) {
				w := world(t)
				serve(t, w.Server, at(a.server, 7000))
				serve(t, w.Client, at(a.client, 7000))
				forwarded := mustDial(t, w.Client, at(a.server, 7000), plain)
				local := mustDial(t, w.West, at(a.server, 7000), plain)
				back := mustDial(t, w.Server, at(a.client, 7000), plain)
				p := westPlan()
				p.ResetExisting = true
				tc.edit(&p, a)
				apply(t, w.West, p)
				for _, c := range []struct {
					name  string
					call  *call
					reset bool
				}{{"forwarded", forwarded, tc.forwarded}, {"local", local, tc.local}, {"from the peer", back, tc.forwarded}} {
					before := counters(t, w.West)["stray"]
					err := c.call.echo()
					if c.reset != (err != nil) {
						t.Errorf("%s: %v, want reset %v", c.name, err, c.reset)
					}
					if c.reset && c.name != "from the peer" && !errors.Is(err, unix.ECONNRESET) {
						t.Errorf("%s: %v, want ECONNRESET", c.name, err)
					}
					if c.reset {
						wantCount(t, w.West, "stray", before)
					}
				}
			})
		})
	}
}

// TestExistingEnds: whoever ends an older connection is heard by the other side.
func TestExistingEnds(t *testing.T) { eachBackend(t, testExistingEnds) }

func testExistingEnds(t *testing.T) {
	eachFamily(t, func(t *testing.T, a addrs) {
		w := world(t)
		ln, err := w.Server.Listen("tcp", at(a.server, 7000).String())
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		p := westPlan()
		p.ResetExisting = true
		for _, h := range []*netlab.Host{w.Client, w.West} {
			conn, err := h.Dial(t.Context(), "tcp", at(a.server, 7000).String())
			if err != nil {
				t.Fatal(err)
			}
			accepted, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer accepted.Close()
			apply(t, w.West, p)
			(&call{Conn: conn}).forget(t)
			accepted.SetDeadline(time.Now().Add(patience))
			if _, err := accepted.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the server of %s: %v, want reset", h.Name(), err)
			}
			remove(t, w.West)
		}
	})
}

// TestDelivery connects from the peer's addresses: to a host behind us and to
// this one. The way back is ours, also where older connections are reset.
func TestDelivery(t *testing.T) {
	for _, resetExisting := range []bool{false, true} {
		t.Run(fmt.Sprintf("reset existing %v", resetExisting), func(t *testing.T) {
			eachFamily(t, func(t *testing.T, a addrs) {
				w := world(t)
				p := westPlan()
				p.ResetExisting = resetExisting
				apply(t, w.West, p)
				for i, to := range []struct {
					host *netlab.Host
					addr netip.Addr
				}{{w.Client, a.client}, {w.West, a.westInner}, {w.West, a.westOuter}} {
					serve(t, to.host, at(to.addr, 7000))
					c, err := deliver(t, w.West, at(a.server, uint16(4000+i)), at(to.addr, 7000))
					if err != nil {
						t.Errorf("deliver to %v: %v", to.addr, err)
						continue
					}
					if got := c.RemoteAddr().String(); c.who != plain || got != at(to.addr, 7000).String() {
						t.Errorf("delivered to %s, %s", got, c.who)
					}
					apply(t, w.West, p) // in place
					if err := c.echo(); err != nil {
						t.Errorf("echo of %v after a replacement: %v", to.addr, err)
					}
					// Gone without a word, its segments are not the real client's.
					vanish(t, c.Conn.(*net.TCPConn))
				}
			})
		})
	}
}

// TestErrors: a delivery hears of a narrow link on its way, although the news
// are sent to the address that it borrowed.
func TestErrors(t *testing.T) { eachBackend(t, testErrors) }

func testErrors(t *testing.T) {
	eachFamily(t, func(t *testing.T, a addrs) {
		w := world(t)
		p := westPlan()
		p.Own = append(p.Own, p.Peers[0].Networks...) // east is one of our routers here
		p.Peers = []Peer{{Name: "far", Networks: prefixes("10.9.0.0/16", "fd00:9::/64")}}
		apply(t, w.West, p)
		on(t, w.East, func() error {
			nl := handle(t)
			link, err := nl.LinkByName(netlab.Inner)
			if err != nil {
				return err
			}
			return nl.LinkSetMTU(link, 1300)
		})
		serve(t, w.Server, at(a.server, 7000))
		far := netip.MustParseAddr("10.9.0.1")
		if a.server.Is6() {
			far = netip.MustParseAddr("fd00:9::1")
		}
		c, err := deliver(t, w.West, at(far, 4000), at(a.server, 7000))
		if err != nil {
			t.Fatal(err)
		}
		const size = 100_000
		var sending sync.WaitGroup
		sending.Go(func() { c.Write(make([]byte, size)) }) // what is lost shows below
		if n, err := io.Copy(io.Discard, io.LimitReader(c.r, size)); err != nil || n != size {
			t.Errorf("%d bytes came back: %v", n, err)
		}
		c.Close()
		sending.Wait()
	})
}

// TestReplaceInPlace keeps captured connections, whatever the new plan says.
func TestReplaceInPlace(t *testing.T) { eachBackend(t, testReplaceInPlace) }

func testReplaceInPlace(t *testing.T) {
	eachFamily(t, func(t *testing.T, a addrs) {
		w := world(t)
		serve(t, w.Server, at(a.server, 7000))
		apply(t, w.West, westPlan())
		openGate(t, w.West)
		calls := []*call{mustDial(t, w.Client, at(a.server, 7000), captured), mustDial(t, w.West, at(a.server, 7000), captured)}
		off := westPlan()
		off.Forwarded, off.Local = false, false
		for _, p := range []Plan{westPlan(), off, plans()["full"]} {
			apply(t, w.West, p)
			for i, c := range calls {
				if err := c.echo(); err != nil {
					t.Errorf("connection %d: %v", i, err)
				}
			}
		}
	})
}

// TestLeak: without the policy routing nothing goes out, either.
func TestLeak(t *testing.T) {
	eachFamily(t, func(t *testing.T, a addrs) {
		w := world(t)
		serve(t, w.Server, at(a.server, 7000))
		apply(t, w.West, westPlan())
		openGate(t, w.West)
		on(t, w.West, func() error { return removeRouting(DefaultRouting) })
		// The kernel itself forwards nothing that has found a socket
		// (ip_forward): only what comes from this host gets as far as our net.
		wantDropped(t, w.West, at(a.server, 7000), w.West, "leak")
		capture, err := w.East.Capture(netlab.Outer)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), brief)
		defer cancel()
		if conn, err := w.Client.Dial(ctx, "tcp", at(a.server, 7000).String()); err == nil {
			conn.Close()
			t.Error("forwarded connection: answered")
		}
		seen, err := capture.Stop()
		if err != nil {
			t.Fatal(err)
		}
		if packets, _ := seen.Count(0, 0); packets > 0 {
			t.Errorf("left in the clear:\n%v", seen)
		}
	})
}

// TestStrict has other people's settings: packets are asked whence they came,
// with their marks (Tailscale and others set src_valid_mark, systemd rp_filter).
func TestStrict(t *testing.T) {
	for _, filter := range []string{"0", "1", "2"} {
		t.Run("rp_filter "+filter, func(t *testing.T) {
			eachFamily(t, func(t *testing.T, a addrs) {
				w := world(t)
				for name, value := range map[string]string{
					"net.ipv4.conf.all.src_valid_mark": "1", "net.ipv4.conf.all.rp_filter": filter,
				} {
					if err := w.West.Sysctl(name, value); err != nil {
						t.Fatal(err)
					}
				}
				serve(t, w.Server, at(a.server, 7000))
				apply(t, w.West, westPlan())
				openGate(t, w.West)
				for _, h := range []*netlab.Host{w.Client, w.West} {
					c := mustDial(t, h, at(a.server, 7000), captured)
					if err := c.echo(); err != nil {
						t.Errorf("echo from %s: %v", h.Name(), err)
					}
				}
				for addr, h := range map[netip.Addr]*netlab.Host{a.client: w.Client, a.westInner: w.West} {
					serve(t, h, at(addr, 7001))
					c, err := deliver(t, w.West, at(a.server, 4000), at(addr, 7001))
					if err != nil {
						t.Fatalf("deliver to %v: %v", addr, err)
					}
					if err := c.echo(); err != nil {
						t.Errorf("delivered to %v: %v", addr, err)
					}
				}
			})
		})
	}
}

// TestForeignListener: another proxy on this host, with a transparent listener
// on every address, gets neither our connections nor older ones.
func TestForeignListener(t *testing.T) {
	eachFamily(t, func(t *testing.T, a addrs) {
		w := world(t)
		serve(t, w.Server, at(a.server, 7000))
		older := mustDial(t, w.Client, at(a.server, 7000), plain)
		on(t, w.West, func() error {
			every := netip.IPv6Unspecified()
			if a.server.Is4() {
				every = netip.IPv4Unspecified()
			}
			fd, err := intercept.Listen(at(every, 7000), own)
			t.Cleanup(func() { unix.Close(fd) })
			return err
		})
		apply(t, w.West, westPlan())
		openGate(t, w.West)
		if err := older.echo(); err != nil {
			t.Errorf("older connection: %v", err)
		}
		c := mustDial(t, w.Client, at(a.server, 7000), captured)
		if err := c.echo(); err != nil {
			t.Errorf("our connection: %v", err)
		}
	})
}

// TestOverlay has two virtual machines on one network, each the other's peer
// with its very addresses as networks. They must find each other and reach each
// other's tunnel; all else between them is captured or refused.
func TestOverlay(t *testing.T) {
	eachFamily(t, func(t *testing.T, a addrs) {
		w := world(t)
		west, east := a.westOuter, a.eastOuter
		plan := func(us, them netip.Addr) Plan {
			p := westPlan()
			p.Own = []netip.Prefix{one(us)}
			p.Peers = []Peer{{Name: "them", Networks: []netip.Prefix{one(them)}, Endpoints: []netip.AddrPort{at(them, 15008)}}}
			return p
		}
		apply(t, w.West, plan(west, east))
		apply(t, w.East, plan(east, west))
		openGate(t, w.West)
		serve(t, w.East, at(east, 15008))
		serve(t, w.West, at(west, 15008))
		for _, ends := range []struct {
			host     *netlab.Host
			from, to netip.Addr
		}{{w.West, west, east}, {w.East, east, west}} {
			c, err := deliver(t, ends.host, at(ends.from, 0), at(ends.to, 15008))
			if err != nil {
				t.Fatalf("tunnel from %v to %v: %v", ends.from, ends.to, err)
			}
			if err := c.echo(); err != nil {
				t.Errorf("tunnel from %v to %v: %v", ends.from, ends.to, err)
			}
			probe(t, ends.host, ends.to)
		}
		mustDial(t, w.West, at(east, 7000), captured)
		if err := udpAsk(t, w.West, at(east, 7000), brief); !isProhibited(err) {
			t.Errorf("datagram to the peer: %v, want it refused", err)
		}
		for _, h := range []*netlab.Host{w.West, w.East} {
			c := counters(t, h)
			if c["guard"] != 0 || c["stray"] != 0 || c["leak"] != 0 {
				t.Errorf("counters of %s: %v, want only what was refused", h.Name(), c)
			}
		}
	})
}

// probe has the kernel ask a neighbour, directly, whether it is still there
// (RFC 4861 §7.3.3, and for IPv4 ARP, which no rule sees).
func probe(t *testing.T, h *netlab.Host, neighbour netip.Addr) {
	t.Helper()
	on(t, h, func() error {
		nl := handle(t)
		link, err := nl.LinkByName(netlab.Outer)
		if err != nil {
			return err
		}
		find := func() (netlink.Neigh, error) {
			all, err := nl.NeighList(link.Attrs().Index, 0)
			i := slices.IndexFunc(all, func(n netlink.Neigh) bool {
				a, _ := netip.AddrFromSlice(n.IP)
				return a.Unmap() == neighbour
			})
			if err == nil && i < 0 {
				return netlink.Neigh{}, fmt.Errorf("%v is no neighbour", neighbour)
			}
			if err != nil {
				return netlink.Neigh{}, err
			}
			return all[i], nil
		}
		n, err := find()
		if err != nil {
			return err
		}
		n.State = netlink.NUD_PROBE
		if err := nl.NeighSet(&n); err != nil {
			return err
		}
		return until(func() (bool, error) {
			n, err := find()
			return n.State == netlink.NUD_REACHABLE, err
		})
	})
}
