package tunnel

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"wishbone/identity/authz"
	"wishbone/intercept"
	"wishbone/tunnel/engine"
	"wishbone/tunnel/hbone"
	"wishbone/tunnel/record"
)

// inbound is the way from peers to servers, on one loop.
type inbound struct {
	w        *worker
	tunnels  map[*engine.Tunnel]*peerTunnel
	draining bool
	closed   bool // as draining, and at once
}

func newInbound(w *worker) *inbound {
	return &inbound{w: w, tunnels: make(map[*engine.Tunnel]*peerTunnel)}
}

// peerTunnel is a tunnel that a peer has opened; it hears of its requests.
type peerTunnel struct {
	in      *inbound
	id      spiffeid.ID
	peer    string
	session *living
	counted *admitted // where: among the gateway's peers, or those that are ending
}

// add puts an accepted session to use.
func (in *inbound) add(s Session) {
	cfg := in.w.g.cfg.Tunnel
	cfg.Role = hbone.Server
	pt := &peerTunnel{in: in, id: s.ID, peer: s.Peer, counted: &in.w.g.peers}
	var t *engine.Tunnel
	err := in.w.late(InboundFlow, s)
	if err == nil {
		t, err = in.w.loop.AddTunnel(s.Conn, cfg, pt)
	}
	if err != nil {
		in.w.leaves(s.ID, pt.counted)
		in.w.g.cfg.Log.Error("accepted tunnel lost", "id", s.ID, "error", err)
		return
	}
	in.tunnels[t] = pt
	pt.session = in.w.begins(t, InboundFlow, s)
	if in.w.g.lines.Allow(slog.LevelInfo, tunnelUpLine, pt.peer, "") {
		in.w.g.cfg.Log.Info(tunnelUpLine, "direction", InboundFlow, "peer", pt.peer, "id", pt.id, "serial", pt.session.serial)
	}
	switch {
	case in.closed:
		t.Close(nil)
	case in.draining:
		t.Drain()
	}
}

// delivery is one stream on its way to a server.
type delivery struct {
	pt      *peerTunnel
	flow    *engine.Flow
	info    *carried
	request hbone.Request
	permit  authz.Permit
	tuple   tuple
	fd      int           // the connection to the server, or the last attempt
	timer   engine.Timer  // before the answer ConnectTimeout, then keepAliveAfter
	dialing bool          // counted among those that connect
	wait    time.Duration // before the next attempt, 0 before the first
	reason  string
}

// Request is the path of a stream: authorise, deliver, accept.
func (pt *peerTunnel) Request(f *engine.Flow, r hbone.Request) {
	d := &delivery{pt: pt, flow: f, request: r}
	f.Serve(d)
	d.info = &carried{
		direction: InboundFlow, client: r.Client, target: r.Target,
		peer: pt.peer, id: pt.id, serial: pt.session.serial, state: stateConnecting, allowed: d.allowed,
	}
	pt.in.w.begin(f, d.info)
	if pt.session.withdrawn != nil || pt.session.expired(time.Now()) {
		d.decline()
		return
	}
	err := d.authorise()
	pt.in.w.decideFirst(d.info, err)
	if err != nil {
		d.deny(err)
		return
	}
	d.deliver(d.permit)
}

// authorise asks the policy.
func (d *delivery) authorise() (err error) {
	d.permit, err = d.pt.in.w.g.cfg.Policy().Authorize(d.pt.id, d.request.Client, d.request.Target)
	d.info.rule, d.info.dryRun = d.permit.Rule(), d.permit.DryRun()
	if e, ok := errors.AsType[*authz.DeniedError](err); ok {
		d.info.rule, d.info.dryRun = e.Rule, e.DryRun
	}
	return err
}

// allowed asks it again, for a flow that lives.
func (d *delivery) allowed(g *Gateway) error {
	_, err := g.cfg.Policy().Authorize(d.pt.id, d.request.Client, d.request.Target)
	return err
}

// denial is the reason that a peer is told.
func denial(err error) hbone.Reason {
	e, ok := errors.AsType[*authz.DeniedError](err)
	switch {
	case ok && e.Reason == authz.Loop:
		return hbone.Loop
	case ok && e.Reason == authz.NoSource:
		return hbone.NoSource
	}
	return hbone.Denied
}

// maxConnecting bounds the connections to servers that one peer has under way at
// the same time, over all its tunnels: each is a socket, and may be one for as long
// as ConnectTimeout where nobody answers.
const maxConnecting = 4096

var errConnecting = fmt.Errorf("peer has %d connections under way already", maxConnecting)

