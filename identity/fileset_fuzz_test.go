package identity

import (
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"

	"wishbone/identity/identitytest"
)

// FuzzFiles: whatever the three files hold, either they make a good set, or
// there is a reason.
func FuzzFiles(f *testing.F) {
	a := identitytest.New("mesh.example")
	for _, o := range []identitytest.Options{{}, {Intermediates: 1}, {CA: true}, {URIs: []string{}}, identitytest.Expired()} {
		cert, key, err := a.Issue("/gateway/west", o).Marshal()
		if err != nil {
			f.Fatal(err)
		}
		bundle, err := a.Bundle().Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(cert, key, bundle)
		document, err := spiffebundle.FromX509Bundle(a.Bundle()).Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(cert, key, document)
		f.Add(cert, key, document[:len(document)/2])
		f.Add(slices.Concat(key, cert), slices.Concat(cert, key), slices.Concat(bundle, bundle))
		f.Add(cert[:len(cert)/2], key, bundle)
		f.Add(cert, key, bundle[:len(bundle)-1])
	}
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), []byte("-----BEGIN EC PRIVATE KEY-----\n-----END EC PRIVATE KEY-----\n"), []byte(nil))
	f.Fuzz(func(t *testing.T, cert, key, bundle []byte) {
		s := pemSet{cert: pemFile{path: "c", data: cert}, key: pemFile{path: "k", data: key}, bundle: pemFile{path: "b", data: bundle}}
		m, err := s.parse()
		if err != nil {
			if m != nil || !slices.Contains(Reasons(), ReasonOf(err)) {
				t.Fatalf("%v: reason %q", err, ReasonOf(err))
			}
			return
		}
		leaf := m.svid.Certificates[0]
		if !matches(m.svid.PrivateKey, leaf) || time.Now().After(leaf.NotAfter) || m.svid.ID.Path() == "" {
			t.Fatalf("took %v", m.svid.ID)
		}
		if m.bundle.Empty() || m.bundle.TrustDomain() != m.svid.ID.TrustDomain() {
			t.Fatalf("took roots of %v for %v", m.bundle.TrustDomain(), m.svid.ID)
		}
	})
}
