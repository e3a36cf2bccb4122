package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"wishbone/identity"
	"wishbone/identity/ca"
)

func ask(t *testing.T, id spiffeid.ID, out string) ca.Request {
	t.Helper()
	r, err := ca.Ask(id, out)
	must(t, err)
	return r
}

// TestRequest: a gateway's key stays on the gateway, and the authority's with the
// authority; what goes between them is a request there, and a certificate and the
// roots back. To ask again renews, with the same key.
func TestRequest(t *testing.T) {
	dir, gateway, stick := authority(t, mesh), t.TempDir(), t.TempDir()
	r := ask(t, west, filepath.Join(gateway, "west"))
	if r.ID != west || r.Kept {
		t.Errorf("%+v", r)
	}
	wantFiles(t, gateway, "west.csr", "west.key")
	wantMode(t, r.Key, 0o600)
	wantMode(t, r.CSR, 0o644)
	key := read(t, r.Key)

	sign := func() ca.Leaf {
		t.Helper()
		l, err := ca.Sign(dir, west, r.CSR, filepath.Join(stick, "west"), 0)
		must(t, err)
		wantFiles(t, stick, "bundle.pem", "west.pem")
		for _, name := range []string{"bundle.pem", "west.pem"} {
			write(t, filepath.Join(gateway, name), read(t, filepath.Join(stick, name)))
		}
		return l
	}
	first := sign()
	if first.ID != west || first.Key != "" || first.Renewed || first.Roots != 1 {
		t.Errorf("%+v", first)
	}
	wantMode(t, first.Cert, 0o644)
	mine := ca.Leaf{Cert: filepath.Join(gateway, "west.pem"), Key: r.Key, Bundle: filepath.Join(gateway, "bundle.pem")}
	e := open(t, issue(t, dir, east, filepath.Join(t.TempDir(), "east")))
	for _, way := range [][2]*identity.Files{{open(t, mine), e}, {e, open(t, mine)}} {
		if _, _, err := handshake(t, way[0], way[1]); err != nil {
			t.Error(err)
		}
	}

	if r = ask(t, west, filepath.Join(gateway, "west")); !r.Kept || !slices.Equal(read(t, r.Key), key) {
		t.Errorf("%+v: another key", r)
	}
	if second := sign(); !second.Renewed || second.Serial == first.Serial {
		t.Errorf("%+v", second)
	}
	open(t, mine)
}

// TestSignBesideTheKey: with the authority's directory at the gateway for a moment,
// the certificate goes right beside its key.
func TestSignBesideTheKey(t *testing.T) {
	dir, out := authority(t, mesh), filepath.Join(t.TempDir(), "west")
	r := ask(t, west, out)
	l, err := ca.Sign(dir, west, r.CSR, out, 0)
	must(t, err)
	l.Key = r.Key
	open(t, l)
}

// request is one by whoever, for whatever.
func request(t *testing.T, key crypto.Signer, uris ...string) []byte {
	t.Helper()
	var c x509.CertificateRequest
	for _, s := range uris {
		u, err := url.Parse(s)
		must(t, err)
		c.URIs = append(c.URIs, u)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &c, key)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func curve(t *testing.T, c elliptic.Curve) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	must(t, err)
	return key
}

func rsaKey(t *testing.T, bits int) crypto.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	must(t, err)
	return key
}

// TestRequestsTaken: a request counts for its key, whatever else it wants.
func TestRequestsTaken(t *testing.T) {
	dir := authority(t, mesh)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	for name, key := range map[string]crypto.Signer{
		"P-256": curve(t, elliptic.P256()), "P-384": curve(t, elliptic.P384()), "Ed25519": ed, "RSA": rsaKey(t, 2048),
	} {
		t.Run(name, func(t *testing.T) {
			csr := filepath.Join(t.TempDir(), "west.csr")
			write(t, csr, request(t, key, west.String()))
			l, err := ca.Sign(dir, west, csr, filepath.Join(t.TempDir(), "west"), 0)
			must(t, err)
			c := certificates(t, l.Cert)[0]
			if !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(c.PublicKey) || c.IsCA || len(c.URIs) != 1 || c.KeyUsage != x509.KeyUsageDigitalSignature {
				t.Errorf("another key, or no leaf: %v", c.URIs)
			}
			wantValid(t, c, c.NotBefore.Add(5*time.Minute), ca.LeafValidity)
		})
	}
}