// dial counts the delivery among those that connect, or says that they are too many.
func (d *delivery) dial() bool {
	if !d.dialing {
		d.dialing = d.pt.in.w.g.connecting.enter(d.pt.peer, maxConnecting)
	}
	return d.dialing
}

// dialed takes it off them.
func (d *delivery) dialed() {
	if d.dialing {
		d.dialing = false
		d.pt.in.w.g.connecting.leave(d.pt.peer)
	}
}

// deliver connects as the permit says; there is no other way to a server.
func (d *delivery) deliver(p authz.Permit) {
	w := d.pt.in.w
	if !d.dial() {
		d.refuse(hbone.Overloaded, errConnecting)
		return
	}
	fd, err := intercept.Connect(p.From(), p.To(), w.g.cfg.Sockets)
	if err == nil {
		err = d.flow.Connect(fd)
	}
	if err != nil {
		d.failed(err)
		return
	}
	d.fd = fd
	d.register()
	w.loop.After(&d.timer, w.g.cfg.ConnectTimeout, d.timedOut)
}

func (d *delivery) timedOut() {
	if d.info.state == stateConnecting {
		d.refuse(hbone.Timeout, fmt.Errorf("connect to %s: no answer in %s", d.permit.To(), d.pt.in.w.g.cfg.ConnectTimeout))
	}
}

// Connected is the end of the connection attempt.
func (d *delivery) Connected(_ *engine.Flow, err error) {
	d.pt.in.w.loop.Cancel(&d.timer)
	if err != nil {
		d.unregister()
		d.failed(fmt.Errorf("connect to %s%s: %w", d.permit.To(), from(d.permit), err))
		return
	}
	d.dialed()
	if err := d.authorise(); err != nil { // the world may have changed meanwhile
		d.deny(err)
		return
	}
	d.info.state = stateOpen
	d.pt.in.w.loop.After(&d.timer, keepAliveAfter, d.keepAlive)
	d.flow.Accept()
}

// keepAliveAfter is how long a connection has lived that may live for longer.
const keepAliveAfter = time.Second

// keepAlive sees to it that a server which vanishes is missed, and that the rules do not
// forget the connection while nobody speaks.
func (d *delivery) keepAlive() {
	if err := intercept.KeepAlive(d.fd, d.pt.in.w.g.cfg.Sockets); err != nil {
		d.flow.Abort(engine.Cut, err)
	}
}

// from says where a delivery comes from, unless that is this gateway itself.
func from(p authz.Permit) string {
	if !p.From().IsValid() {
		return ""
	}
	return " from " + p.From().String()
}

// failed refuses a delivery that could not be made, unless it can be tried again.
func (d *delivery) failed(err error) {
	if !d.again(err) {
		d.refuse(failure(err), err)
	}
}

// failure names the reason for a failed connection.
func failure(err error) hbone.Reason {
	for _, r := range []struct {
		errno  unix.Errno
		reason hbone.Reason
	}{
		{unix.ECONNREFUSED, hbone.Refused},
		{unix.ECONNRESET, hbone.Refused},
		{unix.ENETUNREACH, hbone.Unreachable},
		{unix.EHOSTUNREACH, hbone.Unreachable},
		{unix.EACCES, hbone.Unreachable},
		{unix.ETIMEDOUT, hbone.Timeout},
		{unix.EMFILE, hbone.Overloaded},
		{unix.ENFILE, hbone.Overloaded},
		{unix.ENOBUFS, hbone.Overloaded},
	} {
		if errors.Is(err, r.errno) {
			return r.reason
		}
	}
	switch {
	case portTaken(err):
		return hbone.NoPort
	case errors.Is(err, intercept.ErrPermission):
		return hbone.NoSource
	}
	return hbone.Failed
}

