package identity_test

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/identity"
	"wishbone/identity/identitytest"
)

var partnerDomain = spiffeid.RequireTrustDomainFromString("partner.example")

const (
	bundleTaken    = "bundle updated"
	bundleNotTaken = "bundle not taken"
)

// document is a SPIFFE bundle document, as SPIRE prints it.
func document(t *testing.T, bundle *x509bundle.Bundle) []byte {
	t.Helper()
	b := spiffebundle.FromX509Bundle(bundle)
	if err := b.AddJWTAuthority("jwt", newKey(t).Public()); err != nil {
		t.Fatal(err)
	}
	b.SetSequenceNumber(7)
	data, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// partners are a Federation with a file for each trust domain, and its log.
type partners struct {
	*disk
	*identity.Federation
	refused []identity.Reason // the poller's, and ours while it rests
}

func openPartners(t *testing.T) *partners {
	t.Helper()
	p := &partners{disk: &disk{}}
	p.Federation = identity.OpenFederation(identity.Watch{
		Interval: interval, Log: slog.New(slog.NewTextHandler(p.disk, nil)),
		Refused: func(r identity.Reason) { p.refused = append(p.refused, r) },
	})
	return p
}

// set reads and uses bundles, which must be good.
func (p *partners) set(t *testing.T, paths map[spiffeid.TrustDomain]string) {
	t.Helper()
	use, err := p.Read(paths)
	if err != nil {
		t.Fatal(err)
	}
	use()
}

// wantRoots fails unless the roots of a's domain are exactly a's.
func wantRoots(t *testing.T, src x509bundle.Source, a *identitytest.Authority) {
	t.Helper()
	b, err := src.GetX509BundleForTrustDomain(a.Bundle().TrustDomain())
	if err != nil {
		t.Fatal(err)
	}
	if !b.Equal(a.Bundle()) {
		t.Errorf("%d roots of %s, and not those that were given", len(b.X509Authorities()), b.TrustDomain())
	}
}

func wantNoRoots(t *testing.T, src x509bundle.Source, td spiffeid.TrustDomain) {
	t.Helper()
	if b, err := src.GetX509BundleForTrustDomain(td); err == nil {
		t.Errorf("%d roots of %s", len(b.X509Authorities()), td)
	}
}

func toldOf(updated <-chan struct{}) bool {
	select {
	case <-updated:
		return true
	default:
		return false
	}
}

// TestFederationFiles: two gateways of two trust domains meet with each other's
// roots from a file, in either form, and follow it.
func TestFederationFiles(t *testing.T) {
	for name, form := range map[string]func(*testing.T, *x509bundle.Bundle) []byte{
		"PEM": marshalBundle, "SPIFFE bundle document": document,
		"document with space before": func(t *testing.T, b *x509bundle.Bundle) []byte { return append([]byte("\n\t "), document(t, b)...) },
	} {
		t.Run(name, func(t *testing.T) {
			mesh, partner, next := identitytest.New("mesh.example"), identitytest.New("partner.example"), identitytest.New("partner.example")
			path := filepath.Join(t.TempDir(), "partner")
			put(t, path, form(t, partner.Bundle()))
			p := openPartners(t)
			defer p.Close()
			p.set(t, map[spiffeid.TrustDomain]string{partnerDomain: path})
			west := p.Over(mesh.Source(westPath))
			east := identitytest.NewSource(partner.Issue(eastPath), partner, mesh)

			c, s := handshake(t, identity.Client(west, only(partner.ID(eastPath))), identity.Server(east, only(mesh.ID(westPath))))
			wantAccepted(t, c, s)
			wantRoots(t, west, mesh)

			updated := p.Updated()
			renew(t, path, form(t, next.Bundle()))
			select {
			case <-updated:
			case <-time.After(20 * time.Second):
				t.Fatal("the new root is not taken")
			}
			c, s = handshake(t, identity.Client(west, welcome), identity.Server(east, welcome))
			wantRefused(t, c, s, identity.UnknownAuthority)
			east.Set(next.Issue(eastPath))
			c, s = handshake(t, identity.Client(west, welcome), identity.Server(east, welcome))
			wantAccepted(t, c, s)
		})
	}
}

// TestFederationRefuses: a trust domain is believed by its own bundle alone, and
// an ID is welcome in its own domain alone.
func TestFederationRefuses(t *testing.T) {
	mesh, partner, third := identitytest.New("mesh.example"), identitytest.New("partner.example"), identitytest.New("third.example")
	path := filepath.Join(t.TempDir(), "partner.pem")
	put(t, path, marshalBundle(t, partner.Bundle()))
	p := openPartners(t)
	defer p.Close()
	p.set(t, map[spiffeid.TrustDomain]string{partnerDomain: path})
	src := p.Over(mesh.Source(westPath))
	accept := only(partner.ID(eastPath))
	claims := func(a *identitytest.Authority) identitytest.Options {
		return identitytest.Options{URIs: []string{a.ID(eastPath).String()}}
	}
	for _, tc := range []struct {
		name string
		by   *identitytest.Authority
		opts identitytest.Options
		want identity.Reason
	}{
		{"the right one", partner, identitytest.Options{}, ""},
		{"the right path in our own domain", mesh, identitytest.Options{}, identity.WrongID},
		{"the right path in a domain without a bundle", third, identitytest.Options{}, identity.WrongDomain},
		{"the partner's ID by our own root", mesh, claims(partner), identity.UnknownAuthority},
		{"our own ID by the partner's root", partner, claims(mesh), identity.UnknownAuthority},
		{"the partner's ID by a stranger", third, claims(partner), identity.UnknownAuthority},
		{"the partner's ID by another authority of that name", identitytest.New("partner.example"), identitytest.Options{}, identity.UnknownAuthority},
	} {
		t.Run(tc.name, func(t *testing.T) {
			testRoles(t, src, accept, tc.by.Issue(eastPath, tc.opts), func(t *testing.T, judge, other end) {
				if tc.want == "" {
					wantAccepted(t, judge, other)
					return
				}
				wantRefused(t, judge, other, tc.want)
			})
		})
	}
}

// TestFederationNotTaken: what is wrong with one file leaves its last good roots
// and all others as they were, is logged and counted once, and a good one counts
// again afterwards.
func TestFederationNotTaken(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(t *testing.T, path string, partner *identitytest.Authority)
		want  identity.Reason
	}{
		{"missing", func(t *testing.T, path string, _ *identitytest.Authority) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, identity.Unreadable},
		{"empty", func(t *testing.T, path string, _ *identitytest.Authority) { put(t, path, nil) }, identity.Malformed},
		{"half a root", func(t *testing.T, path string, _ *identitytest.Authority) { halve(t, path) }, identity.Malformed},
		{"half a document", func(t *testing.T, path string, a *identitytest.Authority) {
			put(t, path, document(t, a.Bundle()))
			halve(t, path)
		}, identity.Malformed},
		{"two documents", func(t *testing.T, path string, a *identitytest.Authority) {
			put(t, path, bytes.Repeat(document(t, a.Bundle()), 2))
		}, identity.Malformed},
		{"document without roots", func(t *testing.T, path string, a *identitytest.Authority) {
			put(t, path, document(t, x509bundle.New(partnerDomain)))
		}, identity.Malformed},
		{"document of nothing", func(t *testing.T, path string, _ *identitytest.Authority) { put(t, path, []byte("{}")) }, identity.Malformed},
		{"leaf for a root", func(t *testing.T, path string, a *identitytest.Authority) {
			cert, _ := marshal(t, a.Issue(eastPath))
			put(t, path, cert)
		}, identity.Malformed},
		{"document with a leaf for a root", func(t *testing.T, path string, a *identitytest.Authority) {
			put(t, path, document(t, x509bundle.FromX509Authorities(partnerDomain, a.Issue(eastPath).Certificates)))
		}, identity.Malformed},
		{"huge", func(t *testing.T, path string, _ *identitytest.Authority) {
			if err := os.Truncate(path, 1<<40); err != nil {
				t.Fatal(err)
			}
		}, identity.TooLarge},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				partner, third, next := identitytest.New("partner.example"), identitytest.New("third.example"), identitytest.New("third.example")
				dir := t.TempDir()
				bad, good := filepath.Join(dir, "partner.pem"), filepath.Join(dir, "third.pem")
				put(t, bad, marshalBundle(t, partner.Bundle()))
				put(t, good, marshalBundle(t, third.Bundle()))
				p := openPartners(t)
				defer p.Close()
				paths := map[spiffeid.TrustDomain]string{partnerDomain: bad, third.Bundle().TrustDomain(): good}
				p.set(t, paths)

				tc.spoil(t, bad, partner)
				updated := p.Updated()
				rest()
				if toldOf(updated) {
					t.Error("told of a file that was not taken")
				}
				renew(t, good, marshalBundle(t, next.Bundle()))
				rest()
				wantRoots(t, p, partner)
				wantRoots(t, p, next)
				if p.logged(bundleNotTaken) != 1 || p.logged("trustDomain=partner.example reason="+string(tc.want)+" ") != 1 || p.logged(bundleTaken) != 1 {
					t.Errorf("want %q once:\n%s", tc.want, p.log.String())
				}
				if len(p.refused) != 1 || p.refused[0] != tc.want {
					t.Errorf("counted %q", p.refused)
				}
				// In use it is good enough for another Read; anew it is not.
				if use, err := p.Read(paths); err != nil {
					t.Error(err)
				} else if use(); toldOf(p.Updated()) {
					t.Error("told of nothing")
				}
				wantRoots(t, p, partner)
				anew := openPartners(t)
				defer anew.Close()
				if _, err := anew.Read(paths); identity.ReasonOf(err) != tc.want || !strings.Contains(err.Error(), bad) {
					t.Errorf("opened anew: %v, want %q of %s", err, tc.want, bad)
				}

				replaced := identitytest.New("partner.example")
				renew(t, bad, document(t, replaced.Bundle()))
				rest()
				wantRoots(t, p, replaced)
			})
		})
	}
}

