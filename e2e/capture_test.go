package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
)

// How a connection goes from one side to the other.
const (
	throughTunnel = "through the tunnel"
	inTheClear    = "in the clear"
)

// way exchanges lines on a connection and says how they went: what the wire
// between the gateways shows and what those that are there say must agree.
func (p *pair) way(t *testing.T, client, server io.ReadWriter, from, to netip.AddrPort) string {
	t.Helper()
	wire := capture(t, p.West, netlab.Outer)
	exchange(t, client, server)
	carriers := 0
	for _, g := range []*lab.Gateway{p.west, p.east} {
		if g != nil && slices.ContainsFunc(flows(t, g), func(f daemon.Flow) bool { return f.Client == from && f.Target == to }) {
			carriers++
		}
	}
	traffic, err := wire.Stop()
	if err != nil {
		t.Fatal(err)
	}
	clear := traffic.Contains([]byte("a line of text"))
	switch {
	case carriers == 2 && !clear:
		return throughTunnel
	case carriers == 0 && clear:
		return inTheClear
	}
	return fmt.Sprintf("carried by %d gateways, seen in the clear: %t", carriers, clear)
}

// capture begins to read an interface.
func capture(t *testing.T, h *netlab.Host, ifname string) *netlab.Capture {
	t.Helper()
	c, err := h.Capture(ifname)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// goes opens a connection from an address of a host, and fails unless it goes
// the way that it should, and comes from where it should.
func (p *pair) goes(t *testing.T, from *netlab.Host, source netip.Addr, to *netlab.Host, at netip.AddrPort, want string) {
	t.Helper()
	ln := listen(t, to, at)
	defer ln.Close() // the next case may want the port
	client := dialFrom(t, from, source, at)
	server := accept(t, ln)
	if got := addr(server.RemoteAddr()); got != addr(client.LocalAddr()) {
		t.Errorf("the server sees %s, the client is %s", got, client.LocalAddr())
	}
	if got := p.way(t, client, server, addr(client.LocalAddr()), at); got != want {
		t.Errorf("%s to %s went: %s; want: %s", source, at, got, want)
	}
	carried{client, server}.end(t)
}

// dialFrom connects from one of a host's addresses; the connection goes with the
// test.
func dialFrom(t *testing.T, h *netlab.Host, source netip.Addr, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	conn, err := tryDialFrom(t.Context(), h, source, to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// tryDialFrom is dialFrom where it may fail; the connection is the caller's.
func tryDialFrom(ctx context.Context, h *netlab.Host, source netip.Addr, to netip.AddrPort) (conn *net.TCPConn, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = h.Do(func() (err error) {
		conn, err = new(net.Dialer).DialTCP(ctx, "tcp", netip.AddrPortFrom(source, 0), to)
		return err
	})
	return conn, err
}

// addAddress gives an interface one more address.
func addAddress(t *testing.T, h *netlab.Host, ifname string, p netip.Prefix) {
	t.Helper()
	err := h.Do(func() error {
		link, err := netlink.LinkByName(ifname)
		if err != nil {
			return err
		}
		a := &netlink.Addr{IPNet: netlab.IPNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		return netlink.AddrAdd(link, a)
	})
	if err != nil {
		t.Fatalf("add %s to %s: %v", p, h.Name(), err)
	}
}

var (
	atClient    = place{"the client", func(p *pair) *netlab.Host { return p.Client }, [2]netip.Addr{netlab.Client4, netlab.Client6}}
	atServer    = place{"the server", func(p *pair) *netlab.Host { return p.Server }, [2]netip.Addr{netlab.Server4, netlab.Server6}}
	atWest      = place{"west", func(p *pair) *netlab.Host { return p.West }, [2]netip.Addr{netlab.WestOuter4, netlab.WestOuter6}}
	atEast      = place{"east", func(p *pair) *netlab.Host { return p.East }, [2]netip.Addr{netlab.EastInner4, netlab.EastInner6}}
	secondary   = [2]netip.Addr{netip.MustParseAddr("10.2.0.3"), netip.MustParseAddr("fd00:2::3")}
	besides     = [2]netip.Addr{netip.MustParseAddr("10.1.4.2"), netip.MustParseAddr("fd00:1::4:2")}
	atSecondary = place{"the server's excluded address", atServer.host, secondary}
	atBesides   = place{"the client's other address", atClient.host, besides}
)

// connection is one case of who connects to whom, and how that goes.
type connection struct {
	from, to place
	port     uint16
	want     string
}

func (p *pair) each(t *testing.T, cases []connection) {
	for _, c := range cases {
		for i, f := range families {
			t.Run(fmt.Sprintf("%s to %s port %d %s", c.from.name, c.to.name, c.port, f.name), func(t *testing.T) {
				p.goes(t, c.from.host(p), c.from.addr[i], c.to.host(p), netip.AddrPortFrom(c.to.addr[i], c.port), c.want)
			})
		}
	}
}

// TestExclude: what both gateways exclude, by network or by port, goes plain in
// both directions, from hosts behind a gateway and from the gateway's own; what
// lies beside it does not.
func TestExclude(t *testing.T) {
	const exclude = `exclude: {networks: [10.2.0.3/32, "fd00:2::3/128"], ports: [8443, 9000-9002]}`
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newPair(t, onFirewall(backend), func(west, east *site) { west.capture, east.capture = exclude, exclude })
			addAddress(t, p.Server, netlab.Inner, netip.PrefixFrom(secondary[0], 16))
			addAddress(t, p.Server, netlab.Inner, netip.PrefixFrom(secondary[1], 64))
			var cases []connection
			for _, from := range []place{atClient, atWest} {
				cases = append(cases,
					connection{from, atSecondary, 8080, inTheClear},
					connection{from, atServer, 8080, throughTunnel},
					connection{from, atServer, 8443, inTheClear},
					connection{from, atServer, 8444, throughTunnel},
					connection{from, atServer, 8999, throughTunnel},
					connection{from, atServer, 9000, inTheClear},
					connection{from, atServer, 9001, inTheClear},
					connection{from, atServer, 9002, inTheClear},
					connection{from, atServer, 9003, throughTunnel},
					connection{from, atEast, 9001, inTheClear},
					connection{from, atEast, 9003, throughTunnel})
			}
			p.each(t, append(cases, connection{atSecondary, atClient, 8080, inTheClear}))
		})
	}
}

// TestExcludedOnOneSide: what only one gateway excludes is no way around the
// guard of the other.
func TestExcludedOnOneSide(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newPair(t, onFirewall(backend), func(west, _ *site) { west.capture = "exclude: {ports: [8443]}" })
			for _, f := range families {
				at := netip.AddrPortFrom(f.server, 8443)
				listen(t, p.Server, at)
				before := status(t, p.east).Rules["guard"]
				unreachable(t, p.Client, at)
				if status(t, p.east).Rules["guard"] == before {
					t.Errorf("%s: the guard of east has not counted it", f.name)
				}
			}
		})
	}
}

