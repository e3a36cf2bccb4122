package identity_test

import (
	"bytes"
	"crypto/ecdsa"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"wishbone/identity"
	"wishbone/identity/identitytest"
)

const interval = 10 * time.Millisecond

// rest is time enough for a change that has been made to be seen. It passes only
// in a bubble of synctest, where it takes no time.
func rest() {
	<-time.After(10 * interval)
	synctest.Wait()
}

// disk is a directory with the files of an identity, and the log of their reader.
type disk struct {
	cfg identity.FilesConfig
	mu  sync.Mutex
	log bytes.Buffer // guarded by mu
}

func (d *disk) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.log.Write(p)
}

// logged is how many records had what in them.
func (d *disk) logged(what string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return strings.Count(d.log.String(), what)
}

const (
	taken    = "identity updated"
	notTaken = "not taken"
)

// newDisk has a good set of a's.
func newDisk(t *testing.T, a *identitytest.Authority) *disk {
	t.Helper()
	d := &disk{}
	dir := t.TempDir()
	var err error
	d.cfg.Cert, d.cfg.Key, d.cfg.Bundle, err = a.WriteFiles(dir, "west", westPath)
	if err != nil {
		t.Fatal(err)
	}
	d.cfg.Interval = interval
	d.cfg.Log = slog.New(slog.NewTextHandler(d, nil))
	return d
}

// open opens the disk's files, which must be good.
func (d *disk) open(t *testing.T) *identity.Files {
	t.Helper()
	f, err := identity.OpenFiles(d.cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// svidOf is what a handshake would show.
func svidOf(t *testing.T, f *identity.Files) *x509svid.SVID {
	t.Helper()
	svid, err := f.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

func wantShown(t *testing.T, f *identity.Files, want *x509svid.SVID) {
	t.Helper()
	if got := svidOf(t, f); !got.Certificates[0].Equal(want.Certificates[0]) {
		t.Fatalf("shows %v, number %v; want %v, number %v", got.ID, got.Certificates[0].SerialNumber, want.ID, want.Certificates[0].SerialNumber)
	}
}

// put writes a file in place, as `cat >` does.
func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// renew puts another file in a file's place.
func renew(t *testing.T, path string, data []byte) {
	t.Helper()
	put(t, path+".new", data)
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func marshal(t *testing.T, svid *x509svid.SVID) (cert, key []byte) {
	t.Helper()
	cert, key, err := svid.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

func marshalBundle(t *testing.T, b *x509bundle.Bundle) []byte {
	t.Helper()
	data, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestFilesAreTaken: a new set counts, whichever way it comes.
func TestFilesAreTaken(t *testing.T) {
	for name, write := range map[string]func(t *testing.T, path string, data []byte){
		"renamed": renew,
		"written": put,
		"removed and made": func(t *testing.T, path string, data []byte) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			put(t, path, data)
		},
		"linked": func(t *testing.T, path string, data []byte) {
			put(t, path+".2", data)
			if err := errors.Join(os.Remove(path), os.Symlink(filepath.Base(path)+".2", path)); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := identitytest.New("mesh.example")
				d := newDisk(t, a)
				f := d.open(t)
				defer f.Close()
				next := a.Issue("/gateway/west-2")
				cert, key := marshal(t, next)
				write(t, d.cfg.Cert, cert)
				write(t, d.cfg.Key, key)
				rest()
				wantShown(t, f, next)
				if n := d.logged(taken); n != 1 {
					t.Errorf("logged %d times", n)
				}
			})
		})
	}
}

// TestFilesOfKubernetes: a volume's files are links through ..data, which is
// replaced as one.
func TestFilesOfKubernetes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, dir := identitytest.New("mesh.example"), t.TempDir()
		version := func(name string) *x509svid.SVID {
			svid := a.Issue(westPath)
			cert, key := marshal(t, svid)
			if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
				t.Fatal(err)
			}
			put(t, filepath.Join(dir, name, "tls.crt"), cert)
			put(t, filepath.Join(dir, name, "tls.key"), key)
			put(t, filepath.Join(dir, name, "ca.crt"), marshalBundle(t, a.Bundle()))
			next := filepath.Join(dir, "..data_tmp")
			if err := errors.Join(os.Symlink(name, next), os.Rename(next, filepath.Join(dir, "..data"))); err != nil {
				t.Fatal(err)
			}
			return svid
		}
		first := version("..1")
		for _, name := range []string{"tls.crt", "tls.key", "ca.crt"} {
			if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		d := &disk{}
		d.cfg = identity.FilesConfig{
			Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), Bundle: filepath.Join(dir, "ca.crt"),
			Watch: identity.Watch{Interval: interval, Log: slog.New(slog.NewTextHandler(d, nil))},
		}
		f := d.open(t)
		defer f.Close()
		wantShown(t, f, first)
		second := version("..2")
		if err := os.RemoveAll(filepath.Join(dir, "..1")); err != nil {
			t.Fatal(err)
		}
		rest()
		wantShown(t, f, second)
		if d.logged(notTaken) > 0 {
			t.Error(d.log.String())
		}
	})
}

