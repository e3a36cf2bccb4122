package identity_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"wishbone/identity"
	"wishbone/identity/identitytest"
)

var meshDomain = spiffeid.RequireTrustDomainFromString("mesh.example")

// TestRefusals has each thing that can be wrong with a peer's certificate, shown
// to us as a server and as a client.
func TestRefusals(t *testing.T) {
	a := identitytest.New("mesh.example")
	twin, stranger := identitytest.New("mesh.example"), identitytest.New("other.example")
	type options = identitytest.Options
	for _, tc := range []struct {
		name string
		svid *x509svid.SVID
		want identity.Reason
	}{
		{"chain too large", a.Issue(westPath, options{Padding: 41 << 10}), identity.TooLarge},
		{"no URI", a.Issue(westPath, options{URIs: []string{}}), identity.NoURISAN},
		{"two SPIFFE IDs", a.Issue(westPath, options{URIs: []string{a.ID(westPath).String(), a.ID(eastPath).String()}}), identity.MultipleURISANs},
		{"one SPIFFE ID twice", a.Issue(westPath, options{URIs: []string{a.ID(westPath).String(), a.ID(westPath).String()}}), identity.MultipleURISANs},
		{"another URI beside", a.Issue(westPath, options{URIs: []string{a.ID(westPath).String(), "https://mesh.example/"}}), identity.MultipleURISANs},
		{"signing certificate", a.Issue(westPath, options{CA: true}), identity.NotLeaf},
		{"usage that is not TLS", a.Issue(westPath, options{Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}}), identity.BadUsage},
		{"another domain", stranger.Issue(westPath), identity.WrongDomain},
		{"expired", a.Issue(westPath, identitytest.Expired()), identity.Expired},
		{"not yet valid", a.Issue(westPath, identitytest.NotYetValid()), identity.NotYetValid},
		{"authority with the same names", twin.Issue(westPath), identity.UnknownAuthority},
		{"the same with an intermediate", twin.Issue(westPath, options{Intermediates: 1}), identity.UnknownAuthority},
		{"intermediate left out", without(a.Issue(westPath, options{Intermediates: 1})), identity.UnknownAuthority},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testRoles(t, a.Source(eastPath), welcome, tc.svid, func(t *testing.T, judge, other end) {
				wantRefused(t, judge, other, tc.want)
			})
		})
	}
}

// without leaves out what stands between the leaf and the root.
func without(svid *x509svid.SVID) *x509svid.SVID {
	svid.Certificates = svid.Certificates[:1]
	return svid
}

func TestNoCertificate(t *testing.T) {
	a := identitytest.New("mesh.example")
	c, s := handshake(t, rawClient(nil), identity.Server(a.Source(eastPath), welcome))
	wantRefused(t, s, c, identity.NoCertificate)
}

