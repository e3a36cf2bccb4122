package record

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"
)

// end is a Conn's end of a session, and its maker.
type end struct {
	role     role
	standard bool
}

// ends are all there are.
var ends = []end{{client, true}, {client, false}, {server, true}, {server, false}}

// ours are those that protect the records themselves.
var ours = []end{{client, false}, {server, false}}

func (e end) String() string {
	if e.standard {
		return e.role.String() + " by crypto/tls"
	}
	return e.role.String()
}

// testEnds runs f with the Conn as each end.
func testEnds(t *testing.T, ends []end, f func(t *testing.T, e end)) {
	for _, e := range ends {
		t.Run(e.String(), func(t *testing.T) { f(t, e) })
	}
}

// conn does the handshake at this end.
func (e end) conn(ctx context.Context, nc *net.TCPConn, cfg *tls.Config, slots Slots) (Conn, error) {
	o := Options{Slots: slots, Standard: e.standard}
	if e.role == client {
		return Client(ctx, nc, cfg, o)
	}
	return Server(ctx, nc, cfg, o)
}

// other is a plain crypto/tls session at the other end.
func (e end) other(nc net.Conn, cfg *tls.Config) *tls.Conn {
	if e.role == client {
		return tls.Server(nc, cfg)
	}
	return tls.Client(nc, cfg)
}

// insides are the parts of a Conn, whoever has made it.
func insides(t testing.TB, c Conn) (o *outbox, in **[batch]byte, fd *int) {
	t.Helper()
	switch c := c.(type) {
	case *standard:
		return &c.wire.outbox, &c.wire.in, &c.wire.fd
	case *direct:
		return &c.out, &c.in.in, &c.fd
	}
	t.Fatalf("a Conn of type %T", c)
	return nil, nil, nil
}

// connConfig is the configuration of a Conn at an end, peerConfig that of its
// other end.
func connConfig(t testing.TB, e end) *tls.Config {
	if e.role == client {
		return clientConfig()
	}
	return serverConfig(t)
}

func peerConfig(t testing.TB, e end) *tls.Config {
	if e.role == client {
		return serverConfig(t)
	}
	return clientConfig()
}

func clientConfig() *tls.Config {
	return &tls.Config{
		InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true,
	}
}

func serverConfig(t testing.TB) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{selfSigned(t, 0)}, MinVersion: tls.VersionTLS13,
		SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
	}
}

// selfSigned makes a certificate with so many bytes of padding.
func selfSigned(t testing.TB, padding int) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	if padding > 0 {
		// Under the number for examples (RFC 5612).
		id := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 1}
		tmpl.ExtraExtensions = []pkix.Extension{{Id: id, Value: make([]byte, padding)}}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	check(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// tcp is the two ends of a connection over loopback.
func tcp(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer ln.Close()
	nc, err := net.Dial("tcp", ln.Addr().String())
	check(t, err)
	accepted, err := ln.Accept()
	check(t, err)
	a, b = nc.(*net.TCPConn), accepted.(*net.TCPConn)
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	return a, b
}

// join makes a Conn at an end while other does its part of the handshake.
func join(t testing.TB, e end, other func(*net.TCPConn) error) Conn {
	t.Helper()
	near, far := tcp(t)
	result := make(chan error, 1)
	var running sync.WaitGroup
	running.Go(func() { result <- other(far) })
	c, err := e.conn(timeout(t), near, connConfig(t, e), nil)
	running.Wait()
	check(t, err)
	check(t, <-result)
	if _, ok := c.(*standard); ok != e.standard {
		t.Fatalf("%s: the Conn is a %T", e, c)
	}
	return c
}

// newPair is two Conns of a maker over loopback.
func newPair(t testing.TB, standard bool) (near, far Conn) {
	t.Helper()
	near = join(t, end{client, standard}, func(nc *net.TCPConn) (err error) {
		far, err = Server(timeout(t), nc, serverConfig(t), Options{Standard: standard})
		return err
	})
	t.Cleanup(func() {
		for _, c := range []Conn{near, far} {
			if c.FD() >= 0 {
				c.Close()
			}
		}
	})
	return near, far
}

// timeout bounds what should never take long.
func timeout(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}
