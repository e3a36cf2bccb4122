package engine_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wishbone/tunnel/engine"
	"wishbone/tunnel/hbone"
)

// newEarlyPair is a pair with early data, whose east takes its time to connect, so
// that clients which speak at once speak early.
func newEarlyPair(tb testing.TB, target string) *pair {
	tb.Helper()
	p := newPairOf(tb, target, hbone.Config{EarlyData: true})
	p.on(p.east, func() {
		p.decide = func(_ *engine.Flow, connect func()) {
			p.east.After(new(engine.Timer), 2*time.Millisecond, connect)
		}
	})
	return p
}

// asked is a request that east has been asked for and leaves unanswered.
type asked struct {
	flow    *engine.Flow
	connect func()
}

// newAskedPair is a pair with early data, whose east answers nothing by itself. The
// server echoes, and counts who comes.
func newAskedPair(t *testing.T, cfg hbone.Config) (p *pair, requests chan asked, came *atomic.Int64) {
	t.Helper()
	came = new(atomic.Int64)
	cfg.EarlyData = true
	p = newPairOf(t, server(t, func(c *net.TCPConn) {
		came.Add(1)
		echo(c)
	}), cfg)
	requests = make(chan asked, 16)
	p.on(p.east, func() {
		p.decide = func(f *engine.Flow, connect func()) { requests <- asked{f, connect} }
	})
	return p, requests, came
}

// holds waits until east holds n bytes of a flow.
func (p *pair) holds(t *testing.T, f *engine.Flow, n int) {
	t.Helper()
	eventually(t, "the bytes are there before the answer", func() (ok bool) {
		p.on(p.east, func() { ok = f.Held() == n })
		return ok
	})
}

// bothEnds waits for a flow's two ends; true is the inbound one.
func (p *pair) bothEnds(t *testing.T) map[bool]engine.End {
	t.Helper()
	got := make(map[bool]engine.End)
	timeout := time.After(20 * time.Second)
	for len(got) < 2 {
		select {
		case e := <-p.ends:
			got[e.inbound] = e.end
		case <-timeout:
			t.Fatalf("a flow did not end at both ends, but %v", got)
		}
	}
	return got
}

// TestEarly: what a client says at once is at the far side before that has
// answered, and before anybody there is asked; then the server has it.
func TestEarly(t *testing.T) {
	for name, half := range map[string]bool{"goes on": false, "half-closed at once": true} {
		t.Run(name, func(t *testing.T) {
			p, requests, came := newAskedPair(t, hbone.Config{})
			c := dial(t, p.address)
			io.WriteString(c, "hel")
			if half {
				io.WriteString(c, "lo")
				c.CloseWrite()
			}
			r := <-requests
			if !half {
				p.holds(t, r.flow, 3)
				io.WriteString(c, "lo")
			}
			p.holds(t, r.flow, 5)
			if n := came.Load(); n != 0 {
				t.Fatalf("%d connections have come to the server before the answer", n)
			}
			p.on(p.east, r.connect)
			got := make([]byte, 5)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
				t.Errorf("echo %q, %v", got, err)
			}
			if !half {
				c.CloseWrite()
			}
			if _, n, err := sum(c); n != 0 || err != nil {
				t.Errorf("then %d bytes and %v, want the end", n, err)
			}
			for inbound, e := range p.bothEnds(t) {
				if e.Why != engine.Closed || e.Sent != 5 || e.Received != 5 || e.Early != 5 || e.Wasted != 0 {
					t.Errorf("inbound %t: %+v", inbound, e)
				}
			}
			p.settled(t)
		})
	}
}

// TestEarlyLimits: a client that says more than may be early is held up, and all of
// it arrives; one whose peer gives less credit, too.
func TestEarlyLimits(t *testing.T) {
	const size = 1 << 20
	for name, tt := range map[string]struct {
		cfg   hbone.Config
		early int
	}{
		"ours":       {hbone.Config{}, engine.EarlyLimit},
		"the peer's": {hbone.Config{StreamWindow: 1, MaxStreamWindow: 1}, 65535},
	} {
		t.Run(name, func(t *testing.T) {
			p, requests, _ := newAskedPair(t, tt.cfg)
			c := dial(t, p.address)
			go func() { // ends with the connection
				io.Copy(c, noise(1, size))
				c.CloseWrite()
			}()
			r := <-requests
			p.holds(t, r.flow, tt.early)
			p.round(p.west)
			p.round(p.east)
			p.holds(t, r.flow, tt.early)
			p.on(p.east, r.connect)
			got, n, err := sum(c)
			want, _, _ := sum(noise(1, size))
			if err != nil || n != size || string(got.Sum(nil)) != string(want.Sum(nil)) {
				t.Errorf("%d of %d bytes came back, or others (%v)", n, size, err)
			}
			if e := p.bothEnds(t)[true]; e.Early != uint64(tt.early) || e.Received != size {
				t.Errorf("%+v", e)
			}
			p.settled(t)
		})
	}
}

