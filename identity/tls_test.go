package identity_test

import (
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"wishbone/identity"
	"wishbone/identity/identitytest"
)

func TestHandshakeProvesBothSides(t *testing.T) {
	a := identitytest.New("mesh.example")
	for _, tc := range []struct {
		name string
		opts identitytest.Options
	}{
		{"signed by the root", identitytest.Options{}},
		{"signed by an intermediate", identitytest.Options{Intermediates: 1}},
		{"at the end of a longer chain", identitytest.Options{Intermediates: 3}},
		{"a large certificate", identitytest.Options{Padding: 30 << 10}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, s := handshake(t,
				identity.Client(a.Source(westPath, tc.opts), only(a.ID(eastPath))),
				identity.Server(a.Source(eastPath, tc.opts), only(a.ID(westPath))))
			wantAccepted(t, c, s)
			wantSession(t, c, a.ID(eastPath))
			wantSession(t, s, a.ID(westPath))
		})
	}
}

// wantSession fails unless the finished handshake is what all of ours are.
func wantSession(t *testing.T, e end, peer spiffeid.ID) {
	t.Helper()
	if id, err := identity.Peer(&e.state); err != nil || id != peer {
		t.Errorf("peer is %v (%v), want %v", id, err, peer)
	}
	if e.state.Version != tls.VersionTLS13 || e.state.NegotiatedProtocol != "h2" || e.state.ServerName != "" || e.state.DidResume {
		t.Errorf("version %x, protocol %q, server name %q, resumed %v", e.state.Version, e.state.NegotiatedProtocol, e.state.ServerName, e.state.DidResume)
	}
}

func TestPeerOfNothing(t *testing.T) {
	if id, err := identity.Peer(&tls.ConnectionState{}); err == nil {
		t.Errorf("an unfinished handshake proved %v", id)
	}
	id, err := identity.Peer(&tls.ConnectionState{HandshakeComplete: true})
	if identity.ReasonOf(err) != identity.NoCertificate {
		t.Errorf("a handshake without certificates proved %v (%v)", id, err)
	}
}

// TestFederation: two domains, each with its own authority. An authority counts
// for its own domain only.
func TestFederation(t *testing.T) {
	mesh, other := identitytest.New("mesh.example"), identitytest.New("other.example")
	west := identitytest.NewSource(mesh.Issue(westPath), mesh, other)
	east := identitytest.NewSource(other.Issue(eastPath), mesh, other)
	c, s := handshake(t, identity.Client(west, only(other.ID(eastPath))), identity.Server(east, only(mesh.ID(westPath))))
	wantAccepted(t, c, s)

	// The other domain's authority signs an ID of ours.
	forged := other.Issue(westPath, identitytest.Options{URIs: []string{mesh.ID(westPath).String()}})
	testRoles(t, east, welcome, forged, func(t *testing.T, judge, peer end) {
		wantRefused(t, judge, peer, identity.UnknownAuthority)
	})
}

// TestSourceIsAskedEachTime: certificates, roots and failures that change count
// from the next handshake on, with the same configurations.
func TestSourceIsAskedEachTime(t *testing.T) {
	a, next := identitytest.New("mesh.example"), identitytest.New("mesh.example")
	west, east := a.Source(westPath), a.Source(eastPath)
	client, server := identity.Client(west, welcome), identity.Server(east, welcome)
	c, s := handshake(t, client, server)
	wantAccepted(t, c, s)

	west.Set(a.Issue("/gateway/west-2"))
	c, s = handshake(t, client, server)
	wantAccepted(t, c, s)
	wantSession(t, s, a.ID("/gateway/west-2"))

	east.Trust(next) // in place of a
	c, s = handshake(t, client, server)
	wantRefused(t, s, c, identity.UnknownAuthority)

	west.Set(next.Issue(westPath))
	c, s = handshake(t, client, server)
	wantAccepted(t, c, s)

	west.Fail(errors.New("the agent is gone"))
	c, s = handshake(t, client, server)
	wantRefused(t, c, s, identity.OwnUnavailable)

	west.Set(next.Issue(westPath))
	c, s = handshake(t, client, server)
	wantAccepted(t, c, s)
}

// TestOwnIsNotShown: a certificate of ours that nobody could take is not shown,
// and the reason is ours.
func TestOwnIsNotShown(t *testing.T) {
	a := identitytest.New("mesh.example")
	failing := a.Source(westPath)
	failing.Fail(errors.New("the agent is gone"))
	keyless := a.Issue(westPath)
	keyless.PrivateKey = nil
	for _, tc := range []struct {
		name string
		src  *identitytest.Source
		want identity.Reason
	}{
		{"expired", a.Source(westPath, identitytest.Expired()), identity.OwnExpired},
		{"not yet valid", a.Source(westPath, identitytest.NotYetValid()), identity.OwnNotYetValid},
		{"failing source", failing, identity.OwnUnavailable},
		{"no SVID", identitytest.NewSource(nil, a), identity.OwnUnavailable},
		{"empty SVID", identitytest.NewSource(&x509svid.SVID{}, a), identity.OwnUnavailable},
		{"no key", identitytest.NewSource(keyless, a), identity.OwnUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := identity.Own(tc.src); identity.ReasonOf(err) != tc.want {
				t.Errorf("Own: %v, want %q", err, tc.want)
			}
			good := a.Source(eastPath)
			c, s := handshake(t, identity.Client(tc.src, welcome), identity.Server(good, welcome))
			wantRefused(t, c, s, tc.want)
			c, s = handshake(t, identity.Client(good, welcome), identity.Server(tc.src, welcome))
			wantRefused(t, s, c, tc.want)
		})
	}
}

