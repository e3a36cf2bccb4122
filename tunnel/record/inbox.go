package record

import (
	"crypto/tls"
	"encoding/binary"
)

// inbox cuts what a socket gives into records. Its zero value is empty. It holds
// a batch only while there is something in it to open; the beginning of a record
// that has not come whole is kept apart.
type inbox struct {
	in   *[batch]byte // nil when there is nothing
	r, w int
	part []byte // the beginning of a record, while in is nil
	dry  bool   // the last read stopped short: the socket had no more
}

// record is the next whole record; it is valid until the next call. Errors are
// errAgain, errCut, those of read(2), and a fault of the peer's.
func (b *inbox) record(fd int) ([]byte, error) {
	for {
		size, err := b.size()
		if err != nil {
			return nil, err
		}
		if size > 0 {
			rec := b.in[b.r : b.r+size]
			b.r += size
			return rec, nil
		}
		if b.dry {
			b.dry = false
			b.park()
			return nil, errAgain
		}
		if err := b.fill(fd); err != nil {
			return nil, err
		}
	}
}

// size is the size of the record that the inbox begins with, or 0 if that has not
// come whole.
func (b *inbox) size() (int, error) {
	if b.w-b.r < headerSize {
		return 0, nil
	}
	head := b.in[b.r : b.r+headerSize]
	n := int(binary.BigEndian.Uint16(head[3:]))
	switch {
	// After the handshake there is no other type nor version (RFC 8446 §5.2).
	case contentType(head[0]) != typeData:
		return 0, faulty(unexpectedMessage, "record of type %d in the clear", head[0])
	case binary.BigEndian.Uint16(head[1:]) != tls.VersionTLS12:
		return 0, faulty(protocolVersion, "record of version %x", head[1:3])
	case n > maxCiphertext:
		return 0, faulty(recordOverflow, "record of %d bytes", n)
	case b.w-b.r < headerSize+n:
		return 0, nil
	}
	return headerSize + n, nil
}

// fill reads more behind what there is.
func (b *inbox) fill(fd int) error {
	if b.in == nil {
		b.in = batches.Get().(*[batch]byte)
		b.r, b.w = 0, copy(b.in[:], b.part)
	} else {
		b.r, b.w = 0, copy(b.in[:], b.in[b.r:b.w])
	}
	n, err := readFD(fd, b.in[b.w:])
	if b.w += n; err != nil {
		b.park()
		return err
	}
	b.dry = b.w < len(b.in)
	return nil
}

// park keeps the beginning of a record, if there is one, and gives the batch up.
func (b *inbox) park() {
	b.part = append(b.part[:0], b.in[b.r:b.w]...)
	b.release()
}

func (b *inbox) release() {
	batches.Put(b.in)
	b.in, b.r, b.w = nil, 0, 0
}

// empty gives up all there is.
func (b *inbox) empty() {
	if b.in != nil {
		b.release()
	}
	b.part = nil
}
