package identity_test

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/sys/unix"

	"wishbone/identity"
	"wishbone/identity/identitytest"
)

// TestFilesNotTaken: what is wrong leaves the last good set as it was, is logged
// once, and a good one counts again afterwards.
func TestFilesNotTaken(t *testing.T) {
	encrypted := pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{1}})
	remove := func(t *testing.T, path string) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig)
		want  identity.Reason
	}{
		{"no certificate", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) { remove(t, cfg.Cert) }, identity.Unreadable},
		{"no key", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) { remove(t, cfg.Key) }, identity.Unreadable},
		{"no bundle", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) { remove(t, cfg.Bundle) }, identity.Unreadable},
		{"nothing there", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) {
			remove(t, cfg.Cert)
			remove(t, cfg.Key)
			remove(t, cfg.Bundle)
		}, identity.Unreadable},
		{"half a certificate", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) { halve(t, cfg.Cert) }, identity.Malformed},
		{"half a key", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) { halve(t, cfg.Key) }, identity.Malformed},
		{"half a bundle", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) { halve(t, cfg.Bundle) }, identity.Malformed},
		{"one and a half roots", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) {
			data, more := read(t, cfg.Bundle), read(t, cfg.Bundle)
			put(t, cfg.Bundle, append(data, more[:len(more)/2]...))
		}, identity.Malformed},
		{"empty certificate", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) { put(t, cfg.Cert, nil) }, identity.Malformed},
		{"empty key", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) { put(t, cfg.Key, nil) }, identity.Malformed},
		{"empty bundle", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) { put(t, cfg.Bundle, nil) }, identity.Malformed},
		{"encrypted key", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) { put(t, cfg.Key, encrypted) }, identity.Malformed},
		{"key that cannot sign", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) {
			put(t, cfg.Key, agreementKey(t))
		}, identity.Malformed},
		{"key of another", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) {
			_, key := marshal(t, a.Issue(westPath))
			renew(t, cfg.Key, key)
		}, identity.Mismatch},
		{"certificate of another", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) {
			cert, _ := marshal(t, a.Issue(westPath))
			renew(t, cfg.Cert, cert)
		}, identity.Mismatch},
		{"expired", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) {
			replaceSVID(t, cfg, a.Issue(westPath, identitytest.Expired()))
		}, identity.OwnExpired},
		{"no SPIFFE ID", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) {
			replaceSVID(t, cfg, a.Issue(westPath, identitytest.Options{URIs: []string{}}))
		}, identity.NoURISAN},
		{"for one side only", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) {
			replaceSVID(t, cfg, a.Issue(westPath, identitytest.Options{Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}))
		}, identity.BadUsage},
		{"signing certificate", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) {
			replaceSVID(t, cfg, a.Issue(westPath, identitytest.Options{CA: true}))
		}, identity.NotLeaf},
		{"chain too large", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) {
			replaceSVID(t, cfg, a.Issue(westPath, identitytest.Options{Padding: 41 << 10}))
		}, identity.TooLarge},
		{"leaf for a root", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) {
			put(t, cfg.Bundle, read(t, cfg.Cert))
		}, identity.Malformed},
		{"huge", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) {
			if err := os.Truncate(cfg.Bundle, 1<<40); err != nil {
				t.Fatal(err)
			}
		}, identity.TooLarge},
		{"directory", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) {
			remove(t, cfg.Key)
			if err := os.Mkdir(cfg.Key, 0o700); err != nil {
				t.Fatal(err)
			}
		}, identity.Unreadable},
		{"FIFO", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) {
			remove(t, cfg.Cert)
			if err := unix.Mkfifo(cfg.Cert, 0o600); err != nil {
				t.Fatal(err)
			}
		}, identity.Unreadable},
		{"link to itself", func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) {
			remove(t, cfg.Cert)
			if err := os.Symlink(filepath.Base(cfg.Cert), cfg.Cert); err != nil {
				t.Fatal(err)
			}
		}, identity.Unreadable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := identitytest.New("mesh.example")
				d := newDisk(t, a)
				f := d.open(t)
				defer f.Close()
				good := svidOf(t, f)
				tc.spoil(t, a, d.cfg)
				rest()
				wantShown(t, f, good)
				if d.logged(notTaken) != 1 || d.logged("reason="+string(tc.want)+" ") != 1 || d.logged(taken) != 0 {
					t.Errorf("want %q once:\n%s", tc.want, d.log.String())
				}
				if _, err := identity.OpenFiles(d.cfg); identity.ReasonOf(err) != tc.want || strings.Contains(err.Error(), "\n") {
					t.Errorf("opened anew: %v, want %q in a line", err, tc.want)
				}
				os.Remove(d.cfg.Cert) // what is no file has to make way; an error shows below
				os.Remove(d.cfg.Key)
				next := a.Issue("/gateway/west-2")
				replaceSVID(t, d.cfg, next)
				renew(t, d.cfg.Bundle, marshalBundle(t, a.Bundle()))
				rest()
				wantShown(t, f, next)
			})
		})
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func halve(t *testing.T, path string) {
	t.Helper()
	data := read(t, path)
	put(t, path, data[:len(data)/2])
}

