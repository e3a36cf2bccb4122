package ca

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// How long certificates are valid by default. A leaf's time is short, for it is all
// that ends a stolen one where nobody knows of the theft.
const (
	RootValidity = 10 * 365 * 24 * time.Hour
	LeafValidity = 7 * 24 * time.Hour
)

// The files of an authority, and of whom it has issued to.
const (
	rootFile   = "ca.pem"
	keyFile    = "ca.key"
	bundleFile = "bundle.pem"
)

// Error is an error with what can be done about it.
type Error struct {
	Err  error
	Hint string
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap gives what lies beneath.
func (e *Error) Unwrap() error { return e.Err }

// Advice is the hint.
func (e *Error) Advice() string { return e.Hint }

func hinted(hint, format string, args ...any) error {
	return &Error{Err: fmt.Errorf(format, args...), Hint: hint}
}

// Root is an authority that Init has made.
type Root struct {
	TrustDomain spiffeid.TrustDomain
	// Serial is its number in hexadecimal, as openssl prints it.
	Serial string
	// NotAfter is when it expires, and all that it signs with it.
	NotAfter time.Time
	// Cert and Key are the files that were written.
	Cert, Key string
}

// Leaf is an X509-SVID that Issue or Sign has made.
type Leaf struct {
	ID spiffeid.ID
	// Serial is its number in hexadecimal, as openssl prints it.
	Serial string
	// NotAfter is when it expires.
	NotAfter time.Time
	// Capped says that NotAfter is the root's, and earlier than asked for.
	Capped bool
	// Renewed says that it took the place of an earlier one.
	Renewed bool
	// Roots is how many Bundle holds.
	Roots int
	// Cert, Key and Bundle are the files that were written. Key is empty where the
	// key stays with who has asked.
	Cert, Key, Bundle string
}

// Init makes an authority for a trust domain: ca.pem (0644) and ca.key (0600) in
// dir, which it makes (0700) if need be. A validity of 0 means RootValidity. An
// authority that is there already is never overwritten.
func Init(dir string, td spiffeid.TrustDomain, validity time.Duration) (Root, error) {
	switch {
	case td.IsZero():
		return Root{}, hinted("name one, such as mesh.example", "make an authority: no trust domain")
	case len(td.Name()) > maxDomain:
		return Root{}, hinted("choose a shorter one", "make an authority: the trust domain is longer than %d bytes", maxDomain)
	}
	validity, err := orDefault(validity, RootValidity)
	if err != nil {
		return Root{}, fmt.Errorf("make an authority: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Root{}, fmt.Errorf("make an authority: %w", err)
	}
	d, err := lock(dir)
	if err != nil {
		return Root{}, fmt.Errorf("make an authority: %w", err)
	}
	defer d.Close()
	r := Root{TrustDomain: td, Cert: filepath.Join(dir, rootFile), Key: filepath.Join(dir, keyFile)}
	if err := vacant(r.Key, r.Cert); err != nil {
		return Root{}, err
	}
	a, err := newAuthority(td, validity)
	if err != nil {
		return Root{}, fmt.Errorf("make an authority for %s: %w", td, err)
	}
	r.Serial, r.NotAfter = serial(a.cert), a.cert.NotAfter
	key, err := encodeKey(a.key)
	if err != nil {
		return Root{}, fmt.Errorf("make an authority for %s: %w", td, err)
	}
	err = replace(d, file{r.Key, key, secret}, file{r.Cert, encodeCerts(a.cert), public})
	return r, err
}

// vacant sees that none of the files is there.
func vacant(paths ...string) error {
	for _, path := range paths {
		if _, err := os.Lstat(path); err == nil {
			return hinted("choose another directory; an authority that is lost makes all that it has signed worthless",
				"make an authority: %s exists", path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("make an authority: %w", err)
		}
	}
	return nil
}

// Issue makes an X509-SVID for id with the authority in dir, and writes out.pem
// (0644), out.key (0600), and beside them bundle.pem (0644) with the roots. Such
// files are replaced; their owner and group are kept, and so is a group's right
// to read. The directory of out is made (0755) if need be. A validity of 0 means
// LeafValidity.
//
// The three files are replaced one right after the other, but not as one: who
// starts to read in between finds a key that is not the certificate's.
func Issue(dir string, id spiffeid.ID, out string, validity time.Duration) (Leaf, error) {
	if id.IsZero() {
		return Leaf{}, hinted("it is written spiffe://TRUST-DOMAIN/PATH", "issue: no SPIFFE ID")
	}
	key, err := newKey()
	if err != nil {
		return Leaf{}, fmt.Errorf("issue %s: %w", id, err)
	}
	l, err := issue(dir, id, key.Public(), key, out, validity)
	if err != nil {
		return Leaf{}, fmt.Errorf("issue %s: %w", id, err)
	}
	return l, nil
}

// issue signs for a public key, and writes the private one too unless that is nil.
func issue(dir string, id spiffeid.ID, public crypto.PublicKey, key crypto.Signer, out string, validity time.Duration) (Leaf, error) {
	validity, err := orDefault(validity, LeafValidity)
	if err != nil {
		return Leaf{}, err
	}
	a, err := readAuthority(dir)
	if err != nil {
		return Leaf{}, err
	}
	if err := checkOut(dir, out); err != nil {
		return Leaf{}, err
	}
	until := expiry(validity)
	cert, err := a.sign(id, public, until)
	if err != nil {
		return Leaf{}, err
	}
	l := Leaf{
		ID:       id,
		Serial:   serial(cert),
		NotAfter: cert.NotAfter,
		Capped:   cert.NotAfter.Before(until),
		Cert:     out + ".pem",
		Bundle:   filepath.Join(filepath.Dir(out), bundleFile),
	}
	if key != nil {
		l.Key = out + ".key"
	}
	return l, l.write(a, cert, key)
}

// write puts the files in place.
func (l *Leaf) write(a *authority, cert *x509.Certificate, key crypto.Signer) error {
	dir := filepath.Dir(l.Cert)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	d, err := lock(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	roots, err := a.bundle(l.Bundle)
	if err != nil {
		return err
	}
	// What no peer would take is not written.
	if _, _, err := x509svid.Verify([]*x509.Certificate{cert}, x509bundle.FromX509Authorities(a.domain, roots)); err != nil {
		return err
	}
	files := []file{{l.Bundle, encodeCerts(roots...), public}}
	if key != nil {
		encoded, err := encodeKey(key)
		if err != nil {
			return err
		}
		files = append(files, file{l.Key, encoded, secret})
	}
	_, err = os.Stat(l.Cert)
	l.Renewed, l.Roots = err == nil, len(roots)
	return replace(d, append(files, file{l.Cert, encodeCerts(cert), public})...)
}

// checkOut sees that out is a name for files, and for none of the authority's.
func checkOut(dir, out string) error {
	const hint = "give the path without an ending, such as west or out/west"
	name := filepath.Base(out)
	switch info, err := os.Stat(out); {
	case out == "" || os.IsPathSeparator(out[len(out)-1]) || name == "." || name == "..":
		return hinted(hint, "%q names no file", out)
	case err == nil && info.IsDir():
		return hinted("give a name in it: "+filepath.Join(out, "NAME"), "%s is a directory", out)
	case strings.HasSuffix(name, ".pem") || strings.HasSuffix(name, ".key"):
		return hinted(hint, "%s has an ending, and another would follow", out)
	case name+".pem" == bundleFile:
		return hinted("choose another name", "%s.pem is where the roots go", out)
	case name+".key" == keyFile && sameFile(dir, filepath.Dir(out)):
		return hinted("choose another name or directory", "%s.key is the authority's own", out)
	}
	return nil
}

func sameFile(a, b string) bool {
	ia, errA := os.Stat(a)
	ib, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(ia, ib)
}

// orDefault is how long something shall be valid.
func orDefault(validity, otherwise time.Duration) (time.Duration, error) {
	switch {
	case validity == 0:
		return otherwise, nil
	case validity < time.Second:
		return 0, hinted("certificates count in seconds, and the usual is days", "a validity of %v is too short", validity)
	}
	return validity, nil
}