// TestFederationInBetween: a bundle that is being written is a good one of fewer
// roots for a moment, and the same roots in another form are no change.
func TestFederationInBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := identitytest.New("partner.example"), identitytest.New("partner.example")
		path := filepath.Join(t.TempDir(), "partner.pem")
		one, two := marshalBundle(t, a.Bundle()), marshalBundle(t, b.Bundle())
		put(t, path, append(bytes.Clone(one), two...))
		p := openPartners(t)
		defer p.Close()
		p.set(t, map[spiffeid.TrustDomain]string{partnerDomain: path})
		updated := p.Updated()
		put(t, path, one)
		<-time.After(interval) // one reading at least, and not two
		synctest.Wait()
		put(t, path, append(bytes.Clone(one), two...))
		rest()
		if toldOf(updated) {
			t.Error("told of a file that is as it was")
		}
		both := a.Bundle()
		both.AddX509Authority(b.Bundle().X509Authorities()[0])
		renew(t, path, document(t, both))
		rest()
		if toldOf(updated) {
			t.Error("told of roots that are as they were")
		}
		renew(t, path, two)
		rest()
		if !toldOf(updated) {
			t.Error("not told of a root that is gone")
		}
		wantRoots(t, p, b)
	})
}

// TestFederationRead: Read changes nothing until what it gives is called, and what
// it does not name is gone then.
func TestFederationRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		partner, third := identitytest.New("partner.example"), identitytest.New("third.example")
		dir := t.TempDir()
		one, two := filepath.Join(dir, "partner.pem"), filepath.Join(dir, "third.pem")
		put(t, one, marshalBundle(t, partner.Bundle()))
		put(t, two, marshalBundle(t, third.Bundle()))
		p := openPartners(t)
		defer p.Close()
		wantNoRoots(t, p, partnerDomain)
		p.set(t, map[spiffeid.TrustDomain]string{partnerDomain: one})

		updated := p.Updated()
		use, err := p.Read(map[spiffeid.TrustDomain]string{third.Bundle().TrustDomain(): two})
		if err != nil {
			t.Fatal(err)
		}
		rest()
		wantNoRoots(t, p, third.Bundle().TrustDomain())
		use()
		wantNoRoots(t, p, partnerDomain)
		wantRoots(t, p, third)
		other := identitytest.New("third.example")
		put(t, two+".2", marshalBundle(t, other.Bundle()))
		p.set(t, map[spiffeid.TrustDomain]string{third.Bundle().TrustDomain(): two + ".2"})
		wantRoots(t, p, other)
		p.set(t, map[spiffeid.TrustDomain]string{third.Bundle().TrustDomain(): two})
		wantRoots(t, p, third)
		if !toldOf(updated) {
			t.Error("not told")
		}
		// The file that is gone from the configuration is not looked at any more.
		renew(t, one, nil)
		rest()
		if p.logged(bundleNotTaken) != 0 {
			t.Error(p.log.String())
		}
		if _, err := p.Read(map[spiffeid.TrustDomain]string{partnerDomain: filepath.Join(dir, "nowhere")}); identity.ReasonOf(err) != identity.Unreadable || !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v, want %q", err, identity.Unreadable)
		}
		wantRoots(t, p, third)
	})
}

