package identity

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// maxFile is the most bytes that a file of ours may have.
const maxFile = 1 << 20

// pemFile is one file as it was read, or why it was not.
type pemFile struct {
	path string
	data []byte
	err  error
}

// pemSet is the three files as they were read at about one moment.
type pemSet struct{ cert, key, bundle pemFile }

func readSet(cfg FilesConfig) *pemSet {
	return &pemSet{cert: readFile(cfg.Cert), key: readFile(cfg.Key), bundle: readFile(cfg.Bundle)}
}

func readFile(path string) pemFile { return readUpTo(path, maxFile) }

// readUpTo reads one regular file of at most limit bytes. Anything else is not
// waited for: opening a FIFO would block (open(2), O_NONBLOCK).
func readUpTo(path string, limit int) pemFile {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return pemFile{path: path, err: &VerifyError{Reason: Unreadable, Err: err}}
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("read %s: not a regular file", path)
	}
	var data []byte
	if err == nil {
		data, err = io.ReadAll(io.LimitReader(f, int64(limit)+1))
	}
	if err != nil {
		return pemFile{path: path, err: &VerifyError{Reason: Unreadable, Err: err}}
	}
	if len(data) > limit {
		err = fmt.Errorf("read %s: more than %d bytes", path, limit)
		return pemFile{path: path, err: &VerifyError{Reason: TooLarge, Err: err}}
	}
	return pemFile{path: path, data: data}
}

// sum tells one state of the files from another, unreadable ones included.
func (s *pemSet) sum() sum { return sumOf(s.cert, s.key, s.bundle) }

func sumOf(files ...pemFile) (all sum) {
	h := sha256.New()
	for _, f := range files {
		fmt.Fprintf(h, "%d %v\n", len(f.data), f.err)
		h.Write(f.data)
	}
	h.Sum(all[:0])
	return all
}

// parse makes one good set out of the files, or says by reason why not.
func (s *pemSet) parse() (*material, error) {
	if err := cmp.Or(s.cert.err, s.key.err, s.bundle.err); err != nil { // one line, not three
		return nil, err
	}
	svid, err := s.parseSVID()
	if err != nil {
		return nil, err
	}
	bundle, err := s.parseBundle(svid.ID)
	if err != nil {
		return nil, err
	}
	return &material{svid: svid, bundle: bundle, replaced: make(chan struct{})}, nil
}

// parseSVID reads certificate and key, and holds them against each other, the
// rules of an SVID, and the clock: who writes an expired one has made a mistake,
// and the one before may still be good.
func (s *pemSet) parseSVID() (*x509svid.SVID, error) {
	certs, err := s.cert.certificates()
	if err != nil {
		return nil, err
	}
	id, err := checkLeaf(certs, x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return nil, err
	}
	key, err := s.key.privateKey()
	if err != nil {
		return nil, err
	}
	if !matches(key, certs[0]) {
		err := fmt.Errorf("the key in %s is not that of %s", s.key.path, s.cert.path)
		return nil, &VerifyError{Reason: Mismatch, ID: id, Err: err}
	}
	svid := &x509svid.SVID{ID: id, Certificates: certs, PrivateKey: key}
	if err := checkTimes(svid); err != nil {
		return nil, err
	}
	return svid, nil
}

// matches says whether key is that of the certificate.
func matches(key crypto.Signer, leaf *x509.Certificate) bool {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(leaf.PublicKey)
}

// parseBundle reads the roots of id's trust domain. It does not ask that they
// have signed our own certificate: a root is withdrawn at once, before every
// gateway has a certificate from the next.
func (s *pemSet) parseBundle(id spiffeid.ID) (*x509bundle.Bundle, error) {
	return s.bundle.bundle(id.TrustDomain())
}

// bundle reads the roots of a trust domain, in PEM or in a SPIFFE bundle document,
// which is JSON (SPIFFE Trust Domain and Bundle §4).
func (f pemFile) bundle(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if f.err != nil {
		return nil, f.err
	}
	read := f.certificates
	if bytes.HasPrefix(bytes.TrimSpace(f.data), []byte("{")) {
		read = f.document
	}
	certs, err := read()
	if err != nil {
		return nil, err
	}
	for _, c := range certs {
		if !c.IsCA {
			return nil, f.malformed(fmt.Sprintf("%q is not a signing certificate", c.Subject))
		}
	}
	return x509bundle.FromX509Authorities(td, certs), nil
}

// document reads the certificates of a SPIFFE bundle document, of which there
// must be one at least.
func (f pemFile) document() ([]*x509.Certificate, error) {
	// It does not say which trust domain it is of, and the certificates don't care.
	b, err := spiffebundle.Parse(spiffeid.TrustDomain{}, f.data)
	if err != nil {
		return nil, f.malformed(err.Error())
	}
	if len(b.X509Authorities()) == 0 {
		return nil, f.malformed("holds no certificate with the use x509-svid")
	}
	return b.X509Authorities(), nil
}

// certificates reads those of a PEM file, of which there must be one at least.
func (f pemFile) certificates() ([]*x509.Certificate, error) {
	blocks, err := f.blocks()
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, b := range blocks {
		if b.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, f.malformed(err.Error())
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, f.malformed("holds no certificate")
	}
	return certs, nil
}

// privateKey reads the first key of a PEM file, in any of the usual forms.
func (f pemFile) privateKey() (crypto.Signer, error) {
	blocks, err := f.blocks()
	if err != nil {
		return nil, err
	}
	for _, b := range blocks {
		if !strings.HasSuffix(b.Type, "PRIVATE KEY") {
			continue
		}
		key, err := parseKey(b)
		if err != nil {
			return nil, f.malformed(err.Error())
		}
		return key, nil
	}
	return nil, f.malformed("holds no private key")
}

// parseKey reads PKCS #8 (RFC 5958), and the older forms that openssl writes.
func parseKey(b *pem.Block) (crypto.Signer, error) {
	switch b.Type {
	case "EC PRIVATE KEY": // RFC 5915
		return x509.ParseECPrivateKey(b.Bytes)
	case "RSA PRIVATE KEY": // RFC 8017 A.1.2
		return x509.ParsePKCS1PrivateKey(b.Bytes)
	case "PRIVATE KEY":
		key, err := x509.ParsePKCS8PrivateKey(b.Bytes)
		if err != nil {
			return nil, err
		}
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
		return nil, fmt.Errorf("a key of type %T cannot sign", key)
	}
	return nil, fmt.Errorf("no way to read %q", b.Type)
}

// blocks splits a PEM file. pem.Decode passes over what it cannot read, so that
// a half-written bundle would be a shorter one; therefore the beginnings are
// counted.
func (f pemFile) blocks() (blocks []*pem.Block, err error) {
	for b, rest := pem.Decode(f.data); b != nil; b, rest = pem.Decode(rest) {
		blocks = append(blocks, b)
	}
	if bytes.Count(f.data, []byte("-----BEGIN ")) != len(blocks) {
		return nil, f.malformed("has a PEM block that is damaged or not complete")
	}
	return blocks, nil
}

func (f pemFile) malformed(what string) error {
	return &VerifyError{Reason: Malformed, Err: fmt.Errorf("%s: %s", f.path, what)}
}
