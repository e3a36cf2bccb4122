package workload

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Config says where an identity comes from.
type Config struct {
	// Address is the agent's socket, as in unix:///run/spire/sockets/agent.sock.
	Address string
	// ID is which SVID to take where the agent has several for us. Zero means
	// the first (SPIFFE Workload API §5.3).
	ID spiffeid.ID
	// Retry is the time between two attempts to get an answer. 0 means 1 s.
	Retry time.Duration
	// Log gets a record for each change, and for each mistake once until there
	// is a good answer again. Nil discards.
	Log *slog.Logger
}

// Source is an identity.Source kept in step with the Workload API. Its methods
// may be called from any goroutine, and none but Close waits for anything.
type Source struct {
	cfg     Config
	path    string                   // of the socket
	now     atomic.Pointer[material] // never nil; empty before the first answer
	trouble atomic.Pointer[Error]    // nil while all is well
	dialed  atomic.Pointer[error]    // how the last connect(2) ended; nil before
	cancel  context.CancelFunc
	wg      sync.WaitGroup // the watcher
}

// material is one good answer. It is immutable.
type material struct {
	svid     *x509svid.SVID
	bundles  *x509bundle.Set
	replaced chan struct{} // closed when another has taken its place
}

// Open blocks until the agent has given a first SVID, or ctx ends. The caller
// closes the Source. The error is an *Error that says what was in the way, and
// wraps the cause of ctx's end; what is in the way meanwhile goes to the log. An
// SVID that is there when ctx ends is taken.
func Open(ctx context.Context, cfg Config) (*Source, error) {
	s, err := newSource(cfg)
	if err != nil {
		return nil, err
	}
	first := s.now.Load().replaced
	if err := s.start(); err != nil {
		return nil, err
	}
	select {
	case <-first:
		return s, nil
	case <-ctx.Done():
	}
	select {
	case <-first:
		return s, nil
	default:
		s.Close()
		return nil, s.gaveUp(context.Cause(ctx))
	}
}

func newSource(cfg Config) (*Source, error) {
	if cfg.Retry <= 0 {
		cfg.Retry = time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	path, err := socketPath(cfg.Address)
	if err != nil {
		return nil, newError(BadAddress, cfg.Address, err)
	}
	s := &Source{cfg: cfg, path: path}
	s.now.Store(&material{replaced: make(chan struct{})})
	return s, nil
}

// GetX509SVID gives the last SVID that the agent gave us. It never fails.
func (s *Source) GetX509SVID() (*x509svid.SVID, error) { return s.now.Load().svid, nil }

// GetX509BundleForTrustDomain gives the roots of our own trust domain or of one
// that is federated with it, and fails for any other.
func (s *Source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return s.now.Load().bundles.GetX509BundleForTrustDomain(td)
}

// Updated is closed at the next change of SVID or roots. To miss none, ask for
// it before reading what it tells of. It stays open after Close.
func (s *Source) Updated() <-chan struct{} { return s.now.Load().replaced }

// Err is what keeps the identity from being fresh now, an *Error, or nil. The
// last good one is given out all the same.
func (s *Source) Err() error {
	if e := s.trouble.Load(); e != nil {
		return e
	}
	return nil
}

// Close ends the watch and the connection, and waits until that is so. What was
// last read stays readable. It may be called more than once.
func (s *Source) Close() error {
	s.cancel()
	s.wg.Wait()
	return nil
}

// gaveUp is why Open returns without a Source.
func (s *Source) gaveUp(cause error) error {
	e := s.trouble.Load()
	if e == nil {
		return newError(NotAnswering, s.cfg.Address, fmt.Errorf("no answer (%w)", cause))
	}
	return newError(e.Problem, s.cfg.Address, fmt.Errorf("%w (%w)", e.Err, cause))
}