// TestUsageOfTheOtherSide: a certificate for one side of TLS is not for the other.
func TestUsageOfTheOtherSide(t *testing.T) {
	a := identitytest.New("mesh.example")
	onlyClient := a.Issue(westPath, identitytest.Options{Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	onlyServer := a.Issue(westPath, identitytest.Options{Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	east := a.Source(eastPath)

	c, s := handshake(t, rawClient(onlyClient), identity.Server(east, welcome))
	wantAccepted(t, c, s)
	c, s = handshake(t, rawClient(onlyServer), identity.Server(east, welcome))
	wantRefused(t, s, c, identity.BadUsage)
	c, s = handshake(t, identity.Client(east, welcome), rawServer(onlyServer))
	wantAccepted(t, c, s)
	c, s = handshake(t, identity.Client(east, welcome), rawServer(onlyClient))
	wantRefused(t, c, s, identity.BadUsage)
}

// TestWelcome: the caller's word is asked with the exact ID, after the proof,
// and its no is a WrongID that names whom it is about.
func TestWelcome(t *testing.T) {
	a := identitytest.New("mesh.example")
	no := errors.New("not today")
	for _, tc := range []struct {
		name   string
		accept func(spiffeid.ID) error
		path   string
	}{
		{"another path", only(a.ID("/gateway/west")), "/gateway/west2"},
		{"a path below", only(a.ID("/gateway/west")), "/gateway/west/x"},
		{"another case", only(a.ID("/gateway/west")), "/gateway/West"},
		{"nobody", nil, "/gateway/west"},
		{"a reason", func(spiffeid.ID) error { return no }, "/gateway/west"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testRoles(t, a.Source(eastPath), tc.accept, a.Issue(tc.path), func(t *testing.T, judge, other end) {
				e := wantRefused(t, judge, other, identity.WrongID)
				if e.ID != a.ID(tc.path) || !strings.Contains(e.Error(), a.ID(tc.path).String()) {
					t.Errorf("%v: does not name %v", e, a.ID(tc.path))
				}
				if tc.name == "a reason" && !errors.Is(judge.err, no) {
					t.Errorf("%v does not wrap the caller's error", judge.err)
				}
			})
		})
	}
}

// TestUnprovedIsNotAsked: the caller never hears of an ID that was not proved.
func TestUnprovedIsNotAsked(t *testing.T) {
	a, twin := identitytest.New("mesh.example"), identitytest.New("mesh.example")
	asked := func(id spiffeid.ID) error {
		t.Errorf("asked about %v", id)
		return nil
	}
	testRoles(t, a.Source(eastPath), asked, twin.Issue(westPath), func(t *testing.T, judge, other end) {
		wantRefused(t, judge, other, identity.UnknownAuthority)
	})
}

// TestNoRootsIsNotTheSystems: a bundle that has become empty trusts nobody.
func TestNoRootsIsNotTheSystems(t *testing.T) {
	a := identitytest.New("mesh.example")
	src := fixed{a.Issue(eastPath), x509bundle.NewSet(x509bundle.New(meshDomain))}
	testRoles(t, src, welcome, a.Issue(westPath), func(t *testing.T, judge, other end) {
		wantRefused(t, judge, other, identity.UnknownAuthority)
	})
}

// TestIDs: what stands in the certificate has to be a SPIFFE ID letter by
// letter. Nothing is made one by normalising it.
func TestIDs(t *testing.T) {
	f := newForger(t, nil)
	src := trusting(identitytest.New("good.example"), meshDomain, f.root)
	for uri, want := range map[string]identity.Reason{
		"spiffe://mesh.example/gateway/west": "",

		"spiffe://mesh.example":                      identity.BadID, // a trust domain
		"spiffe://mesh.example/":                     identity.BadID,
		"spiffe://mesh.example/gateway/west/":        identity.BadID,
		"spiffe://mesh.example//gateway/west":        identity.BadID,
		"spiffe://mesh.example/gateway/../west":      identity.BadID,
		"spiffe://mesh.example/./gateway/west":       identity.BadID,
		"https://mesh.example/gateway/west":          identity.BadID,
		"spiffe:/mesh.example/gateway/west":          identity.BadID,
		"spiffe:mesh.example":                        identity.BadID,
		"SPIFFE://mesh.example/gateway/west":         identity.BadID,
		"Spiffe://mesh.example/gateway/west":         identity.BadID,
		"spiffe://Mesh.example/gateway/west":         identity.BadID,
		"spiffe://mesh.example/gateway/%77est":       identity.BadID,
		"spiffe://mesh.example/gateway%2Fwest":       identity.BadID,
		"spiffe://mesh.example/gateway/west%00":      identity.BadID,
		"spiffe://mesh.example/gateway/west%00.evil": identity.BadID,
		"spiffe://mesh.example/gateway/west?":        identity.BadID,
		"spiffe://mesh.example/gateway/west?a=b":     identity.BadID,
		"spiffe://mesh.example/gateway/west#":        identity.BadID,
		"spiffe://mesh.example/gateway/west#a":       identity.BadID,
		"spiffe://mesh.example:443/gateway/west":     identity.BadID,
		"spiffe://mesh.example:/gateway/west":        identity.BadID,
		"spiffe://@mesh.example/gateway/west":        identity.BadID,
		"spiffe://a:b@mesh.example/gateway/west":     identity.BadID,
		"spiffe:///gateway/west":                     identity.BadID,
		"spiffe://mesh.example/gateway/west ":        identity.BadID,
		"spiffe://mesh.example/gateway/we*st":        identity.BadID,
		"spiffe://mesh.example.evil/gateway/west":    identity.WrongDomain,
		"spiffe://mesh_example/gateway/west":         identity.WrongDomain,
	} {
		t.Run(uri, func(t *testing.T) {
			svid := f.issue(t, func(leaf *x509.Certificate) { leaf.ExtraExtensions = []pkix.Extension{san(t, uri)} })
			testRoles(t, src, welcome, svid, func(t *testing.T, judge, other end) {
				if want == "" {
					wantAccepted(t, judge, other)
					return
				}
				if judge.err == nil {
					id, err := identity.Peer(&judge.state)
					t.Fatalf("taken as %v (%v)", id, err)
				}
				wantRefused(t, judge, other, want)
			})
		})
	}
}

// TestIDsThatAreNoURIs: those never reach us, crypto/x509 refuses the certificate.
func TestIDsThatAreNoURIs(t *testing.T) {
	f := newForger(t, nil)
	src := trusting(identitytest.New("good.example"), meshDomain, f.root)
	for _, uri := range []string{
		"spiffe://mesh.example/gateway/west\x00",
		"spiffe://mesh.example\x00.evil/gateway/west",
		"spiffe://mesh.example/gateway/west\n",
		"spiffe://mesh.example/gateway/w\xe9st",
		"spiffe://mesh%2eexample/gateway/west",
		"spiffe://mesh.example./gateway/west",
		"spiffe://mesh.example/gateway/%zz",
		"",
	} {
		t.Run(uri, func(t *testing.T) {
			svid := f.issue(t, func(leaf *x509.Certificate) { leaf.ExtraExtensions = []pkix.Extension{san(t, uri)} })
			testRoles(t, src, welcome, svid, func(t *testing.T, judge, other end) {
				if judge.err == nil || other.err == nil {
					t.Errorf("taken: %v, %v", judge.err, other.err)
				}
			})
		})
	}
}

// TestNamesThatAreNoURIs: DNS names and common names prove nothing, and do no harm.
func TestNamesThatAreNoURIs(t *testing.T) {
	f := newForger(t, nil)
	src := trusting(identitytest.New("good.example"), meshDomain, f.root)
	named := func(leaf *x509.Certificate) {
		leaf.Subject = pkix.Name{CommonName: "spiffe://mesh.example/gateway/west"}
		leaf.DNSNames = []string{"mesh.example"}
	}
	testRoles(t, src, welcome, f.issue(t, named), func(t *testing.T, judge, other end) {
		wantRefused(t, judge, other, identity.NoURISAN)
	})
	both := func(leaf *x509.Certificate) {
		named(leaf)
		leaf.URIs = append(leaf.URIs, spiffeid.RequireFromPath(meshDomain, eastPath).URL())
	}
	testRoles(t, src, only(spiffeid.RequireFromPath(meshDomain, eastPath)), f.issue(t, both), wantAccepted)
}

// TestLeafKeyUsage: a leaf that may sign certificates or lists, or may not sign
// at all, is none (X509-SVID §4.3).
func TestLeafKeyUsage(t *testing.T) {
	f := newForger(t, nil)
	src := trusting(identitytest.New("good.example"), meshDomain, f.root)
	for _, tc := range []struct {
		name  string
		usage x509.KeyUsage
		want  identity.Reason
	}{
		{"certificates", x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, identity.NotLeaf},
		{"revocation lists", x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign, identity.NotLeaf},
		{"no signatures", x509.KeyUsageKeyAgreement, identity.BadUsage},
		{"not said", 0, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			svid := f.issue(t, func(leaf *x509.Certificate) {
				leaf.KeyUsage = tc.usage
				leaf.URIs = append(leaf.URIs, spiffeid.RequireFromPath(meshDomain, westPath).URL())
			})
			testRoles(t, src, welcome, svid, func(t *testing.T, judge, other end) {
				if tc.want == "" {
					wantAccepted(t, judge, other)
					return
				}
				wantRefused(t, judge, other, tc.want)
			})
		})
	}
}

// TestBadChains: the root is ours and every signature is right, and still it
// must not be believed.
func TestBadChains(t *testing.T) {
	west := func(leaf *x509.Certificate) {
		leaf.URIs = append(leaf.URIs, spiffeid.RequireFromPath(meshDomain, westPath).URL())
	}
	for _, tc := range []struct {
		name    string
		root    func(*x509.Certificate)
		between func(*x509.Certificate)
		want    identity.Reason
	}{
		{name: "root for other domains only", root: func(c *x509.Certificate) { c.PermittedURIDomains = []string{"other.example"} }, want: identity.BadChain},
		{name: "root not for this domain", root: func(c *x509.Certificate) { c.ExcludedURIDomains = []string{"mesh.example"} }, want: identity.BadChain},
		{name: "root for leaves only", root: func(c *x509.Certificate) { c.MaxPathLenZero = true }, between: func(*x509.Certificate) {}, want: identity.BadChain},
		{name: "signed by a leaf", between: func(c *x509.Certificate) { c.IsCA = false; c.KeyUsage = x509.KeyUsageDigitalSignature }, want: identity.UnknownAuthority},
		{name: "expired intermediate", between: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, want: identity.Expired},
		{name: "intermediate of tomorrow", between: func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, want: identity.NotYetValid},
		{name: "expired root", root: func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, want: identity.Expired},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newForger(t, tc.root)
			src := trusting(identitytest.New("good.example"), meshDomain, f.root)
			if tc.between != nil {
				f = f.below(t, tc.between)
			}
			testRoles(t, src, welcome, f.issue(t, west), func(t *testing.T, judge, other end) {
				wantRefused(t, judge, other, tc.want)
			})
		})
	}
}