// TestFederationOver: a file counts in place of what the source has of its domain,
// without a merge, and never for our own.
func TestFederationOver(t *testing.T) {
	mesh, partner, third := identitytest.New("mesh.example"), identitytest.New("partner.example"), identitytest.New("third.example")
	filed, forged := identitytest.New("partner.example"), identitytest.New("mesh.example")
	dir := t.TempDir()
	one, own := filepath.Join(dir, "partner.pem"), filepath.Join(dir, "own.pem")
	put(t, one, marshalBundle(t, filed.Bundle()))
	put(t, own, marshalBundle(t, forged.Bundle()))
	p := openPartners(t)
	defer p.Close()
	p.set(t, map[spiffeid.TrustDomain]string{partnerDomain: one, meshDomain: own})
	agent := identitytest.NewSource(mesh.Issue(westPath), mesh, partner, third)
	src := p.Over(agent)
	wantRoots(t, src, filed)
	wantRoots(t, src, mesh)
	wantRoots(t, src, third)
	agent.Distrust(partner, third)
	wantRoots(t, src, filed)
	wantNoRoots(t, src, third.Bundle().TrustDomain())
	agent.Fail(errors.New("the agent is gone"))
	wantNoRoots(t, src, meshDomain)
}

// TestFilesBundleDocument: our own bundle may be a SPIFFE bundle document too.
func TestFilesBundleDocument(t *testing.T) {
	a := identitytest.New("mesh.example")
	d := newDisk(t, a)
	put(t, d.cfg.Bundle, document(t, a.Bundle()))
	wantWorking(t, d.cfg)
}
