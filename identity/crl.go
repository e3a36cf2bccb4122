package identity

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// maxCRL is the most bytes that a file of revocation lists may have: some ten
// thousand certificates.
const maxCRL = 4 << 20

// crl is a revocation list (RFC 5280 §5). It counts for what its signer has signed,
// and says nothing of others.
type crl struct {
	path    string
	list    *x509.RevocationList // what it takes to verify it, without its entries
	serials map[string]struct{}  // in hexadecimal

	mu     sync.Mutex
	signer map[string]bool // public keys that were asked about; guarded by mu
}

// crls reads the lists of a file, in PEM or one in DER. There must be one at least.
func (f pemFile) crls() ([]*crl, error) {
	if f.err != nil {
		return nil, f.err
	}
	blocks := []*pem.Block{{Type: "X509 CRL", Bytes: f.data}}
	if bytes.Contains(f.data, []byte("-----BEGIN ")) {
		var err error
		if blocks, err = f.blocks(); err != nil {
			return nil, err
		}
	}
	var lists []*crl
	for _, b := range blocks {
		if b.Type != "X509 CRL" { // RFC 7468 §7
			continue
		}
		l, err := newCRL(b.Bytes)
		if err != nil {
			return nil, f.malformed(err.Error())
		}
		l.path = f.path
		lists = append(lists, l)
	}
	if len(lists) == 0 {
		return nil, f.malformed("holds no revocation list")
	}
	return lists, nil
}

// oidIssuingDistributionPoint says which part of an authority's certificates a list
// covers (RFC 5280 §5.2.5). What it lists is revoked whichever part that is.
var oidIssuingDistributionPoint = asn1.ObjectIdentifier{2, 5, 29, 28}

// newCRL reads a list in DER. One with something critical that we do not know must
// not be used (RFC 5280 §5.2, §5.3): a list of changes to another, say, or one with
// the certificates of others than its signer.
func newCRL(der []byte) (*crl, error) {
	list, err := x509.ParseRevocationList(der)
	if err == nil && len(list.Raw) < len(der) {
		err = errors.New("something follows the list; several to a file want PEM")
	}
	if err != nil {
		return nil, err
	}
	for _, e := range list.Extensions {
		if e.Critical && !e.Id.Equal(oidIssuingDistributionPoint) {
			return nil, fmt.Errorf("the extension %s is critical, and not understood", e.Id)
		}
	}
	l := &crl{list: &x509.RevocationList{
		RawTBSRevocationList: list.RawTBSRevocationList, SignatureAlgorithm: list.SignatureAlgorithm, Signature: list.Signature,
		RawIssuer: list.RawIssuer, Issuer: list.Issuer, NextUpdate: list.NextUpdate,
	}, serials: make(map[string]struct{}), signer: make(map[string]bool)}
	for _, r := range list.RevokedCertificateEntries {
		for _, e := range r.Extensions {
			if e.Critical {
				return nil, fmt.Errorf("the extension %s of an entry is critical, and not understood", e.Id)
			}
		}
		l.serials[fmt.Sprintf("%x", r.SerialNumber)] = struct{}{}
	}
	return l, nil
}

// stale says that a newer list should be there by now.
func (l *crl) stale() bool {
	return !l.list.NextUpdate.IsZero() && time.Now().After(l.list.NextUpdate)
}

// lists says whether c is on the list, if that is by c's issuer.
func (l *crl) lists(c *x509.Certificate) bool {
	_, listed := l.serials[serial(c)]
	return listed && bytes.Equal(l.list.RawIssuer, c.RawIssuer)
}

// sharesIssuer says whether one of these certificates has signed both c and the
// list. The same name is not enough.
func (l *crl) sharesIssuer(c *x509.Certificate, among []*x509.Certificate) bool {
	return slices.ContainsFunc(among, func(issuer *x509.Certificate) bool {
		return bytes.Equal(issuer.RawSubject, c.RawIssuer) && c.CheckSignatureFrom(issuer) == nil && l.signedBy(issuer)
	})
}

// signedBy verifies the list's signature, once for each key: it is over all that
// is listed. The issuer's key is enough, also in a certificate of its that does not
// say that it may sign lists.
func (l *crl) signedBy(issuer *x509.Certificate) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := string(issuer.RawSubjectPublicKeyInfo)
	signed, known := l.signer[key]
	if !known {
		signed = issuer.CheckSignature(l.list.SignatureAlgorithm, l.list.RawTBSRevocationList, l.list.Signature) == nil
		l.signer[key] = signed
	}
	return signed
}

// check refuses a list that none of the issuers has signed: it would count for
// nothing, and nobody would notice.
func (l *crl) check(issuers []*x509.Certificate) error {
	var err error
	for _, c := range issuers {
		if !bytes.Equal(c.RawSubject, l.list.RawIssuer) {
			continue
		}
		if err = l.list.CheckSignatureFrom(c); err == nil {
			l.signedBy(c) // whoever judges a peer need not do it
			return nil
		}
	}
	if err != nil {
		return &VerifyError{Reason: BadSignature, Err: fmt.Errorf("%s: %q has not signed the revocation list in its name: %w", l.path, l.list.Issuer, err)}
	}
	return &VerifyError{Reason: UnknownAuthority, Err: fmt.Errorf("%s: the revocation list is by %q, who is no authority here", l.path, l.list.Issuer)}
}

// checkAll is check for each, in one error.
func checkAll(lists []*crl, issuers []*x509.Certificate) error {
	var errs []error
	for _, l := range lists {
		errs = append(errs, l.check(issuers))
	}
	return errors.Join(errs...)
}
