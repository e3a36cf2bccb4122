package record

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"
)

// maxPlaintext is the most that one record holds (RFC 8446 §5.1).
const maxPlaintext = 16384

// maxAnswers bounds what reading may add to a queue that does not empty. A
// KeyUpdate is answered by 27 bytes; a peer that sends them and does not read
// would have them pile up, and crypto/tls counts only those in a row.
const maxAnswers = 64 << 10

var errAnswers = errors.New("peer sends key updates and does not read the answers")

// Client does the client's handshake on nc and takes its descriptor over. nc
// is the Conn's, or closed, when it returns. The deadline of ctx bounds it.
func Client(ctx context.Context, nc *net.TCPConn, cfg *tls.Config, slots Slots) (Conn, error) {
	return handshake(ctx, nc, slots, func(c net.Conn) *tls.Conn { return tls.Client(c, cfg) })
}

// Server does the server's handshake on nc; otherwise as Client.
func Server(ctx context.Context, nc *net.TCPConn, cfg *tls.Config, slots Slots) (Conn, error) {
	return handshake(ctx, nc, slots, func(c net.Conn) *tls.Conn { return tls.Server(c, cfg) })
}

func handshake(ctx context.Context, nc *net.TCPConn, slots Slots, session func(net.Conn) *tls.Conn) (Conn, error) {
	w := &wire{TCPConn: nc, slot: slot{slots: slots, ctx: ctx}, fd: -1}
	s := &standard{wire: w, tls: session(w)}
	err := s.handshake(ctx)
	if err == nil {
		err = w.detach()
	}
	if err != nil {
		// crypto/tls may have closed it already, when ctx was done.
		_ = nc.Close()
		return nil, fmt.Errorf("tls handshake: %w", err)
	}
	return s, nil
}

// handshake runs in a slot, which wire leaves while it waits for the network.
func (s *standard) handshake(ctx context.Context) error {
	if err := s.wire.slot.enter(); err != nil {
		return err
	}
	defer s.wire.slot.leave()
	return s.tls.HandshakeContext(ctx)
}

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
	return err
}

func (s *standard) Seal(p []byte) error {
	_, err := s.tls.Write(p)
	return err
}

func (s *standard) Flush() (bool, error)       { return s.wire.flush() }
func (s *standard) Queued() int                { return len(s.wire.out) - s.wire.sent }
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
	if done, err := s.wire.flush(); !done || err != nil {
		return false, err
	}
	if err := unix.Shutdown(s.wire.fd, unix.SHUT_WR); err != nil { // ENOTCONN
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
		_, _ = s.wire.flush()
	}
	fd := s.wire.fd
	s.wire.forget()
	return unix.Close(fd)
}
