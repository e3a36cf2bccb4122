package rules

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/e2e/netlab"
	"wishbone/intercept"
)

// Whoever answers a connection says first who it is.
const (
	plain    = "plain"    // the server itself
	captured = "captured" // the gateway's listener
)

// brief bounds the wait for what must not happen.
const brief = 50 * time.Millisecond

// world is a netlab.World that ends with the test.
func world(t *testing.T) *netlab.World {
	t.Helper()
	w, err := netlab.NewWorld(netlab.WorldConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// addrs are a world's addresses of one family.
type addrs struct{ client, westInner, westOuter, eastOuter, server netip.Addr }

// eachFamily runs a test with IPv4 and with IPv6.
func eachFamily(t *testing.T, f func(t *testing.T, a addrs)) {
	t.Run("IPv4", func(t *testing.T) {
		f(t, addrs{netlab.Client4, netlab.WestInner4, netlab.WestOuter4, netlab.EastOuter4, netlab.Server4})
	})
	t.Run("IPv6", func(t *testing.T) {
		f(t, addrs{netlab.Client6, netlab.WestInner6, netlab.WestOuter6, netlab.EastOuter6, netlab.Server6})
	})
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// serve opens a server that says plain and echoes.
func serve(t *testing.T, h *netlab.Host, where netip.AddrPort) {
	t.Helper()
	ln, err := h.Listen("tcp", where.String())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() }) // to end a connection whose client has not
			wg.Go(func() { greet(conn, plain) })
		}
	})
	t.Cleanup(func() { ln.Close() })
}

// greet says who answers, and echoes until the connection ends.
func greet(conn net.Conn, who string) {
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, who); err == nil {
		io.Copy(conn, conn) // how it ends is the client's to see
	}
}

// gate is the gateway's part that takes captured connections. It answers them
// itself.
type gate struct {
	listeners []int
	stop      chan struct{}
	wg        sync.WaitGroup

	mu    sync.Mutex
	flows []intercept.Flow // guarded by mu; FD is not open any more
	conns []*net.TCPConn   // guarded by mu
}

var own = intercept.Options{Mark: DefaultRouting.Own}

// openGate listens on a host. The test's end closes it, if the test has not.
func openGate(t *testing.T, h *netlab.Host) *gate {
	t.Helper()
	g := &gate{stop: make(chan struct{})}
	for _, f := range families {
		on(t, h, func() error {
			fd, err := intercept.Listen(at(f.loopback, 15001), own)
			if err == nil {
				g.listeners = append(g.listeners, fd)
				g.wg.Go(func() { g.accept(fd) })
			}
			return err
		})
	}
	t.Cleanup(g.close)
	return g
}

// accept looks at the listener often: a descriptor of poll cannot be woken.
func (g *gate) accept(fd int) {
	for {
		select {
		case <-g.stop:
			return
		default:
		}
		flow, err := intercept.Accept(fd)
		if err != nil {
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20) // the next Accept tells
			continue
		}
		f := os.NewFile(uintptr(flow.FD), "captured")
		conn, err := net.FileConn(f)
		f.Close()
		if err != nil {
			continue
		}
		g.mu.Lock()
		g.flows, g.conns = append(g.flows, flow), append(g.conns, conn.(*net.TCPConn))
		g.mu.Unlock()
		g.wg.Go(func() { greet(conn, captured) })
	}
}

// last is the newest flow.
func (g *gate) last(t *testing.T) intercept.Flow {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.flows) == 0 {
		t.Fatal("nothing was captured")
	}
	return g.flows[len(g.flows)-1]
}

// close stops listening and ends all connections.
func (g *gate) close() {
	select {
	case <-g.stop:
		return
	default:
	}
	close(g.stop)
	g.mu.Lock()
	for _, c := range g.conns {
		c.Close()
	}
	g.mu.Unlock()
	g.wg.Wait()
	for _, fd := range g.listeners {
		unix.Close(fd)
	}
}

// vanish loses all connections without a word to the other side, as if the
// resets of a killed process had been lost.
func (g *gate) vanish(t *testing.T) {
	t.Helper()
	g.mu.Lock()
	conns := g.conns
	g.mu.Unlock()
	for _, c := range conns {
		vanish(t, c)
	}
	g.close()
}

// vanish closes a connection in silence: what is under repair sends nothing
// (tcp(7), TCP_REPAIR).
func vanish(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var optErr error
	if err := errors.Join(raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_REPAIR, 1)
	}), optErr); err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// call is a connection that somebody has answered.
type call struct {
	net.Conn
	r   *bufio.Reader
	who string
}

