package record

import (
	"crypto/tls"
	"errors"
)

// ErrAgain says that nothing more can be read now: wait for the descriptor to
// become readable.
var ErrAgain = errors.New("record: no complete record to read yet")

// ErrClosed says that the peer has closed its direction with close_notify.
var ErrClosed = errors.New("peer closed the connection")

// ErrFault says that what the peer sent is against TLS, or that it is a flood of
// records that carry nothing.
var ErrFault = errors.New("peer breaks TLS")

// Conn is an established TLS session on a non-blocking descriptor. It is owned
// by one goroutine.
type Conn interface {
	// Read opens records into p until p has no room for another. It returns
	// ErrAgain when the descriptor has no more, which a read that stops short shows
	// too (epoll(7), EPOLLET): it may not have seen an end that was told with the
	// bytes before it, and has to be called again for that. It returns ErrClosed after
	// close_notify; either may come together with the last bytes. Any other
	// error is fatal: a connection that ends without close_notify is
	// io.ErrUnexpectedEOF. The first Read comes right after the handshake, since
	// the session may hold what epoll will never report. Reading may make
	// something to Flush (the answer to a KeyUpdate).
	Read(p []byte) (int, error)
	// Seal puts p into records and queues them. Nothing is written yet. The
	// queue has no bound but the caller's. While it runs it may change p as far as
	// its capacity goes; afterwards all is as it was.
	Seal(p []byte) error
	// Flush writes what is queued and reports whether all of it has left. An
	// error is fatal.
	Flush() (bool, error)
	// Queued is how many bytes of records wait to be written.
	Queued() int
	// Records is how many records were sealed with the present key, or more. It
	// must be retired before 2^24.5 of them (RFC 8446 §5.5), with the session if
	// that does not do so by itself.
	Records() uint64
	// FD is the descriptor, for epoll. It stays the Conn's.
	FD() int
	// State is what the handshake found out.
	State() tls.ConnectionState
	// CloseWrite queues close_notify, once, and writes what is queued; when all
	// of it has left it ends the connection's sending direction (shutdown(2),
	// SHUT_WR) and reports true. Until then it is called again as Flush is.
	// Nothing can be sealed any more, and what the peer sends can be read.
	CloseWrite() (bool, error)
	// Close sends close_notify if it can be sent at once, and closes the
	// descriptor; a second Close returns net.ErrClosed. The caller has taken the
	// descriptor out of its epoll before. What the kernel has not sent yet is
	// lost if the peer goes on sending (tcp(7): the answer to that is a reset).
	Close() error
}