// TestSources: capture.sources narrows what is captured of the hosts behind a
// gateway, and nothing else.
func TestSources(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newPair(t, onFirewall(backend), func(west, east *site) {
				west.capture = `sources: [10.1.4.0/24, "fd00:1::4:0/112"]`
				// Else its guard has the last word about what comes plain.
				east.capture = `exclude: {networks: [10.1.0.0/24, "fd00:1::/112"]}`
			})
			addAddress(t, p.Client, netlab.Inner, netip.PrefixFrom(besides[0], 16))
			addAddress(t, p.Client, netlab.Inner, netip.PrefixFrom(besides[1], 64))
			p.each(t, []connection{
				{atBesides, atServer, 8080, throughTunnel},
				{atClient, atServer, 8080, inTheClear},
				{atWest, atServer, 8080, throughTunnel},
			})
		})
	}
}

// TestFrom: capture.from chooses between hosts behind the gateway and its own
// processes. Deliveries are not its affair.
func TestFrom(t *testing.T) {
	for _, backend := range backends {
		for _, tt := range []struct {
			from             string
			forwarded, local string
		}{
			{"[forwarded]", throughTunnel, inTheClear},
			{"[local]", inTheClear, throughTunnel},
			{"[]", inTheClear, inTheClear},
		} {
			t.Run(backend+" "+tt.from, func(t *testing.T) {
				p := newPair(t, onFirewall(backend), func(west, east *site) {
					west.from = tt.from
					east.capture = "exclude: {ports: [8081]}" // east's guard, as above
				})
				p.each(t, []connection{
					{atClient, atServer, 8081, tt.forwarded},
					{atWest, atServer, 8081, tt.local},
					{atServer, atClient, 8080, throughTunnel},
					{atServer, place{"west", atWest.host, [2]netip.Addr{netlab.WestInner4, netlab.WestInner6}}, 8080, throughTunnel},
				})
			})
		}
	}
}

