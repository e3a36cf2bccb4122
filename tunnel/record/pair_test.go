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

// role is which end of a session the Conn of a test is.
type role string

const (
	client role = "client"
	server role = "server"
)

// testRoles runs f with the Conn as each end.
func testRoles(t *testing.T, f func(t *testing.T, r role)) {
	for _, r := range []role{client, server} {
		t.Run(string(r), func(t *testing.T) { f(t, r) })
	}
}

// conn does the handshake in this role.
func (r role) conn(ctx context.Context, nc *net.TCPConn, cfg *tls.Config, slots Slots) (Conn, error) {
	if r == client {
		return Client(ctx, nc, cfg, slots)
	}
	return Server(ctx, nc, cfg, slots)
}

// other is a plain crypto/tls session in the other role.
func (r role) other(nc net.Conn, cfg *tls.Config) *tls.Conn {
	if r == client {
		return tls.Server(nc, cfg)
	}
	return tls.Client(nc, cfg)
}

// connConfig is the configuration of a Conn in a role, peerConfig that of its
// other end.
func connConfig(t testing.TB, r role) *tls.Config {
	if r == client {
		return clientConfig()
	}
	return serverConfig(t)
}

func peerConfig(t testing.TB, r role) *tls.Config {
	if r == client {
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

// join makes a Conn in a role while other does its part of the handshake.
func join(t testing.TB, r role, other func(*net.TCPConn) error) Conn {
	t.Helper()
	near, far := tcp(t)
	result := make(chan error, 1)
	var running sync.WaitGroup
	running.Go(func() { result <- other(far) })
	c, err := r.conn(timeout(t), near, connConfig(t, r), nil)
	running.Wait()
	check(t, err)
	check(t, <-result)
	return c
}

// newPair is two Conns over loopback.
func newPair(t testing.TB) (near, far *standard) {
	t.Helper()
	var other Conn
	c := join(t, client, func(nc *net.TCPConn) (err error) {
		other, err = Server(timeout(t), nc, serverConfig(t), nil)
		return err
	})
	near, far = c.(*standard), other.(*standard)
	t.Cleanup(func() {
		for _, c := range []*standard{near, far} {
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
