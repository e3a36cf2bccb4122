package doctor

import (
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"time"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/identity"
)

// fileModes looks for files that others than the gateway's user may read or write
// and should not: whoever writes them decides who is believed.
func (e *examination) fileModes(context.Context) {
	const check = "file modes"
	files := append([]string{e.cfg.Path}, e.cfg.Revoked.CRLs...)
	for _, f := range e.cfg.Identity.Federation {
		files = append(files, f.Bundle)
	}
	sound := true
	if f := e.cfg.Identity.Files; f != nil {
		files = append(files, f.Cert, f.Key, f.Bundle)
		if mode := modeOf(f.Key); mode&0o004 != 0 {
			sound = false
			e.warn(check, "chmod o= "+f.Key+", and issue a new key if others could have read this one", "everybody may read the private key %s (mode %04o)", f.Key, mode)
		}
	}
	for _, path := range files {
		if mode := modeOf(path); mode&0o002 != 0 {
			sound = false
			e.warn(check, "chmod o-w "+path, "everybody may write %s (mode %04o)", path, mode)
		}
	}
	if sound {
		e.ok(check, "none is open to everybody that should not be")
	}
}

// fileRemedy is what to do about a file that may not be read, or otherwise.
func fileRemedy(err error, otherwise string) string {
	if errors.Is(err, fs.ErrPermission) {
		return "chown it to the gateway's user: root's gateway has given up the right to files of others; where the gateway is another user's, run doctor as that user"
	}
	return otherwise
}

// beneath is an error about a revocation list, which is no certificate, without
// "verify certificate" before it.
func beneath(err error) error {
	if v, ok := err.(*identity.VerifyError); ok && v.Err != nil {
		return v.Err
	}
	return err
}

// unread is beneath for a file of a certificate that could not be read at all.
func unread(err error) error {
	if identity.ReasonOf(err) == identity.Unreadable {
		return beneath(err)
	}
	return err
}

// modeOf are the permissions of a file; none where it is not there, which others
// tell of.
func modeOf(path string) os.FileMode {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return info.Mode().Perm()
}

// revoked reads the revocation lists as the gateway does.
func (e *examination) revoked(context.Context) {
	const check = "revoked"
	r := e.cfg.Revoked
	crls := identity.OpenCRLs(identity.Watch{})
	defer crls.Close()
	use, err := crls.Read(r.CRLs, func() ([]*x509.Certificate, bool) {
		if e.source == nil {
			return nil, false
		}
		return daemon.Issuers(e.cfg, e.source)
	})
	if err != nil {
		e.fail(check, fileRemedy(err, hintOf(daemon.RevokedError(err))), "%v", beneath(err))
		return
	}
	use()
	e.revocations = identity.NewRevocations(r.IDs, r.Serials).With(crls)
	listed, fresh := 0, true
	for _, l := range crls.All() {
		listed += l.Entries
		if l.Stale {
			fresh = false
			e.warn(check, "get a newer one from the authority: a running gateway takes it by itself", "the list of %s in %s was to be replaced by %s; it still counts",
				l.Issuer, l.File, l.NextUpdate.Format(time.RFC3339))
		}
	}
	if fresh && len(r.IDs)+len(r.Serials)+len(r.CRLs) > 0 {
		e.ok(check, "%d ids, %d serials, and %d certificates on lists", len(r.IDs), len(r.Serials), listed)
	}
}
