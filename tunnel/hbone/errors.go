package hbone

import (
	"errors"
	"fmt"

	"golang.org/x/net/http2"
)

// Errors that are the same wherever they happen.
var (
	// ErrFull says that no further stream fits on this tunnel now.
	ErrFull = errors.New("tunnel has no room for another stream")
	// ErrDraining says that the tunnel takes no new streams any more.
	ErrDraining = errors.New("tunnel is draining")
	// ErrBudget says that the memory budget refused another stream.
	ErrBudget = errors.New("memory budget is exhausted")
)

// ConnError ends a whole tunnel. Remote tells whose verdict it is: the peer's
// (its GOAWAY), or ours on what the peer sent.
type ConnError struct {
	Code   http2.ErrCode
	Fault  Fault  // the peer's, if the verdict is ours
	Reason string // what happened, for the log; never secret
	Remote bool
}

func (e *ConnError) Error() string {
	who := "closing tunnel"
	if e.Remote {
		who = "peer closed tunnel"
	}
	return fmt.Sprintf("%s: %s: %s", who, e.Code, e.Reason)
}

// ResetError ends one stream: RST_STREAM from the peer (Remote) or from us.
type ResetError struct {
	Code   http2.ErrCode
	Reason string
	Remote bool
}

func (e *ResetError) Error() string {
	if e.Remote {
		return fmt.Sprintf("reset by peer gateway: %s", e.Code)
	}
	return fmt.Sprintf("reset: %s (%s)", e.Reason, e.Code)
}

// IsTCPReset reports whether err says that the connection at the far end was
// reset, as a TCP reset is told through a tunnel (RFC 9113 §8.5).
func IsTCPReset(err error) bool {
	e, ok := errors.AsType[*ResetError](err)
	return ok && e.Code == http2.ErrCodeConnect
}

// IsGoodbye reports whether err says that the peer, which has ended its own
// direction, takes no more of ours: RST_STREAM(NO_ERROR). What it said before is
// complete and must not be thrown away (RFC 9113 §8.1).
func IsGoodbye(err error) bool {
	e, ok := errors.AsType[*ResetError](err)
	return ok && e.Remote && e.Code == http2.ErrCodeNo
}

// IsReset reports whether err ended one stream rather than its tunnel.
func IsReset(err error) bool {
	_, ok := errors.AsType[*ResetError](err)
	return ok
}
