package engine_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"wishbone/tunnel/engine"
	"wishbone/tunnel/hbone"
)

// unanswered is an address where a connection attempt gets no answer: a
// listener whose queue is full drops the SYN.
func unanswered(t *testing.T) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port)
	for range 10 {
		c, err := net.DialTimeout("tcp", address, 50*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the queue of a listener does not fill up")
	return ""
}

// TestResetBeforeAnswer: a client that goes before the peer has answered takes
// its request back, and the attempt to connect ends.
func TestResetBeforeAnswer(t *testing.T) {
	p := newPair(t, unanswered(t))
	base := p.watched()
	requested := make(chan struct{})
	p.on(p.east, func() { p.requested = func(*engine.Flow) { close(requested) } })
	c := dial(t, p.address)
	c.Write([]byte("too early"))
	<-requested
	c.SetLinger(0)
	c.Close()
	p.want(t, false, engine.ClientReset)
	p.want(t, true, engine.ClientReset)
	if now := p.watched(); now != base {
		t.Errorf("loops watch %v descriptors, before the connection %v", now, base)
	}
}

// watched is how many descriptors each loop watches.
func (p *pair) watched() (n [2]int) {
	p.on(p.west, func() { n[0] = p.west.Watched() })
	p.on(p.east, func() { n[1] = p.east.Watched() })
	return n
}

// TestResetBeforeOpen: the peer is not asked for a client that has gone already.
func TestResetBeforeOpen(t *testing.T) {
	p := newPair(t, server(t, echo))
	release := p.hold(p.west)
	c := dial(t, p.address)
	c.SetLinger(0)
	c.Close()
	release()
	p.want(t, false, engine.ClientReset)
	p.round(p.east)
	if n := p.begun.Load(); n != 1 {
		t.Errorf("%d flows have begun, want the client's only", n)
	}
}

// TestFINBeforeAnswer: a client may say all it has to say at once.
func TestFINBeforeAnswer(t *testing.T) {
	const size = 1 << 20
	asked := make(chan int64, 1)
	p := newPair(t, server(t, func(c *net.TCPConn) {
		n, _ := io.Copy(io.Discard, c)
		asked <- n
		io.Copy(c, noise(1, size))
	}))
	answer := make(chan struct{})
	p.on(p.east, func() { p.requested = func(*engine.Flow) { <-answer } })
	c := dial(t, p.address)
	c.Write([]byte("question"))
	c.CloseWrite()
	p.round(p.west)
	close(answer)
	if _, n, err := sum(c); n != size || err != nil {
		t.Errorf("read %d bytes (%v), want %d", n, err, size)
	}
	if n := <-asked; n != 8 {
		t.Errorf("the server read %d bytes, want the 8 before the FIN", n)
	}
	p.want(t, false, engine.Closed)
}

// TestUrgentByte: reading stops short before an urgent byte, which must not be
// taken for the end of what there is.
func TestUrgentByte(t *testing.T) {
	p := newPair(t, server(t, echo))
	c := dial(t, p.address)
	c.Write([]byte("x"))
	io.ReadFull(c, make([]byte, 1))
	release := p.hold(p.west)
	c.Write([]byte("abc"))
	control(t, c, func(fd int) { unix.Send(fd, []byte("!"), unix.MSG_OOB) })
	c.Write([]byte("def"))
	release()
	got := make([]byte, 7)
	if _, err := io.ReadFull(c, got); string(got) != "abc!def" || err != nil {
		t.Errorf("read %q, %v; want abc!def", got, err)
	}
}

// TestServerResetsAtOnce: a server that says something and resets, before its
// gateway has even looked, is heard.
func TestServerResetsAtOnce(t *testing.T) {
	gone, dialled := make(chan struct{}), make(chan struct{})
	p := newPair(t, server(t, func(c *net.TCPConn) {
		c.Write([]byte("too many connections"))
		c.SetLinger(0)
		c.Close()
		close(gone)
	}))
	p.on(p.east, func() { p.requested = func(*engine.Flow) { <-gone; <-dialled } })
	c := dial(t, p.address)
	close(dialled)
	got, err := io.ReadAll(c)
	if string(got) != "too many connections" || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %q, %v; want the server's words, then ECONNRESET", got, err)
	}
	p.want(t, true, engine.ServerReset)
	p.want(t, false, engine.ServerReset)
}

// fill writes noise until nothing of it has moved for a while, and returns how
// much was taken.
func fill(c *net.TCPConn, seed uint64) (sent int64) {
	r := noise(seed, 1<<40)
	for {
		c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := io.CopyN(c, r, 64<<10)
		sent += n
		if err != nil {
			return sent
		}
	}
}