// asUser runs f with the calling thread being another user to the file system,
// setfsuid(2): it is whom the kernel notes on the sockets that f makes. It says
// false where there is no such user, as in a user namespace with only one.
func asUser(uid int, f func() error) (ok bool, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := unix.SetfsuidRetUid(uid)
	if err != nil {
		return false, err
	}
	// It never fails; asked for what cannot be, it says what is.
	now, err := unix.SetfsuidRetUid(-1)
	if err != nil || now != uid {
		return false, err
	}
	err = f()
	_, back := unix.SetfsuidRetUid(before)
	return true, errors.Join(err, back)
}

// dialAs connects as another user; the connection goes with the test.
func dialAs(t *testing.T, h *netlab.Host, uid int, to netip.AddrPort) (conn *net.TCPConn) {
	t.Helper()
	err := h.Do(func() error {
		ok, err := asUser(uid, func() error {
			c, err := net.DialTimeout("tcp", to.String(), patience)
			if err == nil {
				conn = c.(*net.TCPConn)
			}
			return err
		})
		if !ok && err == nil {
			err = fmt.Errorf("there is no user %d", uid)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// users are root and, where there is one, another.
func users(t *testing.T) []int {
	t.Helper()
	const other = 4242
	ok, err := asUser(other, func() error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if !ok {
		t.Log("root is the only user of this namespace: others cannot be tried")
		return []int{0}
	}
	return []int{0, other}
}

// TestExcludeUser: connections of an excluded user's processes on the gateway
// itself go plain, those of others and of hosts behind it do not.
func TestExcludeUser(t *testing.T) {
	users := users(t)
	for _, backend := range backends {
		for _, excluded := range users {
			t.Run(fmt.Sprintf("%s %d", backend, excluded), func(t *testing.T) {
				p := newPair(t, onFirewall(backend), func(west, east *site) {
					west.capture = fmt.Sprintf("exclude: {uids: [%d]}", excluded)
					east.capture = "exclude: {ports: [8081]}" // for its guard; it does not know users
				})
				for i, f := range families {
					at := netip.AddrPortFrom(f.server, 8081)
					ln := listen(t, p.Server, at)
					for _, uid := range users {
						client, want := dialAs(t, p.West, uid, at), throughTunnel
						if uid == excluded {
							want = inTheClear
						}
						if got := p.way(t, client, accept(t, ln), addr(client.LocalAddr()), at); got != want {
							t.Errorf("%s: of user %d, with %d excluded: %s", f.name, uid, excluded, got)
						}
					}
					ln.Close()
					p.goes(t, p.Client, atClient.addr[i], p.Server, at, throughTunnel)
				}
			})
		}
	}
}

// cgroupRoot is where the hierarchy of version 2 is, "" for nowhere.
func cgroupRoot() string {
	for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if unix.Statfs(root, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
			return root
		}
	}
	return ""
}

// newCgroup makes a group that goes with the test. It says false where this user
// may not make any.
func newCgroup(t *testing.T) (name string, dir *os.File, ok bool) {
	t.Helper()
	root := cgroupRoot()
	if root == "" {
		t.Log("cgroup v2 is not mounted here")
		return "", nil, false
	}
	path, err := os.MkdirTemp(root, "wishbone-e2e-")
	if err != nil {
		t.Logf("no cgroup can be made here: %v", err)
		return "", nil, false
	}
	t.Cleanup(func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	})
	if dir, err = os.Open(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return filepath.Base(path), dir, true
}

// connect is that process: it connects, says from where, and passes on what it
// reads and receives. It ends with its input.
func connect(to string) error {
	c, err := net.Dial("tcp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	fmt.Printf("%63s\n", c.LocalAddr())
	go io.Copy(os.Stdout, c) // ends with the process
	_, err = io.Copy(c, os.Stdin)
	return err
}

// program is a client in a process of its own.
type program struct {
	io.Reader
	io.Writer
	local netip.AddrPort
}

// connectIn has a program in a cgroup connect from a host. It ends with the test.
func connectIn(t *testing.T, h *netlab.Host, group *os.File, to netip.AddrPort) program {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", to.String())
	cmd.Env = append(os.Environ(), runVar+"=connect")
	cmd.Stderr = os.Stderr
	if group != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	line := make([]byte, 64) // the first line, padded
	if _, err := io.ReadFull(out, line); err != nil {
		t.Fatalf("a program in a cgroup: %v", err)
	}
	return program{out, in, netip.MustParseAddrPort(strings.TrimSpace(string(line)))}
}

// TestExcludeCgroup: so do those of processes in an excluded cgroup. A cgroup
// that is not there is an error.
func TestExcludeCgroup(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newWorld(t, onFirewall(backend), func(west, east *site) {
				west.capture = "exclude: {cgroups: [wishbone-nowhere/at.all]}"
				east.capture = "exclude: {ports: [8081]}"
			})
			p.write(p.westSite, p.eastSite)
			before := hostState(t, p.West)
			code, out := runOn(t, p.West, "1", "run", "-c", filepath.Join(p.dir, "west.yaml"))
			if code != 1 || !strings.Contains(out, `exclude cgroup "wishbone-nowhere/at.all"`) {
				t.Errorf("with a cgroup that is not there: exit code %d\n%s", code, out)
			}
			if d := difference(before, hostState(t, p.West)); d != "" {
				t.Errorf("left behind:\n%s", d)
			}
			name, dir, ok := newCgroup(t)
			if !ok {
				return
			}
			p.westSite.capture = "exclude: {cgroups: [" + name + "]}"
			p.startEast()
			p.startWest()
			for _, f := range families {
				at := netip.AddrPortFrom(f.server, 8081)
				ln := listen(t, p.Server, at)
				for _, c := range []struct {
					group *os.File
					want  string
				}{{dir, inTheClear}, {nil, throughTunnel}} {
					client := connectIn(t, p.West, c.group, at)
					if got := p.way(t, client, accept(t, ln), client.local, at); got != c.want {
						t.Errorf("%s, in the excluded cgroup: %t: %s", f.name, c.group != nil, got)
					}
				}
			}
		})
	}
}

// older opens connections of every kind, before there are gateways.
func (p *pair) older(t *testing.T) (all []carried) {
	t.Helper()
	for _, from := range []place{atClient, atWest} {
		for _, to := range []place{atServer, atEast} {
			for i := range families {
				at := netip.AddrPortFrom(to.addr[i], 8080)
				ln := listen(t, to.host(p), at)
				c := carried{client: dialFrom(t, from.host(p), from.addr[i], at)}
				c.server = accept(t, ln)
				exchange(t, c.client, c.server)
				ln.Close()
				all = append(all, c)
			}
		}
	}
	return all
}

// TestExisting: connections that are older than the gateways go on as they were,
// beside new ones that are captured, through reload and stop.
func TestExisting(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newWorld(t, onFirewall(backend))
			old := p.older(t)
			p.startWest()
			p.startEast()
			mustGoOn := func(when string) {
				for _, c := range old {
					from, to := addr(c.client.LocalAddr()), addr(c.client.RemoteAddr())
					if got := p.way(t, c.client, c.server, from, to); got != inTheClear {
						t.Errorf("%s: %s to %s goes: %s", when, from, to, got)
					}
				}
			}
			mustGoOn("at the start")
			p.goes(t, p.Client, netlab.Client4, p.Server, web, throughTunnel)
			for _, g := range []*lab.Gateway{p.west, p.east} {
				hangUp(t, g)
				awaitLog(t, g, "configuration reloaded")
			}
			mustGoOn("after a reload")
			stop(t, p)
			for _, c := range old {
				exchange(t, c.client, c.server)
			}
		})
	}
}

