package daemon

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"wishbone/config"
	"wishbone/identity"
	"wishbone/identity/workload"
)

// source is our identity, which may not be there yet: an agent that starts after
// us must not keep us from refusing what would go in the clear meanwhile.
type source struct {
	now    atomic.Pointer[opened]
	first  chan struct{} // closed when there is one
	cancel context.CancelFunc
	wg     sync.WaitGroup // the one that waits for the Workload API
}

// opened is an identity that is there.
type opened struct {
	follower
	io.Closer
}

// follower is a Source that tells of its changes.
type follower interface {
	identity.Source
	Updated() <-chan struct{}
}

var errNoIdentity = errors.New("no identity has come from the Workload API yet")

// openSource reads identity files, whose mistakes are errors at once, or begins
// to wait for the Workload API.
func openSource(cfg config.Identity, log *slog.Logger) (*source, error) {
	s := &source{cancel: func() {}, first: make(chan struct{})}
	if cfg.Files != nil {
		files, err := identity.OpenFiles(identity.FilesConfig{
			Cert: cfg.Files.Cert, Key: cfg.Files.Key, Bundle: cfg.Files.Bundle, Log: log,
		})
		if err != nil {
			return nil, IdentityError(err)
		}
		s.open(&opened{files, files})
		return s, nil
	}
	var ctx context.Context
	ctx, s.cancel = context.WithCancel(context.Background())
	s.wg.Go(func() { s.await(ctx, cfg.WorkloadAPI, log) }) // close waits for it
	return s, nil
}

// patience is after how long without an identity the log says so again.
const patience = 30 * time.Second

// await opens the Workload API, however long it takes.
func (s *source) await(ctx context.Context, address string, log *slog.Logger) {
	for ctx.Err() == nil {
		attempt, cancel := context.WithTimeout(ctx, patience)
		w, err := workload.Open(attempt, workload.Config{Address: address, Log: log})
		cancel()
		if err == nil {
			s.open(&opened{w, w})
			return
		}
		if ctx.Err() == nil {
			log.Error("still without an identity: not ready", "error", err)
		}
	}
}

// open puts an identity to use, once.
func (s *source) open(o *opened) {
	s.now.Store(o)
	close(s.first)
}

// updated is closed at the next change, as those of files and of the Workload API.
func (s *source) updated() <-chan struct{} {
	if o := s.now.Load(); o != nil {
		return o.Updated()
	}
	return s.first
}

// GetX509SVID gives our certificate.
func (s *source) GetX509SVID() (*x509svid.SVID, error) {
	if o := s.now.Load(); o != nil {
		return o.GetX509SVID()
	}
	return nil, errNoIdentity
}

// GetX509BundleForTrustDomain gives the roots of td.
func (s *source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if o := s.now.Load(); o != nil {
		return o.GetX509BundleForTrustDomain(td)
	}
	return nil, errNoIdentity
}

func (s *source) close() error {
	s.cancel()
	s.wg.Wait()
	if o := s.now.Load(); o != nil {
		return o.Close()
	}
	return nil
}