func portTaken(err error) bool {
	return errors.Is(err, intercept.ErrPortTaken) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// deny refuses what the policy forbids. The peer is told less than the log.
func (d *delivery) deny(err error) {
	d.reason, d.info.denied = string(hbone.Denied), true
	if e, ok := errors.AsType[*authz.DeniedError](err); ok {
		d.reason = string(e.Reason)
	}
	d.flow.Refuse(denial(err), err)
}

// decline sends the peer to a newer tunnel: its certificate, or ours, has expired
// on this one, or does not count any more.
func (d *delivery) decline() {
	d.reason, d.info.denied = ReasonIdentityExpired, true
	pt := d.pt
	if wd := pt.session.withdrawn; wd != nil {
		pt.in.w.drainTunnel(d.flow.Tunnel())
		d.flow.Decline(wd)
		return
	}
	pt.in.w.retire(d.flow.Tunnel(), pt.session)
	d.flow.Decline(fmt.Errorf("the tunnel's certificates were good until %s", pt.session.Expires.UTC().Format(time.RFC3339)))
}

func (d *delivery) refuse(r hbone.Reason, err error) {
	d.reason = string(r)
	d.flow.Refuse(r, err)
}

// Answered never happens: we are the ones who answer.
func (d *delivery) Answered(*engine.Flow, *hbone.Refusal) {}

// Ended is the end of the path.
func (d *delivery) Ended(f *engine.Flow, e engine.End) {
	w := d.pt.in.w
	w.loop.Cancel(&d.timer)
	d.dialed()
	d.unregister()
	w.ended(f, e, d.reason)
}

// Lines of the log that peers can cause.
const (
	malformedLine  = "request refused" // it could not be understood
	tunnelUpLine   = "tunnel up"
	tunnelDownLine = "tunnel down"
)

// Malformed counts what could not be understood, and logs it unless there was too
// much of it.
func (pt *peerTunnel) Malformed(_ *engine.Tunnel, why string) {
	w := pt.in.w
	w.stats.Refused[string(hbone.Malformed)]++
	w.decideTunnel(Denied, pt.session, string(hbone.Malformed))
	if w.g.lines.Allow(slog.LevelWarn, malformedLine, pt.peer, string(hbone.Malformed)) {
		w.g.cfg.Log.Warn(malformedLine, "peer", pt.peer, "id", pt.id, "reason", hbone.Malformed, "error", why)
	}
}

// Overloaded counts and records a request that there was no memory for, and logs it
// unless there were too many.
func (pt *peerTunnel) Overloaded(_ *engine.Tunnel, r hbone.Request) {
	w, reason := pt.in.w, string(hbone.Overloaded)
	c := &carried{direction: InboundFlow, client: r.Client, target: r.Target, peer: pt.peer, id: pt.id, serial: pt.session.serial}
	w.stats.Refused[reason]++
	w.decide(Failed, c, reason, engine.End{})
	if w.g.lines.Allow(slog.LevelWarn, refusedLine, pt.peer, reason) {
		w.log(c, engine.End{Why: engine.Unserved, Err: hbone.ErrBudget}, reason)
	}
}

// Room is of interest only at the end, since the peer opens the streams: a tunnel that
// is to have no more makes room for another one.
func (pt *peerTunnel) Room(t *engine.Tunnel) {
	g := pt.in.w.g
	if t.Draining() && pt.counted == &g.peers && g.ending.enter(pt.id.String(), maxEnding) {
		g.peers.leave(pt.id.String())
		pt.counted = &g.ending
	}
}

// Closed forgets a tunnel.
func (pt *peerTunnel) Closed(t *engine.Tunnel, err error) {
	delete(pt.in.tunnels, t)
	pt.in.w.tunnelDown(t, err)
	pt.in.w.checkIdle()
}

// Parted gives its place back: until then it costs nearly what it did.
func (pt *peerTunnel) Parted(*engine.Tunnel) { pt.in.w.leaves(pt.id, pt.counted) }

// tunnelDown forgets, counts and logs a tunnel that has ended.
func (w *worker) tunnelDown(t *engine.Tunnel, err error) {
	s := w.sessions[t]
	delete(w.sessions, t)
	level := slog.LevelInfo
	attrs := []any{"direction", s.direction, "peer", s.Peer}
	reason := fault(err)
	if reason != "" {
		w.stats.Cut[reason]++
		w.decideTunnel(TunnelCut, s, reason)
		attrs = append(attrs, "reason", reason)
	}
	if err != nil && !errors.Is(err, record.ErrClosed) {
		level = slog.LevelWarn
		attrs = append(attrs, "error", err)
	}
	if s.direction == InboundFlow && !w.g.lines.Allow(level, tunnelDownLine, s.Peer, reason) {
		return // peers may come and go as often as they like
	}
	w.g.cfg.Log.Log(w.out.ctx, level, tunnelDownLine, attrs...)
}

func (in *inbound) drain() {
	in.draining = true
	for t := range in.tunnels {
		t.Drain()
	}
}

// close ends all tunnels, and those that are about to come: what is asked on them may
// be asked elsewhere.
func (in *inbound) close() {
	in.closed = true
	for t := range in.tunnels {
		t.Close(nil)
	}
}

// tuple is what makes a delivered connection unique on this host.
type tuple struct{ from, to netip.AddrPort }
