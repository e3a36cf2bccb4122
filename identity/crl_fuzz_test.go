package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"testing"
	"time"

	"wishbone/identity/identitytest"
)

// FuzzCRL: whatever a file holds, either it is lists that can be asked about any
// certificate, and each is by an authority that has signed it, or there is a reason.
func FuzzCRL(f *testing.F) {
	a := identitytest.New("mesh.example")
	svid := a.Issue("/gateway/west", identitytest.Options{Intermediates: 1})
	roots := a.Bundle().X509Authorities()
	one, two := a.CRL(time.Now().Add(time.Hour), svid.Certificates...), a.CRL(time.Now())
	bundle, err := a.Bundle().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{
		nil, one, two, slices.Concat(one, two), slices.Concat(bundle, one), one[:len(one)/2], bundle,
		[]byte("-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n"),
	} {
		f.Add(seed)
		if b, _ := pem.Decode(seed); b != nil {
			f.Add(b.Bytes)
			f.Add(b.Bytes[:len(b.Bytes)/2])
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		file := &crlFile{path: "a"}
		err := file.parse(pemFile{path: "a", data: bytes.Clone(data)}, func() ([]*x509.Certificate, bool) { return roots, true })
		if err != nil {
			if file.lists != nil || !slices.Contains(Reasons(), ReasonOf(err)) {
				t.Fatalf("%v: reason %q", err, ReasonOf(err))
			}
			return
		}
		r := &Revocations{lists: file.lists}
		for _, l := range file.lists {
			if !l.signedBy(roots[0]) {
				t.Fatalf("took a list by %s", l.list.Issuer)
			}
			l.stale()
		}
		if err := r.check(svid.Certificates, a.Bundle()); err != nil && ReasonOf(err) != Revoked {
			t.Fatal(err)
		}
	})
}
