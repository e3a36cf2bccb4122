package engine_test

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"wishbone/tunnel/engine"
	"wishbone/tunnel/hbone"
)

// server accepts on loopback and gives each connection to serve.
func server(tb testing.TB, serve func(*net.TCPConn)) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	return serveOn(tb, ln, serve)
}

// serveOn is server with a listener, which is closed with the test.
func serveOn(tb testing.TB, ln net.Listener, serve func(*net.TCPConn)) string {
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(20 * time.Second))
				serve(c.(*net.TCPConn))
			})
		}
	})
	tb.Cleanup(func() {
		ln.Close()
		running.Wait()
	})
	return ln.Addr().String()
}

func dial(tb testing.TB, address string) *net.TCPConn {
	tb.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		tb.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(20 * time.Second))
	tb.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// echo sends back what comes. It hides what c can do from io.Copy, which would
// splice through pipes and keep those.
func echo(c *net.TCPConn) {
	io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
	c.CloseWrite()
}

// gulps is a server that reads, and tells of each so many bytes of a connection.
func gulps(size int, got chan<- struct{}) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		buf := make([]byte, 256<<10)
		for n := 0; ; {
			m, err := c.Read(buf)
			for n += m; n >= size; n -= size {
				got <- struct{}{}
			}
			if err != nil {
				return
			}
		}
	}
}

// noise is n pseudo-random bytes that can be made twice.
func noise(seed uint64, n int64) io.Reader {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	return io.LimitReader(rand.NewChaCha8(key), n)
}

func sum(r io.Reader) (hash.Hash, int64, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return h, n, err
}

// want waits for a flow to end and compares how.
func (p *pair) want(t *testing.T, inbound bool, why engine.Why) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case e := <-p.ends:
			if e.inbound != inbound {
				continue
			}
			if e.end.Why != why {
				t.Fatalf("flow (inbound %t) ended with %s (%v), want %s", inbound, e.end.Why, e.end.Err, why)
			}
			return
		case <-timeout:
			t.Fatalf("flow (inbound %t) did not end, want %s", inbound, why)
		}
	}
}

// TestEcho: bytes come back whole, on one stream and on many at once.
func TestEcho(t *testing.T) {
	for _, tt := range []struct {
		name    string
		streams int
		size    int64
		cfg     hbone.Config
	}{
		{"one byte", 1, 1, hbone.Config{}},
		{"one stream", 1, 64 << 20, hbone.Config{}},
		{"many streams", 50, 1 << 20, hbone.Config{}},
		{"small windows", 20, 1 << 18, hbone.Config{StreamWindow: 20_000, MaxStreamWindow: 30_000, ConnWindow: 70_000}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPairOf(t, server(t, echo), tt.cfg)
			var wg sync.WaitGroup
			for i := range tt.streams {
				c := dial(t, p.address)
				wg.Go(func() {
					if _, err := io.Copy(c, noise(uint64(i), tt.size)); err != nil {
						t.Error(err)
					}
					c.CloseWrite()
				})
				wg.Go(func() {
					got, n, err := sum(c)
					want, _, _ := sum(noise(uint64(i), tt.size))
					if err != nil || string(got.Sum(nil)) != string(want.Sum(nil)) {
						t.Errorf("stream %d: %d of %d bytes came back, or others (%v)", i, n, tt.size, err)
					}
				})
			}
			wg.Wait()
			for range tt.streams {
				p.want(t, false, engine.Closed)
			}
		})
	}
}

// TestHalfClose: after one side's FIN a mebibyte goes the other way.
func TestHalfClose(t *testing.T) {
	const size = 1 << 20
	t.Run("client first", func(t *testing.T) {
		p := newPair(t, server(t, func(c *net.TCPConn) {
			io.Copy(io.Discard, c)
			io.Copy(c, noise(1, size))
		}))
		c := dial(t, p.address)
		c.CloseWrite()
		if _, n, err := sum(c); n != size || err != nil {
			t.Errorf("read %d bytes (%v) after the half-close, want %d", n, err, size)
		}
		p.want(t, false, engine.Closed)
	})
	t.Run("server first", func(t *testing.T) {
		got := make(chan int64, 1)
		p := newPair(t, server(t, func(c *net.TCPConn) {
			c.CloseWrite()
			n, _ := io.Copy(io.Discard, c)
			got <- n
		}))
		c := dial(t, p.address)
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("read %d, %v; want the server's FIN", n, err)
		}
		io.Copy(c, noise(1, size))
		c.Close()
		if n := <-got; n != size {
			t.Errorf("server read %d bytes after its half-close, want %d", n, size)
		}
		p.want(t, true, engine.Closed)
	})
}

