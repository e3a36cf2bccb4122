package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What a file is made with.
const (
	public fs.FileMode = 0o644
	secret fs.FileMode = 0o600
)

// file is one to be written.
type file struct {
	path string
	data []byte
	mode fs.FileMode
}

// readAuthority reads what Init has written.
func readAuthority(dir string) (*authority, error) {
	const hint = "make an authority first (wishbone ca init), or name the directory of one"
	certs, err := readCerts(filepath.Join(dir, rootFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{Err: err, Hint: hint}
	}
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, keyFile)
	key, err := readKey(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{Err: err, Hint: hint}
	}
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(certs, func(c *x509.Certificate) bool { return key.PublicKey.Equal(c.PublicKey) })
	if i < 0 {
		return nil, fmt.Errorf("%s is the key of no certificate in %s", path, filepath.Join(dir, rootFile))
	}
	a := &authority{cert: certs[i], key: key}
	a.others = slices.Delete(certs, i, i+1)
	a.domain, err = domainOf(a.cert)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, rootFile), err)
	}
	if a.domain.IsZero() {
		return nil, fmt.Errorf("%s names no trust domain", filepath.Join(dir, rootFile))
	}
	return a, a.ours(filepath.Join(dir, rootFile), a.others)
}

// ours sees that roots speak for our trust domain: identity.Files would believe
// them about it, whatever they say.
func (a *authority) ours(path string, roots []*x509.Certificate) error {
	for _, c := range roots {
		td, err := domainOf(c)
		if err != nil {
			return fmt.Errorf("%s: serial %s: %w", path, serial(c), err)
		}
		if !td.IsZero() && td != a.domain {
			return hinted("a bundle holds the roots of one trust domain: use one directory for each",
				"%s has a root of %s, and this authority signs for %s", path, td, a.domain)
		}
	}
	return nil
}

// bundle is what shall stand in the file at path: our root, the others of
// ca.pem, and what stands there already. What has expired is left out.
func (a *authority) bundle(path string) ([]*x509.Certificate, error) {
	there, err := readCerts(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{Err: err, Hint: "repair or remove it; roots are only added to it"}
	}
	if err := a.ours(path, there); err != nil {
		return nil, err
	}
	roots := []*x509.Certificate{a.cert}
	for _, c := range slices.Concat(a.others, there) {
		if time.Now().Before(c.NotAfter) && !slices.ContainsFunc(roots, c.Equal) {
			roots = append(roots, c)
		}
	}
	return roots, nil
}

// readCerts reads a PEM file of certificates, at least one, and nothing else.
func readCerts(path string) (certs []*x509.Certificate, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	blocks := 0
	for b, rest := pem.Decode(data); b != nil; b, rest = pem.Decode(rest) {
		blocks++
		if b.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s: holds a %q beside certificates", path, b.Type)
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		certs = append(certs, c)
	}
	// pem.Decode passes over what it cannot read.
	if blocks == 0 || bytes.Count(data, []byte("-----BEGIN ")) != blocks {
		return nil, fmt.Errorf("%s: a certificate is missing, damaged or not complete", path)
	}
	return certs, nil
}

// readKey reads the authority's key, which must be its owner's only.
func readKey(path string) (*ecdsa.PrivateKey, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, hinted("chmod 600 "+path+", once you know who may have read it",
			"%s is open to others than its owner (mode %04o)", path, info.Mode().Perm())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	b, _ := pem.Decode(data)
	if b == nil || b.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("%s: holds no private key", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(b.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: a key of type %T, not of ECDSA", path, key)
	}
	return ec, nil
}

func encodeCerts(certs ...*x509.Certificate) (out []byte) {
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func encodeKey(key any) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// lock opens a directory, and keeps others of us out of it until it is closed
// (flock(2)).
func lock(dir string) (*os.File, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
		d.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return d, nil
}

// replace writes all files beside those that they replace, and then, with all
// the slow work done, puts them in place in the order given.
func replace(dir *os.File, files ...file) (err error) {
	var temps []string
	defer func() {
		for _, t := range temps {
			// Those that are in place are here no more.
			if e := os.Remove(t); e != nil && !errors.Is(e, fs.ErrNotExist) {
				err = errors.Join(err, e)
			}
		}
	}()
	for _, f := range files {
		t, err := f.stage()
		if t != "" {
			temps = append(temps, t)
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", f.path, err)
		}
	}
	for i, f := range files {
		if err := os.Rename(temps[i], f.path); err != nil {
			return err
		}
	}
	return dir.Sync()
}

// stage writes a file beside its place and sees it to the disk. It gives the
// name, also when it fails, and then it is to be removed.
func (f file) stage() (name string, err error) {
	t, err := os.CreateTemp(filepath.Dir(f.path), "."+filepath.Base(f.path)+".*") // 0600
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if err := f.inherit(t); err != nil {
		return t.Name(), err
	}
	if _, err := t.Write(f.data); err != nil {
		return t.Name(), err
	}
	return t.Name(), t.Sync()
}

// inherit gives t the owner of the file that it will replace, and its mode, for
// a gateway that runs as another user shall read the next key as it did the
// last. Others than owner and group never read a secret.
func (f file) inherit(t *os.File) error {
	mode := f.mode
	old, err := os.Stat(f.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil {
		mode |= old.Mode().Perm() & 0o040
		if err := chown(t, old); err != nil {
			return hinted("run as root, or remove the file", "keep its owner: %w", err)
		}
	}
	return t.Chmod(mode) // whatever the umask
}

// chown gives t the owner and group of old, where they are not the same.
func chown(t *os.File, old fs.FileInfo) error {
	now, err := t.Stat()
	if err != nil {
		return err
	}
	have, want := now.Sys().(*syscall.Stat_t), old.Sys().(*syscall.Stat_t)
	if have.Uid == want.Uid && have.Gid == want.Gid {
		return nil
	}
	return t.Chown(int(want.Uid), int(want.Gid))
}
