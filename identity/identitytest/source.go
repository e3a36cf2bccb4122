package identitytest

import (
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Source is an identity.Source in memory, which can be changed at any time and
// from any goroutine.
type Source struct {
	mu      sync.Mutex
	svid    *x509svid.SVID  // guarded by mu
	err     error           // guarded by mu; in place of svid
	bundles *x509bundle.Set // locks itself
}

// NewSource has the SVID, and the roots of each authority.
func NewSource(svid *x509svid.SVID, roots ...*Authority) *Source {
	s := &Source{svid: svid, bundles: x509bundle.NewSet()}
	for _, a := range roots {
		s.bundles.Add(a.Bundle())
	}
	return s
}

// Source mints an SVID for the workload at path and trusts this authority. At
// most the first of opts counts.
func (a *Authority) Source(path string, opts ...Options) *Source {
	return NewSource(a.Issue(path, opts...), a)
}

// GetX509SVID gives the SVID, or what Fail has set.
func (s *Source) GetX509SVID() (*x509svid.SVID, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return nil, s.err
	}
	return s.svid, nil
}

// GetX509BundleForTrustDomain gives the roots of td, if there are any.
func (s *Source) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return s.bundles.GetX509BundleForTrustDomain(td)
}

// Set puts another SVID in place of the present one, or of a failure.
func (s *Source) Set(svid *x509svid.SVID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.svid, s.err = svid, nil
}

// Fail makes GetX509SVID return err until the next Set.
func (s *Source) Fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// Trust adds the roots of each authority, in place of others for its domain.
func (s *Source) Trust(roots ...*Authority) {
	for _, a := range roots {
		s.bundles.Add(a.Bundle())
	}
}

// Distrust removes all roots of the domain that each authority signs for.
func (s *Source) Distrust(roots ...*Authority) {
	for _, a := range roots {
		s.bundles.Remove(a.domain)
	}
}
