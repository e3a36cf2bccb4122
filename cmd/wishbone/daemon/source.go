package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"wishbone/audit"
	"wishbone/config"
	"wishbone/identity"
	"wishbone/identity/workload"
)

// source is our identity, which may not be there yet: an agent that starts after
// us must not keep us from refusing what would go in the clear meanwhile.
type source struct {
	log     *slog.Logger
	audit   *audit.Log
	now     atomic.Pointer[opened]
	first   chan struct{}                 // closed when there is one
	others  *identity.Federation          // bundles of other trust domains, from files
	refused failures                      // changes of files that were not taken
	changed atomic.Pointer[chan struct{}] // closed at the next change of either

	ctx    context.Context // until close
	cancel context.CancelFunc
	wg     sync.WaitGroup // those who wait for the Workload API and for changes
}

// opened is an identity that is there.
type opened struct {
	identity.Source // own, with the bundles of other trust domains
	own             follower
}

// follower is a Source that tells of its changes until it is closed.
type follower interface {
	identity.Source
	io.Closer
	Updated() <-chan struct{}
}

var errNoIdentity = errors.New("no identity has come from the Workload API yet")

// newSource has nothing yet: begin brings it.
func newSource(log *slog.Logger, records *audit.Log) *source {
	s := &source{log: log, audit: records, first: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.others = identity.OpenFederation(identity.Watch{Log: log, Refused: s.notTaken})
	s.changed.Store(new(make(chan struct{})))
	own, others := s.ownUpdated(), s.others.Updated()
	s.wg.Go(func() { s.tell(own, others) })
	return s
}

// tell tells of changes of our identity and of others' bundles, until close.
func (s *source) tell(own, others <-chan struct{}) {
	for {
		select {
		case <-own:
		case <-others:
		case <-s.ctx.Done():
			return
		}
		// Before telling, so that no change falls between.
		own, others = s.ownUpdated(), s.others.Updated()
		close(*s.changed.Swap(new(make(chan struct{}))))
	}
}

// notTaken counts and records a change of a file that was not taken.
func (s *source) notTaken(r identity.Reason) {
	s.refused.count(string(r))
	s.audit.Write(audit.Record{Event: audit.IdentityRefused, Reason: string(r)})
}

// begin reads the files, whose mistakes are errors at once, or begins to wait for
// the Workload API.
func (s *source) begin(cfg *config.Config) error {
	use, err := s.others.Read(cfg.Identity.Bundles())
	if err != nil {
		return BundleError(err)
	}
	use()
	if f := cfg.Identity.Files; f != nil {
		files, err := identity.OpenFiles(identity.FilesConfig{Cert: f.Cert, Key: f.Key, Bundle: f.Bundle, Watch: identity.Watch{Log: s.log, Refused: s.notTaken}})
		if err != nil {
			return IdentityError(err)
		}
		s.open(files)
		return s.checkDomains(cfg)
	}
	s.wg.Go(func() { s.await(s.ctx, cfg) })
	return nil
}

// patience is after how long without an identity the log says so again.
const patience = 30 * time.Second

// await opens the Workload API, however long it takes.
func (s *source) await(ctx context.Context, cfg *config.Config) {
	for ctx.Err() == nil {
		attempt, cancel := context.WithTimeout(ctx, patience)
		w, err := workload.Open(attempt, workload.Config{Address: cfg.Identity.WorkloadAPI, Log: s.log})
		cancel()
		if err == nil {
			s.open(w)
			if err := s.checkDomains(cfg); err != nil {
				s.log.Error("the agent's bundle counts", "error", err)
			}
			return
		}
		if ctx.Err() == nil {
			s.log.Error("still without an identity: not ready", "error", err)
		}
	}
}

// open puts an identity to use, once.
func (s *source) open(own follower) {
	s.now.Store(&opened{s.others.Over(own), own})
	close(s.first)
}

// checkDomains is CheckDomains with our own trust domain, if that is known.
func (s *source) checkDomains(cfg *config.Config) error {
	svid, err := s.GetX509SVID()
	if err != nil {
		return nil // not yet
	}
	return CheckDomains(cfg, svid.ID.TrustDomain())
}

// CheckDomains wants every peer to be of a trust domain whose bundle is at hand,
// where that can be said: the Workload API's may come any time. Own is ours.
func CheckDomains(cfg *config.Config, own spiffeid.TrustDomain) error {
	bundles := cfg.Identity.Bundles()
	if _, wrong := bundles[own]; wrong {
		return hinted(fmt.Errorf("%s: identity.federation names %s, our own trust domain", cfg.Path, own),
			"its bundle is that of identity.files, or the agent's: remove it")
	}
	if cfg.Identity.Files == nil {
		return nil
	}
	for _, p := range cfg.Peers {
		for _, id := range p.IDs {
			td := id.TrustDomain()
			if _, known := bundles[td]; !known && td != own {
				return hinted(fmt.Errorf("%s: %s of peer %s can prove nothing: there is no bundle of %s", cfg.Path, id, p.Name, td),
					"our own trust domain is %s; add to identity, federation: [{trustDomain: %s, bundle: %s.pem}]", own, td, td)
			}
		}
	}
	return nil
}

// CheckFiles is CheckDomains for a gateway that need not run, as far as its files
// can be read here: what is wrong with them is not this check's affair.
func CheckFiles(cfg *config.Config) error {
	f := cfg.Identity.Files
	if f == nil {
		return nil
	}
	files, err := identity.OpenFiles(identity.FilesConfig{Cert: f.Cert, Key: f.Key, Bundle: f.Bundle})
	if err != nil {
		return nil
	}
	svid, err := files.GetX509SVID()
	if err == nil {
		err = CheckDomains(cfg, svid.ID.TrustDomain())
	}
	return errors.Join(err, files.Close())
}

// updated is closed at the next change, as those of files and of the Workload API.
func (s *source) updated() <-chan struct{} { return *s.changed.Load() }

// ownUpdated is updated without the bundles from files of others.
func (s *source) ownUpdated() <-chan struct{} {
	if o := s.now.Load(); o != nil {
		return o.own.Updated()
	}
	return s.first
}

// missing says why there is no identity yet.
func (s *source) missing() error {
	_, err := s.GetX509SVID()
	return err
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

// countRoots is how many roots each trust domain has that matters here: our own,
// and those of peers. 0 means that there is no bundle.
func (d *Daemon) countRoots() map[string]int {
	count := make(map[string]int)
	add := func(td spiffeid.TrustDomain) {
		count[td.Name()] = 0
		if b, err := d.source.GetX509BundleForTrustDomain(td); err == nil {
			count[td.Name()] = len(b.X509Authorities())
		}
	}
	if svid, err := d.source.GetX509SVID(); err == nil {
		add(svid.ID.TrustDomain())
	}
	for id := range d.current.Load().peers {
		add(id.TrustDomain())
	}
	return count
}

func (s *source) close() error {
	s.cancel()
	s.wg.Wait()
	err := s.others.Close()
	if o := s.now.Load(); o != nil {
		err = errors.Join(err, o.own.Close())
	}
	return err
}
