package tunnel

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"wishbone/intercept"
	"wishbone/tunnel/engine"
	"wishbone/tunnel/hbone"
	"wishbone/tunnel/record"
	"wishbone/tunnel/route"
)

// TestKeepAlive: a connection to a server that has lived for a while asks for the server
// when that is silent.
func TestKeepAlive(t *testing.T) {
	serve(t)
	p := newPair(t, Config{}, Config{Sockets: intercept.Options{Idle: time.Minute}})
	c := newSide(t, p.west).dial(client.Port())
	exchange(t, c, "hello")
	eventually(t, "the connection to the server has a keepalive timer", func() bool {
		sockets, err := netlink.SocketDiagTCP(unix.AF_INET)
		if err != nil {
			t.Fatal(err)
		}
		const keepalive = 2 // sock_diag(7): idiag_timer
		return slices.ContainsFunc(sockets, func(s *netlink.Socket) bool {
			return s.ID.SourcePort == client.Port() && s.ID.DestinationPort == target.Port() && s.Timer == keepalive && s.Expires > 50_000
		})
	})
}

// TestNumbers: what Flows and Stats say of a connection while it lives and after,
// at both ends.
func TestNumbers(t *testing.T) {
	seen := serve(t)
	p := newPair(t, Config{}, Config{})
	c := newSide(t, p.west).dial(client.Port())
	exchange(t, c, "hello")
	if got := seen(); !slices.Equal(got, []netip.AddrPort{client}) {
		t.Errorf("the server has seen %v, want %s", got, client)
	}
	for _, side := range []struct {
		*end
		direction Direction
		peer      string
	}{{p.west, OutboundFlow, "east"}, {p.east, InboundFlow, "west"}} {
		flows := side.Flows()
		if len(flows) != 1 {
			t.Fatalf("%s: %d flows, want 1", side.direction, len(flows))
		}
		f := flows[0]
		if f.Age <= 0 {
			t.Errorf("%s: age %v", side.direction, f.Age)
		}
		f.Age = 0
		want := FlowInfo{
			Direction: side.direction, Client: client, Target: target, Peer: side.peer,
			ID: idOf(side.peer), State: stateOpen, Sent: 5, Received: 5,
		}
		if f != want {
			t.Errorf("%s: flow %+v\nwant %+v", side.direction, f, want)
		}
		s := side.Stats()
		if s.Active[side.direction] != 1 || s.Sent[side.direction] != 5 || s.Received[side.direction] != 5 {
			t.Errorf("%s, alive: %+v", side.direction, s)
		}
	}
	if s := p.west.Stats().Peers["east"]; s.Tunnels != 1 || s.Streams != 1 || s.Endpoint != "east" {
		t.Errorf("west's tunnels to east: %+v", s)
	}
	if s := p.east.Stats().Inbound; !maps.Equal(s, map[string]int{"west": 1}) {
		t.Errorf("east's tunnels from peers: %v", s)
	}
	c.CloseWrite()
	eventually(t, "the connection ends", func() bool {
		return len(p.west.Flows()) == 0 && len(p.east.Flows()) == 0
	})
	for d, e := range map[Direction]*end{OutboundFlow: p.west, InboundFlow: p.east} {
		s := e.Stats()
		if s.Opened[d] != 1 || s.Active[d] != 0 || s.Sent[d] != 5 || s.Received[d] != 5 || s.Closed[engine.Closed] != 1 || len(s.Refused) != 0 {
			t.Errorf("%s, ended: %+v", d, s)
		}
	}
}