// dial connects from a host, and hears who answers.
func dial(t *testing.T, h *netlab.Host, to netip.AddrPort) (*call, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := h.Dial(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	return hear(t, conn)
}

// hear takes a connection over; the test's end closes it.
func hear(t *testing.T, conn net.Conn) (*call, error) {
	t.Helper()
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(2 * patience))
	c := &call{Conn: conn, r: bufio.NewReader(conn)}
	line, err := c.r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	c.who = line[:len(line)-1]
	return c, nil
}

// mustDial is dial that has to be answered by someone.
func mustDial(t *testing.T, h *netlab.Host, to netip.AddrPort, who string) *call {
	t.Helper()
	c, err := dial(t, h, to)
	if err != nil {
		t.Fatalf("dial %v from %s: %v", to, h.Name(), err)
	}
	if c.who != who {
		t.Fatalf("dial %v from %s: answered by %s, want %s", to, h.Name(), c.who, who)
	}
	return c
}

// mustDialFrom is mustDial from an address and port of the host.
func mustDialFrom(t *testing.T, h *netlab.Host, from, to netip.AddrPort, who string) *call {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var conn net.Conn
	err := h.Do(func() (err error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from), Control: reuse}
		conn, err = d.DialContext(ctx, "tcp", to.String())
		return err
	})
	if err != nil {
		t.Fatalf("dial %v from %v on %s: %v", to, from, h.Name(), err)
	}
	c, err := hear(t, conn)
	if err != nil {
		t.Fatalf("dial %v from %v on %s: %v", to, from, h.Name(), err)
	}
	if c.who != who {
		t.Fatalf("dial %v from %v on %s: answered by %s, want %s", to, from, h.Name(), c.who, who)
	}
	return c
}

// reuse lets a socket be bound where one was a moment ago.
func reuse(_, _ string, c syscall.RawConn) error {
	var optErr error
	err := c.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
	return errors.Join(err, optErr)
}

// forget ends a connection so that nothing is left of it on either side.
func (c *call) forget(t *testing.T) {
	t.Helper()
	if err := c.Conn.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	c.Close()
}

// local is the call's own address.
func (c *call) local() netip.AddrPort {
	return c.LocalAddr().(*net.TCPAddr).AddrPort()
}

// echo sends a line and waits for it.
func (c *call) echo() error {
	if _, err := fmt.Fprintln(c, "still there?"); err != nil {
		return err
	}
	line, err := c.r.ReadString('\n')
	if err == nil && line != "still there?\n" {
		err = fmt.Errorf("echo is %q", line)
	}
	return err
}

// deliver connects from a foreign address, as the gateway does.
func deliver(t *testing.T, h *netlab.Host, from, to netip.AddrPort) (*call, error) {
	t.Helper()
	fd := -1
	on(t, h, func() (err error) {
		fd, err = intercept.Connect(from, to, own)
		return err
	})
	unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(patience.Milliseconds())) // SO_ERROR tells
	if n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || n != 0 {
		unix.Close(fd)
		return nil, errors.Join(err, syscall.Errno(n))
	}
	f := os.NewFile(uintptr(fd), "delivery")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return hear(t, conn)
}

// udpEcho opens a server that sends datagrams back.
func udpEcho(t *testing.T, h *netlab.Host, where netip.AddrPort) {
	t.Helper()
	on(t, h, func() error {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(where))
		if err != nil {
			return err
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			buf := make([]byte, 1500)
			for {
				n, from, err := conn.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				conn.WriteToUDPAddrPort(buf[:n], from) // the client sees if it is lost
			}
		})
		t.Cleanup(func() {
			conn.Close()
			wg.Wait()
		})
		return nil
	})
}

// udpAsk sends a datagram and waits for its echo for a while.
func udpAsk(t *testing.T, h *netlab.Host, to netip.AddrPort, wait time.Duration) error {
	t.Helper()
	return udpAskFrom(t, h, netip.AddrPort{}, to, wait)
}

// udpAskFrom is udpAsk from an address and port of the host.
func udpAskFrom(t *testing.T, h *netlab.Host, from, to netip.AddrPort, wait time.Duration) error {
	t.Helper()
	var conn *net.UDPConn
	on(t, h, func() (err error) {
		var local *net.UDPAddr
		if from.IsValid() {
			local = net.UDPAddrFromAddrPort(from)
		}
		conn, err = net.DialUDP("udp", local, net.UDPAddrFromAddrPort(to))
		return err
	})
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(wait))
	if _, err := conn.Write([]byte("anybody there?")); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 64))
	return err
}

// wantCount wants a counter to be above a number, or still at it.
func wantCount(t *testing.T, h *netlab.Host, name string, above uint64) {
	t.Helper()
	if got := counters(t, h)[name]; got <= above {
		t.Errorf("counter %s is %d on %s, want more than %d", name, got, h.Name(), above)
	}
}
