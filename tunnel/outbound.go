package tunnel

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/intercept"
	"wishbone/tunnel/engine"
	"wishbone/tunnel/hbone"
	"wishbone/tunnel/pool"
	"wishbone/tunnel/route"
)

// outbound is the way from captured clients to peers, on one loop.
type outbound struct {
	w          *worker
	pool       *pool.Pool[*engine.Tunnel]
	tunnels    map[*engine.Tunnel]*dialledTunnel
	entrances  map[entrance]*engine.Listener // that this loop minds
	uncaptured bool                          // and takes no more
	taken      int                           // captured connections since tidy last looked
	calm       int                           // seconds that they have been few
	said       time.Duration                 // when the log last said that accepting rests
	ctx        context.Context               // of the dials
	stop       context.CancelFunc
}

// dialledTunnel is what is known of a tunnel that we dialled.
type dialledTunnel struct {
	peer     *route.Peer
	draining bool // the log has said so
}

func newOutbound(w *worker) *outbound {
	o := &outbound{w: w, tunnels: make(map[*engine.Tunnel]*dialledTunnel), entrances: make(map[entrance]*engine.Listener)}
	o.ctx, o.stop = context.WithCancel(context.Background())
	o.pool = pool.New(pool.Config[*engine.Tunnel]{
		Dial: o.dial,
		Now:  w.loop.Now,
		Wait: w.g.cfg.WaitTimeout,
		Life: o.life,
		Hold: w.g.cfg.Hold,
		// Each loop has a pool of its own, and the peer's patience is for all.
		MaxTunnels: max(1, maxTunnels/w.g.cfg.Loops),
	})
	return o
}

// life is how long a tunnel takes new streams, by its certificates. Most are renewed
// long before.
func (o *outbound) life(t *engine.Tunnel) time.Duration {
	s := o.w.sessions[t]
	if s == nil || s.Expires.IsZero() {
		return forever
	}
	return time.Until(s.Expires)
}

const forever = time.Duration(math.MaxInt64)

// captured is one client's connection on its way to a peer.
type captured struct {
	o       *outbound
	flow    *engine.Flow
	info    *carried
	request hbone.Request
	peer    *route.Peer
	waiter  *pool.Waiter[*engine.Tunnel]
	retried bool
	reason  string // why it was refused
}

func (o *outbound) listen(e entrance) error {
	if o.uncaptured { // the descriptor may be anybody's
		return errShutdown
	}
	ln, err := o.w.loop.Listen(e.fd, func() error { return o.accept(e) })
	if err == nil {
		o.entrances[e] = ln
	}
	return err
}

// accept takes one connection and carries it. What the kernel has no room for
// makes the listener rest; any other error concerns one connection (accept(2)).
func (o *outbound) accept(e entrance) error {
	if o.w.g.scarce.Load() && !intercept.Room(e.fd) {
		o.paused(unix.EMFILE)
		return unix.EMFILE
	}
	in, err := intercept.Accept(e.fd)
	switch {
	case err == nil:
		if scarce := intercept.Scarce(in.FD); scarce != o.w.g.scarce.Load() {
			o.w.g.scarce.Store(scarce)
		}
		o.taken++
		o.w.place(e, in)
	case errors.Is(err, unix.EAGAIN):
		return unix.EAGAIN
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
		o.paused(err)
		return err
	default:
		o.w.g.cfg.Log.Warn("captured connection lost", "error", err)
	}
	return nil
}

// sayAgain is after how long the log repeats what goes on being so.
const sayAgain = 10 * time.Second

// paused counts and tells that accepting has to rest.
func (o *outbound) paused(err error) {
	o.w.stats.AcceptPaused++
	now := o.w.loop.Now()
	if o.said != 0 && now-o.said < sayAgain {
		return
	}
	o.said = now
	o.w.g.cfg.Log.Warn("not accepting for a moment", "error", err,
		"hint", "each connection takes a descriptor: raise the limit (ulimit -n, LimitNOFILE=)")
}

