package daemon

import (
	"context"
	"crypto/x509"

	"wishbone/config"
	"wishbone/identity"
)

// openRevoked reads the revocation lists.
func (d *Daemon) openRevoked(_ context.Context, cfg *config.Config) error {
	d.crls = identity.OpenCRLs(identity.Watch{Log: d.log, Refused: d.source.notTaken})
	d.later(d.crls.Close)
	use, err := d.readCRLs(d.current.Load())
	if err == nil {
		use()
	}
	return err
}

// readCRLs reads those of a snapshot that is, or will be, the present one.
func (d *Daemon) readCRLs(s *snapshot) (use func(), err error) {
	use, err = d.crls.Read(s.cfg.Revoked.CRLs, func() ([]*x509.Certificate, bool) { return Issuers(s.cfg, d.source) })
	return use, RevokedError(err)
}

// RevokedError says what to do about a revocation list.
func RevokedError(err error) error {
	switch identity.ReasonOf(err) {
	case identity.Unreadable:
		return hinted(err, "the paths are relative to the configuration file; the files must be readable by this user. A running gateway sees only directories that it was started with")
	case identity.Malformed:
		return hinted(err, "openssl crl -noout -text -in FILE shows one; it must be complete and of version 2 (openssl ca -gencrl -crlexts)")
	case identity.UnknownAuthority:
		return hinted(err, "a list counts if a root in the bundle of a peer's trust domain has signed it, or an intermediate in our own chain")
	case identity.BadSignature:
		return hinted(err, "get it again from the authority that it names")
	}
	return err
}

// Issuers are the authorities of all peers, as far as src knows them, with what
// stands between ours and ourselves. All says that it knows each peer's.
func Issuers(cfg *config.Config, src identity.Source) (known []*x509.Certificate, all bool) {
	all = true
	for _, p := range cfg.Peers {
		for _, id := range p.IDs {
			b, err := src.GetX509BundleForTrustDomain(id.TrustDomain())
			if err != nil {
				all = false
				continue
			}
			known = append(known, b.X509Authorities()...)
		}
	}
	if svid, err := src.GetX509SVID(); err == nil {
		known = append(known, svid.Certificates[1:]...)
	}
	return known, all
}

// RevokedStatus is how much is refused whatever it proves.
type RevokedStatus struct {
	IDs     int `json:"ids"`
	Serials int `json:"serials"`
	Listed  int `json:"listed"` // certificates, by revocation lists
	Lists   int `json:"lists"`
	Stale   int `json:"stale_lists"` // those past their time
}

func (d *Daemon) revokedStatus(cfg config.Revoked) RevokedStatus {
	st := RevokedStatus{IDs: len(cfg.IDs), Serials: len(cfg.Serials)}
	for _, l := range d.crls.All() {
		st.Lists++
		st.Listed += l.Entries
		if l.Stale {
			st.Stale++
		}
	}
	return st
}

// followCRLs has the live tunnels judged anew whenever a revocation list changes,
// until stop is called, which waits for it.
func (d *Daemon) followCRLs() (stop func() error) {
	stopping, done := make(chan struct{}), make(chan struct{})
	go func() { // ends with stop
		defer close(done)
		for {
			updated := d.crls.Updated() // asked for first, so that no change falls between
			d.gateway.Judge()
			select {
			case <-updated:
			case <-stopping:
				return
			}
		}
	}()
	return func() error {
		close(stopping)
		<-done
		return nil
	}
}
