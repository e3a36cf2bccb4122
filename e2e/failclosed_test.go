package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
)

// briefly bounds the wait for what must not happen.
const briefly = 400 * time.Millisecond

// unreachable fails unless a connection does not come about, or is reset with
// nothing received: connect() succeeds where a gateway lives, since it cannot
// know yet what the other one will say.
func unreachable(t *testing.T, h *netlab.Host, to netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), briefly)
	defer cancel()
	c, err := h.Dial(ctx, "tcp", to.String())
	if err != nil {
		return
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s reached %s: %d bytes, %v", h.Name(), to, n, err)
	}
}

// noise sends a marker again and again until the connection ends, which it tells.
func noise(c io.Writer, marker string) (ended <-chan error) {
	done := make(chan error, 1)
	go func() { // ends with the connection
		for {
			if _, err := io.WriteString(c, marker); err != nil {
				done <- err
				return
			}
		}
	}()
	return done
}

// clear are the flows of a capture that are not between tunnel ports.
func clear(traffic *netlab.Traffic) (found []string) {
	for _, f := range traffic.Flows() {
		if f.Proto != netlab.TCP || f.Src.Port() != 15008 && f.Dst.Port() != 15008 {
			found = append(found, f.String())
		}
	}
	return found
}

// TestKilled: a gateway is killed in the middle of streams that go both ways,
// and beside an idle one. Nothing crosses in the clear, then or later: neither
// what the applications go on sending, nor new connections, on either side. A
// gateway that comes back serves again.
func TestKilled(t *testing.T) {
	for _, backend := range backends {
		for _, side := range []string{"west", "east"} {
			for _, f := range families {
				t.Run(backend+" "+side+" "+f.name, func(t *testing.T) { testKilled(t, backend, side, f.server) })
			}
		}
	}
}

func testKilled(t *testing.T, backend, side string, server netip.Addr) {
	p := newPair(t, onFirewall(backend))
	at := netip.AddrPortFrom(server, 8080)
	ln := listen(t, p.Server, at)
	capture := func(h *netlab.Host, ifname string) *netlab.Capture {
		c, err := h.Capture(ifname)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	wire, lan := capture(p.West, netlab.Outer), capture(p.Client, netlab.Inner)

	idle := dial(t, p.Client, at)
	accept(t, ln)
	busy := dial(t, p.Client, at)
	busyServer := accept(t, ln)
	const up, down = "marker-to-the-server", "marker-to-the-client"
	first := make([]byte, len(up))
	ended := []<-chan error{noise(busy, up), noise(busyServer, down)}
	for _, c := range []net.Conn{busyServer, busy} {
		if _, err := io.ReadFull(c, first); err != nil {
			t.Fatal(err)
		}
	}
	killed := p.west
	if side == "east" {
		killed = p.east
	}
	if err := killed.Kill(); err != nil {
		t.Fatal(err)
	}
	// The streams are full and nobody reads: read, so that the writers find out.
	for _, c := range []net.Conn{busy, busyServer} {
		go io.Copy(io.Discard, c) // ends with the connection, which ends with the test
	}
	// An idle connection learns of it when it speaks.
	io.WriteString(idle, up)
	unreachable(t, p.Client, at)
	unreachable(t, p.Client, at)
	for _, e := range ended[:1] {
		if backend == "iptables" && side == "west" {
			break // its segments are dropped, and the client goes on trying
		}
		select {
		case <-e:
		case <-time.After(patience):
			t.Error("the client's connection goes on after the kill")
		}
	}
	traffic, err := wire.Stop()
	if err != nil {
		t.Fatal(err)
	}
	plain, err := lan.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if !plain.Contains([]byte(up)) || !plain.Contains([]byte(down)) {
		t.Error("the markers were not seen on the client's own network: reading packets proves nothing")
	}
	if found := clear(traffic); len(found) > 0 {
		t.Errorf("crossed the underlay in the clear:\n%s", strings.Join(found, "\n"))
	}
	for _, m := range []string{up, down} {
		if traffic.Contains([]byte(m)) {
			t.Errorf("%q crossed the underlay in the clear", m)
		}
	}
	// Back again: what the dead one left behind is taken over.
	if side == "west" {
		p.startWest()
	} else {
		p.startEast()
	}
	p.awaitService(ln)
	p.connect(t, p.Client, ln)
}

// TestFailedStart: a host that a dead gateway has left closed stays closed when the
// next one does not come up. Where none was before, a start that fails leaves nothing.
func TestFailedStart(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newPair(t, onFirewall(backend))
			fails := p.westSite
			fails.capture = "exclude: {cgroups: [no/such.service]}"
			failedStart := func() {
				t.Helper()
				g := p.launch(p.West, fails, p.eastSite)
				if code := exitCode(t, g); code != 1 {
					t.Fatalf("exit code %d\n%s", code, g.Log())
				}
			}
			ends := func(g *lab.Gateway) {
				t.Helper()
				if err := g.Signal(unix.SIGTERM); err != nil {
					t.Fatal(err)
				}
				exitCode(t, g)
			}
			ln := listen(t, p.Server, web)
			ends(p.east) // it would drop what comes in the clear
			if err := p.west.Kill(); err != nil {
				t.Fatal(err)
			}
			failedStart()
			unreachable(t, p.Client, web)

			p.startEast()
			p.startWest()
			awaitLog(t, p.west, "rules stand already and are taken over")
			p.awaitService(ln)
			ends(p.west)
			failedStart()
			ends(p.east)
			dial(t, p.Client, web)
		})
	}
}

