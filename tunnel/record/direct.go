package record

import (
	"cmp"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"

	"golang.org/x/sys/unix"
)

// contentType is what a record carries (RFC 8446 §5.1).
type contentType byte

const (
	typeAlert     contentType = 21
	typeHandshake contentType = 22
	typeData      contentType = 23
)

// Handshake messages that come after the handshake (RFC 8446 §4).
const (
	newSessionTicket = 4
	keyUpdate        = 24
)

// maxMessage bounds the body of a handshake message, as crypto/tls does.
const maxMessage = 65536

// maxIdle is how many records and handshake messages in a row may carry no data, as
// with crypto/tls.
const maxIdle = 16

// rekeyAfter is how many records there are under one key, ours or the peer's: half
// of what the pool bears, and far from the limit of AES-GCM, some 2^24.5 (RFC 8446
// §5.5).
const rekeyAfter = 1 << 22

// direct is a Conn that protects the records itself, after a handshake by
// crypto/tls. Bytes are sealed from the caller's memory straight into the queue
// and opened from what the socket gave straight into the caller's memory: nothing
// is copied on the way.
type direct struct {
	fd      int // -1 after Close
	out     outbox
	state   tls.ConnectionState
	role    role
	in      inbox
	opener  keys
	sealer  keys
	rest    []byte // of a record that the reader had no room for; it lies in the inbox
	message []byte // the beginning of a handshake message
	idle    int    // records and messages without data in a row
	asked   bool   // for another key of the peer's, under the present one
	readErr error  // is final
	sealErr error  // likewise
}

// newDirect makes a Conn of a finished handshake, or nil: if its secrets are not
// known, or its cipher suite is not.
func newDirect(w *wire, state tls.ConnectionState, s *secrets, r role) *direct {
	suite := suites[state.CipherSuite]
	if state.Version != tls.VersionTLS13 || suite == nil || len(s.client) == 0 || len(s.server) == 0 || !w.atBoundary() {
		s.wipe()
		return nil
	}
	d := &direct{fd: w.fd, state: state, role: r,
		sealer: keys{suite: suite, secret: s.client}, opener: keys{suite: suite, secret: s.server}}
	if r == server {
		d.sealer, d.opener = d.opener, d.sealer
	}
	if d.sealer.derive() != nil || d.opener.derive() != nil {
		s.wipe() // and crypto/tls goes on with what it has
		return nil
	}
	return d
}

func (d *direct) FD() int                    { return d.fd }
func (d *direct) State() tls.ConnectionState { return d.state }
func (d *direct) Queued() int                { return d.out.queued() }
func (d *direct) Records() uint64            { return max(d.sealer.seq, d.opener.seq) }
func (d *direct) Flush() (bool, error)       { return d.out.flush(d.fd) }

