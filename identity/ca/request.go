package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Request is a wish for a certificate that Ask has written.
type Request struct {
	ID spiffeid.ID
	// Kept says that the key was there already.
	Kept bool
	// CSR and Key are the files.
	CSR, Key string
}

// Ask writes a request for an X509-SVID for id: out.csr (0644), which is for the
// authority, wherever that is; and out.key (0600), which never leaves this host. A
// key that is there already is kept, so that it goes with the certificate beside it
// until the next one comes. The directory of out is made (0755) if need be.
func Ask(id spiffeid.ID, out string) (Request, error) {
	r, err := ask(id, out)
	if err != nil {
		return Request{}, fmt.Errorf("request %s: %w", id, err)
	}
	return r, nil
}

func ask(id spiffeid.ID, out string) (Request, error) {
	if id.IsZero() || id.Path() == "" {
		return Request{}, hinted("it is written spiffe://TRUST-DOMAIN/PATH", "no SPIFFE ID of a gateway")
	}
	if err := checkOut("", out); err != nil {
		return Request{}, err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return Request{}, err
	}
	d, err := lock(filepath.Dir(out))
	if err != nil {
		return Request{}, err
	}
	defer d.Close()
	r := Request{ID: id, CSR: out + ".csr", Key: out + ".key"}
	var files []file
	key, err := readSigner(r.Key)
	switch {
	case err == nil:
		r.Kept = true
	case errors.Is(err, fs.ErrNotExist):
		if key, err = newKey(); err != nil {
			return Request{}, err
		}
		encoded, err := encodeKey(key)
		if err != nil {
			return Request{}, err
		}
		files = append(files, file{r.Key, encoded, secret})
	default:
		return Request{}, err
	}
	// RFC 2986; the name stands where the certificate will have it (RFC 5280 §4.2.1.6).
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: []*url.URL{id.URL()}}, key)
	if err != nil {
		return Request{}, err
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: requestType, Bytes: der})
	return r, replace(d, append(files, file{r.CSR, csr, public})...)
}

// requestType is the label of a request in PEM (RFC 7468 §7).
const requestType = "CERTIFICATE REQUEST"

// maxRequest is the most bytes that a request may have: it comes from elsewhere.
const maxRequest = 64 << 10

// Sign is Issue for a key that stays where it is: csr is the file of a request for
// id. It counts for its public key only; whose it is says id, and the request must
// say the same. It writes out.pem and bundle.pem. Where there is an out.key it must
// be the request's.
func Sign(dir string, id spiffeid.ID, csr, out string, validity time.Duration) (Leaf, error) {
	l, err := answer(dir, id, csr, out, validity)
	if err != nil {
		return Leaf{}, fmt.Errorf("issue %s: %w", id, err)
	}
	return l, nil
}

func answer(dir string, id spiffeid.ID, csr, out string, validity time.Duration) (Leaf, error) {
	public, err := readRequest(csr, id)
	if err != nil {
		return Leaf{}, err
	}
	there, err := readSigner(out + ".key")
	switch {
	case err == nil && !public.Equal(there.Public()):
		return Leaf{}, hinted("choose another --out, or remove it", "%s.key is there, and not the key of %s", out, csr)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return Leaf{}, err
	}
	return issue(dir, id, public, nil, out, validity)
}

// publicKey is what all public keys of the standard library can do.
type publicKey interface {
	Equal(crypto.PublicKey) bool
}

// readRequest reads a request for id, which who has the key must have signed.
func readRequest(path string, id spiffeid.ID) (publicKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRequest+1))
	if err != nil {
		return nil, err
	}
	b, _ := pem.Decode(data)
	if len(data) > maxRequest || b == nil || b.Type != requestType {
		return nil, hinted("wishbone ca request makes one", "%s: holds no certificate request", path)
	}
	r, err := x509.ParseCertificateRequest(b.Bytes)
	if err == nil {
		err = r.CheckSignature()
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(r.URIs) != 1 || r.URIs[0].String() != id.String() {
		return nil, hinted("ask its sender whose it is", "%s: asks for %v, not for %s", path, r.URIs, id)
	}
	return checkKey(path, r.PublicKey)
}

// checkKey takes keys that both sides of TLS 1.3 sign with (RFC 8446 §4.2.3).
func checkKey(path string, key crypto.PublicKey) (publicKey, error) {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P224() {
			return k, nil
		}
	case ed25519.PublicKey:
		return k, nil
	case *rsa.PublicKey:
		if k.N.BitLen() >= 2048 {
			return k, nil
		}
	}
	return nil, hinted("ECDSA on P-256 is the usual", "%s: a key of this kind or size is not signed for", path)
}

// readSigner reads a key of a gateway's, in PKCS #8.
func readSigner(path string) (crypto.Signer, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if b, _ := pem.Decode(data); b != nil && b.Type == "PRIVATE KEY" {
		key, err := x509.ParsePKCS8PrivateKey(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
	}
	return nil, fmt.Errorf("%s: holds no private key in PKCS #8 that can sign", path)
}