// TestExistingReset: or they are reset, whichever end speaks first, and nothing
// of them crosses any more.
func TestExistingReset(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newWorld(t, onFirewall(backend), func(west, east *site) {
				west.capture, east.capture = "existing: reset", "existing: reset"
			})
			old := p.older(t)
			p.startWest()
			p.startEast()
			wire := capture(t, p.West, netlab.Outer)
			for _, c := range old {
				for _, half := range []*net.TCPConn{c.client, c.server} {
					if _, err := io.WriteString(half, "a line of text\n"); err != nil && !isReset(err) {
						t.Errorf("%s to %s: %v", half.LocalAddr(), half.RemoteAddr(), err)
						continue
					}
					if err := readEnd(t, half); !isReset(err) && !errors.Is(err, syscall.EPIPE) {
						t.Errorf("%s to %s ends with %v, want a reset", half.LocalAddr(), half.RemoteAddr(), err)
					}
				}
			}
			traffic, err := wire.Stop()
			if err != nil {
				t.Fatal(err)
			}
			if traffic.Contains([]byte("a line of text")) {
				t.Error("what was written on an older connection has crossed")
			}
			p.goes(t, p.Client, netlab.Client4, p.Server, web, throughTunnel)
		})
	}
}

// TestNotTowardsPeers: connections that go neither to a peer nor come from one
// are left alone: those with a third network beyond the other gateway, in both
// directions, and those between our own networks.
func TestNotTowardsPeers(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newPair(t, onFirewall(backend))
			atBeyond := place{"a third network", host(t, p, "beyond", p.East, "203.0.113.1/24", "2001:db8:3::1/64", "203.0.113.2/24", "2001:db8:3::2/64"),
				[2]netip.Addr{netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8:3::2")}}
			p.each(t, []connection{
				{atClient, atBeyond, 8080, inTheClear},
				{atWest, atBeyond, 8080, inTheClear},
				{atBeyond, atClient, 8080, inTheClear},
				{atBeyond, atWest, 8080, inTheClear},
				{atClient, atServer, 8080, throughTunnel},
			})
			for _, a := range atBeyond.addr {
				if got := datagram(t, p.Client, atBeyond.host(p), a); got != "arrived" {
					t.Errorf("a datagram to %s %s", a, got)
				}
			}
			testOwnNetworks(t, p)
		})
	}
}