// TestRefusals: each has its reason, counted at both ends where both know of it.
func TestRefusals(t *testing.T) {
	for _, tt := range []struct {
		name       string
		spoil      func(p *pair)
		west, east string
	}{
		{"no server", func(*pair) {}, "refused", "refused"},
		{"source of another peer", func(p *pair) { p.east.setPolicy("south") }, "denied", "unknown_peer"},
		{"no route", func(p *pair) { p.west.routes.Store(newTable(t)) }, reasonNoRoute, ""},
		{"this gateway itself", func(p *pair) { p.west.cfg.OwnTarget = func(netip.AddrPort) bool { return true } }, "loop", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t, Config{}, Config{})
			tt.spoil(p)
			newSide(t, p.west).wantReset(0)
			for _, side := range []struct {
				*end
				want string
			}{{p.west, tt.west}, {p.east, tt.east}} {
				want := map[string]uint64{}
				if side.want != "" {
					want[side.want] = 1
				}
				if s := side.Stats(); !maps.Equal(s.Refused, want) || s.Closed[engine.Unserved] != uint64(len(want)) {
					t.Errorf("refused %v, ended %v; want %v", s.Refused, s.Closed, want)
				}
			}
		})
	}
}

// TestReload: what is not allowed any more is cut at once; what is stays.
func TestReload(t *testing.T) {
	serve(t)
	for name, forbid := range map[string]func(p *pair) *end{
		"east does not believe the source": func(p *pair) *end { p.east.setPolicy("south"); return p.east },
		"west has another route":           func(p *pair) *end { p.west.setRoutes("north"); return p.west },
		"west knows east by another ID":    func(p *pair) *end { p.west.setPeer("east", idOf("another")); return p.west },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, Config{}, Config{})
			c := newSide(t, p.west).dial(0)
			exchange(t, c, "before")
			p.east.Reload()
			p.west.Reload()
			exchange(t, c, "nothing has changed")
			changed := forbid(p)
			exchange(t, c, "not told yet")
			changed.Reload()
			wantReset(t, c)
			if s := changed.Stats(); s.Closed[engine.Cut] != 1 {
				t.Errorf("ended %v, want one cut", s.Closed)
			}
			eventually(t, "both ends let go", func() bool { return len(p.west.Flows()) == 0 && len(p.east.Flows()) == 0 })
		})
	}
}

// TestReloadWhileWaiting: who waits for a peer does not get to the one that it was
// before a reload.
func TestReloadWhileWaiting(t *testing.T) {
	seen := serve(t)
	var p *pair
	reloaded := make(chan struct{})
	p = newPair(t, Config{Dial: func(ctx context.Context, to *route.Peer, _ string) (Session, error) {
		if to.IDs[0] != idOf("east") {
			return Session{}, errors.New("it is not there")
		}
		<-reloaded
		return join(t, ctx, "west", p.east)
	}}, Config{})
	c := newSide(t, p.west).dial(0)
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	p.west.awaitWaiter()
	p.west.setPeer("east", idOf("another"))
	p.west.Reload()
	p.west.each(func(*worker) {}) // they have heard of it
	close(reloaded)
	wantReset(t, c)
	if got := seen(); len(got) > 0 {
		t.Errorf("the server has seen %v", got)
	}
}

// awaitWaiter waits until a connection waits for its tunnel.
func (e *end) awaitWaiter() {
	e.t.Helper()
	eventually(e.t, "it waits", func() bool { return e.Stats().Peers["east"].Waiting == 1 })
}

// awaitDraining waits until the gateway has begun to drain, and not come to its end.
func (e *end) awaitDraining() {
	e.t.Helper()
	eventually(e.t, "the gateway drains", func() (draining bool) {
		e.each(func(w *worker) { draining = draining || w.idle != nil })
		return draining
	})
}

