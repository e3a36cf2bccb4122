package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"wishbone/e2e/netlab"
)

// What becomes of a question that is not TCP.
const (
	answered = "answered"
	forbade  = "refused" // the sender was told
	unheard  = "lost"
)

// refusals are how a socket is told of an ICMP error about what it sent (the
// kernel's icmp_err_convert), and of a rule on the host itself.
var refusals = []error{syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EACCES, syscall.EPERM}

// outcome sends a question on a connected socket and says what came of it.
func outcome(t *testing.T, c net.Conn, question, answer []byte) string {
	t.Helper()
	defer c.Close()
	_, err := c.Write(question)
	if err == nil {
		if err := c.SetReadDeadline(time.Now().Add(briefly)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, 1500)
		var n int
		if n, err = c.Read(got); err == nil {
			if !bytes.Contains(got[:n], answer) {
				t.Fatalf("%s answers %x, want %x", c.RemoteAddr(), got[:n], answer)
			}
			return answered
		}
	}
	switch {
	case slices.ContainsFunc(refusals, func(r error) bool { return errors.Is(err, r) }):
		return forbade
	case errors.Is(err, os.ErrDeadlineExceeded):
		return unheard
	}
	return err.Error()
}

// ask sends a datagram to a host that answers it, and says what came of it.
func ask(t *testing.T, from, to *netlab.Host, at netip.AddrPort) string {
	t.Helper()
	var server net.PacketConn
	err := to.Do(func() (err error) {
		server, err = net.ListenPacket("udp", at.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() { // ends with server
		buf := make([]byte, 1500)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			// The client says whether it has come.
			_, _ = server.WriteTo(append([]byte("re: "), buf[:n]...), from)
		}
	}()
	c, err := from.Dial(t.Context(), "udp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	return outcome(t, c, []byte("a question"), []byte("re: a question"))
}

// ping sends an echo request (RFC 792, RFC 4443 §4.1) and says what came of it.
func ping(t *testing.T, from *netlab.Host, to netip.Addr) string {
	t.Helper()
	network, request, reply := "ip4:icmp", byte(8), byte(0)
	if to.Is6() {
		network, request, reply = "ip6:ipv6-icmp", 128, 129
	}
	rest := []byte("\x12\x34\x00\x01an echo") // identifier, sequence number, data
	message := append([]byte{request, 0, 0, 0}, rest...)
	if to.Is4() { // of ICMPv6 the kernel does it
		binary.BigEndian.PutUint16(message[2:], checksum(message))
	}
	c, err := from.Dial(t.Context(), network, to.String())
	if err != nil {
		t.Fatal(err)
	}
	answer := append([]byte{reply, 0, 0, 0}, rest...)
	if to.Is4() {
		binary.BigEndian.PutUint16(answer[2:], checksum(answer))
		return outcome(t, c, message, answer)
	}
	return outcome(t, c, message, rest)
}

// checksum is that of the Internet (RFC 1071).
func checksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// notTCP counts the packets of a capture that are neither TCP nor keep the
// network going.
func notTCP(traffic *netlab.Traffic) (n int) {
	for _, f := range traffic.Flows() {
		if f.Proto != netlab.TCP {
			n += f.Packets
		}
	}
	return n
}

// TestUncarried: what is not TCP does not go through a tunnel. Towards a peer it
// is refused, so that the sender knows, and counted, and nothing of it crosses;
// or, with uncarried: pass, it crosses as it is. So it does without a gateway.
func TestUncarried(t *testing.T) {
	for _, backend := range backends {
		for _, tt := range []struct{ uncarried, want string }{{"reject", forbade}, {"pass", answered}} {
			t.Run(backend+" "+tt.uncarried, func(t *testing.T) {
				p := newWorld(t, onFirewall(backend), func(west, east *site) {
					west.peerUncarried, east.peerUncarried = tt.uncarried, tt.uncarried
				})
				testUncarried(t, p, answered)
				p.startWest()
				p.startEast()
				testUncarried(t, p, tt.want)
				p.goes(t, p.Client, netlab.Client4, p.Server, web, throughTunnel)
			})
		}
	}
}

func testUncarried(t *testing.T, p *pair, want string) {
	t.Helper()
	outside := place{"east, outside", atEast.host, [2]netip.Addr{netlab.EastOuter4, netlab.EastOuter6}}
	counted := func() uint64 {
		if p.west == nil {
			return 0
		}
		return status(t, p.west).Rules["uncarried"]
	}
	before, sent := counted(), uint64(0)
	for _, from := range []place{atClient, atWest} {
		for _, to := range []place{atServer, atEast, outside} {
			for i, f := range families {
				what := fmt.Sprintf("%s to %s, %s", from.name, to.name, f.name)
				wire := capture(t, p.West, netlab.Outer)
				if got := ask(t, from.host(p), to.host(p), netip.AddrPortFrom(to.addr[i], 53)); got != want {
					t.Errorf("a datagram from %s: %s, want %s", what, got, want)
				}
				if got := ping(t, from.host(p), to.addr[i]); got != want {
					t.Errorf("an echo request from %s: %s, want %s", what, got, want)
				}
				sent += 2
				traffic, err := wire.Stop()
				if err != nil {
					t.Fatal(err)
				}
				if n := notTCP(traffic); n == 0 == (want == answered) {
					t.Errorf("from %s: %d packets that are not TCP crossed:\n%s", what, n, traffic)
				}
			}
		}
	}
	if want == answered {
		sent = 0
	}
	if n := counted() - before; n != sent {
		t.Errorf("%d refusals were counted, want %d", n, sent)
	}
}

// opens says whether a connection comes about soon and is answered; if so, its
// ends stay with the test.
func (p *pair) opens(t *testing.T, from *netlab.Host, ln net.Listener) (c carried, ok bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), briefly)
	defer cancel()
	client, err := from.Dial(ctx, "tcp", ln.Addr().String())
	if err != nil {
		return carried{}, false
	}
	t.Cleanup(func() { client.Close() })
	if err := client.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return carried{client.(*net.TCPConn), accept(t, ln)}, true
}

// TestUnavailablePass: a peer that may be talked to in the clear, without the
// gateway, is carried to while it is there. Some time after it was killed (at
// once, for connections of others and nftables) new connections go plain; and
// when it is back, they are carried again.
func TestUnavailablePass(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			t.Parallel() // the time that the kernel needs to believe it is the same
			p := newPair(t, onFirewall(backend), func(west, east *site) {
				west.peerUnavailable, east.peerUnavailable = "pass", "pass"
			})
			cases := []connection{{atClient, atServer, 8080, throughTunnel}, {atWest, atServer, 8080, throughTunnel}}
			p.each(t, cases)
			if err := p.west.Kill(); err != nil {
				t.Fatal(err)
			}
			p.west = nil
			for _, from := range []place{atClient, atWest} {
				for _, f := range families {
					ln := listen(t, p.Server, netip.AddrPortFrom(f.server, 8080))
					var c carried
					eventually(t, "new connections from "+from.name+" go plain", func() (ok bool) {
						c, ok = p.opens(t, from.host(p), ln)
						return ok
					})
					if got := p.way(t, c.client, c.server, addr(c.client.LocalAddr()), addr(ln.Addr())); got != inTheClear {
						t.Errorf("a connection from %s went: %s", from.name, got)
					}
					c.end(t)
					ln.Close()
				}
			}
			p.startWest()
			p.each(t, cases)
		})
	}
}
