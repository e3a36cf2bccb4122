package e2e

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"wishbone/e2e/netlab"
	"wishbone/identity/identitytest"
)

// lasting is how long something goes on, and how long with -long.
func lasting(short, full time.Duration) time.Duration {
	if *long {
		return full
	}
	return short
}

// untouched fails if a gateway has cut or refused anything, or a tunnel has ended.
func (p *pair) untouched(t *testing.T) {
	t.Helper()
	for _, h := range []*netlab.Host{p.West, p.East} {
		for series, v := range scrape(t, h) {
			for _, bad := range []string{
				"wishbone_tunnels_cut_total", "wishbone_connections_refused_total", "wishbone_handshakes_refused_total", "wishbone_accept_paused_total",
				`wishbone_connections_closed_total{why="cut"}`, `wishbone_connections_closed_total{why="peer_cut"}`, `wishbone_connections_closed_total{why="tunnel_lost"}`,
			} {
				if strings.HasPrefix(series, bad) && v != 0 {
					t.Errorf("%s: %s is %v", h.Name(), series, v)
				}
			}
		}
	}
	for _, g := range []string{p.west.Log(), p.east.Log()} {
		for line := range strings.Lines(g) {
			if strings.Contains(line, "tunnel down") || strings.Contains(line, "takes no new connections") {
				t.Errorf("GOAWAY, or worse: %s", line)
			}
		}
	}
}

// quietly makes both gateways say only what is wrong: a line for each of many
// thousand connections would take longer than they do.
func quietly(west, east *site) {
	west.log, east.log = "{level: warn}", "{level: warn}"
}

// TestHonest: no limit is in the way of honest traffic, however unusual it is:
// a hundred streams that write a byte at a time, as many connections as can be
// opened, a hundred readers that stand still beside one that does not.
func TestHonest(t *testing.T) {
	t.Run("a byte at a time", func(t *testing.T) {
		p := newPair(t)
		testCrumbs(t, p, lasting(2*time.Second, time.Minute))
		p.untouched(t)
	})
	t.Run("opens", func(t *testing.T) {
		p := newPair(t, quietly)
		testOpens(t, p, lasting(2*time.Second, 20*time.Second))
		p.untouched(t)
	})
	t.Run("slow readers", func(t *testing.T) {
		p := newPair(t)
		testSlowReaders(t, p, lasting(time.Second, 20*time.Second))
		p.untouched(t)
	})
}

// testCrumbs writes single bytes both ways on a hundred connections.
func testCrumbs(t *testing.T, p *pair, d time.Duration) {
	ln := listen(t, p.Server, web)
	var all sync.WaitGroup
	var sent, received atomic.Int64
	stop := time.Now().Add(d)
	write := func(c *net.TCPConn) { // ends with stop
		for n := byte(0); time.Now().Before(stop); n++ {
			if _, err := c.Write([]byte{n}); err != nil {
				t.Errorf("write: %v", err)
				return
			}
			sent.Add(1)
		}
		if err := c.CloseWrite(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	read := func(c *net.TCPConn) { // ends with write at the other end
		buf, want := make([]byte, 64<<10), byte(0)
		for {
			n, err := c.Read(buf)
			for _, b := range buf[:n] {
				if b != want {
					t.Errorf("got %d, want %d", b, want)
					return
				}
				want++
			}
			received.Add(int64(n))
			if err == io.EOF {
				return
			}
			if err != nil {
				t.Errorf("read: %v", err)
				return
			}
		}
	}
	for range 100 {
		c := p.open(ln)
		for _, end := range []*net.TCPConn{c.client, c.server} {
			if err := end.SetDeadline(stop.Add(patience)); err != nil {
				t.Fatal(err)
			}
			all.Go(func() { write(end) })
			all.Go(func() { read(end) })
		}
	}
	all.Wait()
	t.Logf("%d bytes in %v", sent.Load(), d)
	if sent.Load() != received.Load() {
		t.Errorf("%d bytes were sent, %d have arrived", sent.Load(), received.Load())
	}
}

// testOpens opens and closes connections as fast as this machine does.
func testOpens(t *testing.T, p *pair, d time.Duration) {
	ln := listen(t, p.Server, web)
	var served sync.WaitGroup
	served.Go(func() { // ends with the listener
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the client's word, and it has a deadline
				defer c.Close()
				var b [1]byte
				if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
					return
				}
				if _, err := io.ReadFull(c, b[:]); err == nil {
					// The client sees whether it has arrived.
					_, _ = c.Write(b[:])
				}
			}()
		}
	})
	var all sync.WaitGroup
	var opened atomic.Int64
	stop := time.Now().Add(d)
	for range 32 {
		all.Go(func() {
			for time.Now().Before(stop) {
				if err := oneByte(t, p.Client, web); err != nil {
					t.Error(err)
					return
				}
				opened.Add(1)
			}
		})
	}
	all.Wait()
	ln.Close()
	served.Wait()
	t.Logf("%d connections in %v", opened.Load(), d)
	if opened.Load() < 1000 {
		t.Errorf("only %d connections were opened", opened.Load())
	}
}