// carry is the path of a captured connection: route, pool, tunnel.
func (o *outbound) carry(in intercept.Flow) {
	c := &captured{o: o, request: hbone.Request{Client: in.Client, Target: in.Target}}
	flow, err := o.w.loop.NewFlow(in.FD, c)
	if err != nil {
		o.w.g.cfg.Log.Error("captured connection lost", "client", in.Client, "target", in.Target, "error", err)
		return
	}
	c.flow = flow
	c.info = &carried{direction: OutboundFlow, client: in.Client, target: in.Target, state: stateConnecting, allowed: c.allowed}
	o.w.begin(flow, c.info)
	c.take()
}

// take is the path itself.
func (c *captured) take() {
	if err := c.route(); err != nil {
		c.info.denied = true
		c.refuse(c.reason, err)
		return
	}
	c.tunnel()
}

var errLoop = errors.New("target is this gateway or a peer's endpoint")

// route finds the peer that owns the target.
func (c *captured) route() error {
	if c.o.w.g.cfg.OwnTarget(c.request.Target) {
		c.reason = string(hbone.Loop)
		return errLoop
	}
	peer, ok := c.o.w.g.cfg.Routes().Lookup(c.request.Target.Addr())
	if !ok {
		c.reason = reasonNoRoute
		return fmt.Errorf("no peer owns %s", c.request.Target.Addr())
	}
	c.peer, c.info.peer = peer, peer.Name
	return nil
}

// allowed says whether the connection would be routed as it was.
func (c *captured) allowed(g *Gateway) error {
	if c.peer == nil {
		return nil
	}
	p, ok := g.cfg.Routes().Lookup(c.request.Target.Addr())
	switch {
	case !ok || p.Name != c.peer.Name:
		return fmt.Errorf("peer %s does not own %s any more", c.peer.Name, c.request.Target.Addr())
	case !c.info.id.IsZero() && !slices.Contains(p.IDs, c.info.id):
		return fmt.Errorf("%s is not peer %s any more", c.info.id, p.Name)
	}
	return nil
}

// tunnel asks the pool for a tunnel and opens the stream on it.
func (c *captured) tunnel() {
	c.waiter = c.o.pool.Get(c.peer, func(t *engine.Tunnel, err error) {
		c.waiter = nil
		if err == nil {
			err = c.flow.Open(t, c.request)
		}
		if err != nil {
			c.refuse(refusalOf(err), err)
			return
		}
		s := c.o.w.sessions[t]
		c.info.id, c.info.serial = s.ID, s.serial
		if !c.retried && !c.flow.Done() {
			c.o.w.decide(Allowed, c.info, "", engine.End{})
		}
	})
}

// refusalOf names the reason for having no stream.
func refusalOf(err error) string {
	switch {
	case errors.Is(err, hbone.ErrBudget), errors.Is(err, pool.ErrOverloaded):
		return string(hbone.Overloaded)
	case errors.Is(err, ErrIdentityExpired):
		return ReasonIdentityExpired
	}
	return ReasonPeerDown
}

// refuse resets the client.
func (c *captured) refuse(reason string, err error) {
	c.reason = reason
	c.flow.Abort(engine.Unserved, err)
}

// Answered is the peer's word.
func (c *captured) Answered(f *engine.Flow, r *hbone.Refusal) {
	if r != nil && r.Retry && f.Tunnel().Draining() {
		c.o.pool.Spurned(c.peer, f.Tunnel())
	}
	switch {
	case r == nil:
		c.info.state = stateOpen
	case r.Retry && !c.retried:
		c.retried = true
		c.take() // the routes may have changed meanwhile
	default:
		c.refuse(string(r.Reason), fmt.Errorf("peer %s refused: %s (status %s)", c.peer.Name, r.Reason, r.Status))
	}
}

// Connected never happens: the socket came connected.
func (c *captured) Connected(*engine.Flow, error) {}

// Ended is the end of the path.
func (c *captured) Ended(f *engine.Flow, e engine.End) {
	if c.waiter != nil {
		c.waiter.Cancel()
	}
	c.o.w.ended(f, e, c.reason)
}

