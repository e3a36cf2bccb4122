package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"wishbone/audit"
	"wishbone/identity"
	"wishbone/intercept"
	"wishbone/tunnel"
	"wishbone/tunnel/record"
	"wishbone/tunnel/route"
)

// userTimeout is how long a tunnel's peer may leave data unacknowledged
// (tcp(7), TCP_USER_TIMEOUT): as long as a PING may stay unanswered.
const userTimeout = 20 * time.Second

// tunnels makes sessions with peers: those that we dial, and those that peers
// open to us.
type tunnels struct {
	source    identity.Source
	snapshot  func() *snapshot
	crls      *identity.CRLs
	sockets   intercept.Options
	records   record.Options
	handshake time.Duration
	log       *slog.Logger
	lines     *tunnel.LogLimit // of tunnels that are refused
	audit     *audit.Log

	listeners []net.Listener
	accepting sync.WaitGroup
	ctx       context.Context // of the handshakes
	abandon   context.CancelFunc
	pending   pending
	rests     rests
	failures  failures
}

// dial connects to an endpoint of a peer and does the handshake.
func (t *tunnels) dial(ctx context.Context, p *route.Peer, endpoint string) (tunnel.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, t.handshake)
	defer cancel()
	own, err := t.show()
	if err != nil { // the handshake would fail for it, and tell the peer no more
		return tunnel.Session{}, fmt.Errorf("dial %s: %w", endpoint, err)
	}
	d := net.Dialer{Control: intercept.Control(t.sockets, userTimeout)}
	nc, err := d.DialContext(ctx, "tcp", endpoint)
	if err != nil {
		return tunnel.Session{}, fmt.Errorf("dial %s: %w", endpoint, err)
	}
	cfg := identity.Client(t.source, func(id spiffeid.ID) error {
		if !slices.Contains(p.IDs, id) {
			return fmt.Errorf("want %s", p.IDs)
		}
		return nil
	})
	identity.Refuse(cfg, t.source, t.revoked)
	conn, err := record.Client(ctx, nc.(*net.TCPConn), cfg, t.records)
	if err != nil {
		if reason := identity.ReasonOf(err); reason != "" {
			t.record(tunnel.OutboundFlow, tunnel.Session{Peer: p.Name}, remote(nc), string(reason), err)
		}
		return tunnel.Session{}, fmt.Errorf("dial %s: %w", endpoint, err)
	}
	return session(conn, p.Name, own)
}

func (t *tunnels) revoked() *identity.Revocations { return t.snapshot().revoked.With(t.crls) }

// shown is what we show in a handshake: a certificate that was the present one at
// a time, or a newer one.
type shown struct{ at, expires time.Time }

// show is asked before a handshake.
func (t *tunnels) show() (shown, error) {
	now := time.Now()
	svid, err := identity.Own(t.source)
	switch {
	case identity.ReasonOf(err) == identity.OwnExpired:
		return shown{}, fmt.Errorf("%w: %w", tunnel.ErrIdentityExpired, err)
	case err != nil:
		return shown{}, err
	}
	return shown{now, svid.Certificates[0].NotAfter}, nil
}

// session names the peer of a finished handshake.
func session(conn record.Conn, peer string, own shown) (tunnel.Session, error) {
	cs := conn.State()
	id, err := identity.Peer(&cs)
	if err != nil {
		return tunnel.Session{}, errors.Join(err, conn.Close())
	}
	s := tunnel.Session{
		Conn: conn, ID: id, Peer: peer, Chain: cs.PeerCertificates, Proved: time.Now(), Shown: own.at,
		ProofExpires: cs.PeerCertificates[0].NotAfter,
	}
	s.Expires = s.ProofExpires
	if !own.expires.IsZero() && own.expires.Before(s.Expires) {
		s.Expires = own.expires
	}
	return s, nil
}

// withdrawn says whether what a peer has proved was withdrawn since. A root that is
// gone takes the proof with it and not the ID, which another root may sign for.
func (t *tunnels) withdrawn(s tunnel.Session) *tunnel.Withdrawal {
	err := identity.Withdrawn(s.Chain, s.Proved, t.source, t.revoked())
	if err == nil {
		return nil
	}
	reason := identity.ReasonOf(err)
	return &tunnel.Withdrawal{Reason: string(reason), Err: err, Renewable: reason == identity.RootWithdrawn}
}

// listen opens the listeners for peers; serve puts them to use. The listeners
// are t's, and end with stop.
func (t *tunnels) listen(at []netip.AddrPort) error {
	t.ctx, t.abandon = context.WithCancel(context.Background())
	lc := net.ListenConfig{Control: intercept.Control(t.sockets, userTimeout)}
	lc.SetMultipathTCP(false) // the options of tunnels are TCP's
	for _, a := range at {
		ln, err := lc.Listen(t.ctx, "tcp", a.String())
		if errors.Is(err, unix.EAFNOSUPPORT) && a.Addr() == netip.IPv6Unspecified() {
			// "[::]" means every address, also on a host without IPv6.
			ln, err = lc.Listen(t.ctx, "tcp4", netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port()).String())
		}
		if err != nil {
			t.close()
			return listenError(fmt.Errorf("listen for peers: %w", err), a.Port())
		}
		t.listeners = append(t.listeners, ln)
	}
	return nil
}

// serve accepts tunnels and hands each on once its peer has proved who it is.
func (t *tunnels) serve(take func(tunnel.Session) error) {
	cfg := identity.Server(t.source, func(id spiffeid.ID) error { return t.snapshot().accept(id) })
	identity.Refuse(cfg, t.source, t.revoked)
	for _, ln := range t.listeners {
		t.accepting.Go(func() { t.accept(ln, cfg, take) })
	}
}