// oneByte connects, and has one byte come back.
func oneByte(t *testing.T, from *netlab.Host, to netip.AddrPort) error {
	c, err := from.Dial(t.Context(), "tcp", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	var b [1]byte
	if _, err = c.Write(b[:]); err == nil {
		_, err = io.ReadFull(c, b[:])
	}
	return err
}

// testSlowReaders has a hundred servers that do not read, and one that does.
func testSlowReaders(t *testing.T, p *pair, d time.Duration) {
	ln := listen(t, p.Server, web)
	block := bytes.Repeat([]byte("block of text.\n\n"), 4<<10)
	stop := make(chan struct{})
	var all sync.WaitGroup
	var stuck []carried
	for range 100 {
		c := p.open(ln)
		stuck = append(stuck, c)
		all.Go(func() { // ends with the connection
			for {
				if _, err := c.client.Write(block); err != nil {
					return
				}
			}
		})
	}
	alive := p.open(ln)
	var got int64
	all.Go(func() {
		n, err := io.Copy(io.Discard, alive.server)
		got = n
		if err != nil {
			t.Errorf("the one that reads: %v", err)
		}
	})
	go func() {
		<-time.After(d)
		close(stop)
	}()
	var sent int64
	for done := false; !done; {
		n, err := alive.client.Write(block)
		sent += int64(n)
		if err != nil {
			t.Fatalf("the one that reads, after %d bytes: %v", sent, err)
		}
		select {
		case <-stop:
			done = true
		default:
		}
	}
	if err := alive.client.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	p.untouched(t) // while they still stand
	for i, c := range stuck {
		// What waits for them is thrown away with the connection.
		if err := c.client.SetLinger(0); err != nil {
			t.Errorf("connection %d: %v", i, err)
		}
		c.client.Close()
	}
	all.Wait()
	t.Logf("%d MB beside a hundred that do not read", sent>>20)
	if got != sent || sent < 1<<20 {
		t.Errorf("%d bytes were sent, %d have arrived", sent, got)
	}
}

// prey is what a flood is let loose on.
type prey struct {
	tunnel netip.AddrPort // takes a tunnel
	half   netip.AddrPort // takes half a handshake
	shut   netip.AddrPort // of a peer that is cut, and may have to rest
}

// discard is a process on three addresses that costs as little as it can: it shakes
// hands, or not, and throws away what comes; the last hangs up at once.
func discard(at []string) error {
	cert := identitytest.New(domain).Issue("/sink")
	cfg := &tls.Config{NextProtos: []string{"h2"}, Certificates: []tls.Certificate{{PrivateKey: cert.PrivateKey, Certificate: [][]byte{cert.Certificates[0].Raw}}}}
	for i, take := range []func(net.Conn){
		func(c net.Conn) {
			// What does not shake hands is closed as the rest.
			if tls.Server(c, cfg).Handshake() == nil {
				_, _ = io.Copy(io.Discard, c)
			}
		},
		func(c net.Conn) { _, _ = io.Copy(io.Discard, c) },
		func(net.Conn) {},
	} {
		ln, err := net.Listen("tcp", at[i])
		if err != nil {
			return err
		}
		go func() { // ends with the process
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					take(c)
				}()
			}
		}()
	}
	fmt.Println("here")
	select {} // until it is killed
}