// TestResetLimit: bytes before a reset are waited for, but not for ever; first
// on their way into the stream, then on their way to the client.
func TestResetLimit(t *testing.T) {
	sent, reset := make(chan int64), make(chan struct{})
	p := newPair(t, server(t, func(c *net.TCPConn) {
		c.SetWriteBuffer(64 << 10)
		sent <- fill(c, 1)
		<-reset
		c.SetLinger(0)
	}))
	over := func() int64 {
		p.round(p.west)
		p.round(p.east)
		return p.over.Load()
	}
	c := dial(t, p.address)
	total := <-sent
	close(reset)
	for i, side := range []*engine.Loop{p.east, p.west} {
		p.on(side, func() { side.Advance(engine.AbortLimit - 3*time.Second) })
		if n := over(); n != int64(i) {
			t.Fatalf("%d flows have ended before the limit, want %d", n, i)
		}
		p.on(side, func() { side.Advance(3 * time.Second) })
		eventually(t, "the flow gives up", func() bool { return over() == int64(i+1) })
	}
	got, n, err := sum(c)
	want, _, _ := sum(noise(1, n))
	if string(got.Sum(nil)) != string(want.Sum(nil)) || fate(err) != "reset" || n >= total {
		t.Errorf("read %d bytes, then %v; want a part of the %d that were sent, then ECONNRESET", n, err, total)
	}
}

// TestResetWaits: within the limit a slow client gets every byte before the
// reset, though the tunnel has gone long ago.
func TestResetWaits(t *testing.T) {
	sent := make(chan int64, 1)
	p := newPair(t, server(t, func(c *net.TCPConn) {
		n, _ := io.Copy(c, noise(1, 3<<20))
		waitSent(t, c)
		sent <- n
		io.Copy(io.Discard, c)
	}))
	c := dial(t, p.address)
	total := <-sent
	eventually(t, "everything crosses the tunnel", func() bool {
		_, received := p.traffic()
		return received == uint64(total)
	})
	p.on(p.west, func() { p.tunnel.Close(errors.New("on purpose")) })
	<-p.lost
	p.round(p.west)
	if _, n, err := sum(c); n != total || fate(err) != "reset" {
		t.Errorf("read %d bytes, then %v; want %d, then ECONNRESET", n, err, total)
	}
	p.want(t, false, engine.TunnelLost)
}

// TestLastWords: a tunnel that is closed as its last stream ends loses nothing
// of it, whatever is still on its way in either direction.
func TestLastWords(t *testing.T) {
	const flows, size = 20, 200_000
	got := make(chan int64, flows)
	p := newPair(t, server(t, func(c *net.TCPConn) {
		c.CloseWrite()
		n, _ := io.Copy(io.Discard, c)
		got <- n
	}))
	// What it cannot take has to wait at the west.
	if err := unix.SetsockoptInt(p.rec.FD(), unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<10); err != nil {
		t.Fatal(err)
	}
	var clients []*net.TCPConn
	for range flows {
		c := dial(t, p.address)
		if _, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	left := flows
	p.on(p.west, func() {
		p.closed = func(f *engine.Flow) {
			if left--; left == 0 {
				f.Tunnel().Close(nil)
				p.west.Post(p.west.Stop)
			}
		}
	})
	release := p.hold(p.east)
	for _, c := range clients {
		io.Copy(c, noise(1, size))
		c.Close()
	}
	p.round(p.west)
	release()
	for range flows {
		if n := <-got; n != size {
			t.Errorf("the server read %d bytes of %d", n, size)
		}
	}
}

// TestRequestAtClose: a request that comes with a tunnel's last bytes, when it is as
// good as closed, is not begun, and its peer may ask for it elsewhere.
func TestRequestAtClose(t *testing.T) {
	p := newPair(t, server(t, echo))
	p.on(p.east, func() {
		p.decide = func(f *engine.Flow, _ func()) { f.Tunnel().Close(nil) }
	})
	release := p.hold(p.east)
	dial(t, p.address)
	dial(t, p.address)
	eventually(t, "both are asked for", func() (ok bool) {
		p.on(p.west, func() { ok = p.tunnel.Streams() == 2 })
		return ok
	})
	release()
	for range 2 { // tunnels
		<-p.lost
	}
	p.settled(t)
	if n := p.begun.Load(); n != 3 {
		t.Errorf("%d flows have begun, want 2 clients' and the one that was looked at", n)
	}
	select {
	case r := <-p.refusals:
		if !r.Retry || len(p.refusals) > 0 {
			t.Errorf("refused %+v and %d more, want the second one once, to be tried elsewhere", r, len(p.refusals))
		}
	default:
		t.Error("the second one is lost, as if it had been begun")
	}
}

// TestLoopEnds: a loop that is stopped with everything still on it closes every
// descriptor, tells every handler once, and has run all that was posted.
func TestLoopEnds(t *testing.T) {
	before := descriptors(t)
	var taken, run atomic.Int64
	t.Run("", func(t *testing.T) {
		p := newPair(t, server(t, echo))
		for range 5 {
			c := dial(t, p.address)
			c.Write([]byte("x"))
			io.ReadFull(c, make([]byte, 1))
		}
		hung := newPair(t, unanswered(t)) // connecting, as it ends
		dial(t, hung.address)
		eventually(t, "the flow connects", func() bool { return hung.begun.Load() == 2 })
		hung.stop()
		var posting sync.WaitGroup
		for range 4 {
			posting.Go(func() {
				for p.east.Post(func() { run.Add(1) }) {
					taken.Add(1)
				}
			})
		}
		p.stop()
		posting.Wait()
		for _, p := range []*pair{p, hung} {
			if b, o := p.begun.Load(), p.over.Load(); b != o || len(p.lost) != 2 {
				t.Errorf("%d flows began, %d ended; %d tunnels of 2 closed", b, o, len(p.lost))
			}
		}
	})
	if taken.Load() != run.Load() {
		t.Errorf("Post took %d functions, of which %d have run", taken.Load(), run.Load())
	}
	eventually(t, "descriptors are closed", func() bool { return descriptors(t) <= before })
}

// TestChurn: short connections leave nothing behind.
func TestChurn(t *testing.T) {
	const workers, each = 8, 250
	p := newPair(t, server(t, echo))
	base, before := p.watched(), descriptors(t)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				c, err := net.Dial("tcp", p.address)
				if err != nil {
					t.Error(err)
					return
				}
				c.Write([]byte("x"))
				c.(*net.TCPConn).CloseWrite()
				if p, err := io.ReadAll(c); string(p) != "x" || err != nil {
					t.Errorf("read %q, %v; want the echo", p, err)
				}
				c.Close()
			}
		})
	}
	wg.Wait()
	p.settled(t)
	if n := p.over.Load(); n != 2*workers*each {
		t.Errorf("%d flows have ended, want %d", n, 2*workers*each)
	}
	if now := p.watched(); now != base {
		t.Errorf("loops watch %v descriptors, before %v", now, base)
	}
	p.on(p.west, func() { streams(t, p.tunnel) })
	p.on(p.east, func() { streams(t, p.server) })
	eventually(t, "descriptors are closed", func() bool { return descriptors(t) <= before })
}

