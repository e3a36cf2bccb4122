package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// FilesConfig names the files of an identity. Relative paths are relative to
// the working directory.
type FilesConfig struct {
	// Cert is a PEM file with our certificate and those between it and a root.
	Cert string
	// Key is a PEM file with its private key. It may be the same file.
	Key string
	// Bundle is a PEM file with the roots of our trust domain, which is that of
	// our own SPIFFE ID. There is no other trust domain.
	Bundle string
	// Interval is how often the files are read. 0 means 1 s. A change counts when
	// two readings in a row agree.
	Interval time.Duration
	// Log gets a record for each change, and for each mistake once. Nil discards.
	Log *slog.Logger
}

// Files is a Source kept in step with three files, however they are replaced.
// All three change as one: while any of them is missing, half-written or unfit
// for the others, the last good set stays.
type Files struct {
	cfg  FilesConfig
	now  atomic.Pointer[material]
	stop chan struct{}
	once sync.Once
	wg   sync.WaitGroup // the poller

	// These are the poller's own.
	seen   sum  // what was last read, good or bad
	judged sum  // what was last judged
	early  bool // it was refused for not being valid yet
}

// sum tells one state of the files from another.
type sum [sha256.Size]byte

// material is one good set. It is immutable.
type material struct {
	svid     *x509svid.SVID
	bundle   *x509bundle.Bundle
	replaced chan struct{} // closed when another has taken its place
}

// OpenFiles reads the files and starts to watch them. The caller closes it. The
// error is a *VerifyError, one of an expired certificate too.
func OpenFiles(cfg FilesConfig) (*Files, error) {
	if cfg.Interval <= 0 {
		cfg.Interval = time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	f := &Files{cfg: cfg, stop: make(chan struct{})}
	pems := readSet(cfg)
	m, err := pems.parse()
	if err != nil {
		return nil, err
	}
	f.seen = pems.sum()
	f.judged = f.seen
	f.now.Store(m)
	f.wg.Go(f.poll)
	return f, nil
}

// GetX509SVID gives our certificate of now. It never fails.
func (f *Files) GetX509SVID() (*x509svid.SVID, error) { return f.now.Load().svid, nil }

// GetX509BundleForTrustDomain gives the roots of our own trust domain, and fails
// for any other.
func (f *Files) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	return f.now.Load().bundle.GetX509BundleForTrustDomain(td)
}

// Updated is closed at the next change of certificate or roots. To miss none, ask
// for it before reading what it tells of. It stays open after Close.
func (f *Files) Updated() <-chan struct{} { return f.now.Load().replaced }

// Close stops watching and waits until that is so. What was last read stays
// readable. It may be called more than once.
func (f *Files) Close() error {
	f.once.Do(func() { close(f.stop) })
	f.wg.Wait()
	return nil
}

// poll reads the files again and again until Close. Reading, rather than
// inotify or the times in a directory, sees a change whichever way it comes: a
// rename, a symbolic link that moves, a network file system.
func (f *Files) poll() {
	tick := time.NewTicker(f.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-f.stop:
			return
		case <-tick.C:
			f.check()
		}
	}
}

// check takes what the files hold if it is new and good. New is what two readings
// have found: between them somebody may be in the midst of writing, with one
// file of three replaced, or a bundle that lacks its second half.
func (f *Files) check() {
	pems := readSet(f.cfg)
	now := pems.sum()
	if now != f.seen {
		f.seen = now
		return
	}
	known := now == f.judged
	if known && !f.early {
		return
	}
	m, err := pems.parse()
	f.judged, f.early = now, ReasonOf(err) == OwnNotYetValid
	switch {
	case err == nil:
		f.take(m)
	case !known:
		f.cfg.Log.Error("identity files not taken, keeping the last good ones", "reason", ReasonOf(err), "error", err)
	}
}

// take makes m the set that counts.
func (f *Files) take(m *material) {
	close(f.now.Swap(m).replaced)
	f.cfg.Log.Info("identity updated", "id", m.svid.ID, "serial", serial(m.svid.Certificates[0]),
		"expires", m.svid.Certificates[0].NotAfter, "roots", len(m.bundle.X509Authorities()))
}

// serial prints a certificate's number as openssl does.
func serial(c *x509.Certificate) string { return fmt.Sprintf("%x", c.SerialNumber) }