func TestRequestsRefused(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0")
	good := request(t, curve(t, elliptic.P256()), west.String())
	b, _ := pem.Decode(good)
	b.Bytes[len(b.Bytes)-1] ^= 1
	dir := authority(t, mesh)
	for _, tc := range []struct {
		name string
		id   spiffeid.ID
		csr  []byte
		says string
	}{
		{"for another", west, request(t, curve(t, elliptic.P256()), east.String()), "asks for [spiffe://mesh.example/gateway/east], not for"},
		{"for two", west, request(t, curve(t, elliptic.P256()), west.String(), east.String()), "asks for ["},
		{"for nobody", west, request(t, curve(t, elliptic.P256())), "asks for [], not for"},
		{"another domain", spiffeid.RequireFromPath(other, "/gateway/west"), request(t, curve(t, elliptic.P256()), "spiffe://other.example/gateway/west"), "signs for mesh.example"},
		{"not signed with its key", west, pem.EncodeToMemory(b), "verification"},
		{"half", west, good[:len(good)/2], "holds no certificate request"},
		{"a certificate", west, read(t, filepath.Join(dir, "ca.pem")), "holds no certificate request"},
		{"too much", west, append(slices.Clone(good), make([]byte, 64<<10)...), "holds no certificate request"},
		{"weak key", west, request(t, curve(t, elliptic.P224()), west.String()), "kind or size"},
		{"weak RSA key", west, request(t, rsaKey(t, 1024), west.String()), "kind or size"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			out := t.TempDir()
			csr := filepath.Join(t.TempDir(), "west.csr")
			write(t, csr, tc.csr)
			_, err := ca.Sign(dir, tc.id, csr, filepath.Join(out, "west"), 0)
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %v, want one that says %q", err, tc.says)
			}
			wantFiles(t, out)
		})
	}
	t.Run("another key beside", func(t *testing.T) {
		out := filepath.Join(t.TempDir(), "west")
		issue(t, dir, west, out)
		csr := filepath.Join(t.TempDir(), "west.csr")
		write(t, csr, good)
		before := tree(t, filepath.Dir(out))
		_, err := ca.Sign(dir, west, csr, out, 0)
		wantHint(t, err, "not the key of")
		if !slices.Equal(tree(t, filepath.Dir(out)), before) {
			t.Error("it has changed files")
		}
	})
	t.Run("no path", func(t *testing.T) {
		_, err := ca.Ask(mesh.ID(), filepath.Join(t.TempDir(), "west"))
		wantHint(t, err, "no SPIFFE ID")
	})
	t.Run("broken key", func(t *testing.T) {
		out := filepath.Join(t.TempDir(), "west")
		write(t, out+".key", []byte("no PEM"))
		if _, err := ca.Ask(west, out); err == nil || string(read(t, out+".key")) != "no PEM" {
			t.Errorf("%v: a key that cannot be read was not left alone", err)
		}
	})
}

// TestKeysAreNobodyElses: no key is ever open to others, whatever the umask and
// whatever stood in its place: a file that everybody may read, and somebody has open;
// or a link to one.
func TestKeysAreNobodyElses(t *testing.T) {
	for _, umask := range []int{0, 0o077, 0o777} {
		for _, there := range []string{"nothing", "an open file", "a link"} {
			t.Run(fs.FileMode(umask).String()+" "+there, func(t *testing.T) {
				dir, gateway, elsewhere := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "elsewhere")
				issued, asked := filepath.Join(gateway, "east"), filepath.Join(gateway, "west")
				var held *os.File
				switch there {
				case "an open file":
					write(t, issued+".key", []byte("old"))
					must(t, os.Chmod(issued+".key", 0o666))
					var err error
					held, err = os.Open(issued + ".key")
					must(t, err)
					defer held.Close()
				case "a link":
					write(t, elsewhere, []byte("old"))
					must(t, os.Chmod(elsewhere, 0o666))
					must(t, os.Symlink(elsewhere, issued+".key"))
				}
				old := unix.Umask(umask) // the process's: no test here runs beside another
				r, err := ca.Init(dir, mesh, 0)
				if err == nil {
					_, err = ca.Issue(dir, east, issued, 0)
				}
				if err == nil {
					_, err = ca.Ask(west, asked)
				}
				unix.Umask(old)
				must(t, err)
				for _, path := range []string{r.Key, issued + ".key", asked + ".key"} {
					info, err := os.Lstat(path)
					must(t, err)
					if info.Mode()&^0o640 != 0 {
						t.Errorf("%s is %v", path, info.Mode())
					}
				}
				for _, path := range []string{r.Cert, issued + ".pem", asked + ".csr", filepath.Join(gateway, "bundle.pem")} {
					wantMode(t, path, 0o644)
				}
				switch there {
				case "an open file":
					seen := make([]byte, 100)
					if n, _ := held.Read(seen); string(seen[:n]) != "old" {
						t.Errorf("who had the file open reads %q", seen[:n])
					}
				case "a link":
					if got := read(t, elsewhere); string(got) != "old" {
						t.Errorf("it was written where the link points to: %q", got)
					}
				}
			})
		}
	}
}
