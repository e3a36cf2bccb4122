package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"

	"golang.org/x/sys/unix"
)

// batch is how much is read from the descriptor at once, and about how much is
// written: a syscall for many records.
const batch = 256 << 10

// wire is the net.Conn under a tls.Conn: the ordinary connection while the
// handshake runs, the bare descriptor afterwards. The ordinary one is closed
// then and only knows its addresses; crypto/tls sets it a deadline in
// CloseWrite and does not look at the error.
type wire struct {
	*net.TCPConn
	outbox
	slot slot // of the handshake
	fd   int  // -1 until detach, and after Close
	said int  // bytes that the peer has sent in the handshake

	in   *[batch]byte // what was read and not yet taken; nil when empty
	r, w int

	// bounded has the handshake read no byte beyond the record that it is at, so
	// that those behind its last one are left in the socket.
	bounded bool
	head    [headerSize]byte
	begun   int // bytes of head
	left    int // bytes of the record's body that are to come

	records uint64
}

// errAgain makes crypto/tls give up a read without remembering the error: it
// resumes after errors that say Temporary (crypto/tls/conn.go, readRecord).
var errAgain net.Error = again{}

type again struct{}

func (again) Error() string   { return "no data yet" }
func (again) Timeout() bool   { return false }
func (again) Temporary() bool { return true }

// errCut is what a connection without close_notify ends in. It wraps, lest
// crypto/tls should take a cut between two records for an orderly end.
var errCut = fmt.Errorf("connection ended without close_notify: %w", io.ErrUnexpectedEOF)

// detach takes the descriptor away from the runtime's poller. A duplicate is
// taken, since the net package gives up its own only by closing it; O_NONBLOCK
// is a property of the open file description and stays (open(2)).
func (w *wire) detach() error {
	raw, err := w.SyscallConn()
	if err != nil {
		return err
	}
	dup := -1
	var dupErr error
	err = raw.Control(func(fd uintptr) {
		dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(err, dupErr); err != nil {
		return fmt.Errorf("take over descriptor: %w", err)
	}
	if err := w.TCPConn.Close(); err != nil {
		return errors.Join(err, unix.Close(dup))
	}
	w.slot, w.fd = slot{}, dup
	return nil
}

// Read serves crypto/tls.
func (w *wire) Read(p []byte) (int, error) {
	if w.fd < 0 {
		return w.shake(p)
	}
	if w.in == nil {
		if err := w.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, w.in[w.r:w.w])
	if w.r += n; w.r == w.w {
		batches.Put(w.in)
		w.in = nil
	}
	return n, nil
}

// maxHandshake bounds what a peer may say before it has proved who it is: four
// times of that would pass crypto/tls, which gathers and parses it first
// (maxHandshakeCertificateMsg).
const maxHandshake = 64 << 10

// shake reads while the handshake runs.
func (w *wire) shake(p []byte) (int, error) {
	n, err := w.slot.without(w.TCPConn.Read, p[:w.bound(len(p))])
	w.cross(p[:n])
	if w.said += n; w.said > maxHandshake && err == nil {
		err = fmt.Errorf("%w: more than %d bytes in the handshake", ErrFault, maxHandshake)
	}
	return n, err
}

// bound is how many of n bytes may be read, so that none is of the next record.
func (w *wire) bound(n int) int {
	switch {
	case !w.bounded:
		return n
	case w.left > 0:
		return min(n, w.left)
	}
	return min(n, headerSize-w.begun)
}

// cross notes what was read: of a record's body, or of its header.
func (w *wire) cross(p []byte) {
	switch {
	case !w.bounded:
	case w.left > 0:
		w.left -= len(p)
	default:
		w.begun += copy(w.head[w.begun:], p)
		if w.begun == headerSize {
			w.begun, w.left = 0, int(binary.BigEndian.Uint16(w.head[3:]))
		}
	}
}

// atBoundary reports whether the bounded handshake has read whole records.
func (w *wire) atBoundary() bool { return w.bounded && w.begun == 0 && w.left == 0 }

var batches = sync.Pool{New: func() any { return new([batch]byte) }}

// fill reads from the descriptor as much as a batch holds.
func (w *wire) fill() error {
	buf := batches.Get().(*[batch]byte)
	n, err := readFD(w.fd, buf[:])
	if n > 0 {
		w.in, w.r, w.w = buf, 0, n
		return nil
	}
	batches.Put(buf)
	return err // after a close_notify crypto/tls reads no more
}

// readFD reads something, or says why not: errCut at the end. It wraps what is
// fatal: a bare ETIMEDOUT says that it is temporary.
func readFD(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd, p)
		switch {
		case n > 0:
			return n, nil
		case err == nil:
			return 0, errCut
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return 0, errAgain
		default:
			return 0, fmt.Errorf("read from peer: %w", err)
		}
	}
}

// Write serves crypto/tls: after the handshake, a record at a time.
func (w *wire) Write(p []byte) (int, error) {
	if w.fd < 0 {
		return w.slot.without(w.TCPConn.Write, p)
	}
	w.out = append(w.buffer(), p...)
	w.records++
	return len(p), nil
}

// forget gives up both buffers and the descriptor, which the caller closes.
func (w *wire) forget() {
	w.empty()
	if w.in != nil {
		batches.Put(w.in)
		w.in = nil
	}
	w.fd = -1
}
