package identitytest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Authority signs for one trust domain. It may be used by any number of
// goroutines at once.
type Authority struct {
	domain spiffeid.TrustDomain
	cert   *x509.Certificate
	key    crypto.Signer
	serial atomic.Int64
}

// Options bend an SVID. The zero value makes a good one.
type Options struct {
	// NotBefore is when it becomes valid. Zero means an hour ago.
	NotBefore time.Time
	// NotAfter is when it expires. Zero means in an hour.
	NotAfter time.Time
	// URIs stand in the certificate instead of its SPIFFE ID. An empty slice
	// that is not nil leaves it without any.
	URIs []string
	// CA makes a signing certificate of it, which no leaf may be.
	CA bool
	// Usages are the extended key usages. Nil means both sides of TLS.
	Usages []x509.ExtKeyUsage
	// Intermediates is how many certificates stand between it and the root.
	Intermediates int
	// Padding is so many bytes in an extension that nobody reads.
	Padding int
}

// Expired are the Options of an SVID whose time is over.
func Expired() Options {
	now := time.Now()
	return Options{NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Minute)}
}

// NotYetValid are the Options of an SVID whose time has not come.
func NotYetValid() Options {
	now := time.Now()
	return Options{NotBefore: now.Add(time.Minute), NotAfter: now.Add(2 * time.Hour)}
}

// New makes an authority for a trust domain, such as "mesh.example".
func New(domain string) *Authority {
	a := &Authority{domain: spiffeid.RequireTrustDomainFromString(domain), key: newKey()}
	a.cert = a.sign(signing("root of "+domain), a.key.Public(), nil, a.key)
	return a
}

// ID is the SPIFFE ID at path, such as "/gateway/west".
func (a *Authority) ID(path string) spiffeid.ID {
	return spiffeid.RequireFromPath(a.domain, path)
}

// Bundle is the authority's root, as a peer would have it.
func (a *Authority) Bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(a.domain, []*x509.Certificate{a.cert})
}

// Issue mints an SVID for the workload at path. At most the first of opts counts.
func (a *Authority) Issue(path string, opts ...Options) *x509svid.SVID {
	o := first(opts)
	issuer, signer := a.cert, a.key
	var between []*x509.Certificate
	for i := range o.Intermediates {
		key := newKey()
		issuer = a.sign(signing(fmt.Sprintf("intermediate %d", i)), key.Public(), issuer, signer)
		signer = key
		between = append([]*x509.Certificate{issuer}, between...)
	}
	key, id := newKey(), a.ID(path)
	leaf := a.sign(leafTemplate(id, o), key.Public(), issuer, signer)
	return &x509svid.SVID{ID: id, Certificates: append([]*x509.Certificate{leaf}, between...), PrivateKey: key}
}

func first(opts []Options) Options {
	if len(opts) == 0 {
		return Options{}
	}
	return opts[0]
}

// leafTemplate is the certificate of a workload (X509-SVID §4), bent by o.
func leafTemplate(id spiffeid.ID, o Options) *x509.Certificate {
	c := &x509.Certificate{
		NotBefore:             o.NotBefore,
		NotAfter:              o.NotAfter,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           o.Usages,
		BasicConstraintsValid: true,
		IsCA:                  o.CA,
		URIs:                  uris(id, o.URIs),
	}
	if o.Usages == nil {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	if o.Padding > 0 {
		// 2.25.1 is a UUID's arc (X.667): nobody's, and never critical.
		c.ExtraExtensions = []pkix.Extension{{Id: []int{2, 25, 1}, Value: make([]byte, o.Padding)}}
	}
	return c
}

// uris are those of a certificate: its own, or what the options say.
func uris(id spiffeid.ID, instead []string) (list []*url.URL) {
	if instead == nil {
		return []*url.URL{id.URL()}
	}
	for _, s := range instead {
		u, err := url.Parse(s)
		must(err)
		list = append(list, u)
	}
	return list
}

// signing is a certificate that may sign others (X509-SVID §4).
func signing(name string) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
}

// sign finishes a template and signs it; without an issuer it signs itself.
func (a *Authority) sign(c *x509.Certificate, public crypto.PublicKey, issuer *x509.Certificate, key crypto.Signer) *x509.Certificate {
	c.SerialNumber = big.NewInt(a.serial.Add(1))
	if c.NotBefore.IsZero() {
		c.NotBefore = time.Now().Add(-time.Hour)
	}
	if c.NotAfter.IsZero() {
		c.NotAfter = time.Now().Add(time.Hour)
	}
	if c.IsCA {
		c.NotAfter = time.Now().AddDate(1, 0, 0)
	}
	if issuer == nil {
		issuer = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, issuer, public, key)
	must(err)
	cert, err := x509.ParseCertificate(der)
	must(err)
	return cert
}

func newKey() crypto.Signer {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	return key
}

// must panics: what can fail here is a mistake of the test.
func must(err error) {
	if err != nil {
		panic("identitytest: " + err.Error())
	}
}