func (d *direct) Read(p []byte) (n int, err error) {
	if len(d.rest) > 0 {
		n = copy(p, d.rest)
		d.rest = d.rest[n:]
	}
	for len(p) > 0 && (n == 0 || len(p)-n >= maxPlaintext) {
		m, err := d.readRecord(p[n:])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// readRecord takes one record. An error other than ErrAgain is final.
func (d *direct) readRecord(p []byte) (int, error) {
	if d.readErr != nil {
		return 0, d.readErr
	}
	rec, err := d.in.record(d.fd)
	if errors.Is(err, errAgain) {
		return 0, ErrAgain
	}
	n := 0
	if err == nil {
		n, err = d.open(p, rec)
	}
	if err != nil {
		d.fail(err)
	}
	return n, err
}

// fail ends the session. The peer is told why, if it is at fault (RFC 8446 §6.2).
func (d *direct) fail(err error) {
	d.readErr = err
	d.in.empty() // and rest is
	var fault *fault
	if errors.As(err, &fault) && d.sealErr == nil {
		d.put(typeAlert, []byte{2, byte(fault.alert)})
		d.sealErr = err
	}
}

// open opens a record into p, and keeps the rest of what does not fit.
func (d *direct) open(p, rec []byte) (int, error) {
	inner := len(rec) - headerSize - tagSize
	dst, fits := p, inner <= len(p)
	if !fits {
		dst = rec[headerSize:] // in place
	}
	content, typ, err := d.opener.open(dst, rec)
	switch {
	case err != nil:
		return 0, faulty(badRecordMAC, "record cannot be opened")
	case inner > maxPlaintext+1: // with its padding (RFC 8446 §5.4)
		return 0, faulty(recordOverflow, "record of %d bytes", inner)
	case len(content) == 0 && (typ == typeAlert || typ == typeHandshake):
		return 0, faulty(unexpectedMessage, "empty record of type %d", typ)
	case typ != typeHandshake && len(d.message) > 0:
		return 0, faulty(unexpectedMessage, "handshake message is interrupted by a record of type %d", typ)
	}
	n := 0
	switch typ {
	case typeData:
		if n = len(content); !fits {
			n = copy(p, content)
			d.rest = content[n:]
		}
	case typeHandshake:
		err = d.handshake(content)
	case typeAlert:
		err = alerted(content)
	default:
		err = faulty(unexpectedMessage, "record of type %d", typ)
	}
	if err == nil && typ != typeHandshake { // whose messages count
		err = d.progress(n > 0)
	}
	if err == nil && d.opener.seq >= rekeyAfter {
		err = d.ask()
	}
	return n, err
}

// ask asks the peer for another key of its, once, and changes ours with it (RFC
// 8446 §4.6.3).
func (d *direct) ask() error {
	if d.asked || d.sealErr != nil {
		return nil
	}
	d.asked = true
	return d.rekey(1)
}

// progress bounds what is no use to anybody.
func (d *direct) progress(made bool) error {
	if made {
		d.idle = 0
		return nil
	}
	if d.idle++; d.idle > maxIdle {
		return faulty(unexpectedMessage, "%d records or messages in a row without data", d.idle)
	}
	return nil
}

// handshake takes content of handshake messages, which may span records (RFC 8446
// §5.1).
func (d *direct) handshake(content []byte) error {
	d.message = append(d.message, content...)
	for len(d.message) >= 4 {
		size := int(binary.BigEndian.Uint32(d.message) & 0xffffff)
		if size > maxMessage {
			return faulty(decodeError, "handshake message of %d bytes", size)
		}
		size += 4
		if len(d.message) < size {
			return nil
		}
		body := d.message[4:size]
		rest := d.message[size:]
		if err := cmp.Or(d.post(d.message[0], body, len(rest) == 0), d.progress(false)); err != nil {
			return err
		}
		d.message = rest
	}
	if len(d.message) == 0 {
		d.message = nil
	}
	return nil
}

// post is one handshake message after the handshake; last says that it ends its
// record.
func (d *direct) post(typ byte, body []byte, last bool) error {
	switch {
	case typ == newSessionTicket && d.role == client:
		return nil // we resume nothing
	case typ != keyUpdate:
		return faulty(unexpectedMessage, "handshake message of type %d", typ)
	case len(body) != 1:
		return faulty(decodeError, "key update of %d bytes", len(body))
	case body[0] > 1:
		return faulty(illegalParameter, "key update with %d", body[0])
	case !last:
		// What follows in the record would be under a key that does not count any
		// more (RFC 8446 §5.1).
		return faulty(unexpectedMessage, "key update within a record")
	}
	if err := d.opener.update(); err != nil {
		return err
	}
	d.asked = false
	if body[0] == 0 || d.sealErr != nil {
		return nil
	}
	queued := d.Queued()
	err := d.rekey(0)
	if d.out.answered(d.Queued() - queued) {
		err = errors.Join(err, errAnswers)
	}
	return err
}

// rekey announces the next key and takes it for what is sealed from now on;
// request is 1 if the peer is to do the same (RFC 8446 §4.6.3).
func (d *direct) rekey(request byte) error {
	d.put(typeHandshake, []byte{keyUpdate, 0, 0, 1, request})
	err := d.sealer.update()
	if err != nil {
		d.sealErr = err
	}
	return err
}

func (d *direct) Seal(p []byte) error {
	for len(p) > 0 {
		if d.sealErr != nil {
			return d.sealErr
		}
		if d.sealer.seq >= rekeyAfter {
			if err := d.rekey(0); err != nil {
				return err
			}
		}
		n := min(len(p), maxPlaintext)
		d.put(typeData, p[:n])
		p = p[n:]
	}
	return d.sealErr
}

// put seals content into a record of its own and queues it. The byte behind
// content, where its type has to be, is content's as far as its capacity goes: it
// is lent for the time.
func (d *direct) put(typ contentType, content []byte) {
	size := headerSize + len(content) + 1 + tagSize
	out := slices.Grow(d.out.buffer(), size)
	n := len(content)
	if cap(content) == n {
		inner := append(append(out[len(out)+headerSize:len(out)+headerSize], content...), byte(typ))
		d.out.out = d.sealer.seal(out, inner)
		return
	}
	inner := content[:n+1]
	lent := inner[n]
	inner[n] = byte(typ)
	d.out.out = d.sealer.seal(out, inner)
	inner[n] = lent
}

// closeNotify queues the end of what we send, once.
func (d *direct) closeNotify() {
	if d.sealErr == nil {
		d.put(typeAlert, []byte{1, closeNotify})
		d.sealErr = errShutdown
	}
}

var errShutdown = errors.New("record: sealing after close_notify")

func (d *direct) CloseWrite() (bool, error) {
	switch {
	case d.fd < 0:
		return false, net.ErrClosed
	case d.sealErr != nil && d.sealErr != errShutdown:
		return false, d.sealErr
	}
	d.closeNotify()
	return shutdown(&d.out, d.fd)
}

func (d *direct) Close() error {
	if d.fd < 0 {
		return net.ErrClosed
	}
	d.closeNotify()
	// Best effort: a full socket loses the alert, and the peer sees a cut.
	_, _ = d.out.flush(d.fd)
	fd := d.fd
	d.fd, d.readErr, d.sealErr = -1, net.ErrClosed, net.ErrClosed
	d.out.empty()
	d.in.empty()
	d.rest, d.message, d.state = nil, nil, tls.ConnectionState{} // which has the secret of exporters
	d.opener.wipe()
	d.sealer.wipe()
	return unix.Close(fd)
}

// alert is the description of an alert (RFC 8446 §6).
type alert byte

const (
	closeNotify       = 0
	unexpectedMessage = alert(10)
	badRecordMAC      = alert(20)
	recordOverflow    = alert(22)
	illegalParameter  = alert(47)
	decodeError       = alert(50)
	protocolVersion   = alert(70)
	userCanceled      = 90
)

// fault is what the peer has done wrong, and what it is told.
type fault struct {
	alert alert
	what  string
}

func (f *fault) Error() string { return ErrFault.Error() + ": " + f.what }

// Unwrap is ErrFault.
func (f *fault) Unwrap() error { return ErrFault }

func faulty(a alert, format string, args ...any) error {
	return &fault{a, fmt.Sprintf(format, args...)}
}

// alerted is what the content of an alert means. Every alert is fatal but these
// two, whatever level it says (RFC 8446 §6).
func alerted(content []byte) error {
	if len(content) != 2 {
		return faulty(decodeError, "alert of %d bytes", len(content))
	}
	switch content[1] {
	case closeNotify:
		return ErrClosed
	case userCanceled:
		return nil
	}
	return fmt.Errorf("peer ends the session: %w", tls.AlertError(content[1]))
}
