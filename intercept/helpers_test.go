package intercept

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wishbone/e2e/netlab"
)

func TestMain(m *testing.M) {
	if err := netlab.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// patience bounds every wait; none takes long unless something is broken.
const patience = 10 * time.Second

// family has the addresses of a street: gateway and server on one cable, and a
// client that is nowhere, whose address the gateway takes.
type family struct {
	name                    string
	client, gateway, server netip.Addr
	second                  netip.Addr // the server's other address
	away                    netip.Addr // somewhere behind the gateway
	nowhere                 netip.Addr // no route leads there
	loopback                netip.Addr
}

var families = []family{
	{
		"IPv4", netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("10.2.0.1"), netip.MustParseAddr("10.2.0.2"),
		netip.MustParseAddr("10.2.0.3"), netip.MustParseAddr("10.1.0.9"), netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("127.0.0.1"),
	},
	{
		"IPv6", netip.MustParseAddr("fd00:1::2"), netip.MustParseAddr("fd00:2::1"), netip.MustParseAddr("fd00:2::2"),
		netip.MustParseAddr("fd00:2::3"), netip.MustParseAddr("fd00:1::9"), netip.MustParseAddr("2001:db8:f::1"), netip.MustParseAddr("::1"),
	},
}

// street is the two hosts.
type street struct{ gateway, server *netlab.Host }

// testFamilies runs f once a family, each on a street of its own.
func testFamilies(t *testing.T, f func(t *testing.T, s street, a family)) {
	for _, a := range families {
		t.Run(a.name, func(t *testing.T) { f(t, newStreet(t), a) })
	}
}

func newStreet(t *testing.T) street {
	t.Helper()
	lab := netlab.New()
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	var s street
	for name, h := range map[string]**netlab.Host{"gateway": &s.gateway, "server": &s.server} {
		var err error
		if *h, err = lab.Host(name); err != nil {
			t.Fatal(err)
		}
	}
	var near, far []netip.Prefix
	for _, a := range families {
		bits := map[bool]int{true: 24, false: 64}[a.client.Is4()]
		near = append(near, netip.PrefixFrom(a.gateway, bits))
		far = append(far, netip.PrefixFrom(a.server, bits), netip.PrefixFrom(a.second, bits))
	}
	if err := lab.Link(s.gateway, "inner", near, s.server, "inner", far); err != nil {
		t.Fatal(err)
	}
	for _, a := range families {
		if err := s.server.Route(netip.PrefixFrom(netip.IPv4Unspecified(), 0), a.gateway); a.client.Is4() && err != nil {
			t.Fatal(err)
		}
		if err := s.server.Route(netip.PrefixFrom(netip.IPv6Unspecified(), 0), a.gateway); a.client.Is6() && err != nil {
			t.Fatal(err)
		}
	}
	if err := s.gateway.Do(returnPath); err != nil {
		t.Fatal(err)
	}
	return s
}

// returnPath takes in what servers answer to clients. It is a rule for what
// comes off the cable: a route without one would make the clients' addresses
// local, and a bind to them would work without IP_TRANSPARENT.
func returnPath() error {
	const table = 100
	for _, net := range []string{"10.1.0.0/24", "fd00:1::/64"} {
		dst, err := netlink.ParseIPNet(net)
		if err != nil {
			return err
		}
		rule := netlink.NewRule()
		rule.Family, rule.IifName, rule.Table, rule.Priority = familyOf(dst), "inner", table, 10
		route := &netlink.Route{Dst: dst, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, LinkIndex: 1, Table: table}
		if err := errors.Join(netlink.RuleAdd(rule), netlink.RouteAdd(route)); err != nil {
			return fmt.Errorf("return path for %s: %w", net, err)
		}
	}
	return nil
}

func familyOf(n *net.IPNet) int {
	if n.IP.To4() != nil {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// listen opens a listener on the server that accepts nothing by itself.
func (s street) listen(t *testing.T, at netip.Addr) (*net.TCPListener, netip.AddrPort) {
	t.Helper()
	ln, err := s.server.Listen("tcp", netip.AddrPortFrom(at, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener), netip.MustParseAddrPort(ln.Addr().String())
}

// begin begins a connection on the gateway. It is closed with the test.
func (s street) begin(t *testing.T, from, to netip.AddrPort, o Options) (fd int, err error) {
	t.Helper()
	err = s.gateway.Do(func() (err error) {
		fd, err = Connect(from, to, o)
		return err
	})
	if (err == nil) == (fd < 0) {
		t.Fatalf("descriptor %d and error %v", fd, err)
	}
	return fd, err
}

// connect makes a connection on the gateway that must come about; the caller
// closes it.
func (s street) connect(t *testing.T, from, to netip.AddrPort, o Options) int {
	t.Helper()
	fd, err := s.begin(t, from, to, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := ended(t, fd); err != nil {
		unix.Close(fd)
		t.Fatalf("connect from %s to %s: %v", from, to, err)
	}
	return fd
}

// ended waits for the end of an attempt.
func ended(t *testing.T, fd int) error {
	t.Helper()
	if !ready(t, fd, unix.POLLOUT) {
		t.Fatal("the attempt did not end")
	}
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		t.Fatal(err)
	}
	if n != 0 {
		return syscall.Errno(n)
	}
	return nil
}

// ready waits for a descriptor.
func ready(t *testing.T, fd int, events int16) bool {
	t.Helper()
	return poll(t, []unix.PollFd{{Fd: int32(fd), Events: events}}) > 0
}

// poll waits for something to happen to any of fds, and says to how many it did.
func poll(t *testing.T, fds []unix.PollFd) int {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		n, err := unix.Poll(fds, int(patience.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return 0
}

// accept takes one connection off the server's listener, and says from whom it
// is. It is closed with the test.
func accept(t *testing.T, ln *net.TCPListener) (*net.TCPConn, netip.AddrPort) {
	t.Helper()
	if err := ln.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c, err := ln.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c, netip.MustParseAddrPort(c.RemoteAddr().String())
}

// wantCarried sends a few bytes each way.
func wantCarried(t *testing.T, fd int, c net.Conn) {
	t.Helper()
	if _, err := unix.Write(fd, []byte("ping")); err != nil {
		t.Fatal(err)
	}
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "ping" {
		t.Fatalf("%q, %v", buf, err)
	}
	if _, err := c.Write([]byte("pong")); err != nil {
		t.Fatal(err)
	}
	if !ready(t, fd, unix.POLLIN) {
		t.Fatal("no answer")
	}
	if n, err := unix.Read(fd, buf); err != nil || string(buf[:n]) != "pong" {
		t.Fatalf("%q, %v", buf[:n], err)
	}
}

// option is a socket option and what it should say.
type option struct {
	name            string
	level, opt, val int
}

func wantOptions(t *testing.T, fd int, options ...option) {
	t.Helper()
	for _, o := range options {
		got, err := unix.GetsockoptInt(fd, o.level, o.opt)
		if err != nil {
			t.Fatalf("%s: %v", o.name, err)
		}
		if got != o.val {
			t.Errorf("%s is %d, want %d", o.name, got, o.val)
		}
	}
}

func wantFlags(t *testing.T, fd int) {
	t.Helper()
	status, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || status&unix.O_NONBLOCK == 0 {
		t.Errorf("blocks: %x, %v", status, err)
	}
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("children inherit it: %x, %v", flags, err)
	}
}

// without runs f on a thread that lacks capabilities and ends with it.
func without(t *testing.T, f func(), capabilities ...int) {
	t.Helper()
	result := make(chan error)
	go func() { // awaited below
		runtime.LockOSThread() // never unlocked: the thread does not come back
		err := drop(capabilities)
		if err == nil {
			f()
		}
		result <- err
	}()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

// drop takes capabilities from the calling thread (capset(2)).
func drop(capabilities []int) error {
	var data [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	for _, c := range capabilities {
		data[c/32].Effective &^= 1 << (c % 32)
	}
	return unix.Capset(&header, &data[0])
}

// dial connects from the server's host.
func (s street) dial(t *testing.T, to netip.AddrPort) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := s.server.Dial(ctx, "tcp", to.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