// TestDrain: a gateway that drains takes nothing new and lets live connections end
// by themselves; what outstays the time is cut.
func TestDrain(t *testing.T) {
	serve(t)
	t.Run("all end", func(t *testing.T) {
		p := newPair(t, Config{}, Config{})
		c := newSide(t, p.west).dial(0)
		exchange(t, c, "before")
		result := make(chan int, 1)
		go func() { result <- p.west.Drain(t.Context()) }()
		p.west.awaitDraining()
		exchange(t, c, "meanwhile")
		select {
		case n := <-result:
			t.Fatalf("drained with %d cut while a connection lives", n)
		default:
		}
		c.CloseWrite()
		if n := <-result; n != 0 {
			t.Errorf("%d were cut, want none", n)
		}
	})
	t.Run("one waits for its tunnel", func(t *testing.T) {
		dial := make(chan struct{})
		var p *pair
		p = newPair(t, Config{Dial: func(ctx context.Context, _ *route.Peer, _ string) (Session, error) {
			<-dial
			return join(t, ctx, "west", p.east)
		}}, Config{})
		c := newSide(t, p.west).dial(0)
		p.west.awaitWaiter()
		result := make(chan int, 1)
		go func() { result <- p.west.Drain(t.Context()) }()
		p.west.awaitDraining()
		close(dial)
		exchange(t, c, "it was there before")
		c.CloseWrite()
		if n := <-result; n != 0 {
			t.Errorf("%d were cut, want none", n)
		}
	})
	t.Run("one waits in vain", func(t *testing.T) {
		p := newPair(t, Config{Dial: func(ctx context.Context, _ *route.Peer, _ string) (Session, error) {
			<-ctx.Done()
			return Session{}, ctx.Err()
		}}, Config{})
		c := newSide(t, p.west).dial(0)
		p.west.awaitWaiter()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if n := p.west.Drain(ctx); n != 0 {
			t.Errorf("%d were cut, want none: it had not come to be", n)
		}
		wantReset(t, c)
	})
	t.Run("one stays", func(t *testing.T) {
		p := newPair(t, Config{}, Config{})
		c := newSide(t, p.west).dial(0)
		exchange(t, c, "before")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if n := p.west.Drain(ctx); n != 1 {
			t.Errorf("%d were cut, want 1", n)
		}
		wantReset(t, c)
	})
	t.Run("a request on its way", func(t *testing.T) {
		east := newEnd(t, Config{})
		peer := newScripted(t, east)
		result := make(chan int, 1)
		go func() { result <- east.Drain(t.Context()) }()
		if last := next[*http2.GoAwayFrame](peer).LastStreamID; last != 1<<31-1 {
			t.Fatalf("streams above %d are taken back before the peer knows", last)
		}
		ping := next[*http2.PingFrame](peer)
		peer.ask(1)
		if s := next[*http2.MetaHeadersFrame](peer).PseudoValue("status"); s != "200" {
			t.Fatalf("what was on its way has got %q", s)
		}
		waiting := 0
		east.each(func(w *worker) {
			if w.idle != nil {
				waiting++
			}
		})
		if waiting != 1 {
			t.Errorf("%d loops wait, want the one that serves it", waiting)
		}
		peer.do(peer.WritePing(true, ping.Data))
		if last := next[*http2.GoAwayFrame](peer).LastStreamID; last != 1 {
			t.Errorf("streams above %d are taken back, want those above 1", last)
		}
		peer.ask(3)
		if code := next[*http2.RSTStreamFrame](peer).ErrCode; code != http2.ErrCodeRefusedStream {
			t.Errorf("what came later has got %v", code)
		}
		peer.do(peer.WriteData(1, true, []byte("hello")))
		if got := next[*http2.DataFrame](peer).Data(); string(got) != "hello" {
			t.Errorf("got %q, want the echo", got)
		}
		if n := <-result; n != 0 {
			t.Errorf("%d were cut, want none", n)
		}
	})
	t.Run("a peer that does not answer", func(t *testing.T) {
		east := newEnd(t, Config{})
		peer := newScripted(t, east)
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan int, 1)
		go func() { result <- east.Drain(ctx) }()
		next[*http2.GoAwayFrame](peer)
		cancel()
		if last := next[*http2.GoAwayFrame](peer).LastStreamID; last != 0 {
			t.Errorf("streams above %d are taken back, want all", last)
		}
		if n := <-result; n != 0 {
			t.Errorf("%d were cut, want none", n)
		}
	})
	t.Run("a tunnel that comes too late", func(t *testing.T) {
		east := newEnd(t, Config{})
		east.Drain(t.Context())
		if last := next[*http2.GoAwayFrame](newScripted(t, east)).LastStreamID; last != 0 {
			t.Errorf("streams up to %d would be taken, and cut in a moment", last)
		}
	})
	t.Run("the peer's successor", func(t *testing.T) {
		p := newPair(t, Config{}, Config{})
		clients := newSide(t, p.west)
		old := clients.dial(0)
		exchange(t, old, "before")
		next := newEnd(t, Config{})
		p.peer.Store(next)
		result := make(chan int, 1)
		go func() { result <- p.east.Drain(t.Context()) }()
		eventually(t, "the old one says so", func() (told bool) {
			p.west.each(func(w *worker) {
				for tn := range w.out.tunnels {
					told = told || tn.Draining()
				}
			})
			return told
		})
		exchange(t, clients.dial(0), "a new connection")
		if n := len(next.Flows()); n != 1 {
			t.Errorf("the successor has %d connections, want the new one", n)
		}
		exchange(t, old, "the old one")
		old.CloseWrite()
		if n := <-result; n != 0 {
			t.Errorf("%d were cut, want none", n)
		}
	})
}

