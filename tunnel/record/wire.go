package record

import (
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
	slot slot // of the handshake
	fd   int  // -1 until detach, and after Close

	in   *[batch]byte // what was read and not yet taken; nil when empty
	r, w int

	box     *[]byte // where out came from
	out     []byte  // records to be written
	sent    int     // of them
	answers int     // bytes that reading has queued since out was empty
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
		return w.slot.without(w.TCPConn.Read, p)
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
	if err == nil {
		return errCut // after a close_notify crypto/tls reads no more
	}
	return err
}

// readFD wraps what is fatal: a bare ETIMEDOUT says that it is temporary.
func readFD(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd, p)
		switch err {
		case nil:
			return n, nil
		case unix.EINTR:
		case unix.EAGAIN:
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
	if w.box == nil {
		w.box = outs.Get().(*[]byte)
		w.out = (*w.box)[:0]
	}
	w.out = append(w.out, p...)
	w.records++
	return len(p), nil
}

// outs are buffers for a batch of plaintext in records.
var outs = sync.Pool{New: func() any {
	b := make([]byte, 0, batch+batch/8)
	return &b
}}

// maxKept is the size up to which an outgrown buffer is used again.
const maxKept = 2 * batch

// answered notes that reading has queued n bytes, and reports whether they are
// too many.
func (w *wire) answered(n int) bool {
	w.answers += n
	return w.answers > maxAnswers
}

func (w *wire) flush() (bool, error) {
	for w.sent < len(w.out) {
		n, err := unix.Write(w.fd, w.out[w.sent:])
		switch err {
		case nil:
			w.sent += n
		case unix.EINTR:
		case unix.EAGAIN:
			return false, nil
		default:
			return false, fmt.Errorf("write to peer: %w", err)
		}
	}
	w.empty()
	return true, nil
}

// empty gives the buffer of the queue back, so that a quiet tunnel holds none.
func (w *wire) empty() {
	if w.box != nil && cap(w.out) <= maxKept {
		*w.box = w.out[:0]
		outs.Put(w.box)
	}
	w.box, w.out, w.sent, w.answers = nil, nil, 0, 0
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
