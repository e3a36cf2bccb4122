package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"wishbone/identity"
	"wishbone/identity/identitytest"
)

const (
	westPath = "/gateway/west"
	eastPath = "/gateway/east"
)

// welcome is an accept that takes whoever has proved an ID.
func welcome(spiffeid.ID) error { return nil }

// only is an accept that takes one ID.
func only(id spiffeid.ID) func(spiffeid.ID) error {
	return func(got spiffeid.ID) error {
		if got != id {
			return errors.New("not welcome")
		}
		return nil
	}
}

// end is one side's view of a handshake.
type end struct {
	err   error
	state tls.ConnectionState
}

// handshake runs one to the end, including a byte from server to client: in
// TLS 1.3 a client knows only by reading whether the server has taken it.
func handshake(t *testing.T, client, server *tls.Config) (c, s end) {
	t.Helper()
	near, far := connection(t)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer near.Close()
		conn := tls.Client(near, client)
		if c.err = conn.Handshake(); c.err == nil {
			_, c.err = io.ReadFull(conn, make([]byte, 1))
		}
		c.state = conn.ConnectionState()
	})
	wg.Go(func() {
		defer far.Close()
		conn := tls.Server(far, server)
		if s.err = conn.Handshake(); s.err == nil {
			_, s.err = conn.Write([]byte{1})
		}
		s.state = conn.ConnectionState()
	})
	wg.Wait()
	return c, s
}

// connection is one of TCP. In net.Pipe, which has no buffer, a side that sends
// an alert and one that is still sending its certificate would wait for each
// other.
func connection(t *testing.T) (near, far net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if near, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

// wantAccepted fails unless both sides are content.
func wantAccepted(t *testing.T, c, s end) {
	t.Helper()
	if c.err != nil || s.err != nil {
		t.Fatalf("client: %v, server: %v", c.err, s.err)
	}
}

// wantRefused fails unless the judge refused for the reason, and the other side
// was told, or at least cut off.
func wantRefused(t *testing.T, judge, other end, want identity.Reason) *identity.VerifyError {
	t.Helper()
	if got := identity.ReasonOf(judge.err); got != want {
		t.Fatalf("%v: reason %q, want %q", judge.err, got, want)
	}
	if other.err == nil {
		t.Error("the refused side believes that all is well")
	}
	e, _ := errors.AsType[*identity.VerifyError](judge.err)
	return e
}

// rawClient and rawServer show a chain whatever is wrong with it, and believe
// anything: they are the peers that a gateway must be ready for.
func rawClient(svid *x509svid.SVID) *tls.Config {
	cert := raw(svid)
	return &tls.Config{
		InsecureSkipVerify:   true,
		NextProtos:           []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
	}
}

func rawServer(svid *x509svid.SVID) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{raw(svid)},
		NextProtos:   []string{"h2"},
		ClientAuth:   tls.RequestClientCert,
	}
}

func raw(svid *x509svid.SVID) (cert tls.Certificate) {
	if svid == nil {
		return cert
	}
	cert.PrivateKey = svid.PrivateKey
	for _, c := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert
}

// testRoles runs f once with us as the server and once as the client; f's judge
// is our side of a handshake with a peer that shows svid.
func testRoles(t *testing.T, src identity.Source, accept func(spiffeid.ID) error, svid *x509svid.SVID, f func(t *testing.T, judge, other end)) {
	t.Helper()
	t.Run("as server", func(t *testing.T) {
		c, s := handshake(t, rawClient(svid), identity.Server(src, accept))
		f(t, s, c)
	})
	t.Run("as client", func(t *testing.T) {
		c, s := handshake(t, identity.Client(src, accept), rawServer(svid))
		f(t, c, s)
	})
}

// fixed is a Source of parts that never change.
type fixed struct {
	*x509svid.SVID
	*x509bundle.Set
}

// trusting is a good Source of a's that has further roots.
func trusting(a *identitytest.Authority, td spiffeid.TrustDomain, roots ...*x509.Certificate) fixed {
	return fixed{a.Issue(eastPath), x509bundle.NewSet(a.Bundle(), x509bundle.FromX509Authorities(td, roots))}
}