// TestSamePort: a client that begins anew from the same port, while its earlier
// connection still lives for the far gateway, gets a new one, and the dead one
// ends. What another peer holds is never touched.
func TestSamePort(t *testing.T) {
	t.Run("its own", func(t *testing.T) {
		seen := serve(t)
		p := newPair(t, Config{}, Config{})
		old := newSide(t, p.west).dial(client.Port())
		exchange(t, old, "before")
		exchange(t, newSide(t, p.west).dial(client.Port()), "again")
		wantReset(t, old)
		if got := seen(); !slices.Equal(got, []netip.AddrPort{client, client}) {
			t.Errorf("the server has seen %v, want %s twice", got, client)
		}
		if s := p.east.Stats(); s.Closed[engine.Replaced] != 1 || s.Active[InboundFlow] != 1 {
			t.Errorf("ended %v, alive %v; want one replaced, one alive", s.Closed, s.Active)
		}
	})
	t.Run("another peer's", func(t *testing.T) {
		serve(t)
		p := newPair(t, Config{}, Config{})
		old := newSide(t, p.west).dial(client.Port())
		exchange(t, old, "before")
		south := newEnd(t, Config{Dial: dialAs(t, "south", p.east)})
		p.east.setPolicy("south") // who has not been told to reload yet
		newSide(t, south).wantReset(client.Port())
		exchange(t, old, "still")
		if s := p.east.Stats(); s.Refused[string(hbone.NoPort)] != 1 || s.Closed[engine.Replaced] != 0 {
			t.Errorf("refused %v, ended %v; want no_port once and none replaced", s.Refused, s.Closed)
		}
	})
}

// TestPeerTunnels: a gateway may have so many tunnels open to us and no more, over
// all loops; another peer has its own, so has another gateway of the same peer, and
// those that end make room.
func TestPeerTunnels(t *testing.T) {
	const limit = 3
	e := newEnd(t, Config{PeerTunnels: limit})
	var open []Session
	for range limit {
		s, err := join(t, t.Context(), "west", e)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, s)
	}
	s, err := join(t, t.Context(), "west", e)
	if !errors.Is(err, ErrTooManyTunnels) {
		t.Fatalf("one more: %v, want %v", err, ErrTooManyTunnels)
	}
	if err := await(s.Conn); !errors.Is(err, record.ErrClosed) {
		t.Errorf("the peer of the one that was refused sees %v, want the end of its session", err)
	}
	s.Close()
	if s, err = join(t, t.Context(), "south", e); err != nil {
		t.Errorf("another peer: %v", err)
	} else {
		defer s.Close()
	}
	if got := e.Stats().Inbound; !maps.Equal(got, map[string]int{"west": limit, "south": 1}) {
		t.Errorf("tunnels: %v", got)
	}
	standby, err := join(t, t.Context(), "west", e, func(s *Session) { s.ID = idOf("west-standby") })
	if err != nil {
		t.Errorf("another gateway of the peer: %v", err)
	}
	standby.Close()
	eventually(t, "it has gone", func() bool { return e.Stats().Inbound["west"] == limit })
	open[0].Close()
	eventually(t, "the end of one is seen", func() bool { return e.Stats().Inbound["west"] == limit-1 })
	if open[0], err = join(t, t.Context(), "west", e); err != nil {
		t.Errorf("after one has ended: %v", err)
	}
	for _, s := range open {
		s.Close()
	}
}

