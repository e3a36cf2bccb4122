package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	// backdate is how far the clock of a host may be behind ours.
	backdate = 5 * time.Minute
	// maxID and maxDomain are bytes (SPIFFE-ID §2.3 and §2.1).
	maxID     = 2048
	maxDomain = 255
)

// authority is a root with its key.
type authority struct {
	domain spiffeid.TrustDomain
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	others []*x509.Certificate // further roots in ca.pem
}

// newAuthority makes a root that signs itself (X509-SVID §3, §4).
func newAuthority(td spiffeid.TrustDomain, validity time.Duration) (*authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	c, err := template(td.ID().URL(), expiry(validity))
	if err != nil {
		return nil, err
	}
	// Each root has a name of its own, for verifiers that look roots up by name.
	c.Subject.CommonName = "wishbone root"
	c.Subject.SerialNumber = fmt.Sprintf("%x", c.SerialNumber)
	c.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	c.IsCA, c.MaxPathLenZero = true, true
	cert, err := create(c, c, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &authority{domain: td, cert: cert, key: key}, nil
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// sign makes an SVID for a key that is valid until then, but does not outlive the
// root.
func (a *authority) sign(id spiffeid.ID, public crypto.PublicKey, until time.Time) (*x509.Certificate, error) {
	if err := a.checkID(id); err != nil {
		return nil, err
	}
	if err := a.checkTimes(time.Now()); err != nil {
		return nil, err
	}
	if until.After(a.cert.NotAfter) {
		until = a.cert.NotAfter
	}
	c, err := template(id.URL(), until)
	if err != nil {
		return nil, err
	}
	c.KeyUsage = x509.KeyUsageDigitalSignature
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	return create(c, a.cert, public, a.key)
}

// checkID sees that id is a workload of this trust domain (X509-SVID §2).
func (a *authority) checkID(id spiffeid.ID) error {
	example := fmt.Sprintf("a SPIFFE ID here is like spiffe://%s/gateway/west", a.domain)
	switch {
	case id.TrustDomain() != a.domain:
		return hinted(example, "this authority signs for %s, not for %s", a.domain, id.TrustDomain())
	case id.Path() == "":
		return hinted(example, "no path: it names a trust domain, not a workload")
	case len(id.String()) > maxID:
		return hinted("choose a shorter path", "the SPIFFE ID is longer than %d bytes", maxID)
	}
	return nil
}

// checkTimes sees that the root is valid.
func (a *authority) checkTimes(now time.Time) error {
	const day = "2006-01-02 15:04:05 MST"
	switch {
	case !now.Before(a.cert.NotAfter):
		return hinted("make a new authority in another directory, and hand out its root",
			"the authority expired at %s", a.cert.NotAfter.Format(day))
	case now.Before(a.cert.NotBefore):
		return hinted("look at this host's clock", "the authority is valid from %s", a.cert.NotBefore.Format(day))
	}
	return nil
}

// expiry is when something made now expires: certificates count in seconds.
func expiry(validity time.Duration) time.Time {
	return time.Now().Add(validity).UTC().Truncate(time.Second)
}

// template is what a root and a leaf have in common.
func template(uri *url.URL, until time.Time) (*x509.Certificate, error) {
	number, err := newSerial()
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{
		SerialNumber:          number,
		Subject:               pkix.Name{Organization: []string{"wishbone"}},
		NotBefore:             time.Now().Add(-backdate),
		NotAfter:              until,
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{uri},
	}, nil
}

// newSerial is 128 random bits, and positive (RFC 5280 §4.1.2.2).
func newSerial() (*big.Int, error) {
	top := new(big.Int).Lsh(big.NewInt(1), 128)
	n, err := rand.Int(rand.Reader, top.Sub(top, big.NewInt(1)))
	if err != nil {
		return nil, err
	}
	return n.Add(n, big.NewInt(1)), nil
}

// create signs a template for a key.
func create(c, issuer *x509.Certificate, public crypto.PublicKey, signer *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, c, issuer, public, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// domainOf is the trust domain that a root speaks for; zero if it says none, as
// the standard allows (X509-SVID §3.1).
func domainOf(root *x509.Certificate) (spiffeid.TrustDomain, error) {
	if !root.IsCA {
		return spiffeid.TrustDomain{}, errors.New("not a signing certificate")
	}
	if len(root.URIs) == 0 {
		return spiffeid.TrustDomain{}, nil
	}
	id, err := x509svid.IDFromCert(root)
	return id.TrustDomain(), err
}

// serial prints a certificate's number as openssl does.
func serial(c *x509.Certificate) string { return fmt.Sprintf("%x", c.SerialNumber) }
