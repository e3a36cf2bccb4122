package tunnel

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/identity/authz"
	"wishbone/intercept"
	"wishbone/tunnel/hbone"
	"wishbone/tunnel/record"
	"wishbone/tunnel/route"
)

// Config sets a Gateway up. Fields without a default are required.
type Config struct {
	// Loops is how many event loops run. 0 means one for each processor.
	Loops int
	// CPUs are the processors that the loops keep to while flows begin often, one for each.
	// Nil lets them go anywhere.
	CPUs []int
	// Routes is the present routing table, and Policy the present policy; each
	// is asked for at every decision.
	Routes func() *route.Table
	Policy func() *authz.Policy
	// Dial connects to an endpoint of a peer and does the handshake. It runs in
	// a goroutine of its own and ends with ctx.
	Dial func(ctx context.Context, p *route.Peer, endpoint string) (Session, error)
	// Withdrawn says whether what a peer has proved in a handshake was withdrawn
	// since; nil if it was not. It is asked at Reload and at Judge, from any
	// goroutine, of Sessions without Conns too. A nil Withdrawn says no.
	Withdrawn func(Session) *Withdrawal
	// Grace is how long connections go on after the last proof of their peer's
	// SPIFFE ID has expired. 0 means 1 h.
	Grace time.Duration
	// Hold says why dialing makes no sense yet, for want of an identity; captured
	// connections wait meanwhile, until Renewed is called. Nil is always ready.
	Hold func() error
	// OwnTarget says that a captured connection is for this gateway itself or
	// for a peer's endpoint; carrying it would be a loop. Nil says no.
	OwnTarget func(netip.AddrPort) bool
	// Sockets are the options of the sockets made here.
	Sockets intercept.Options
	// Tunnel are the limits of each tunnel; Role is ignored.
	Tunnel hbone.Config
	// PeerTunnels bounds the tunnels that one SPIFFE ID may have open to us: the
	// gateways of a peer have each their own. 0 means 256, as many as one of us
	// dials. Those that only carry their last streams to the end do not count, as
	// they do not where they were dialled; there may be 4096 of them.
	PeerTunnels int
	// DialTimeout bounds connecting to a peer with the handshake. 0 means 20 s.
	DialTimeout time.Duration
	// WaitTimeout is how long a captured connection waits for a tunnel. 0 means
	// 20 s.
	WaitTimeout time.Duration
	// ConnectTimeout bounds connecting to a destination. 0 means 10 s.
	ConnectTimeout time.Duration
	// Decided hears of every decision, on the loops: it must not wait for anything.
	// Nil wants none.
	Decided func(Decision)
	// Log gets a record for each flow that ends. Nil discards.
	Log *slog.Logger
}

// Session is an established TLS session with a peer that has proved who it is.
type Session struct {
	record.Conn
	ID   spiffeid.ID
	Peer string // the peer's name
	// From is where a session that the peer has opened came from.
	From netip.AddrPort
	// Chain is what the peer has proved it with, its own certificate first.
	Chain []*x509.Certificate
	// Proved is when the peer was verified. Shown is since when the certificate
	// that it has got from us was surely the present one.
	Proved, Shown time.Time
	// Expires is when the first of both sides' certificates expires: there are no
	// new streams then. ProofExpires is when the peer's does. Zero is never.
	Expires, ProofExpires time.Time
}

// Gateway is both directions on all loops.
type Gateway struct {
	cfg     Config
	workers []*worker
	tuples  tuples
	peers   admitted // tunnels that they have open to us, but for those that are ending
	ending  admitted // tunnels that only carry their last streams
	// connecting are deliveries that have not come to their server yet.
	connecting admitted
	proofs     proofs
	lines      *LogLimit // of what peers make us refuse
	running    sync.WaitGroup
	scarce     atomic.Bool // the last captured connection's descriptor was among the last
}

// maxTunnels is how many tunnels there may be from one gateway to another.
const maxTunnels = 256

// maxEnding is how many there may be besides that only carry their last streams.
// Tunnels are renewed every hour, on each loop, and connections may live for days.
const maxEnding = 4096

// New makes a gateway; Run starts it.
func New(cfg Config) (*Gateway, error) {
	cfg.Loops = cmp.Or(cfg.Loops, runtime.NumCPU())
	cfg.PeerTunnels = cmp.Or(cfg.PeerTunnels, maxTunnels)
	cfg.DialTimeout = cmp.Or(cfg.DialTimeout, 20*time.Second)
	cfg.WaitTimeout = cmp.Or(cfg.WaitTimeout, 20*time.Second)
	cfg.ConnectTimeout = cmp.Or(cfg.ConnectTimeout, 10*time.Second)
	cfg.Grace = cmp.Or(cfg.Grace, time.Hour)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Decided == nil {
		cfg.Decided = func(Decision) {}
	}
	if cfg.Withdrawn == nil {
		cfg.Withdrawn = func(Session) *Withdrawal { return nil }
	}
	if cfg.OwnTarget == nil {
		cfg.OwnTarget = func(netip.AddrPort) bool { return false }
	}
	g := &Gateway{cfg: cfg, lines: NewLogLimit(cfg.Log)}
	for i := range cfg.Loops {
		w, err := newWorker(g)
		if err != nil {
			g.Run() // a loop gives its descriptors back at its end
			g.Close(context.Background())
			return nil, fmt.Errorf("start gateway: %w", err)
		}
		if i < len(cfg.CPUs) {
			w.loop.Home(cfg.CPUs[i])
		}
		g.workers = append(g.workers, w)
	}
	return g, nil
}

