package record

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

var errAnswers = fmt.Errorf("%w: it sends key updates and does not read the answers", ErrFault)

// standard is a Conn on crypto/tls. What it relies on beyond the documentation
// is held by tests: a read that fails with a temporary error can be resumed,
// writes never block since wire only gathers them, and reading may write.
type standard struct {
	wire *wire
	tls  *tls.Conn
}

func (s *standard) Read(p []byte) (n int, err error) {
	for len(p) > 0 && (n == 0 || len(p)-n >= maxPlaintext) {
		var m int
		queued := s.Queued()
		m, err = s.tls.Read(p[n:])
		n += m
		// crypto/tls counts only those in a row.
		if s.wire.answered(s.Queued() - queued) {
			return n, errAnswers
		}
		if err != nil {
			return n, readError(err)
		}
	}
	return n, nil
}

// readError says what an error of crypto/tls means to a loop.
func readError(err error) error {
	switch {
	case errors.Is(err, errAgain):
		return ErrAgain
	case errors.Is(err, io.EOF):
		return ErrClosed
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return err // the peer's verdict on us
	}
	if _, ok := errors.AsType[unix.Errno](err); ok || errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrFault, err)
}

func (s *standard) Seal(p []byte) error {
	_, err := s.tls.Write(p)
	return err
}

func (s *standard) Flush() (bool, error)       { return s.wire.flush(s.wire.fd) }
func (s *standard) Queued() int                { return s.wire.queued() }
func (s *standard) Records() uint64            { return s.wire.records }
func (s *standard) FD() int                    { return s.wire.fd }
func (s *standard) State() tls.ConnectionState { return s.tls.ConnectionState() }

func (s *standard) CloseWrite() (bool, error) {
	if s.wire.fd < 0 {
		return false, net.ErrClosed
	}
	if err := s.tls.CloseWrite(); err != nil {
		return false, err
	}
	return shutdown(&s.wire.outbox, s.wire.fd)
}

// shutdown ends the sending direction of fd once all that is queued has left.
func shutdown(o *outbox, fd int) (bool, error) {
	if done, err := o.flush(fd); !done || err != nil {
		return false, err
	}
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil { // ENOTCONN
		return false, fmt.Errorf("shut down: %w", err)
	}
	return true, nil
}

func (s *standard) Close() error {
	if s.wire.fd < 0 {
		return net.ErrClosed
	}
	if s.tls.CloseWrite() == nil {
		// Best effort: a full socket loses the alert, and the peer sees a cut.
		_, _ = s.wire.flush(s.wire.fd)
	}
	fd := s.wire.fd
	s.wire.forget()
	return unix.Close(fd)
}
