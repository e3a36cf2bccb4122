package daemon

import (
	"crypto/x509"
	"log/slog"
	"maps"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"wishbone/config"
)

// follow follows our identity: it tells the gateway what has changed, and the
// operator what has not for too long.
type follow struct {
	source interface {
		x509svid.Source
		updated() <-chan struct{}
	}
	roots          func() roots // of the peers
	renewed, judge func()       // our certificate has changed; the roots have
	log            *slog.Logger
	hint           string // what to look at if nothing comes

	now atomic.Pointer[renewal] // nil before there is an identity

	// These are the goroutine's own.
	leaf  *x509.Certificate
	known roots
}

// renewal is how far our identity has come. It is immutable.
type renewal struct {
	updated time.Time // when the source last gave another certificate or other roots
	due     time.Time // by when there should be another certificate
}

func (r *renewal) overdue() bool { return !time.Now().Before(r.due) }

// due is when three quarters of a certificate's life are over. An agent renews it
// after half of that (SPIRE), others after two thirds (cert-manager).
func due(leaf *x509.Certificate) time.Time {
	return leaf.NotBefore.Add(leaf.NotAfter.Sub(leaf.NotBefore) / 4 * 3)
}

// whereToLook is the hint for an identity that is not renewed.
func whereToLook(cfg config.Identity) string {
	if cfg.Files != nil {
		return "issue a new certificate and put it in place of " + cfg.Files.Cert + ": it is taken without a restart"
	}
	return "does the agent at " + cfg.WorkloadAPI + " run, reach its server, and still have an entry for this workload?"
}

// start follows until stop is called, which waits for it.
func (f *follow) start() (stop func() error) {
	stopping, done := make(chan struct{}), make(chan struct{})
	f.known = f.roots()
	go func() { // ends with stop
		defer close(done)
		f.run(stopping)
	}()
	return func() error {
		close(stopping)
		<-done
		return nil
	}
}

func (f *follow) run(stopping <-chan struct{}) {
	for {
		// Asked for first, so that no change falls between.
		updated := f.source.updated()
		f.look()
		var late <-chan time.Time
		if r := f.now.Load(); r != nil && !r.overdue() {
			late = time.After(time.Until(r.due))
		}
		select {
		case <-updated:
		case <-late:
			f.warn()
		case <-stopping:
			return
		}
	}
}

// look finds what is new.
func (f *follow) look() {
	svid, err := f.source.GetX509SVID()
	if err != nil {
		return
	}
	leaf, r := svid.Certificates[0], f.roots()
	another := f.leaf == nil || !f.leaf.Equal(leaf)
	if another || !r.equal(f.known) {
		f.now.Store(&renewal{updated: time.Now(), due: due(leaf)})
	}
	if !r.equal(f.known) {
		f.known = r
		f.judge()
	}
	if another {
		f.leaf = leaf
		f.renewed()
		if f.now.Load().overdue() {
			f.warn()
		}
	}
}

// warn is said once a certificate.
func (f *follow) warn() {
	f.log.Warn("identity is not renewed", "serial", f.leaf.SerialNumber.Text(16), "expires", f.leaf.NotAfter, "hint", f.hint)
}

// roots are those of trust domains. One that we have none of is not there.
type roots map[spiffeid.TrustDomain]*x509bundle.Bundle

func (r roots) equal(o roots) bool { return maps.EqualFunc(r, o, (*x509bundle.Bundle).Equal) }

// roots are those of all peers' trust domains as of now.
func (d *Daemon) roots() roots {
	all := make(roots)
	for id := range d.current.Load().peers {
		if b, err := d.source.GetX509BundleForTrustDomain(id.TrustDomain()); err == nil {
			all[id.TrustDomain()] = b
		}
	}
	return all
}
