package identity_test

import (
	"crypto/tls"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"wishbone/identity"
	"wishbone/identity/identitytest"
)

// flaw is something that can be wrong with a certificate: in our own files, and as
// what a peer shows.
type flaw struct {
	name string
	// own is why our files are not taken, and plant what puts it there.
	own   identity.Reason
	plant func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig)
	// peer is why a handshake with it is refused, and shown what the peer shows; nil
	// where it is about files. What crypto/tls itself sees has no reason, but words.
	peer  identity.Reason
	words string
	shown func(a *identitytest.Authority) tls.Certificate
}

// issued is a flaw of the certificate itself.
func issued(name string, own, peer identity.Reason, options func(a *identitytest.Authority) identitytest.Options) flaw {
	issue := func(a *identitytest.Authority) *x509svid.SVID { return a.Issue(westPath, options(a)) }
	return flaw{
		name: name, own: own, peer: peer,
		plant: func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) { replaceSVID(t, cfg, issue(a)) },
		shown: func(a *identitytest.Authority) tls.Certificate { return raw(issue(a)) },
	}
}

// always are options that do not depend on the authority.
func always(f func() identitytest.Options) func(*identitytest.Authority) identitytest.Options {
	return func(*identitytest.Authority) identitytest.Options { return f() }
}

// names are options with these paths in the certificate, in place of its own.
func names(paths ...string) func(*identitytest.Authority) identitytest.Options {
	return func(a *identitytest.Authority) identitytest.Options {
		o := identitytest.Options{URIs: []string{}}
		for _, p := range paths {
			o.URIs = append(o.URIs, a.ID(westPath).TrustDomain().IDString()+p)
		}
		return o
	}
}

var flaws = []flaw{
	{
		name: "half-written file", own: identity.Malformed, words: "tls: failed to parse",
		plant: func(t *testing.T, _ *identitytest.Authority, cfg identity.FilesConfig) { halve(t, cfg.Cert) },
		shown: func(a *identitytest.Authority) tls.Certificate {
			c := raw(a.Issue(westPath))
			c.Certificate[0] = c.Certificate[0][:len(c.Certificate[0])/2]
			return c
		},
	},
	{
		name: "symlink swapped to nowhere", own: identity.Unreadable,
		plant: func(t *testing.T, _ *identitytest.Authority, cfg identity.FilesConfig) {
			if err := os.Symlink("..data/west.key", cfg.Key+".new"); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(cfg.Key+".new", cfg.Key); err != nil {
				t.Fatal(err)
			}
		},
	},
	{
		name: "mismatching pair", own: identity.Mismatch, words: "invalid signature by the",
		plant: func(t *testing.T, a *identitytest.Authority, cfg identity.FilesConfig) {
			_, key := marshal(t, a.Issue(westPath))
			renew(t, cfg.Key, key)
		},
		shown: func(a *identitytest.Authority) tls.Certificate {
			c := raw(a.Issue(westPath))
			c.PrivateKey = a.Issue(westPath).PrivateKey
			return c
		},
	},
	issued("expired", identity.OwnExpired, identity.Expired, always(identitytest.Expired)),
	issued("not yet valid", identity.OwnNotYetValid, identity.NotYetValid, always(identitytest.NotYetValid)),
	issued("two URI SANs", identity.MultipleURISANs, identity.MultipleURISANs, names(westPath, eastPath)),
	issued("no URI SAN", identity.NoURISAN, identity.NoURISAN, names()),
	issued("root path", identity.BadID, identity.BadID, names("")),
	issued("CA as leaf", identity.NotLeaf, identity.NotLeaf, always(func() identitytest.Options { return identitytest.Options{CA: true} })),
	issued("chain of more than 40 KB", identity.TooLarge, identity.TooLarge, always(func() identitytest.Options { return identitytest.Options{Intermediates: 110} })),
}

// TestFlawsOfOurFiles: each flaw has a reason of its own, which is logged and counted
// once, and the old pair stays in use; a good one is taken afterwards.
func TestFlawsOfOurFiles(t *testing.T) {
	seen := make(map[identity.Reason]string)
	for _, f := range flaws {
		if other, twice := seen[f.own]; twice {
			t.Errorf("%s has the reason of %s", f.name, other)
		}
		seen[f.own] = f.name
		t.Run(f.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := identitytest.New("mesh.example")
				d := newDisk(t, a)
				refused := make(map[identity.Reason]int)
				d.cfg.Refused = func(r identity.Reason) { refused[r]++ }
				files := d.open(t)
				defer files.Close()
				old := svidOf(t, files)
				f.plant(t, a, d.cfg)
				rest()
				wantShown(t, files, old)
				if len(refused) != 1 || refused[f.own] != 1 || d.logged("reason="+string(f.own)+" ") != 1 {
					t.Errorf("want %q once, counted %v:\n%s", f.own, refused, d.log.String())
				}
				next := a.Issue(westPath)
				replaceSVID(t, d.cfg, next)
				rest()
				wantShown(t, files, next)
			})
		})
	}
}

// TestFlawsOfPeers: each flaw that a peer can show has a reason of its own, in both
// roles.
func TestFlawsOfPeers(t *testing.T) {
	a := identitytest.New("mesh.example")
	seen := make(map[string]string)
	for _, f := range flaws {
		if f.shown == nil {
			continue
		}
		why := string(f.peer) + f.words
		if other, twice := seen[why]; twice {
			t.Errorf("%s has the reason of %s", f.name, other)
		}
		seen[why] = f.name
		cert := f.shown(a)
		client := &tls.Config{
			InsecureSkipVerify: true, NextProtos: []string{"h2"},
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
		}
		server := &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}, ClientAuth: tls.RequestClientCert}
		for role, handshakes := range map[string]func(t *testing.T) (judge, other end){
			"as server": func(t *testing.T) (end, end) {
				return reversed(handshake(t, client, identity.Server(a.Source(eastPath), welcome)))
			},
			"as client": func(t *testing.T) (end, end) {
				return handshake(t, identity.Client(a.Source(eastPath), welcome), server)
			},
		} {
			t.Run(f.name+" "+role, func(t *testing.T) {
				judge, other := handshakes(t)
				if judge.err == nil || !strings.Contains(judge.err.Error(), f.words) {
					t.Fatalf("%v, want %q", judge.err, f.words)
				}
				wantRefused(t, judge, other, f.peer)
			})
		}
	}
}

// curious counts how often roots are asked for.
type curious struct {
	identity.Source
	asked atomic.Int64
}

func (c *curious) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	c.asked.Add(1)
	return c.Source.GetX509BundleForTrustDomain(td)
}

// TestTooLargeIsNotVerified: nobody makes us verify a chain of more than 40 KB; one of
// less is.
func TestTooLargeIsNotVerified(t *testing.T) {
	a := identitytest.New("mesh.example")
	for _, tt := range []struct {
		padding int
		want    identity.Reason
		asked   int64
	}{{39 << 10, "", 1}, {40 << 10, identity.TooLarge, 0}} {
		src := &curious{Source: a.Source(eastPath)}
		c, s := handshake(t, rawClient(a.Issue(westPath, identitytest.Options{Padding: tt.padding})), identity.Server(src, welcome))
		if tt.want == "" {
			wantAccepted(t, c, s)
		} else {
			wantRefused(t, s, c, tt.want)
		}
		if n := src.asked.Load(); n != tt.asked {
			t.Errorf("padding of %d: roots were asked for %d times, want %d", tt.padding, n, tt.asked)
		}
	}
}
