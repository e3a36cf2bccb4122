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
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"wishbone/identity"
	"wishbone/intercept"
	"wishbone/tunnel"
	"wishbone/tunnel/record"
	"wishbone/tunnel/route"
)

// userTimeout is how long a tunnel's peer may leave data unacknowledged
// (tcp(7), TCP_USER_TIMEOUT): as long as a PING may stay unanswered.
const userTimeout = 20 * time.Second

// maxPending bounds the handshakes that peers have begun and not finished. Those
// who have not proved anything yet get no more of us than that.
const maxPending = 1024

// tunnels makes sessions with peers: those that we dial, and those that peers
// open to us.
type tunnels struct {
	source    identity.Source
	snapshot  func() *snapshot
	sockets   intercept.Options
	slots     record.Slots
	handshake time.Duration
	log       *slog.Logger

	listeners []net.Listener
	accepting sync.WaitGroup
	ctx       context.Context // of the handshakes
	abandon   context.CancelFunc
	pending   atomic.Int64
	failures  failures
}

// dial connects to an endpoint of a peer and does the handshake.
func (t *tunnels) dial(ctx context.Context, p *route.Peer, endpoint string) (tunnel.Session, error) {
	ctx, cancel := context.WithTimeout(ctx, t.handshake)
	defer cancel()
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
	identity.Refuse(cfg, t.revoked)
	own := t.ownExpiry()
	conn, err := record.Client(ctx, nc.(*net.TCPConn), cfg, t.slots)
	if err != nil {
		return tunnel.Session{}, fmt.Errorf("dial %s: %w", endpoint, err)
	}
	return session(conn, p.Name, own)
}

func (t *tunnels) revoked() *identity.Revocations { return t.snapshot().revoked }

// ownExpiry is when our certificate expires. Asked before a handshake, it is never
// later than that of the one which the handshake shows.
func (t *tunnels) ownExpiry() time.Time {
	svid, err := identity.Own(t.source)
	if err != nil {
		return time.Time{} // and the handshake will fail for it
	}
	return svid.Certificates[0].NotAfter
}

// session names the peer of a finished handshake; own is when our own certificate
// expires.
func session(conn record.Conn, peer string, own time.Time) (tunnel.Session, error) {
	cs := conn.State()
	id, err := identity.Peer(&cs)
	if err != nil {
		return tunnel.Session{}, errors.Join(err, conn.Close())
	}
	s := tunnel.Session{Conn: conn, ID: id, Peer: peer, Proved: time.Now(), ProofExpires: cs.PeerCertificates[0].NotAfter}
	s.Expires = s.ProofExpires
	if !own.IsZero() && own.Before(s.Expires) {
		s.Expires = own
	}
	return s, nil
}

// withdrawn says whether what a peer has proved was withdrawn since.
func (t *tunnels) withdrawn(s tunnel.Session) *tunnel.Withdrawal {
	cs := s.State()
	err := identity.Withdrawn(cs.PeerCertificates, s.Proved, t.source, t.revoked())
	if err == nil {
		return nil
	}
	return &tunnel.Withdrawal{Reason: string(identity.ReasonOf(err)), Err: err}
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
	identity.Refuse(cfg, t.revoked)
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

// admit begins a handshake, unless too many are under way.
func (t *tunnels) admit(nc *net.TCPConn, cfg *tls.Config, take func(tunnel.Session) error) {
	if t.pending.Add(1) > maxPending {
		t.pending.Add(-1)
		t.failures.count(reasonOverloaded)
		nc.Close()
		return
	}
	t.accepting.Go(func() { // ends with the handshake timeout at the latest
		defer t.pending.Add(-1)
		ctx, cancel := context.WithTimeout(t.ctx, t.handshake)
		defer cancel()
		remote := nc.RemoteAddr().String()
		own := t.ownExpiry()
		conn, err := record.Server(ctx, nc, cfg, t.slots)
		if err != nil {
			t.refused(remote, err)
			return
		}
		s, err := session(conn, "", own)
		if err != nil {
			t.refused(remote, err)
			return
		}
		s.Peer = t.snapshot().peers[s.ID]
		if err := take(s); err != nil {
			t.refused(remote, err)
		}
	})
}

// refused counts and logs a tunnel that did not come about.
func (t *tunnels) refused(remote string, err error) {
	reason := string(identity.ReasonOf(err))
	switch {
	case errors.Is(err, tunnel.ErrTooManyTunnels):
		reason = reasonTooMany
	case reason == "":
		reason = reasonHandshake
	}
	t.failures.count(reason)
	t.log.Warn("tunnel refused", "from", remote, "reason", reason, "error", err)
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
}

// Reasons for refusing a tunnel besides identity's.
const (
	reasonHandshake  = "handshake"  // TLS did not come to an end, or not to a good one
	reasonOverloaded = "overloaded" // too many handshakes under way
	reasonTooMany    = "too_many"   // of the peer's tunnels
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
