package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Revocations are who is refused whatever they prove. They are immutable, and nil
// is nobody.
type Revocations struct {
	ids     map[spiffeid.ID]struct{}
	serials map[string]struct{}
	lists   []*crl
}

// NewRevocations are SPIFFE IDs, and the serial numbers of certificates in lower
// case hexadecimal without zeros before them, whoever has signed these.
func NewRevocations(ids []spiffeid.ID, serials []string) *Revocations {
	r := &Revocations{ids: make(map[spiffeid.ID]struct{}), serials: make(map[string]struct{})}
	for _, id := range ids {
		r.ids[id] = struct{}{}
	}
	for _, s := range serials {
		r.serials[s] = struct{}{}
	}
	return r
}

// With are r and what the revocation lists of now have.
func (r *Revocations) With(c *CRLs) *Revocations {
	return &Revocations{r.ids, r.serials, c.now.Load().all}
}

// Has says whether a SPIFFE ID is revoked.
func (r *Revocations) Has(id spiffeid.ID) bool {
	_, revoked := r.ids[id]
	return revoked
}

// check refuses a chain that was verified with the roots of src. An intermediate's
// number counts as the leaf's does: it stands for all that it has signed.
func (r *Revocations) check(certs []*x509.Certificate, src x509bundle.Source) error {
	if r == nil {
		return nil
	}
	id, err := leafID(certs[0])
	if err != nil {
		return err
	}
	if r.Has(id) {
		return &VerifyError{Reason: Revoked, ID: id, Err: errors.New("by its SPIFFE ID")}
	}
	for _, c := range certs {
		if _, revoked := r.serials[serial(c)]; revoked {
			return &VerifyError{Reason: Revoked, ID: id, Err: fmt.Errorf("by the serial number %s", serial(c))}
		}
		if l := r.listed(c, certs, id.TrustDomain(), src); l != nil {
			return &VerifyError{Reason: Revoked, ID: id, Err: fmt.Errorf("by the serial number %s in %s", serial(c), l.path)}
		}
	}
	return nil
}

// listed is the list that c is on, by c's own issuer: another of the chain, or a
// root.
func (r *Revocations) listed(c *x509.Certificate, chain []*x509.Certificate, td spiffeid.TrustDomain, src x509bundle.Source) *crl {
	for _, l := range r.lists {
		if !l.lists(c) {
			continue
		}
		issuers := chain
		if roots, err := src.GetX509BundleForTrustDomain(td); err == nil { // else nobody vouches for the chain any more
			issuers = slices.Concat(chain, roots.X509Authorities())
		}
		if l.sharesIssuer(c, issuers) {
			return l
		}
	}
	return nil
}

// Refuse makes cfg, one of Client's or Server's with src, refuse the revoked too, who
// are asked for at each handshake.
func Refuse(cfg *tls.Config, src x509bundle.Source, revoked func() *Revocations) {
	verify := cfg.VerifyConnection
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verify(cs); err != nil {
			return err
		}
		return revoked().check(cs.PeerCertificates, src)
	}
}

// Withdrawn says whether what a peer has proved with a chain, at a time, was taken
// back since: because it is among the revoked, or no root of src signs for it any
// more. That its time is over is not a withdrawal. The error is a *VerifyError of
// reason Revoked or RootWithdrawn.
func Withdrawn(certs []*x509.Certificate, at time.Time, src x509bundle.Source, revoked *Revocations) error {
	if err := revoked.check(certs, src); err != nil {
		return err
	}
	for _, c := range certs {
		if at.After(c.NotAfter) { // by the moments between verification and at, say
			at = c.NotAfter
		}
	}
	id, _, err := x509svid.Verify(certs, src, x509svid.WithTime(at))
	if err == nil {
		return nil
	}
	// The same root may have been issued anew meanwhile, and not be valid then.
	if _, _, now := x509svid.Verify(certs, src); now == nil {
		return nil
	}
	return &VerifyError{Reason: RootWithdrawn, ID: id, Err: err}
}
