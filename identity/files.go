package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"sync/atomic"

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
	// Bundle is a file with the roots of our trust domain, which is that of our
	// own SPIFFE ID: in PEM, or a SPIFFE bundle document.
	Bundle string
	Watch
}

// Files is a Source kept in step with three files, however they are replaced.
// All three change as one: while any of them is missing, half-written or unfit
// for the others, the last good set stays.
type Files struct {
	poller
	cfg FilesConfig
	now atomic.Pointer[material]

	// These are the poller's own.
	settled
	early bool // what was last judged was refused for not being valid yet
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
	cfg.Watch = cfg.withDefaults()
	f := &Files{cfg: cfg}
	pems := readSet(cfg)
	m, err := pems.parse()
	if err != nil {
		return nil, err
	}
	f.settled = settled{pems.sum(), pems.sum()}
	f.now.Store(m)
	f.poller.start(cfg.Interval, f.check)
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

// check takes what the files hold if it is new and good.
func (f *Files) check() {
	pems := readSet(f.cfg)
	yes, known := f.is(pems.sum())
	if !yes || known && !f.early {
		return
	}
	m, err := pems.parse()
	f.early = ReasonOf(err) == OwnNotYetValid
	switch {
	case err == nil:
		f.take(m)
	case !known:
		f.cfg.Refused(ReasonOf(err))
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