// newSink starts one on a host of its own behind Mallory.
func (s *siege) newSink() prey {
	s.t.Helper()
	near, far := netip.MustParsePrefix("198.18.3.1/24"), netip.MustParsePrefix("198.18.3.2/24")
	h, err := s.World.Host("sink")
	if err == nil {
		err = errors.Join(
			s.Link(s.mallory, "sink", []netip.Prefix{near}, h, "mallory", []netip.Prefix{far}),
			h.Route(toEast.Masked(), near.Addr()),
		)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	to := prey{netip.AddrPortFrom(far.Addr(), 1), netip.AddrPortFrom(far.Addr(), 2), netip.AddrPortFrom(far.Addr(), 3)}
	cmd := exec.Command("/proc/self/exe", to.tunnel.String(), to.half.String(), to.shut.String())
	cmd.Env = append(os.Environ(), runVar+"=sink")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = h.Start(cmd)
	}
	if err == nil {
		_, err = out.Read(make([]byte, 1)) // it listens
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		// It ends for the signal.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return to
}

// TestHonestBesideFlood: what a gateway's work on floods and strangers does to the
// round trip of honest connections on another tunnel. The same flood goes to the
// gateway and to a sink in turn, so that what it costs the host to make it is in
// both. It tells, and does not judge: this takes a machine that is left alone. Run
// it with
//
//	go test ./e2e -run TestHonestBesideFlood -v -args -long
func TestHonestBesideFlood(t *testing.T) {
	s := newSiege(t, quietly)
	deadEnds(t, s.pair)
	listen(t, s.Server, web)
	honest := s.newBystanders(listen(t, s.Server, netip.AddrPortFrom(netlab.Server4, 8081)), 4)
	sink, gateway := s.newSink(), prey{eastTunnel, eastTunnel, eastTunnel}
	spell, turns := lasting(50*time.Millisecond, 2*time.Second), 3
	if *long {
		turns = 7
	}
	// quantiles of the rounds while a flood goes on.
	quantiles := func(flood func(to prey, stop <-chan struct{}), to prey) (p50, p99 time.Duration) {
		honest.rounds("nothing")
		stop := make(chan struct{})
		go func() {
			<-time.After(spell)
			close(stop)
		}()
		flood(to, stop)
		<-stop
		took := honest.rounds("a flood")
		return quantile(took, 0.5), quantile(took, 0.99)
	}
	t.Logf("%-45s %10s %10s %7s %10s %10s", "medians", "p99 sink", "gateway", "", "p50 sink", "gateway")
	for _, f := range s.annoyances() {
		var p50, p99 [2][]time.Duration
		for turn := range 2 * turns {
			which := (turn + turn/2) % 2 // sink, gateway, gateway, sink, …
			a, b := quantiles(f.beside, [...]prey{sink, gateway}[which])
			p50[which], p99[which] = append(p50[which], a), append(p99[which], b)
		}
		median := func(d []time.Duration) time.Duration { return quantile(d, 0.5).Round(time.Microsecond) }
		a, b := median(p99[0]), median(p99[1])
		t.Logf("%-45s %10v %10v %+6.0f%% %10v %10v", f.name, a, b, 100*(float64(b)/float64(a)-1), median(p50[0]), median(p50[1]))
	}
}

// annoyance is what may go on beside honest connections.
type annoyance struct {
	name string
	// beside goes on until stop is closed.
	beside func(to prey, stop <-chan struct{})
}

func (s *siege) annoyances() []annoyance {
	hello := helloOf(s.t)
	return []annoyance{
		{"PINGs as fast as they are borne", s.paced(100*time.Millisecond, func(h *hostile) { h.check(h.framer.WritePing(false, [8]byte{})) })},
		{"PRIORITY frames", s.paced(10*time.Millisecond, func(h *hostile) { h.frame(http2.FramePriority, 0, 1, make([]byte, 5)) })},
		{"requests taken back", s.paced(5*time.Millisecond, func(h *hostile) {
			h.check(h.framer.WriteRSTStream(h.request(nowhere), http2.ErrCodeCancel))
		})},
		{"requests that cannot be served", s.paced(10*time.Millisecond, func(h *hostile) {
			for range 40 {
				h.request("nowhere")
			}
		})},
		{"a peer that is cut and comes back at once", func(to prey, stop <-chan struct{}) {
			every(5*time.Millisecond, stop, func() {
				h, err := s.knock(0, to.shut)
				if err != nil {
					return // it rests
				}
				defer h.conn.Close()
				h.begin()
				for range 200 {
					h.check(h.framer.WritePing(false, [8]byte{}))
				}
				h.flush()
				h.await("it is cut", func(s heard) bool { return s.goaway != "" })
			})
		}},
		{"handshakes that do not end", func(to prey, stop <-chan struct{}) {
			every(10*time.Millisecond, stop, func() {
				c, err := tryDialFrom(s.t.Context(), s.mallory, toEast.Addr(), to.half)
				if err != nil {
					s.t.Fatal(err)
				}
				s.t.Cleanup(func() { c.Close() })
				// One that is refused at once is one as well.
				_, _ = c.Write(hello)
			})
		}},
	}
}

// every does something at intervals until stop is closed.
func every(interval time.Duration, stop <-chan struct{}, once func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			once()
		}
	}
}

// paced is a peer that does something at intervals, as often as is borne. It throws
// away what it hears: to look at the answers would cost more than to give them, and
// be taken for the gateway's.
func (s *siege) paced(interval time.Duration, once func(*hostile)) func(to prey, stop <-chan struct{}) {
	return func(to prey, stop <-chan struct{}) {
		h, err := s.knock(1, to.tunnel)
		if err != nil {
			s.t.Fatal(err)
		}
		defer h.conn.Close()
		h.write([]byte(http2.ClientPreface))
		h.check(h.framer.WriteSettings())
		h.flush()
		h.stream--
		cut := make(chan struct{})
		go func() { // ends with the connection
			defer close(cut)
			_, _ = io.Copy(io.Discard, h.conn)
		}()
		every(interval, stop, func() {
			once(h)
			h.flush()
		})
		select {
		case <-cut:
			s.t.Error("it was cut")
		default:
		}
	}
}
