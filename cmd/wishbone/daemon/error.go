package daemon

import (
	"errors"
	"fmt"
	"syscall"

	"wishbone/config"
	"wishbone/identity"
)

// Error is an error with what can be done about it.
type Error struct {
	Err  error
	Hint string
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap gives what lies beneath.
func (e *Error) Unwrap() error { return e.Err }

// Advice is the hint.
func (e *Error) Advice() string { return e.Hint }

// Advice is what can be done about an error of any room, as far as it knows.
func Advice(err error) string {
	type adviser interface {
		error
		Advice() string
	}
	if e, ok := errors.AsType[adviser](err); ok {
		return e.Advice()
	}
	if e, ok := errors.AsType[*config.Error](err); ok { // of several mistakes the first
		return e.Hint
	}
	return ""
}

// hinted wraps err with a hint; nil stays nil.
func hinted(err error, hint string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{Err: err, Hint: fmt.Sprintf(hint, args...)}
}

// listenError says what to do about an address that cannot be listened on.
func listenError(err error, port uint16) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return hinted(err, "another process listens there: ss -ltnp 'sport = :%d' shows which", port)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return hinted(err, "no interface of this host has this address: ip addr shows those that are there")
	case errors.Is(err, syscall.EACCES):
		return hinted(err, "ports below 1024 need CAP_NET_BIND_SERVICE")
	}
	return err
}

// BundleError says what to do about the bundle of another trust domain.
func BundleError(err error) error {
	if identity.ReasonOf(err) == identity.Malformed {
		return hinted(err, "it holds signing certificates in PEM, or is a SPIFFE bundle document (spire-server bundle show -format spiffe)")
	}
	return IdentityError(err)
}

// IdentityError says what to do about our own certificate.
func IdentityError(err error) error {
	switch identity.ReasonOf(err) {
	case identity.OwnExpired:
		return hinted(err, "issue a new certificate (wishbone ca issue, or the authority that issued this one); date shows this host's clock")
	case identity.OwnNotYetValid:
		return hinted(err, "compare this host's clock (date) with that of the host that issued it")
	case identity.Unreadable:
		return hinted(err, "the paths are relative to the configuration file; the files must be readable by this user. A running gateway sees only directories that it was started with")
	case identity.Mismatch:
		return hinted(err, "take certificate and key from the same issue")
	case identity.OwnUnavailable:
		return hinted(err, "is the SPIRE agent running, and is there an entry for this workload?")
	}
	return err
}
