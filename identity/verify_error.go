package identity

import (
	"errors"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Reason says what is wrong with a certificate, ours or a peer's. The list is
// closed, so that it can be a label of a metric.
type Reason string

// What is wrong with a peer.
const (
	// NoCertificate: the peer showed none.
	NoCertificate Reason = "no_certificate"
	// TooLarge: the chain, or the file, is longer than any honest one.
	TooLarge Reason = "too_large"
	// NoURISAN: the certificate names no URI, so it is no SVID.
	NoURISAN Reason = "no_uri_san"
	// MultipleURISANs: it names several.
	MultipleURISANs Reason = "multiple_uri_sans"
	// BadID: its URI is no SPIFFE ID of a workload.
	BadID Reason = "bad_id"
	// NotLeaf: it is a signing certificate.
	NotLeaf Reason = "not_leaf"
	// BadUsage: it is not made for this side of TLS.
	BadUsage Reason = "bad_usage"
	// WrongDomain: we have no roots for its trust domain.
	WrongDomain Reason = "wrong_domain"
	// Expired: it, or one that signed it, is no longer valid.
	Expired Reason = "expired"
	// NotYetValid: it, or one that signed it, is not valid yet; look at clocks.
	NotYetValid Reason = "not_yet_valid"
	// UnknownAuthority: none of our roots has signed it.
	UnknownAuthority Reason = "unknown_authority"
	// BadChain: it leads to a root in a way that is not allowed.
	BadChain Reason = "bad_chain"
	// WrongID: it is in order, but its SPIFFE ID is not welcome here.
	WrongID Reason = "wrong_id"
	// WrongProtocol: the peer does not speak HTTP/2.
	WrongProtocol Reason = "wrong_protocol"
	// Revoked: it is in order, but it or its SPIFFE ID was revoked.
	Revoked Reason = "revoked"
	// RootWithdrawn: it was in order, and no root signs for it any more.
	RootWithdrawn Reason = "root_withdrawn"
)

// What is wrong with ourselves.
const (
	// OwnExpired: our own certificate is no longer valid.
	OwnExpired Reason = "own_expired"
	// OwnNotYetValid: our own certificate is not valid yet; look at our clock.
	OwnNotYetValid Reason = "own_not_yet_valid"
	// OwnUnavailable: our source gives no certificate.
	OwnUnavailable Reason = "own_unavailable"
	// Unreadable: a file cannot be read.
	Unreadable Reason = "unreadable"
	// Malformed: a file does not hold what it should.
	Malformed Reason = "malformed"
	// Mismatch: the key is not the certificate's.
	Mismatch Reason = "mismatch"
	// BadSignature: a revocation list is not signed by whom it says.
	BadSignature Reason = "bad_signature"
)

var reasons = []Reason{
	NoCertificate, TooLarge, NoURISAN, MultipleURISANs, BadID, NotLeaf, BadUsage, WrongDomain, Expired,
	NotYetValid, UnknownAuthority, BadChain, WrongID, WrongProtocol,
	Revoked, RootWithdrawn,
	OwnExpired, OwnNotYetValid, OwnUnavailable, Unreadable, Malformed, Mismatch, BadSignature,
}

// Reasons lists every Reason there is, for those who count them.
func Reasons() []Reason { return slices.Clone(reasons) }

// ReasonOf is the Reason within err, or empty if there is none.
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*VerifyError](err); ok {
		return e.Reason
	}
	return ""
}

// VerifyError is a certificate refused. crypto/tls returns it, wrapped or not,
// from the handshake.
type VerifyError struct {
	// Reason is what is wrong.
	Reason Reason
	// ID is whose certificate it is; zero as long as that is not known. With a
	// peer it is what the certificate says, proved only if Reason is WrongID.
	ID spiffeid.ID
	// Err says more. Nil where Reason says all.
	Err error
}

// Error gives the SPIFFE ID if it is known, the reason, and what lies beneath.
func (e *VerifyError) Error() string {
	s := "verify certificate"
	if !e.ID.IsZero() {
		s += " of " + e.ID.String()
	}
	s += ": " + string(e.Reason)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives what lies beneath.
func (e *VerifyError) Unwrap() error { return e.Err }
