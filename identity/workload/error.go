package workload

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Problem is why the Workload API gives no identity. The list is closed, so that
// it can be a label of a metric.
type Problem string

const (
	// BadAddress: the address is not one of a Unix socket.
	BadAddress Problem = "bad_address"
	// Missing: there is no socket at the address.
	Missing Problem = "missing"
	// NotAllowed: this user may not connect to the socket.
	NotAllowed Problem = "not_allowed"
	// NotRunning: the socket is there, but nobody listens.
	NotRunning Problem = "not_running"
	// NotAnswering: the agent takes connections, and then is silent or gone.
	NotAnswering Problem = "not_answering"
	// NoIdentity: the agent has no identity for this process.
	NoIdentity Problem = "no_identity"
	// NoSuchID: it has some, but not the one that we want.
	NoSuchID Problem = "no_such_id"
	// NotWorkloadAPI: what listens there does not serve the Workload API.
	NotWorkloadAPI Problem = "not_workload_api"
	// BadAnswer: the agent's answer cannot be read.
	BadAnswer Problem = "bad_answer"
	// Failed: the agent reports an error of another kind.
	Failed Problem = "failed"
)

// Error is why the Workload API gives no identity.
type Error struct {
	Problem Problem
	// Address is that of the Workload API.
	Address string
	// Hint is what can be done about it.
	Hint string
	// Err is what the system or the agent said.
	Err error
}

func newError(p Problem, address string, err error) *Error {
	return &Error{Problem: p, Address: address, Hint: hint(p), Err: err}
}

// Advice is the hint.
func (e *Error) Advice() string { return e.Hint }

// Error gives the address, the problem, and what lies beneath.
func (e *Error) Error() string {
	return fmt.Sprintf("workload API at %s: %s: %v", e.Address, e.Problem, e.Err)
}

// Unwrap gives what lies beneath.
func (e *Error) Unwrap() error { return e.Err }

// classify finds the problem behind what gRPC or workloadapi reports.
func (s *Source) classify(err error) *Error {
	st, ok := status.FromError(err)
	if !ok {
		return newError(BadAnswer, s.cfg.Address, err)
	}
	said := fmt.Errorf("the agent says %q (%s)", st.Message(), st.Code())
	switch st.Code() {
	case codes.Unavailable:
		return s.unavailable(st.Message())
	case codes.PermissionDenied: // SPIFFE Workload API §4.1
		return newError(NoIdentity, s.cfg.Address, said)
	case codes.Unimplemented, codes.InvalidArgument: // the same, no such service or no such header
		return newError(NotWorkloadAPI, s.cfg.Address, said)
	}
	return newError(Failed, s.cfg.Address, said)
}

// unavailable is the problem with the connection: what connect(2) said, or else
// what gRPC says of a connection that was made.
func (s *Source) unavailable(text string) *Error {
	if dialed := s.dialed.Load(); dialed != nil && *dialed != nil {
		err := *dialed
		// The address is said already.
		if op, ok := errors.AsType[*net.OpError](err); ok {
			err = op.Err
		}
		return newError(dialProblem(err), s.cfg.Address, err)
	}
	return newError(NotAnswering, s.cfg.Address, errors.New(text))
}

// dialProblem is what connect(2) means (unix(7), path_resolution(7)).
func dialProblem(err error) Problem {
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ENOTDIR):
		return Missing
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return NotAllowed
	case errors.Is(err, syscall.ECONNREFUSED):
		return NotRunning
	}
	return NotAnswering
}

// hint is what to do about a problem.
func hint(p Problem) string {
	switch p {
	case BadAddress:
		return "write it as unix:///run/spire/sockets/agent.sock"
	case Missing:
		return "start the SPIFFE agent, or correct the address: its socket is made when it starts"
	case NotAllowed:
		return fmt.Sprintf("let uid %d connect: it needs write permission on the socket and search permission on the directories above", os.Geteuid())
	case NotRunning:
		return "start the SPIFFE agent: its socket is left over from an earlier run, or is no socket"
	case NotAnswering:
		return "look at the SPIFFE agent's log: it may be starting, or hang; or the socket is another program's"
	case NoIdentity:
		return fmt.Sprintf("make a registration entry whose selectors fit this process, such as unix:uid:%d; a new one takes some seconds to reach the agent", os.Geteuid())
	case NoSuchID:
		return "make a registration entry for this ID, or ask for one that the agent has"
	case NotWorkloadAPI:
		return "take the socket of the SPIFFE Workload API, not the agent's admin socket and not one for SDS only"
	}
	return "look at the SPIFFE agent's log"
}