// dial begins to dial a peer, in a goroutine that ends with the dial timeout
// or the worker, whichever is first.
func (o *outbound) dial(p *route.Peer, endpoint string, done func(*engine.Tunnel, error)) {
	ctx, cancel := context.WithTimeout(o.ctx, o.w.g.cfg.DialTimeout)
	o.w.g.running.Go(func() {
		defer cancel()
		s, err := o.w.g.cfg.Dial(ctx, p, endpoint)
		if err != nil {
			o.w.g.cfg.Log.Warn("tunnel not established", "peer", p.Name, "endpoint", endpoint, "error", err)
		}
		if !o.w.loop.Post(func() { o.dialled(p, endpoint, s, err, done) }) && err == nil {
			s.Close()
		}
	})
}

// dialled puts a fresh session to use.
func (o *outbound) dialled(p *route.Peer, endpoint string, s Session, err error, done func(*engine.Tunnel, error)) {
	var t *engine.Tunnel
	if err == nil {
		err = o.w.late(OutboundFlow, s)
	}
	if err == nil {
		cfg := o.w.g.cfg.Tunnel
		cfg.Role = hbone.Client
		t, err = o.w.loop.AddTunnel(s.Conn, cfg, o)
	}
	if err == nil {
		o.tunnels[t] = &dialledTunnel{peer: p}
		o.w.begins(t, OutboundFlow, s)
		o.w.g.cfg.Log.Info(tunnelUpLine, "direction", OutboundFlow, "peer", p.Name, "endpoint", endpoint, "id", s.ID, "serial", serialOf(s))
	}
	done(t, err)
}

// Request never happens: peers do not open streams on tunnels that we dialled.
func (o *outbound) Request(f *engine.Flow, _ hbone.Request) { f.Refuse(hbone.Malformed, nil) }

// Malformed never happens, as Request.
func (o *outbound) Malformed(*engine.Tunnel, string) {}

// Overloaded never happens, as Request.
func (o *outbound) Overloaded(*engine.Tunnel, hbone.Request) {}

// Room passes on that a tunnel may have room, or will never have any again.
func (o *outbound) Room(t *engine.Tunnel) {
	d := o.tunnels[t]
	if d == nil {
		return
	}
	if t.Draining() && !d.draining {
		d.draining = true
		o.w.g.cfg.Log.Info("tunnel takes no new connections", "direction", OutboundFlow, "peer", d.peer.Name)
	}
	o.pool.Room(d.peer, t)
}

// Closed forgets a tunnel.
func (o *outbound) Closed(t *engine.Tunnel, err error) {
	d := o.tunnels[t]
	if d == nil {
		return
	}
	delete(o.tunnels, t)
	o.w.tunnelDown(t, o.pool.Loss(d.peer, t, err))
	o.pool.Gone(d.peer, t, err)
}

// Parted is of no interest here: who dials counts what it uses.
func (o *outbound) Parted(*engine.Tunnel) {}

// renew dials the endpoint of a tunnel anew, if we have dialled it and something
// lives on it. Where the peer has, that is its part.
func (o *outbound) renew(t *engine.Tunnel) {
	if d := o.tunnels[t]; d != nil && t.Streams() > 0 {
		o.pool.Renew(d.peer, t)
	}
}

// reload lets go of peers that the present routes do not have any more, or have
// elsewhere.
func (o *outbound) reload() {
	peers := o.w.g.cfg.Routes().Peers()
	o.pool.Keep(func(name string) *route.Peer {
		i := slices.IndexFunc(peers, func(p *route.Peer) bool { return p.Name == name })
		if i < 0 {
			return nil
		}
		return peers[i]
	})
}

func (o *outbound) unlisten() {
	for e := range o.entrances {
		o.leave(e)
	}
	o.uncaptured = true
}

// leave minds an entrance no more. Who comes waits there.
func (o *outbound) leave(e entrance) {
	o.entrances[e].Close()
	delete(o.entrances, e)
}

func (o *outbound) drain() {
	o.unlisten()
	o.pool.Drain()
}

func (o *outbound) close() {
	o.drain()
	o.stop()
	for t := range o.tunnels {
		t.Close(nil)
	}
}