// host adds a host behind a router of the world, with the router's and its own
// addresses, and routes to everywhere.
func host(t *testing.T, p *pair, name string, router *netlab.Host, near4, near6, far4, far6 string) func(*pair) *netlab.Host {
	t.Helper()
	h, err := p.World.Host(name)
	if err != nil {
		t.Fatal(err)
	}
	near := []netip.Prefix{netip.MustParsePrefix(near4), netip.MustParsePrefix(near6)}
	far := []netip.Prefix{netip.MustParsePrefix(far4), netip.MustParsePrefix(far6)}
	if err := p.Link(router, name, near, h, netlab.Inner, far); err != nil {
		t.Fatal(err)
	}
	for i, everywhere := range []string{"0.0.0.0/0", "::/0"} {
		if err := h.Route(netip.MustParsePrefix(everywhere), near[i].Addr()); err != nil {
			t.Fatal(err)
		}
	}
	return func(*pair) *netlab.Host { return h }
}

// testOwnNetworks connects two hosts behind west, which routes between them.
func testOwnNetworks(t *testing.T, p *pair) {
	neighbour := host(t, p, "neighbour", p.West, "10.1.9.1/24", "fd00:1::9:1/112", "10.1.9.2/24", "fd00:1::9:2/112")(p)
	for i, a := range []netip.Addr{netip.MustParseAddr("10.1.9.2"), netip.MustParseAddr("fd00:1::9:2")} {
		bits := []int{24, 112}[i]
		if err := p.Client.Route(netip.PrefixFrom(a, bits).Masked(), []netip.Addr{netlab.WestInner4, netlab.WestInner6}[i]); err != nil {
			t.Fatal(err)
		}
		at := netip.AddrPortFrom(a, 8080)
		opened := status(t, p.west).Connections["outbound"].Opened
		ln := listen(t, neighbour, at)
		client := dial(t, p.Client, at)
		server := accept(t, ln)
		if server.RemoteAddr().String() != client.LocalAddr().String() {
			t.Errorf("the neighbour sees %s, the client is %s", server.RemoteAddr(), client.LocalAddr())
		}
		exchange(t, client, server)
		if status(t, p.west).Connections["outbound"].Opened != opened {
			t.Errorf("west has captured a connection to its own network's %s", a)
		}
		if got := datagram(t, p.Client, neighbour, a); got != "arrived" {
			t.Errorf("a datagram to the neighbour %s %s", a, got)
		}
	}
}
