package identity

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// maxChain is the most bytes that a chain of certificates may have: dozens of
// ordinary ones, and little enough to be nobody's burden.
const maxChain = 40 << 10

// verifier judges the peer of one handshake.
type verifier struct {
	roots  x509bundle.Source
	accept func(spiffeid.ID) error
	usage  x509.ExtKeyUsage // what the peer's certificate is used for
}

// connection is tls.Config.VerifyConnection: it runs at the end of every
// handshake, of resumed sessions too. ALPN is a must for HTTP/2 over TLS (RFC
// 9113 §3.2), but crypto/tls goes on without it: with a peer that offers none,
// and, as a server, with one that offers only http/1.1.
func (v *verifier) connection(cs tls.ConnectionState) error {
	if cs.NegotiatedProtocol != protocol {
		return &VerifyError{Reason: WrongProtocol, Err: fmt.Errorf("negotiated %q", cs.NegotiatedProtocol)}
	}
	id, err := v.chain(cs.PeerCertificates)
	if err != nil {
		return err
	}
	if err := v.accept(id); err != nil {
		return &VerifyError{Reason: WrongID, ID: id, Err: err}
	}
	return nil
}

// chain verifies certs as an X509-SVID with our roots of its trust domain.
func (v *verifier) chain(certs []*x509.Certificate) (spiffeid.ID, error) {
	id, err := checkLeaf(certs, v.usage)
	if err != nil {
		return id, err
	}
	// Asked once, so that roots withdrawn meanwhile don't make two answers.
	roots, err := v.roots.GetX509BundleForTrustDomain(id.TrustDomain())
	if err != nil {
		return id, &VerifyError{Reason: WrongDomain, ID: id, Err: err}
	}
	if _, _, err := x509svid.Verify(certs, roots); err != nil {
		return id, &VerifyError{Reason: chainReason(err), ID: id, Err: err}
	}
	return id, nil
}

// checkLeaf is what can be said of a chain without any roots. It says by reason
// what x509svid.Verify would say in words, and what it leaves out: a path in the
// SPIFFE ID (X509-SVID §2) and the extended key usage (§4.4).
func checkLeaf(certs []*x509.Certificate, usages ...x509.ExtKeyUsage) (spiffeid.ID, error) {
	if len(certs) == 0 {
		return spiffeid.ID{}, &VerifyError{Reason: NoCertificate}
	}
	if chainSize(certs) > maxChain {
		return spiffeid.ID{}, &VerifyError{Reason: TooLarge, Err: fmt.Errorf("chain of more than %d bytes", maxChain)}
	}
	leaf := certs[0]
	id, err := leafID(leaf)
	if err != nil {
		return id, err
	}
	if leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return id, &VerifyError{Reason: NotLeaf, ID: id}
	}
	if !usable(leaf, usages) {
		return id, &VerifyError{Reason: BadUsage, ID: id}
	}
	return id, nil
}

func chainSize(certs []*x509.Certificate) (n int) {
	for _, c := range certs {
		n += len(c.Raw)
	}
	return n
}

// leafID is the SPIFFE ID of a certificate that has exactly one URI, which must
// be one of a workload (X509-SVID §2).
func leafID(leaf *x509.Certificate) (spiffeid.ID, error) {
	names := uris(leaf)
	switch len(names) {
	case 0:
		return spiffeid.ID{}, &VerifyError{Reason: NoURISAN}
	case 1:
	default:
		return spiffeid.ID{}, &VerifyError{Reason: MultipleURISANs}
	}
	id, err := spiffeid.FromString(names[0])
	if err != nil {
		return spiffeid.ID{}, &VerifyError{Reason: BadID, Err: fmt.Errorf("%q: %w", names[0], err)}
	}
	if id.Path() == "" {
		return id, &VerifyError{Reason: BadID, ID: id, Err: errors.New("no path: it names a trust domain, not a workload")}
	}
	return id, nil
}

// oidSubjectAltName and tagURI are where a certificate has its URIs (RFC 5280
// §4.2.1.6).
var oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}

const tagURI = 6

// uris are a certificate's, letter by letter. Certificate.URIs has been through
// net/url, which makes "spiffe" of "SPIFFE" and drops an empty fragment: what is
// no SPIFFE ID would come out as one.
func uris(leaf *x509.Certificate) (list []string) {
	for _, ext := range leaf.Extensions {
		var names []asn1.RawValue
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		if _, err := asn1.Unmarshal(ext.Value, &names); err != nil {
			return nil // crypto/x509 has read it, so this does not happen; no URI is the safe answer
		}
		for _, n := range names {
			if n.Class == asn1.ClassContextSpecific && n.Tag == tagURI {
				list = append(list, string(n.Bytes))
			}
		}
	}
	return list
}

// usable says whether a leaf may be used as these sides of TLS: if it lists
// extended usages, they must be among them (RFC 5280 §4.2.1.12), and it must be
// made to sign if it lists plain ones (RFC 8446 §4.4.2.2).
func usable(leaf *x509.Certificate, usages []x509.ExtKeyUsage) bool {
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return false
	}
	if len(leaf.ExtKeyUsage)+len(leaf.UnknownExtKeyUsage) == 0 || slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return true
	}
	for _, u := range usages {
		if !slices.Contains(leaf.ExtKeyUsage, u) {
			return false
		}
	}
	return true
}

// chainReason classifies what x509 says of a chain.
func chainReason(err error) Reason {
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok && e.Reason == x509.Expired {
		if e.Cert != nil && time.Now().Before(e.Cert.NotBefore) {
			return NotYetValid
		}
		return Expired
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return UnknownAuthority
	}
	return BadChain
}