// TestEndingTunnels: tunnels that only carry their last streams leave their places to
// others, however long they live, and nothing is left of them after. As many as there
// may be, and no more.
func TestEndingTunnels(t *testing.T) {
	serve(t)
	p := newPair(t, Config{}, Config{PeerTunnels: 1})
	clients, id := newSide(t, p.west), idOf("west").String()
	places := func() [2]int { return [2]int{p.east.peers.count(id), p.east.ending.count(id)} }
	retire := func() {
		p.west.each(func(w *worker) {
			for tn, s := range w.sessions {
				w.retire(tn, s)
			}
		})
	}
	var old []*net.TCPConn
	for n := range 3 {
		c := clients.dial(0)
		exchange(t, c, "a connection of its own tunnel")
		old = append(old, c)
		retire()
		eventually(t, "its place is another's", func() bool { return places() == [2]int{0, n + 1} })
	}
	for range maxEnding - len(old) {
		p.east.ending.enter(id, maxEnding)
	}
	last := clients.dial(0)
	exchange(t, last, "the last one")
	retire()
	clients.wantReset(0)
	exchange(t, last, "still")
	if got := places(); got != [2]int{1, maxEnding} {
		t.Errorf("counted %v, want the last one among those that are not ending", got)
	}
	for range maxEnding - len(old) {
		p.east.ending.leave(id)
	}
	for _, c := range append(old, last) {
		exchange(t, c, "until its end")
		c.CloseWrite()
	}
	eventually(t, "all places are free", func() bool { return places() == [2]int{} })
}

// TestPartingTunnels: a tunnel that has ended counts for as long as its connection
// does, else a peer could have any number of these.
func TestPartingTunnels(t *testing.T) {
	east := newEnd(t, Config{PeerTunnels: 1})
	first := newScripted(t, east)
	first.do(first.WriteGoAway(0, http2.ErrCodeInternal, nil))
	eventually(t, "the tunnel has ended", func() bool { return east.Stats().Inbound["west"] == 0 })
	again := func() error {
		s, err := join(t, t.Context(), "west", east)
		if s.Conn != nil {
			s.Close()
		}
		return err
	}
	if err := again(); !errors.Is(err, ErrTooManyTunnels) {
		t.Errorf("beside the connection that is left: %v, want %v", err, ErrTooManyTunnels)
	}
	first.conn.Close()
	eventually(t, "its place is free", func() bool { return again() == nil })
}

func (a *admitted) count(peer string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.n[peer]
}

// TestCloseInHaste: a peer that does not answer does not hold up the end of those
// who are in a hurry.
func TestCloseInHaste(t *testing.T) {
	e := newEnd(t, Config{})
	s, err := join(t, t.Context(), "west", e)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	eventually(t, "the tunnel is up", func() bool { return e.Stats().Inbound["west"] == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	closed := make(chan struct{})
	go func() {
		e.Close(ctx)
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(5 * time.Second): // at leisure it would be ten
		t.Error("the gateway waits for a peer that is dead")
		<-closed
	}
}