// Run starts the loops; Close ends them and waits. The Go scheduler must have
// more processors than loops, else a busy goroutine delays a loop's wake-up
// from microseconds to milliseconds.
func (g *Gateway) Run() {
	if n := len(g.workers) + 2; runtime.GOMAXPROCS(0) < n {
		runtime.GOMAXPROCS(n)
	}
	for _, w := range g.workers {
		g.running.Go(w.run)
	}
}

// Capture takes connections off transparent listeners from now on: one for all loops,
// or one for each loop's processor. The descriptors stay the caller's, who closes them
// after Uncapture.
func (g *Gateway) Capture(listeners ...int) error {
	if n := len(g.workers); len(listeners) > n {
		return fmt.Errorf("capture: %d listeners for %d loops", len(listeners), n)
	}
	err := errShutdown
	g.on(g.workers[0], func(first *worker) {
		err = nil
		for i, fd := range listeners {
			err = errors.Join(err, first.out.listen(entrance{fd, g.workers[i]}))
		}
	})
	return err
}

// Uncapture takes no more connections off any listener, and returns when that is
// so. A listener that stays open would still let clients connect, and wait for
// nobody: the caller closes it now.
func (g *Gateway) Uncapture() {
	g.each(func(w *worker) { w.out.unlisten() })
}

// ErrTooManyTunnels says that a SPIFFE ID has as many tunnels open to us as it may.
var ErrTooManyTunnels = errors.New("peer has too many tunnels open already")

// AcceptTunnel takes over a session that a peer with this identity has opened.
// It goes to the loop that has the fewest. After an error, ErrTooManyTunnels say,
// the session is closed.
func (g *Gateway) AcceptTunnel(s Session) error {
	if !g.peers.enter(s.ID.String(), g.cfg.PeerTunnels) {
		// It is closed all the same, and the caller cares for the other error.
		_ = s.Close()
		return fmt.Errorf("%s: %w", s.ID, ErrTooManyTunnels)
	}
	w := g.workers[0]
	for _, other := range g.workers[1:] {
		if other.load.Load() < w.load.Load() {
			w = other
		}
	}
	w.load.Add(1)
	if !w.loop.Post(func() { w.in.add(s) }) {
		w.leaves(s.ID, &g.peers)
		_ = s.Close() // as above
		return errShutdown
	}
	return nil
}

// admitted counts something of peers', over all loops.
type admitted struct {
	mu sync.Mutex
	n  map[string]int // by peer, or SPIFFE ID; guarded by mu
}

// enter counts one more, or says that the limit is reached.
func (a *admitted) enter(peer string, limit int) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n[peer] >= limit {
		return false
	}
	if a.n == nil {
		a.n = make(map[string]int)
	}
	a.n[peer]++
	return true
}

func (a *admitted) leave(peer string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.n[peer]--; a.n[peer] == 0 {
		delete(a.n, peer)
	}
}

// each runs f on every loop in turn and waits for it.
func (g *Gateway) each(f func(*worker)) {
	for _, w := range g.workers {
		g.on(w, f)
	}
}

// on runs f on a loop, unless that has ended, and waits for it.
func (g *Gateway) on(w *worker, f func(*worker)) {
	done := make(chan struct{})
	if w.loop.Post(func() { f(w); close(done) }) {
		<-done
	}
}

// Drain stops new connections and lets those that exist go on, and those that wait for
// their tunnel come to be, until ctx is done; what is left then is cut. It returns how
// many were cut that had come to be. With none at all it takes the round trip in which
// peers hear of the end, and what they have asked meanwhile is served.
func (g *Gateway) Drain(ctx context.Context) int {
	var idle sync.WaitGroup
	for _, w := range g.workers {
		idle.Add(1)
		if !w.loop.Post(func() { w.drain(idle.Done) }) {
			idle.Done()
		}
	}
	done := make(chan struct{})
	go func() { // ends when every flow and every peer's tunnel has; Close makes sure of it
		idle.Wait()
		close(done)
	}()
	select {
	case <-done:
		return 0
	case <-ctx.Done():
	}
	cut := 0
	g.each(func(w *worker) { cut += w.cut() })
	return cut
}

// Close ends everything and waits for the loops. Flows are cut at once. Tunnels
// still send what they had, which takes their peers' help: up to ten seconds, but
// not longer than a second after ctx is done.
func (g *Gateway) Close(ctx context.Context) {
	for _, w := range g.workers {
		w.loop.Post(w.close)
	}
	stop := context.AfterFunc(ctx, func() {
		for _, w := range g.workers {
			w.loop.Post(w.loop.Hurry)
		}
	})
	defer stop()
	g.running.Wait()
	g.lines.Close()
}

// Reload is told that routes, policy and what is withdrawn have changed: flows that
// they forbid now are cut, and tunnels to peers that are gone let go.
func (g *Gateway) Reload() {
	round := g.proofs.judge(g.cfg.Withdrawn)
	for _, w := range g.workers {
		w.loop.Post(func() { w.reload(round) })
	}
}

// Judge is told that what Withdrawn goes by has changed. New streams stop at once on
// tunnels whose peers' proofs do not count any more. What lives on them goes on only
// if the peer's SPIFFE ID has another proof, or one within 1.5 s, for which those
// that we have dialled are dialled anew.
func (g *Gateway) Judge() {
	round := g.proofs.judge(g.cfg.Withdrawn)
	for _, w := range g.workers {
		w.loop.Post(func() { w.judge(round) })
	}
}

// Renewed is told that our own certificate has changed: pauses after failed dials
// end, and peers that live connections lead to are dialled anew, so that they have
// seen it when the former one does not count any more.
func (g *Gateway) Renewed() {
	now := time.Now()
	for _, w := range g.workers {
		w.loop.Post(func() { w.renewed(now) })
	}
}