func streams(t *testing.T, tunnel *engine.Tunnel) {
	if n := tunnel.Streams(); n != 0 {
		t.Errorf("%d streams are left", n)
	}
}

// TestCutBehindData: a tunnel's end that epoll tells of together with the bytes
// before it is seen, though they are a short read.
func TestCutBehindData(t *testing.T) {
	p := newPair(t, server(t, echo))
	release := p.hold(p.west)
	p.on(p.east, func() {
		ping := append([]byte{0, 0, 8, byte(http2.FramePing), byte(http2.FlagPingAck), 0, 0, 0, 0}, make([]byte, 8)...)
		if err := p.rec.Seal(ping); err != nil {
			t.Error(err)
		}
		if done, err := p.rec.Flush(); !done || err != nil {
			t.Errorf("flushed: %t, %v", done, err)
		}
		if err := unix.Shutdown(p.rec.FD(), unix.SHUT_WR); err != nil {
			t.Error(err)
		}
	})
	release()
	p.round(p.west)
	if len(p.lost) == 0 {
		t.Error("the tunnel lives on")
	}
}

// TestLastSegment: the last bytes and the FIN behind them are one segment.
func TestLastSegment(t *testing.T) {
	asked, answer, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	p := newPair(t, server(t, func(c *net.TCPConn) {
		defer close(done)
		_, err := io.ReadFull(c, make([]byte, 5))
		close(asked)
		<-answer
		_, werr := io.WriteString(c, "bye")
		if err := errors.Join(err, werr, c.Close()); err != nil {
			t.Error(err)
		}
	}))
	c := dial(t, p.address)
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	<-asked
	before := segments(t, c)
	west, east := p.hold(p.west), p.hold(p.east)
	close(answer)
	<-done
	east()
	p.round(p.east)
	west()
	if all, err := io.ReadAll(c); string(all) != "bye" || err != nil {
		t.Errorf("got %q, %v", all, err)
	}
	if n := segments(t, c) - before; n != 1 {
		t.Errorf("they came in %d segments", n)
	}
}

// segments is how many a connection has got.
func segments(t *testing.T, c *net.TCPConn) (n uint32) {
	control(t, c, func(fd int) {
		info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
		if err != nil {
			t.Error(err)
			return
		}
		n = info.Segs_in
	})
	return n
}

// TestTunnelSocket: what the kernel holds unsent of a tunnel is bounded, and
// small writes are not held back.
func TestTunnelSocket(t *testing.T) {
	l, err := engine.NewLoop()
	if err != nil {
		t.Fatal(err)
	}
	client, server := sessions(t)
	defer server.Close()
	p := &pair{lost: make(chan error, 1)}
	must(l.AddTunnel(client, hbone.Config{}, &westEnd{p}))
	for name, want := range map[int]int{unix.TCP_NODELAY: 1, unix.TCP_NOTSENT_LOWAT: 256 << 10} {
		if got, err := unix.GetsockoptInt(client.FD(), unix.SOL_TCP, name); got != want || err != nil {
			t.Errorf("TCP option %d is %d (%v), want %d", name, got, err, want)
		}
	}
	l.Stop()
	if err := l.Run(); err != nil {
		t.Error(err)
	}
	if len(p.lost) != 1 {
		t.Error("the tunnel's handler has not heard of the end")
	}
}