// forger signs what no honest authority would.
type forger struct {
	root, issuer *x509.Certificate
	between      []*x509.Certificate
	key          crypto.Signer
}

// newForger has a root of its own, bent by bend unless that is nil.
func newForger(t *testing.T, bend func(*x509.Certificate)) *forger {
	t.Helper()
	c := signing("root")
	if bend != nil {
		bend(c)
	}
	key := newKey(t)
	root := sign(t, c, c, key.Public(), key)
	return &forger{root: root, issuer: root, key: key}
}

// below is an intermediate of the forger's.
func (f *forger) below(t *testing.T, bend func(*x509.Certificate)) *forger {
	t.Helper()
	c := signing("intermediate")
	bend(c)
	key := newKey(t)
	issuer := sign(t, c, f.issuer, key.Public(), f.key)
	return &forger{root: f.root, issuer: issuer, between: append([]*x509.Certificate{issuer}, f.between...), key: key}
}

// issue signs a leaf without any names but those that bend gives it.
func (f *forger) issue(t *testing.T, bend func(*x509.Certificate)) *x509svid.SVID {
	t.Helper()
	return f.issueFor(t, newKey(t), bend)
}

func (f *forger) issueFor(t *testing.T, key crypto.Signer, bend func(*x509.Certificate)) *x509svid.SVID {
	t.Helper()
	c := signing("leaf")
	c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature
	bend(c)
	leaf := sign(t, c, f.issuer, key.Public(), f.key)
	return &x509svid.SVID{Certificates: append([]*x509.Certificate{leaf}, f.between...), PrivateKey: key}
}

func signing(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
}

func sign(t *testing.T, c, issuer *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, issuer, public, key)
	if err != nil {
		t.Fatal(err)
	}
	// Some of these crypto/x509 will not parse, which is what they are for.
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return &x509.Certificate{Raw: der}
	}
	return cert
}

// san is a subject alternative name with a URI as it is, which crypto/x509 would
// not write (RFC 5280 §4.2.1.6).
func san(t *testing.T, uri string) pkix.Extension {
	t.Helper()
	value, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)}})
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: value}
}

func newKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// pool is a bundle in crypto/x509's form.
func pool(b *x509bundle.Bundle) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range b.X509Authorities() {
		p.AddCert(c)
	}
	return p
}