// TestFilesOfTomorrow: a certificate that is not valid yet, say because our clock
// is slow, counts as soon as it is, though its file does not change again.
func TestFilesOfTomorrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := identitytest.New("mesh.example")
		d := newDisk(t, a)
		f := d.open(t)
		defer f.Close()
		good := svidOf(t, f)
		next := a.Issue(westPath, identitytest.NotYetValid()) // for a minute
		replaceSVID(t, d.cfg, next)
		rest()
		wantShown(t, f, good)
		<-time.After(time.Minute)
		rest()
		wantShown(t, f, next)
		if d.logged(notTaken) != 1 || d.logged("reason=own_not_yet_valid ") != 1 || d.logged(taken) != 1 {
			t.Error(d.log.String())
		}
	})
}

// TestFilesInBetween: one reading in the midst of a change is not believed. A
// bundle that is being written is a good one of fewer roots for a moment.
func TestFilesInBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := identitytest.New("mesh.example"), identitytest.New("mesh.example")
		d := newDisk(t, a)
		f := d.open(t)
		defer f.Close()
		one, two := marshalBundle(t, b.Bundle()), marshalBundle(t, a.Bundle())
		put(t, d.cfg.Bundle, one)
		<-time.After(interval) // one reading at least, and not two
		synctest.Wait()
		put(t, d.cfg.Bundle, append(one, two...))
		rest()
		if d.logged(taken) != 1 || d.logged("roots=2") != 1 {
			t.Error(d.log.String())
		}
		cert, key := marshal(t, a.Issue(westPath))
		renew(t, d.cfg.Cert, cert)
		<-time.After(interval)
		synctest.Wait()
		renew(t, d.cfg.Key, key)
		rest()
		if d.logged(notTaken) != 0 || d.logged(taken) != 2 {
			t.Error(d.log.String())
		}
	})
}

// TestFilesWithdrawRoots: a root that leaves the bundle is not believed any more,
// also if it has signed our own certificate.
func TestFilesWithdrawRoots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, next := identitytest.New("mesh.example"), identitytest.New("mesh.example")
		d := newDisk(t, a)
		f := d.open(t)
		defer f.Close()
		renew(t, d.cfg.Bundle, marshalBundle(t, next.Bundle()))
		rest()
		b, err := f.GetX509BundleForTrustDomain(meshDomain)
		if err != nil {
			t.Fatal(err)
		}
		if !b.Equal(next.Bundle()) {
			t.Error("another bundle")
		}
		if _, err := f.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("other.example")); err == nil {
			t.Error("roots of another domain")
		}
	})
}

// TestFilesUpdated: a change is told once it can be read, and nothing else is.
func TestFilesUpdated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, next := identitytest.New("mesh.example"), identitytest.New("mesh.example")
		d := newDisk(t, a)
		f := d.open(t)
		defer f.Close()
		told := func(updated <-chan struct{}) bool {
			rest()
			select {
			case <-updated:
				return true
			default:
				return false
			}
		}
		before := f.Updated()
		renew(t, d.cfg.Bundle, []byte("nonsense"))
		if told(before) {
			t.Error("told of files that were not taken")
		}
		renew(t, d.cfg.Bundle, marshalBundle(t, next.Bundle()))
		if !told(before) {
			t.Error("not told of new roots")
		}
		if told(f.Updated()) {
			t.Error("told again")
		}
	})
}

// TestFilesClose: nothing is read afterwards, and what was is still there.
func TestFilesClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // fails if the poller is left over
		a := identitytest.New("mesh.example")
		d := newDisk(t, a)
		f := d.open(t)
		good := svidOf(t, f)
		for range 2 {
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		replaceSVID(t, d.cfg, a.Issue(westPath))
		rest()
		wantShown(t, f, good)
	})
}

// TestFilesReadWhileChanged: readers at any time have a certificate and its key.
func TestFilesReadWhileChanged(t *testing.T) {
	a := identitytest.New("mesh.example")
	d := newDisk(t, a)
	d.cfg.Interval = time.Millisecond
	f := d.open(t)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				svid := svidOf(t, f)
				public, ok := svid.PrivateKey.Public().(*ecdsa.PublicKey)
				if !ok || !public.Equal(svid.Certificates[0].PublicKey) {
					t.Error("a certificate with another's key")
					return
				}
				if _, err := f.GetX509BundleForTrustDomain(meshDomain); err != nil {
					t.Error(err)
					return
				}
				runtime.Gosched()
			}
		})
	}
	for i := range 5 {
		replaceSVID(t, d.cfg, a.Issue(westPath))
		awaitLogged(t, d, taken, i+1)
	}
	close(stop)
	readers.Wait()
}

// awaitLogged waits until n records have what in them.
func awaitLogged(t *testing.T, d *disk, what string, n int) {
	t.Helper()
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(20 * time.Second); d.logged(what) < n; <-poll.C {
		if time.Now().After(deadline) {
			t.Fatalf("%q was not logged %d times", what, n)
		}
	}
}
