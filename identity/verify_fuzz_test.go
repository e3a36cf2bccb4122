package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// FuzzChain: whatever certificates a stranger shows, either there is a reason, or
// they are an X509-SVID that our root has signed.
func FuzzChain(f *testing.F) {
	ours, other := newSigner(f, 1), newSigner(f, 2)
	between := signer{key: other.key}
	between.cert = ours.sign(f, &x509.Certificate{Subject: pkix.Name{CommonName: "between"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, between.key)
	west, twice := subjectAltName("spiffe://mesh.example/gateway/west"), subjectAltName("spiffe://mesh.example/a", "spiffe://mesh.example/b")
	for _, by := range []signer{ours, between, other} {
		for _, c := range []*x509.Certificate{leafOf(west), leafOf(twice), leafOf(nil), {IsCA: true, BasicConstraintsValid: true, ExtraExtensions: leafOf(west).ExtraExtensions}} {
			chain := by.sign(f, c, ours.key).Raw
			f.Add(chain)
			f.Add(slices.Concat(chain, by.cert.Raw))
			f.Add(slices.Concat(chain, between.cert.Raw, ours.cert.Raw))
			f.Add(chain[:len(chain)-1])
		}
	}
	v := verifier{roots: ours.bundle(), usage: x509.ExtKeyUsageClientAuth}
	roots := x509.NewCertPool()
	roots.AddCert(ours.cert)
	f.Fuzz(func(t *testing.T, chain []byte) {
		certs, err := x509.ParseCertificates(chain)
		if err != nil {
			return // crypto/tls says so to the stranger
		}
		id, err := v.chain(certs)
		if err != nil {
			checkReason(t, err)
			return
		}
		among := x509.NewCertPool()
		for _, c := range certs {
			among.AddCert(c)
		}
		if _, err := certs[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: among, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("took %s: %v", id, err)
		}
		checkID(t, certs[0], id)
	})
}

// signer signs what fuzz targets begin with. Its keys are no secret, since each
// of their processes must have the same.
type signer struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

func newSigner(f *testing.F, number byte) signer {
	s := signer{key: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{number}, ed25519.SeedSize))}
	s.cert = &x509.Certificate{Subject: pkix.Name{CommonName: "root"}}
	s.cert = s.sign(f, &x509.Certificate{Subject: s.cert.Subject, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, s.key)
	return s
}

// sign makes a certificate that is good for this century.
func (s signer) sign(f *testing.F, c *x509.Certificate, key ed25519.PrivateKey) *x509.Certificate {
	f.Helper()
	c.NotBefore, c.NotAfter = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
	cert, err := s.try(c, key)
	if err != nil {
		f.Fatal(err)
	}
	return cert
}

func (s signer) try(c *x509.Certificate, key ed25519.PrivateKey) (*x509.Certificate, error) {
	c.SerialNumber = big.NewInt(1)
	der, err := x509.CreateCertificate(nil, c, s.cert, key.Public(), s.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func (s signer) bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("mesh.example"), []*x509.Certificate{s.cert})
}

// leafOf has that subject alternative name, or none.
func leafOf(san []byte) *x509.Certificate {
	c := &x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if san != nil {
		c.ExtraExtensions = []pkix.Extension{{Id: oidSubjectAltName, Value: san}}
	}
	return c
}

// FuzzLeaf is FuzzChain with the fields of a certificate that our own root has
// signed: a signature is not what a fuzzer comes upon.
func FuzzLeaf(f *testing.F) {
	for _, uris := range [][]string{
		{"spiffe://mesh.example/gateway/west"}, {}, {"spiffe://mesh.example/a", "spiffe://mesh.example/b"}, {"spiffe://mesh.example"}, {"SPIFFE://mesh.example/a"},
		{"spiffe://other.example/a"}, {"spiffe://mesh.example/a?q"}, {"spiffe://mesh.example/a#"}, {"spiffe://mesh.example:80/a"}, {"spiffe://u@mesh.example/%61"}, {"https://mesh.example/a"},
	} {
		f.Add(subjectAltName(uris...), uint16(x509.KeyUsageDigitalSignature), uint8(x509.ExtKeyUsageClientAuth), false, int16(60))
	}
	west := subjectAltName("spiffe://mesh.example/gateway/west")
	f.Add(west, uint16(x509.KeyUsageCertSign), uint8(0), true, int16(60))
	f.Add(west, uint16(0), uint8(x509.ExtKeyUsageServerAuth), false, int16(60))
	f.Add(west, uint16(x509.KeyUsageKeyAgreement), uint8(x509.ExtKeyUsageClientAuth), false, int16(-60))
	f.Add(append([]byte{0x30, 0x03, 0x82, 0x01, 'a'}, west...), uint16(1), uint8(2), false, int16(60))

	ours := newSigner(f, 1)
	v := verifier{roots: ours.bundle(), usage: x509.ExtKeyUsageClientAuth}
	f.Fuzz(func(t *testing.T, san []byte, usage uint16, ext uint8, ca bool, minutes int16) {
		c := leafOf(san)
		c.NotBefore, c.NotAfter = time.Now().Add(-1000*time.Hour), time.Now().Add(time.Duration(minutes)*time.Minute)
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = ca, ca, x509.KeyUsage(usage), []x509.ExtKeyUsage{x509.ExtKeyUsage(ext % 14)}
		leaf, err := ours.try(c, ours.key)
		if err != nil {
			return // crypto/x509 does not read it, or does not write it
		}
		id, err := v.chain([]*x509.Certificate{leaf})
		if err != nil {
			checkReason(t, err)
			return
		}
		if ca || minutes < 0 || id.TrustDomain().Name() != "mesh.example" || usage&uint16(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
			t.Errorf("took %s with %x %d %t %d", id, usage, ext, ca, minutes)
		}
		checkID(t, leaf, id)
	})
}

// subjectAltName is the extension's value with URIs (RFC 5280 §4.2.1.6).
func subjectAltName(uris ...string) []byte {
	var names []byte
	for _, u := range uris {
		names = append(append(names, 0x80|tagURI, byte(len(u))), u...)
	}
	return append([]byte{0x30, byte(len(names))}, names...)
}

// checkReason fails unless err is one that can be counted.
func checkReason(t *testing.T, err error) {
	t.Helper()
	if !slices.Contains(Reasons(), ReasonOf(err)) {
		t.Errorf("%v: reason %q", err, ReasonOf(err))
	}
}

// checkID fails unless a leaf says of itself what it was taken for, and go-spiffe
// thinks so too.
func checkID(t *testing.T, leaf *x509.Certificate, id spiffeid.ID) {
	t.Helper()
	if theirs, err := x509svid.IDFromCert(leaf); err != nil || theirs != id {
		t.Errorf("took %s, and go-spiffe %s, %v", id, theirs, err)
	}
	if len(leaf.URIs) != 1 || !bytes.Contains(leaf.Raw, []byte(id.String())) || id.Path() == "" || leaf.IsCA {
		t.Errorf("took %s of %v", id, leaf.URIs)
	}
}
