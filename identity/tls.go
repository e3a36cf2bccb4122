package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// protocol is HTTP/2 in ALPN (RFC 9113 §3.2). HBONE has no name of its own there.
const protocol = "h2"

// Source gives our certificate and the roots of each trust domain that we know.
// It is asked at each handshake, from any goroutine, and must not block.
type Source interface {
	x509svid.Source
	x509bundle.Source
}

// Client is the configuration for a tunnel that we open. The peer must prove a
// SPIFFE ID for which want returns nil; a nil want welcomes nobody. A refusal is
// a *VerifyError of the handshake.
func Client(src Source, want func(spiffeid.ID) error) *tls.Config {
	cfg := mutual(src, want, x509.ExtKeyUsageServerAuth)
	// Instead of Certificates: crypto/tls would pick among those by the issuers'
	// names that the server sends (RFC 8446 §4.2.4), and send none silently.
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return ownCertificate(src)
	}
	// There is no host name to verify, and none is sent: a SPIFFE ID stands in
	// its place, and VerifyConnection sees to it.
	cfg.InsecureSkipVerify = true
	return cfg
}

// Server is the configuration for tunnels that peers open. The peer must prove a
// SPIFFE ID for which accept returns nil; a nil accept welcomes nobody. A
// refusal is a *VerifyError of the handshake.
func Server(src Source, accept func(spiffeid.ID) error) *tls.Config {
	cfg := mutual(src, accept, x509.ExtKeyUsageClientAuth)
	cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return ownCertificate(src)
	}
	// VerifyConnection does the rest, and refuses a peer that comes without: if
	// crypto/tls did, nobody could count it as NoCertificate.
	cfg.ClientAuth = tls.RequestClientCert
	return cfg
}

// mutual is what both sides have in common. The groups of key exchange are left
// to crypto/tls: it prefers the post-quantum hybrid, which costs a client that
// sends no share for it (ztunnel) one round trip per tunnel.
func mutual(src Source, accept func(spiffeid.ID) error, usage x509.ExtKeyUsage) *tls.Config {
	if accept == nil {
		accept = func(spiffeid.ID) error { return errors.New("nobody is welcome") }
	}
	v := &verifier{roots: src, accept: accept, usage: usage}
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		NextProtos:                  []string{protocol},
		VerifyConnection:            v.connection,
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	}
}

// Own asks src for our SVID and checks that it can be shown now. The error is a
// *VerifyError with one of the own reasons.
func Own(src x509svid.Source) (*x509svid.SVID, error) {
	svid, err := src.GetX509SVID()
	if err != nil {
		return nil, &VerifyError{Reason: OwnUnavailable, Err: err}
	}
	if svid == nil || len(svid.Certificates) == 0 || svid.PrivateKey == nil {
		return nil, &VerifyError{Reason: OwnUnavailable}
	}
	if err := checkTimes(svid); err != nil {
		return nil, err
	}
	return svid, nil
}

// checkTimes refuses a certificate of ours that is not valid now.
func checkTimes(svid *x509svid.SVID) error {
	leaf := svid.Certificates[0]
	switch now := time.Now(); {
	case now.After(leaf.NotAfter):
		return &VerifyError{Reason: OwnExpired, ID: svid.ID, Err: since("expired at", leaf.NotAfter)}
	case now.Before(leaf.NotBefore):
		return &VerifyError{Reason: OwnNotYetValid, ID: svid.ID, Err: since("valid from", leaf.NotBefore)}
	}
	return nil
}

func since(what string, t time.Time) error {
	return fmt.Errorf("%s %s", what, t.UTC().Format(time.RFC3339))
}

// ownCertificate is what we show in one handshake, in crypto/tls's form.
func ownCertificate(src x509svid.Source) (*tls.Certificate, error) {
	svid, err := Own(src)
	if err != nil {
		return nil, err
	}
	cert := &tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, c := range svid.Certificates {
		cert.Certificate = append(cert.Certificate, c.Raw)
	}
	return cert, nil
}

// Peer is the SPIFFE ID that the peer of a finished handshake has proved. The
// handshake must have been one of Client's or Server's configuration, which
// have verified it.
func Peer(cs *tls.ConnectionState) (spiffeid.ID, error) {
	if !cs.HandshakeComplete {
		return spiffeid.ID{}, errors.New("read peer's identity: the handshake is not finished")
	}
	if len(cs.PeerCertificates) == 0 {
		return spiffeid.ID{}, &VerifyError{Reason: NoCertificate}
	}
	return leafID(cs.PeerCertificates[0])
}