// TestEarlyThrownAway: on any answer but yes, or none, nobody gets what was early,
// and nothing is kept of it.
func TestEarlyThrownAway(t *testing.T) {
	for _, tt := range []struct {
		name       string
		end        func(p *pair, r asked, c *net.TCPConn)
		west, east engine.Why
	}{
		{"denied", func(p *pair, r asked, _ *net.TCPConn) {
			p.on(p.east, func() { r.flow.Refuse(hbone.Denied, nil) })
		}, engine.Unserved, engine.Unserved},
		{"refused by the server", func(p *pair, r asked, _ *net.TCPConn) {
			p.on(p.east, func() {
				(&eastEnd{p, nil}).connect(r.flow, hbone.Request{Target: netip.MustParseAddrPort(nobodyAt())})
			})
		}, engine.Unserved, engine.Unserved},
		{"cut", func(p *pair, r asked, _ *net.TCPConn) {
			p.on(p.east, func() { r.flow.Abort(engine.Cut, nil) })
		}, engine.Unserved, engine.Cut},
		{"declined, and not asked again", func(p *pair, r asked, _ *net.TCPConn) {
			p.on(p.east, func() { r.flow.Decline(nil) })
		}, engine.Unserved, engine.Unserved},
		{"the client resets", func(p *pair, r asked, c *net.TCPConn) {
			c.SetLinger(0)
			c.Close()
		}, engine.ClientReset, engine.ClientReset},
		{"the tunnel is lost", func(p *pair, r asked, _ *net.TCPConn) {
			p.on(p.west, func() { p.tunnel.Close(errors.New("on purpose")) })
		}, engine.TunnelLost, engine.TunnelLost},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, requests, came := newAskedPair(t, hbone.Config{})
			c := dial(t, p.address)
			io.WriteString(c, "secret")
			r := <-requests
			p.holds(t, r.flow, 6)
			tt.end(p, r, c)
			if tt.west != engine.ClientReset {
				if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("the client reads %v, want ECONNRESET", err)
				}
			}
			ends := p.bothEnds(t)
			for inbound, why := range map[bool]engine.Why{false: tt.west, true: tt.east} {
				e := ends[inbound]
				if e.Why != why || e.Sent != 0 || e.Received != 0 || e.Early != 6 || e.Wasted != 6 {
					t.Errorf("inbound %t: %+v, want %s with 6 bytes wasted", inbound, e, why)
				}
			}
			p.settled(t)
			if n := came.Load(); n != 0 {
				t.Errorf("%d connections have come to the server", n)
			}
		})
	}
}

// nobodyAt is an address that refuses.
func nobodyAt() string {
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	ln.Close()
	return ln.Addr().String()
}

// TestEarlyAgain: what the peer has not acted on is asked for once more, with all
// that was said before, and what came meanwhile.
func TestEarlyAgain(t *testing.T) {
	p, requests, came := newAskedPair(t, hbone.Config{})
	p.on(p.west, func() { p.again = true })
	c := dial(t, p.address)
	io.WriteString(c, "hello")
	r := <-requests
	p.holds(t, r.flow, 5)
	release := p.hold(p.west)
	io.WriteString(c, ", world")
	p.on(p.east, func() { r.flow.Decline(nil) })
	release()
	r = <-requests
	p.holds(t, r.flow, 12)
	p.on(p.east, r.connect)
	c.CloseWrite()
	got, err := io.ReadAll(c)
	if string(got) != "hello, world" || err != nil {
		t.Errorf("echo %q, %v", got, err)
	}
	if e := p.bothEnds(t)[false]; e.Why != engine.Closed || e.Sent != 12 || e.Early != 12 || e.Wasted != 0 {
		t.Errorf("%+v", e)
	}
	p.settled(t)
	if n := came.Load(); n != 1 {
		t.Errorf("%d connections have come to the server, want 1", n)
	}
}

// TestEarlyElsewhere: a flow that waits for its turn on one tunnel when that says no
// takes its turn on the other, and on that only.
func TestEarlyElsewhere(t *testing.T) {
	p, requests, _ := newAskedPair(t, hbone.Config{})
	first := p.tunnel
	client, far := sessions(t)
	p.on(p.west, func() {
		p.tunnel = must(p.west.AddTunnel(client, hbone.Config{EarlyData: true, Budget: p.budget}, &westEnd{p}))
	})
	var second *engine.Tunnel
	p.on(p.east, func() {
		second = must(p.east.AddTunnel(far, hbone.Config{Role: hbone.Server, EarlyData: true, Budget: p.budget}, &eastEnd{p, t}))
	})
	t.Cleanup(func() {
		p.on(p.west, func() { first.Close(nil) })
		p.on(p.east, func() { second.Close(nil) })
	})
	p.round(p.west)
	p.on(p.west, func() { p.tunnel, first = first, p.tunnel })
	c := dial(t, p.address)
	r := <-requests
	p.on(p.west, func() {
		p.tunnel, first = first, p.tunnel
		p.again = true
	})
	release := p.hold(p.west) // its words and the refusal are one round's news
	io.WriteString(c, "hello")
	p.on(p.east, func() { r.flow.Decline(nil) })
	p.round(p.east)
	release()
	r = <-requests
	p.holds(t, r.flow, 5)
	if r.flow.Tunnel() != second {
		t.Error("the second request has come on the first tunnel")
	}
	p.on(p.east, r.connect)
	c.CloseWrite()
	got, err := io.ReadAll(c)
	if string(got) != "hello" || err != nil {
		t.Errorf("echo %q, %v", got, err)
	}
	p.settled(t)
}
