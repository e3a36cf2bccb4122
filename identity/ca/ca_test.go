package ca_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/identity"
	"wishbone/identity/ca"
)

var (
	mesh  = spiffeid.RequireTrustDomainFromString("mesh.example")
	other = spiffeid.RequireTrustDomainFromString("other.example")
	west  = spiffeid.RequireFromString("spiffe://mesh.example/gateway/west")
	east  = spiffeid.RequireFromString("spiffe://mesh.example/gateway/east")
)

// authority makes one in a new directory.
func authority(t *testing.T, td spiffeid.TrustDomain) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "ca")
	if _, err := ca.Init(dir, td, 0); err != nil {
		t.Fatal(err)
	}
	return dir
}

func issue(t *testing.T, dir string, id spiffeid.ID, out string) ca.Leaf {
	t.Helper()
	l, err := ca.Issue(dir, id, out, 0)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// open reads the files as a gateway does.
func open(t *testing.T, l ca.Leaf) *identity.Files {
	t.Helper()
	f, err := identity.OpenFiles(identity.FilesConfig{Cert: l.Cert, Key: l.Key, Bundle: l.Bundle, Watch: identity.Watch{Interval: 5 * time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestRoot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "ca")
	before := time.Now()
	r, err := ca.Init(dir, mesh, 0)
	if err != nil {
		t.Fatal(err)
	}
	wantMode(t, dir, 0o700)
	wantMode(t, r.Cert, 0o644)
	wantMode(t, r.Key, 0o600)
	wantFiles(t, dir, "ca.key", "ca.pem")

	c := certificates(t, r.Cert)[0]
	if !c.IsCA || c.MaxPathLen != 0 || !c.MaxPathLenZero {
		t.Errorf("IsCA %t, path length %d: want one that signs leaves only", c.IsCA, c.MaxPathLen)
	}
	if c.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign {
		t.Errorf("key usage %b", c.KeyUsage)
	}
	if len(c.URIs) != 1 || c.URIs[0].String() != "spiffe://mesh.example" {
		t.Errorf("URIs %v", c.URIs)
	}
	if c.PermittedURIDomains != nil || c.ExcludedURIDomains != nil {
		t.Error("a constraint on URIs, which rustls refuses whatever it says")
	}
	wantCommon(t, c)
	wantValid(t, c, before, ca.RootValidity)
	if r.TrustDomain != mesh || r.Serial != c.SerialNumber.Text(16) || !r.NotAfter.Equal(c.NotAfter) {
		t.Errorf("%+v does not tell of the certificate", r)
	}
}

func TestLeaf(t *testing.T) {
	dir := authority(t, mesh)
	out := filepath.Join(t.TempDir(), "new", "west")
	before := time.Now()
	l := issue(t, dir, west, out)
	if l.Cert != out+".pem" || l.Key != out+".key" || l.Bundle != filepath.Join(filepath.Dir(out), "bundle.pem") {
		t.Errorf("files %s, %s, %s", l.Cert, l.Key, l.Bundle)
	}
	wantMode(t, l.Cert, 0o644)
	wantMode(t, l.Key, 0o600)
	wantMode(t, l.Bundle, 0o644)
	wantFiles(t, filepath.Dir(out), "bundle.pem", "west.key", "west.pem")

	c := certificates(t, l.Cert)[0]
	if c.IsCA || !c.BasicConstraintsValid {
		t.Error("the leaf may sign")
	}
	if c.KeyUsage != x509.KeyUsageDigitalSignature || !critical(c, 2, 5, 29, 15) {
		t.Errorf("key usage %b, critical %t", c.KeyUsage, critical(c, 2, 5, 29, 15))
	}
	if !slices.Equal(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) {
		t.Errorf("extended key usage %v", c.ExtKeyUsage)
	}
	if len(c.URIs) != 1 || c.URIs[0].String() != west.String() || len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses) != 0 {
		t.Errorf("names %v and others", c.URIs)
	}
	wantCommon(t, c)
	wantValid(t, c, before, ca.LeafValidity)
	if l.ID != west || l.Serial != c.SerialNumber.Text(16) || !l.NotAfter.Equal(c.NotAfter) || l.Capped || l.Renewed || l.Roots != 1 {
		t.Errorf("%+v does not tell of the certificate", l)
	}
}

// wantCommon checks what roots and leaves share.
func wantCommon(t *testing.T, c *x509.Certificate) {
	t.Helper()
	if key, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Errorf("key %T, want P-256", c.PublicKey)
	}
	// 128 random bits are shorter than 96 once in 2^32.
	if n := c.SerialNumber.BitLen(); n < 96 || n > 128 {
		t.Errorf("a serial number of %d bits, want 128", n)
	}
}

func wantValid(t *testing.T, c *x509.Certificate, made time.Time, validity time.Duration) {
	t.Helper()
	if age := made.Sub(c.NotBefore); age < time.Minute || age > 10*time.Minute {
		t.Errorf("valid since %v before it was made, want a few minutes for slow clocks", age)
	}
	if got := c.NotAfter.Sub(made); got < validity-time.Minute || got > validity+time.Minute {
		t.Errorf("valid for %v, want %v", got, validity)
	}
}

// TestHandshake: two gateways with files from one authority come together, and
// with one from an authority of another domain or of the same name they do not.
func TestHandshake(t *testing.T) {
	dir, out := authority(t, mesh), t.TempDir()
	w := open(t, issue(t, dir, west, filepath.Join(out, "west")))
	e := open(t, issue(t, dir, east, filepath.Join(out, "east")))
	stranger := open(t, issue(t, authority(t, other), spiffeid.RequireFromPath(other, "/gateway/west"), filepath.Join(t.TempDir(), "west")))
	impostor := open(t, issue(t, authority(t, mesh), west, filepath.Join(t.TempDir(), "west")))
	for _, tc := range []struct {
		name           string
		client, server *identity.Files
		want           identity.Reason
	}{
		{"west to east", w, e, ""},
		{"east to west", e, w, ""},
		{"another trust domain", stranger, e, identity.WrongDomain},
		{"another authority for ours", impostor, e, identity.UnknownAuthority},
	} {
		t.Run(tc.name, func(t *testing.T) {
			clientID, serverID, err := handshake(t, tc.client, tc.server)
			if got := identity.ReasonOf(err); got != tc.want || (err == nil) != (tc.want == "") {
				t.Fatalf("%v, want reason %q", err, tc.want)
			}
			if err != nil {
				return
			}
			if want := ownID(t, tc.client); clientID != want {
				t.Errorf("the client proved %s, want %s", clientID, want)
			}
			if want := ownID(t, tc.server); serverID != want {
				t.Errorf("the server proved %s, want %s", serverID, want)
			}
		})
	}
}

func TestRenew(t *testing.T) {
	dir, out := authority(t, mesh), filepath.Join(t.TempDir(), "west")
	first := issue(t, dir, west, out)
	f := open(t, first)
	// The gateway's group may read, and others may; a key is kept from these.
	for _, path := range []string{first.Key, first.Cert} {
		if err := os.Chmod(path, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	second := issue(t, dir, west, out)
	if !second.Renewed || second.Serial == first.Serial {
		t.Errorf("renewed %t, serial %s after %s", second.Renewed, second.Serial, first.Serial)
	}
	wantMode(t, second.Key, 0o640)
	wantMode(t, second.Cert, 0o644)
	wantFiles(t, filepath.Dir(out), "bundle.pem", "west.key", "west.pem")
	tick, deadline := time.NewTicker(time.Millisecond), time.After(20*time.Second)
	defer tick.Stop()
	for {
		svid, err := f.GetX509SVID()
		if err != nil {
			t.Fatal(err)
		}
		if svid.Certificates[0].SerialNumber.Text(16) == second.Serial {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the gateway does not take the renewed files")
		}
	}
}

// TestRenewKeepsTheGroup: a gateway that reads its key as a member of a group
// reads the next one too.
func TestRenewKeepsTheGroup(t *testing.T) {
	dir, out := authority(t, mesh), filepath.Join(t.TempDir(), "west")
	l := issue(t, dir, west, out)
	// Any group that we may give files to; the own one if there is no other.
	group := os.Getgid()
	for _, g := range append(groups(t), 1) {
		if os.Chown(l.Key, -1, g) == nil && g != group {
			group = g
			break
		}
	}
	issue(t, dir, west, out)
	info, err := os.Stat(l.Key)
	if err != nil {
		t.Fatal(err)
	}
	if got := int(info.Sys().(*syscall.Stat_t).Gid); got != group {
		t.Errorf("the renewed key belongs to group %d, want %d", got, group)
	}
}

func groups(t *testing.T) []int {
	t.Helper()
	list, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestNewRoot goes through the replacement of a root as doc.go has it: at every
// step the two gateways come together.
func TestNewRoot(t *testing.T) {
	before, after, out := authority(t, mesh), authority(t, mesh), t.TempDir()
	w, e := filepath.Join(out, "w", "west"), filepath.Join(out, "e", "east")
	lw, le := issue(t, before, west, w), issue(t, before, east, e)
	meet := func(step string) {
		t.Helper()
		if _, _, err := handshake(t, open(t, lw), open(t, le)); err != nil {
			t.Errorf("%s: %v", step, err)
		}
	}
	meet("at first")
	appendFile(t, filepath.Join(after, "ca.pem"), filepath.Join(before, "ca.pem"))
	appendFile(t, lw.Bundle, filepath.Join(after, "ca.pem"))
	appendFile(t, le.Bundle, filepath.Join(after, "ca.pem"))
	meet("with both roots")
	if lw = issue(t, after, west, w); lw.Roots != 2 {
		t.Errorf("the bundle has %d roots, want both", lw.Roots)
	}
	meet("west renewed")
	le = issue(t, after, east, e)
	meet("both renewed")
	if l := issue(t, after, east, filepath.Join(out, "new", "east")); l.Roots != 2 {
		t.Errorf("a new bundle has %d roots, want both of ca.pem", l.Roots)
	}
	// certificates[0] is the root that the new ca.pem began with.
	newest := pemOf(certificates(t, filepath.Join(after, "ca.pem"))[0])
	for _, path := range []string{filepath.Join(after, "ca.pem"), lw.Bundle, le.Bundle} {
		write(t, path, newest)
	}
	meet("without the old root")
	if l := issue(t, after, east, e); l.Roots != 1 {
		t.Errorf("the bundle has %d roots, want the new one only", l.Roots)
	}
}

// TestYears goes through the life of an authority on a clock of its own.
func TestYears(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, out := authority(t, mesh), filepath.Join(t.TempDir(), "west")
		if l := issue(t, old, west, out); l.Capped {
			t.Errorf("the first leaf is capped at %v", l.NotAfter)
		}
		<-time.After(ca.RootValidity - 24*time.Hour)
		root := certificates(t, filepath.Join(old, "ca.pem"))[0]
		if l := issue(t, old, west, out); !l.Capped || !l.NotAfter.Equal(root.NotAfter) {
			t.Errorf("the last leaf: capped %t, until %v; the root is valid until %v", l.Capped, l.NotAfter, root.NotAfter)
		}
		next := authority(t, mesh)
		if l := issue(t, next, west, out); l.Roots != 2 {
			t.Errorf("the bundle has %d roots, want both", l.Roots)
		}
		<-time.After(24 * time.Hour)
		_, err := ca.Issue(old, west, out, 0)
		wantHint(t, err, "expired")
		if l := issue(t, next, west, out); l.Roots != 1 || len(certificates(t, l.Bundle)) != 1 {
			t.Errorf("the bundle has %d roots, want the valid one", l.Roots)
		}
	})
}

// TestSlowClock: an authority from the future does not sign.
func TestSlowClock(t *testing.T) {
	dir := authority(t, mesh)
	synctest.Test(t, func(t *testing.T) { // it begins in the year 2000
		_, err := ca.Issue(dir, west, filepath.Join(t.TempDir(), "west"), 0)
		wantHint(t, err, "valid from")
	})
}

func TestLeafDoesNotOutliveRoot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	r, err := ca.Init(dir, mesh, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	l := issue(t, dir, west, filepath.Join(t.TempDir(), "west"))
	if !l.Capped || !l.NotAfter.Equal(r.NotAfter) || !certificates(t, l.Cert)[0].NotAfter.Equal(r.NotAfter) {
		t.Errorf("capped %t, until %v; the root is valid until %v", l.Capped, l.NotAfter, r.NotAfter)
	}
	l, err = ca.Issue(dir, west, filepath.Join(t.TempDir(), "west"), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if l.Capped || !l.NotAfter.Before(r.NotAfter) {
		t.Errorf("capped %t, until %v", l.Capped, l.NotAfter)
	}
}

func TestInitRefuses(t *testing.T) {
	long := spiffeid.RequireTrustDomainFromString(strings.Repeat("a", 256))
	for _, tc := range []struct {
		name     string
		td       spiffeid.TrustDomain
		validity time.Duration
		there    string
		says     string
	}{
		{"no trust domain", spiffeid.TrustDomain{}, 0, "", "no trust domain"},
		{"long trust domain", long, 0, "", "longer than 255"},
		{"no time", mesh, time.Millisecond, "", "too short"},
		{"time backwards", mesh, -time.Hour, "", "too short"},
		{"a key is there", mesh, 0, "ca.key", "ca.key exists"},
		{"a root is there", mesh, 0, "ca.pem", "ca.pem exists"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if tc.there != "" {
				write(t, filepath.Join(dir, tc.there), []byte("precious"))
			}
			_, err := ca.Init(dir, tc.td, tc.validity)
			wantHint(t, err, tc.says)
			if tc.there == "" {
				wantFiles(t, dir)
				return
			}
			wantFiles(t, dir, tc.there)
			if data, err := os.ReadFile(filepath.Join(dir, tc.there)); err != nil || string(data) != "precious" {
				t.Errorf("%s holds %q, %v", tc.there, data, err)
			}
		})
	}
}

// TestInitOnce: of many at once in one directory, one makes the authority.
func TestInitOnce(t *testing.T) {
	dir, errs := t.TempDir(), make(chan error)
	const n = 8
	for range n {
		go func() {
			_, err := ca.Init(dir, mesh, 0)
			errs <- err
		}()
	}
	made := 0
	for range n {
		if err := <-errs; err == nil {
			made++
		}
	}
	if made != 1 {
		t.Errorf("%d have made an authority, want one", made)
	}
	issue(t, dir, west, filepath.Join(t.TempDir(), "west"))
}

// TestIssueTogether: of many at once under one name, one is last, and the key is
// its own.
func TestIssueTogether(t *testing.T) {
	dir, out, errs := authority(t, mesh), filepath.Join(t.TempDir(), "west"), make(chan error)
	const n = 8
	for range n {
		go func() {
			_, err := ca.Issue(dir, west, out, 0)
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if _, err := tls.LoadX509KeyPair(out+".pem", out+".key"); err != nil {
		t.Error(err)
	}
}

func TestIssueRefuses(t *testing.T) {
	long := spiffeid.RequireFromPath(mesh, "/"+strings.Repeat("a", 2048))
	for _, tc := range []struct {
		name  string
		id    spiffeid.ID
		out   string // in a directory of its own, unless it begins with ca/
		setup func(t *testing.T, ca, out string)
		says  string
	}{
		{"no ID", spiffeid.ID{}, "west", nil, "no SPIFFE ID"},
		{"no path", mesh.ID(), "west", nil, "no path"},
		{"another domain", spiffeid.RequireFromPath(other, "/gateway/west"), "west", nil, "signs for mesh.example, not for other.example"},
		{"long", long, "west", nil, "longer than 2048"},
		{"no name", west, "", nil, "names no file"},
		{"a directory", west, "there", mkdir("there"), "is a directory"},
		{"an ending", west, "west.pem", nil, "ending"},
		{"the bundle's name", west, "bundle", nil, "where the roots go"},
		{"the authority's name", west, "ca/ca", nil, "the authority's own"},
		{"no authority", west, "west", remove("ca.pem"), "ca.pem"},
		{"no key", west, "west", remove("ca.key"), "ca.key"},
		{"open key", west, "west", chmod("ca.key", 0o640), "open to others"},
		{"broken root", west, "west", overwrite("ca.pem", "no PEM"), "damaged"},
		{"broken key", west, "west", overwrite("ca.key", "no PEM"), "no private key"},
		{"another's key", west, "west", anotherKey, "key of no certificate"},
		{"root of another domain", west, "west", foreignRoot, "has a root of other.example"},
		{"bundle of another domain", west, "west", foreignBundle, "has a root of other.example"},
		{"broken bundle", west, "west", brokenBundle, "damaged"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir, outDir := authority(t, mesh), t.TempDir()
			out := outDir + "/" + tc.out
			if rest, ok := strings.CutPrefix(tc.out, "ca/"); ok {
				out = filepath.Join(dir, rest)
			}
			if tc.setup != nil {
				tc.setup(t, dir, outDir)
			}
			inCA, inOut := tree(t, dir), tree(t, outDir)
			_, err := ca.Issue(dir, tc.id, out, 0)
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %v, want one that says %q", err, tc.says)
			}
			if !slices.Equal(tree(t, dir), inCA) || !slices.Equal(tree(t, outDir), inOut) {
				t.Error("it has changed files")
			}
		})
	}
	t.Run("negative validity", func(t *testing.T) {
		_, err := ca.Issue(authority(t, mesh), west, filepath.Join(t.TempDir(), "west"), -time.Hour)
		wantHint(t, err, "too short")
	})
	t.Run("no authority at all", func(t *testing.T) {
		_, err := ca.Issue(filepath.Join(t.TempDir(), "no"), west, filepath.Join(t.TempDir(), "west"), 0)
		wantHint(t, err, "ca.pem")
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v is not of a file that does not exist", err)
		}
	})
}

func mkdir(name string) func(*testing.T, string, string) {
	return func(t *testing.T, _, out string) { must(t, os.Mkdir(filepath.Join(out, name), 0o755)) }
}

func remove(name string) func(*testing.T, string, string) {
	return func(t *testing.T, dir, _ string) { must(t, os.Remove(filepath.Join(dir, name))) }
}

func chmod(name string, mode fs.FileMode) func(*testing.T, string, string) {
	return func(t *testing.T, dir, _ string) { must(t, os.Chmod(filepath.Join(dir, name), mode)) }
}

func overwrite(name, with string) func(*testing.T, string, string) {
	return func(t *testing.T, dir, _ string) { write(t, filepath.Join(dir, name), []byte(with)) }
}

func anotherKey(t *testing.T, dir, _ string) {
	write(t, filepath.Join(dir, "ca.key"), read(t, filepath.Join(authority(t, mesh), "ca.key")))
}

func foreignRoot(t *testing.T, dir, _ string) {
	appendFile(t, filepath.Join(dir, "ca.pem"), filepath.Join(authority(t, other), "ca.pem"))
}

func foreignBundle(t *testing.T, _, out string) {
	write(t, filepath.Join(out, "bundle.pem"), read(t, filepath.Join(authority(t, other), "ca.pem")))
}

func brokenBundle(t *testing.T, dir, out string) {
	whole := read(t, filepath.Join(dir, "ca.pem"))
	write(t, filepath.Join(out, "bundle.pem"), append(whole, whole[:len(whole)/2]...))
}

// handshake joins a client and a server and gives what each proved.
func handshake(t *testing.T, client, server identity.Source) (clientID, serverID spiffeid.ID, err error) {
	t.Helper()
	anyone := func(spiffeid.ID) error { return nil }
	a, b := net.Pipe()
	c, s := tls.Client(a, identity.Client(client, anyone)), tls.Server(b, identity.Server(server, anyone))
	served := make(chan error, 1)
	go func() {
		defer b.Close()
		err := s.HandshakeContext(t.Context())
		if err == nil {
			_, err = s.Write([]byte{1})
		}
		served <- err
	}()
	clientErr := c.HandshakeContext(t.Context())
	if clientErr == nil {
		// In TLS 1.3 a client hears of a refusal only when it reads.
		_, clientErr = c.Read(make([]byte, 1))
	}
	a.Close()
	if err := errors.Join(<-served, clientErr); err != nil {
		return spiffeid.ID{}, spiffeid.ID{}, err
	}
	return peer(t, s), peer(t, c), nil
}

func peer(t *testing.T, c *tls.Conn) spiffeid.ID {
	t.Helper()
	state := c.ConnectionState()
	id, err := identity.Peer(&state)
	must(t, err)
	return id
}

func ownID(t *testing.T, f *identity.Files) spiffeid.ID {
	t.Helper()
	svid, err := f.GetX509SVID()
	must(t, err)
	return svid.ID
}

func certificates(t *testing.T, path string) (certs []*x509.Certificate) {
	t.Helper()
	for b, rest := pem.Decode(read(t, path)); b != nil; b, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(b.Bytes)
		must(t, err)
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		t.Fatalf("%s holds no certificate", path)
	}
	return certs
}

func pemOf(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func critical(c *x509.Certificate, oid ...int) bool {
	for _, e := range c.Extensions {
		if slices.Equal(e.Id, oid) {
			return e.Critical
		}
	}
	return false
}

func wantMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	if got := info.Mode().Perm(); got != want {
		t.Errorf("%s has mode %04o, want %04o", path, got, want)
	}
}

// wantFiles checks that a directory holds these and no leftovers.
func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}

// tree is every file in a directory with what it holds.
func tree(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		line := e.Name()
		if !e.IsDir() {
			line += " " + string(read(t, filepath.Join(dir, e.Name())))
		}
		list = append(list, line)
	}
	return list
}

func wantHint(t *testing.T, err error, says string) {
	t.Helper()
	e, ok := errors.AsType[*ca.Error](err)
	if !ok || e.Hint == "" || !strings.Contains(err.Error(), says) {
		t.Errorf("error %v, want one with a hint that says %q", err, says)
	}
}

func appendFile(t *testing.T, path, from string) {
	t.Helper()
	write(t, path, append(read(t, path), read(t, from)...))
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return data
}

// write keeps the mode of a file that is there.
func write(t *testing.T, path string, data []byte) {
	t.Helper()
	must(t, os.WriteFile(path, data, 0o600))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
