package record

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// outbox is the queue of sealed records that wait to be written. Its zero value
// is empty, and an empty one holds no buffer.
type outbox struct {
	box     *[]byte // where out came from
	out     []byte  // records to be written
	sent    int     // of them
	answers int     // bytes that reading has queued since out was empty
}

// outs are buffers for a batch of plaintext in records.
var outs = sync.Pool{New: func() any {
	b := make([]byte, 0, batch+batch/8)
	return &b
}}

// maxKept is the size up to which an outgrown buffer is used again.
const maxKept = 2 * batch

// buffer is where records are appended. Whoever has appended says so by setting
// out to the result.
func (o *outbox) buffer() []byte {
	if o.box == nil {
		o.box = outs.Get().(*[]byte)
		o.out = (*o.box)[:0]
	}
	return o.out
}

func (o *outbox) queued() int { return len(o.out) - o.sent }

// maxAnswers bounds what reading may add to a queue that does not empty. A
// KeyUpdate is answered by 27 bytes; a peer that sends them and does not read
// would have them pile up.
const maxAnswers = 64 << 10

// answered notes that reading has queued n bytes, and reports whether they are
// too many.
func (o *outbox) answered(n int) bool {
	o.answers += n
	return o.answers > maxAnswers
}

// flush writes what is queued to fd, and reports whether all of it has left.
func (o *outbox) flush(fd int) (bool, error) {
	for o.sent < len(o.out) {
		n, err := unix.Write(fd, o.out[o.sent:])
		switch err {
		case nil:
			o.sent += n
		case unix.EINTR:
		case unix.EAGAIN:
			return false, nil
		default:
			return false, fmt.Errorf("write to peer: %w", err)
		}
	}
	o.empty()
	return true, nil
}

// empty gives the buffer back, so that a quiet tunnel holds none.
func (o *outbox) empty() {
	if o.box != nil && cap(o.out) <= maxKept {
		*o.box = o.out[:0]
		outs.Put(o.box)
	}
	*o = outbox{}
}