func replaceSVID(t *testing.T, cfg identity.FilesConfig, svid *x509svid.SVID) {
	t.Helper()
	cert, key := marshal(t, svid)
	renew(t, cfg.Cert, cert)
	renew(t, cfg.Key, key)
}

// agreementKey is one for key agreement only.
func agreementKey(t *testing.T) []byte {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return pkcs8(t, key)
}

// TestFilesForms has the forms in which keys and certificates come.
func TestFilesForms(t *testing.T) {
	f := newForger(t, nil)
	mid := f.below(t, func(*x509.Certificate) {})
	ec := newKey(t)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(ec.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	parameters := pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}})
	for _, tc := range []struct {
		name   string
		issuer *forger
		key    crypto.Signer
		pem    []byte
	}{
		{"EC, SEC 1", f, ec, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})},
		{"EC, SEC 1 after its parameters", f, ec, append(parameters, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1})...)},
		{"EC, PKCS #8", f, ec, pkcs8(t, ec)},
		{"RSA, PKCS #1", f, rsaKey, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)})},
		{"RSA, PKCS #8", f, rsaKey, pkcs8(t, rsaKey)},
		{"Ed25519", f, ed, pkcs8(t, ed)},
		{"with an intermediate", mid, ec, pkcs8(t, ec)},
		{"text around", f, ec, append(append([]byte("a key:\n"), pkcs8(t, ec)...), "that was it\n"...)},
	} {
		svid := tc.issuer.issueFor(t, tc.key, func(c *x509.Certificate) {
			c.URIs = append(c.URIs, spiffeid.RequireFromPath(meshDomain, westPath).URL())
		})
		var cert []byte
		for _, c := range svid.Certificates {
			cert = append(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.root.Raw})
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			apart := identity.FilesConfig{Cert: filepath.Join(dir, "c"), Key: filepath.Join(dir, "k"), Bundle: filepath.Join(dir, "b")}
			put(t, apart.Cert, cert)
			put(t, apart.Key, tc.pem)
			put(t, apart.Bundle, root)
			wantWorking(t, apart)

			together := filepath.Join(dir, "ck")
			put(t, together, append(bytes.Clone(tc.pem), cert...))
			wantWorking(t, identity.FilesConfig{Cert: together, Key: together, Bundle: apart.Bundle})
			put(t, together, append(bytes.Clone(cert), tc.pem...))
			wantWorking(t, identity.FilesConfig{Cert: together, Key: together, Bundle: apart.Bundle})
		})
	}
}

// wantWorking opens the files and has a gateway with them meet itself.
func wantWorking(t *testing.T, cfg identity.FilesConfig) {
	t.Helper()
	f, err := identity.OpenFiles(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, s := handshake(t, identity.Client(f, welcome), identity.Server(f, welcome))
	wantAccepted(t, c, s)
}

func pkcs8(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// TestFilesOfOthers: a file that this user may not read is named.
func TestFilesOfOthers(t *testing.T) {
	d := newDisk(t, identitytest.New("mesh.example"))
	if err := os.Chmod(d.cfg.Key, 0); err != nil {
		t.Fatal(err)
	}
	var err error
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // and never unlock: the thread ends, with what it has become
		if os.Geteuid() == 0 {
			// Root reads everything; nobody does not (setfsuid(2)).
			for _, path := range []string{filepath.Dir(filepath.Dir(d.cfg.Key)), filepath.Dir(d.cfg.Key)} {
				err = errors.Join(err, os.Chmod(path, 0o755))
			}
			err = errors.Join(err, os.Chmod(d.cfg.Cert, 0o644), os.Chmod(d.cfg.Bundle, 0o644), unix.Setfsuid(65534))
			if err != nil {
				return
			}
		}
		_, err = identity.OpenFiles(d.cfg)
	})
	wg.Wait()
	if identity.ReasonOf(err) != identity.Unreadable || !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), d.cfg.Key) {
		t.Errorf("%v, want %q of %s", err, identity.Unreadable, d.cfg.Key)
	}
}