// awaitService waits until a connection reaches the listener again: west rests
// for some milliseconds after a dial that failed, and refuses meanwhile.
func (p *pair) awaitService(ln net.Listener) {
	p.t.Helper()
	eventually(p.t, "the server is reached again", func() bool {
		c, err := tryDial(p.t, p.Client, addr(ln.Addr()))
		if err != nil {
			return false
		}
		defer c.Close()
		if err := ln.(*net.TCPListener).SetDeadline(time.Now().Add(briefly)); err != nil {
			p.t.Fatal(err)
		}
		server, err := ln.Accept()
		if err != nil {
			return false
		}
		server.Close()
		return true
	})
}

// TestGuard: a packet from outside that claims a peer's address, towards our
// networks, is dropped, whatever its protocol. The same packet passes before
// the gateway stands there.
func TestGuard(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			for _, f := range families {
				t.Run(f.name, func(t *testing.T) { testGuard(t, backend, f.client, f.server) })
			}
		})
	}
}

func testGuard(t *testing.T, backend string, client, server netip.Addr) {
	p := newWorld(t, onFirewall(backend))
	targets := []struct {
		name string
		host *netlab.Host
		addr netip.Addr
	}{{"behind east", p.Server, server}, {"east itself", p.East, netlab.EastInner4}}
	if server.Is6() {
		targets[1].addr = netlab.EastInner6
	}
	for i := range targets {
		listen(t, targets[i].host, netip.AddrPortFrom(targets[i].addr, 8080))
	}
	// The control: nobody guards, and everything arrives.
	for _, to := range targets {
		dial(t, p.Client, netip.AddrPortFrom(to.addr, 8080)).Close()
		if got := datagram(t, p.Client, to.host, to.addr); got != "arrived" {
			t.Fatalf("without a gateway a datagram to %s %s", to.name, got)
		}
	}
	p.startEast()
	for _, to := range targets {
		unreachable(t, p.Client, netip.AddrPortFrom(to.addr, 8080))
		if got := datagram(t, p.Client, to.host, to.addr); got != "was lost" {
			t.Errorf("a datagram that claims a peer's address %s at %s", got, to.name)
		}
	}
	if n := status(t, p.east).Rules["guard"]; n < 4 {
		t.Errorf("the guard has counted %d packets, want 4 at least", n)
	}
}

// datagram sends one and says what became of it.
func datagram(t *testing.T, from, to *netlab.Host, address netip.Addr) string {
	t.Helper()
	at := netip.AddrPortFrom(address, 9999).String()
	var conn net.PacketConn
	err := to.Do(func() (err error) {
		conn, err = net.ListenPacket("udp", at)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c, err := from.Dial(t.Context(), "udp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	want := fmt.Appendf(nil, "datagram to %s", address)
	if _, err := c.Write(want); err != nil {
		return "was refused at once"
	}
	if err := conn.SetReadDeadline(time.Now().Add(briefly)); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	n, _, err := conn.ReadFrom(got)
	if err != nil || !bytes.Equal(got[:n], want) {
		return "was lost"
	}
	return "arrived"
}
