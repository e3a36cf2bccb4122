package doctor

import (
	"context"
	"crypto/x509"
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
		e.fail(check, hintOf(daemon.RevokedError(err)), "%v", err)
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