// acceptPause is how long accepting rests when descriptors have run out.
const acceptPause = 100 * time.Millisecond

// accept takes connections off a listener until it is closed.
func (t *tunnels) accept(ln net.Listener, cfg *tls.Config, take func(tunnel.Session) error) {
	for {
		nc, err := ln.Accept()
		switch {
		case err == nil:
			t.admit(nc.(*net.TCPConn), cfg, take)
		case errors.Is(err, net.ErrClosed):
			return
		default:
			t.log.Warn("accept tunnel: resting for a moment", "error", err)
			<-time.After(acceptPause)
		}
	}
}

// admit begins a handshake, unless the source rests or has too many under way.
func (t *tunnels) admit(nc *net.TCPConn, cfg *tls.Config, take func(tunnel.Session) error) {
	from := remote(nc)
	if left, first := t.rests.left(from.Addr(), time.Now()); left > 0 {
		if first && t.lines.Allow(slog.LevelWarn, refusedLine, "", reasonResting) {
			t.log.Warn(refusedLine, "from", from, "reason", reasonResting, "error", fmt.Errorf("too much went wrong from there: the source rests for %v more", left.Round(time.Millisecond)))
		}
		t.turnAway(nc, reasonResting)
		return
	}
	ctx, abandon := context.WithCancelCause(t.ctx)
	place := t.pending.enter(from.Addr(), abandon)
	if place == nil {
		abandon(nil)
		t.turnAway(nc, reasonSource)
		return
	}
	t.accepting.Go(func() { // ends with the handshake timeout at the latest
		defer place.leave()
		defer abandon(nil)
		ctx, cancel := context.WithTimeout(ctx, t.handshake)
		defer cancel()
		conn, own, err := t.answer(ctx, place, nc, cfg)
		if err != nil {
			if cause := context.Cause(ctx); errors.Is(cause, errCrowded) {
				err = cause
			}
			t.rests.missed(from.Addr(), time.Now())
			t.refused(tunnel.Session{}, from, err)
			return
		}
		s, err := session(conn, "", own)
		if err != nil {
			t.refused(tunnel.Session{}, from, err)
			return
		}
		s.Peer, s.From = t.snapshot().peers[s.ID], from
		if err := take(s); err != nil {
			t.rests.missed(from.Addr(), time.Now())
			t.refused(s, from, err)
		}
	})
}

// answer does the handshake when its turn has come. It owns nc, and closes it if that
// fails.
func (t *tunnels) answer(ctx context.Context, place *begun, nc *net.TCPConn, cfg *tls.Config) (record.Conn, shown, error) {
	if err := place.turn(ctx); err != nil {
		nc.Close()
		return nil, shown{}, err
	}
	own, _ := t.show() // without one the handshake fails
	conn, err := record.Server(ctx, nc, cfg, t.records)
	return conn, own, err
}

// turnAway closes a connection before anything is computed for it.
func (t *tunnels) turnAway(nc *net.TCPConn, reason string) {
	t.failures.count(reason)
	t.record(tunnel.InboundFlow, tunnel.Session{}, remote(nc), reason, nil)
	nc.Close()
}

// remote is the other end of a connection, unmapped.
func remote(c net.Conn) netip.AddrPort {
	a := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// refusedLine is what a tunnel that is refused leaves in the log.
const refusedLine = "tunnel refused"

// refused counts and records a tunnel that did not come about, and logs it unless
// there were too many. What is not known of its session is zero.
func (t *tunnels) refused(s tunnel.Session, from netip.AddrPort, err error) {
	reason := string(identity.ReasonOf(err))
	switch {
	case errors.Is(err, tunnel.ErrTooManyTunnels):
		reason = reasonTooMany
	case errors.Is(err, errCrowded):
		reason = reasonOverloaded
	case errors.Is(err, errTurn):
		reason = reasonSource
	case reason == "":
		reason = reasonHandshake
	}
	t.failures.count(reason)
	t.record(tunnel.InboundFlow, s, from, reason, err)
	if t.lines.Allow(slog.LevelWarn, refusedLine, s.Peer, reason) {
		t.log.Warn(refusedLine, "from", from, "reason", reason, "error", err)
	}
}

// stop closes the listeners; handshakes that are under way go on.
func (t *tunnels) stop() {
	for _, ln := range t.listeners {
		ln.Close()
	}
	t.listeners = nil
}

// close ends the handshakes that are under way, and returns when none is.
func (t *tunnels) close() {
	t.stop()
	t.abandon()
	t.accepting.Wait()
	t.lines.Close()
}

// Reasons for refusing a tunnel besides identity's.
const (
	reasonHandshake  = "handshake"  // TLS did not come to an end, or not to a good one
	reasonOverloaded = "overloaded" // too many handshakes under way
	reasonSource     = "one_source" // too many of them from one source
	reasonTooMany    = "too_many"   // of the peer's tunnels
	reasonResting    = "resting"    // too much went wrong from there a moment ago
)

// failures counts tunnels that were refused, by reason: identity's, and those above.
type failures struct {
	mu sync.Mutex
	n  map[string]uint64 // guarded by mu
}

func (f *failures) count(reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n == nil {
		f.n = make(map[string]uint64)
	}
	f.n[reason]++
}

func (f *failures) all() map[string]uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[string]uint64, len(f.n))
	maps.Copy(all, f.n)
	return all
}