// TestReset: a reset crosses as a reset, after the data that came before it.
func TestReset(t *testing.T) {
	const size = 100_000
	t.Run("by the server", func(t *testing.T) {
		sent := make(chan struct{})
		p := newPair(t, server(t, func(c *net.TCPConn) {
			io.Copy(c, noise(1, size))
			<-sent
			c.SetLinger(0)
		}))
		c := dial(t, p.address)
		buf := make([]byte, size)
		if _, err := io.ReadFull(c, buf); err != nil {
			t.Fatal(err)
		}
		close(sent)
		if _, err := c.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read after the server's reset: %v, want ECONNRESET", err)
		}
		p.want(t, true, engine.ServerReset)
		p.want(t, false, engine.ServerReset)
	})
	t.Run("by the client", func(t *testing.T) {
		result := make(chan error, 1)
		got := make(chan struct{})
		p := newPair(t, server(t, func(c *net.TCPConn) {
			buf := make([]byte, size)
			io.ReadFull(c, buf)
			close(got)
			_, err := c.Read(buf)
			result <- err
		}))
		c := dial(t, p.address)
		io.Copy(c, noise(1, size))
		<-got
		c.SetLinger(0)
		c.Close()
		if err := <-result; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("server's read after the client's reset: %v, want ECONNRESET", err)
		}
		p.want(t, true, engine.ClientReset)
	})
}

// TestRefused: a destination that refuses is a reset to the client, and the
// reason crosses.
func TestRefused(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	p := newPair(t, ln.Addr().String())
	release := p.hold(p.east)
	c := dial(t, p.address)
	release()
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v, want ECONNRESET", err)
	}
	if r := <-p.refusals; r.Reason != hbone.Refused || r.Status != "503" {
		t.Errorf("refusal %+v, want refused with 503", r)
	}
	p.want(t, false, engine.Unserved)
}

// TestTunnelLost: when the tunnel breaks, both applications see a reset, never
// an end that looks complete.
func TestTunnelLost(t *testing.T) {
	result := make(chan error, 1)
	p := newPair(t, server(t, func(c *net.TCPConn) {
		io.Copy(c, noise(1, 10))
		_, err := c.Read(make([]byte, 1))
		result <- err
	}))
	c := dial(t, p.address)
	if _, err := io.ReadFull(c, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	p.on(p.west, func() { p.tunnel.Close(errors.New("on purpose")) })
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client's read: %v, want ECONNRESET", err)
	}
	if err := <-result; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("server's read: %v, want ECONNRESET", err)
	}
	p.want(t, false, engine.TunnelLost)
}

// TestStalledReader: a stream that nobody reads does not stall another.
func TestStalledReader(t *testing.T) {
	p := newPair(t, server(t, func(c *net.TCPConn) {
		first := make([]byte, 1)
		io.ReadFull(c, first)
		if first[0] == 's' { // stalled: send without end
			io.Copy(c, noise(1, 1<<30))
			return
		}
		echo(c)
	}))
	for range 10 {
		c := dial(t, p.address)
		c.Write([]byte("s"))
	}
	const size = 16 << 20
	c := dial(t, p.address)
	c.Write([]byte("e"))
	go func() {
		io.Copy(c, noise(2, size))
		c.CloseWrite()
	}()
	if _, n, err := sum(c); n != size || err != nil {
		t.Errorf("echo beside stalled streams: %d of %d bytes, %v", n, size, err)
	}
}

// TestDrain: a drained tunnel takes no streams, finishes those it has, and
// closes in order.
func TestDrain(t *testing.T) {
	p := newPair(t, server(t, echo))
	c := dial(t, p.address)
	c.Write([]byte("x"))
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	p.on(p.west, p.tunnel.Drain)
	p.on(p.west, func() {
		if n := p.tunnel.Room(); n != 0 {
			t.Errorf("a draining tunnel has room for %d streams", n)
		}
	})
	c.CloseWrite()
	if _, _, err := sum(c); err != nil {
		t.Error(err)
	}
	p.want(t, false, engine.Closed)
	if err := <-p.lost; err != nil {
		t.Errorf("tunnel closed with %v, want an orderly end", err)
	}
}