// TestNoResumption: a client that keeps sessions gets none to keep.
func TestNoResumption(t *testing.T) {
	a := identitytest.New("mesh.example")
	east := a.Source(eastPath)
	client := rawClient(a.Issue(westPath))
	client.ServerName = "east" // the cache's key
	client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	server := identity.Server(east, welcome)
	for range 3 {
		c, s := handshake(t, client, server)
		wantAccepted(t, c, s)
		if c.state.DidResume || s.state.DidResume {
			t.Fatal("a session was resumed")
		}
	}
	east.Distrust(a)
	c, s := handshake(t, client, server)
	wantRefused(t, s, c, identity.WrongDomain)
}

// TestResumptionWouldBeVerified: even with tickets, which we never hand out, a
// resumed session is judged anew, by the roots and the welcome of now.
func TestResumptionWouldBeVerified(t *testing.T) {
	a := identitytest.New("mesh.example")
	for _, tc := range []struct {
		name     string
		withdraw func(src *identitytest.Source, banned *bool)
		want     identity.Reason
	}{
		{"roots", func(src *identitytest.Source, _ *bool) { src.Distrust(a) }, identity.WrongDomain},
		{"welcome", func(_ *identitytest.Source, banned *bool) { *banned = true }, identity.WrongID},
	} {
		t.Run(tc.name, func(t *testing.T) {
			banned := false
			east := a.Source(eastPath)
			server := identity.Server(east, func(spiffeid.ID) error {
				if banned {
					return errors.New("banned")
				}
				return nil
			})
			server.SessionTicketsDisabled = false
			client := rawClient(a.Issue(westPath))
			client.ServerName = "east"
			client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			for _, resumed := range []bool{false, true} {
				c, s := handshake(t, client, server)
				wantAccepted(t, c, s)
				if s.state.DidResume != resumed {
					t.Fatalf("resumed: %v, want %v: the test proves nothing", s.state.DidResume, resumed)
				}
			}
			tc.withdraw(east, &banned)
			c, s := handshake(t, client, server)
			wantRefused(t, s, c, tc.want)
		})
	}
}

func TestNothingBelowTLS13(t *testing.T) {
	a := identitytest.New("mesh.example")
	client, server := rawClient(a.Issue(westPath)), rawServer(a.Issue(westPath))
	client.MaxVersion, server.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for _, tc := range []struct {
		name           string
		client, server *tls.Config
	}{
		{"as server", client, identity.Server(a.Source(eastPath), welcome)},
		{"as client", identity.Client(a.Source(eastPath), welcome), server},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, s := handshake(t, tc.client, tc.server)
			if c.err == nil || s.err == nil {
				t.Fatalf("client: %v, server: %v", c.err, s.err)
			}
			if !strings.Contains(c.err.Error()+s.err.Error(), "protocol version") {
				t.Errorf("client: %v, server: %v: not for the version", c.err, s.err)
			}
		})
	}
}

// TestProtocol: whoever does not agree on HTTP/2 is refused, by us (RFC 9113 §3.2
// has ALPN a must) if crypto/tls lets it pass.
func TestProtocol(t *testing.T) {
	a := identitytest.New("mesh.example")
	for _, tc := range []struct {
		name               string
		offers             []string
		asServer, asClient identity.Reason // empty: by crypto/tls
	}{
		{"none", nil, identity.WrongProtocol, identity.WrongProtocol},
		{"http/1.1", []string{"http/1.1"}, identity.WrongProtocol, ""},
		{"hbone", []string{"hbone"}, "", ""},
		{"upper case", []string{"H2"}, "", ""},
	} {
		client, server := rawClient(a.Issue(westPath)), rawServer(a.Issue(westPath))
		client.NextProtos, server.NextProtos = tc.offers, tc.offers
		check := func(t *testing.T, judge, other end, want identity.Reason) {
			t.Helper()
			if judge.err == nil {
				t.Fatalf("taken with %q", judge.state.NegotiatedProtocol)
			}
			wantRefused(t, judge, other, want)
		}
		t.Run(tc.name+"/as server", func(t *testing.T) {
			c, s := handshake(t, client, identity.Server(a.Source(eastPath), welcome))
			check(t, s, c, tc.asServer)
		})
		t.Run(tc.name+"/as client", func(t *testing.T) {
			c, s := handshake(t, identity.Client(a.Source(eastPath), welcome), server)
			check(t, c, s, tc.asClient)
		})
	}
	second := rawClient(a.Issue(westPath))
	second.NextProtos = []string{"http/1.1", "h2"}
	c, s := handshake(t, second, identity.Server(a.Source(eastPath), welcome))
	wantAccepted(t, c, s)
}

// TestClientCertificateWhateverIsAsked: a server's list of authorities (RFC 8446
// §4.2.4) that does not name ours does not make us come without a certificate.
func TestClientCertificateWhateverIsAsked(t *testing.T) {
	a, stranger := identitytest.New("mesh.example"), identitytest.New("other.example")
	server := rawServer(a.Issue(eastPath))
	server.ClientCAs = pool(stranger.Bundle())
	c, s := handshake(t, identity.Client(a.Source(westPath), welcome), server)
	wantAccepted(t, c, s)
	if len(s.state.PeerCertificates) == 0 {
		t.Error("no certificate was shown")
	}
}

// TestReasons: the list has every reason once.
func TestReasons(t *testing.T) {
	all := identity.Reasons()
	if len(all) != 23 || len(slices.Compact(slices.Sorted(slices.Values(all)))) != len(all) {
		t.Errorf("%d reasons: %q", len(all), all)
	}
	all[0] = "changed"
	if identity.Reasons()[0] == "changed" {
		t.Error("the caller holds the list itself")
	}
	if got := identity.ReasonOf(errors.New("other")); got != "" {
		t.Errorf("reason %q of an error without one", got)
	}
}
