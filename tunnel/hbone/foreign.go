package hbone

import (
	"strconv"
	"time"

	"golang.org/x/net/http2"
)

// foreign is a request for something else than a tunnel. It is answered with 405
// and a body once it has ended, and is its stream's own Handler: the Conn's never
// hears of it, and what it brings is counted and thrown away. It is a stream like
// any other in all that the peer sees, and all limits on streams hold for it.
type foreign struct {
	Handler        // the Conn's, for what is not about one stream
	declared int64 // content-length; -1 if none was given
	got      int64 // bytes of its body
	answered bool
	rest     string // of our body; from the answer on off the connection's credit, not the stream's
}

// maxForeignBody is how many bytes of a body are waited for before the answer;
// what needs more has it early.
const maxForeignBody = 64 << 10

// foreignBody is what a person reads who came with a browser.
const foreignBody = "this server only answers CONNECT\n"

// handler is who hears of a stream.
func (s *Stream) handler() Handler {
	if s.foreign != nil {
		return s.foreign
	}
	return s.conn.h
}

// onForeignRequest begins a stream that is not for a tunnel.
func (c *Conn) onForeignRequest(now time.Duration, id uint32, end bool) error {
	f := &c.fields
	if !f.hasMethod || !f.hasScheme || !f.hasPath || f.path == "" { // RFC 9113 §8.3.1
		return c.malformed(now, id, "request without method, scheme or path")
	}
	if f.hasStatus { // RFC 9113 §8.3.2: of answers only
		return c.malformed(now, id, ":status in a request")
	}
	q, err := f.foreign()
	if err != nil {
		return c.malformed(now, id, err.Error())
	}
	if !c.reserve(int64(c.cfg.StreamWindow)) {
		return c.refuseEarly(now, id, end, Overloaded.status(), string(Overloaded))
	}
	c.h.Malformed("method is not CONNECT")
	s := c.newStream(id)
	s.foreign, s.open = q, true
	q.Handler = c.h
	c.waiting.push(s, now+c.cfg.RequestTimeout)
	if end {
		c.remoteEnd(s)
	}
	return c.count(now, glitchRefused, "too many requests that could not be served")
}

// foreign makes one of the fields.
func (f *fields) foreign() (*foreign, error) {
	q := &foreign{declared: -1, rest: foreignBody}
	if f.method == "HEAD" { // RFC 9110 §9.3.2
		q.rest = ""
	}
	if f.nLength == 0 {
		return q, nil
	}
	n, err := strconv.ParseUint(f.length, 10, 63) // RFC 9110 §8.6
	if err != nil || f.nLength > 1 {
		return nil, errMalformed("content-length is not one number")
	}
	q.declared = int64(n)
	return q, nil
}

// Data throws away. The stream's credit is not given back: it bounds what comes.
func (q *foreign) Data(s *Stream, p []byte) {
	q.got += int64(len(p))
	s.undel -= int64(len(p))
	s.owed += int64(len(p))
	if q.got > maxForeignBody {
		q.answer(s)
	}
}

// End sees whether the body was as long as declared (RFC 9113 §8.1.1).
func (q *foreign) End(s *Stream) {
	if q.declared >= 0 && q.got != q.declared {
		q.cut(s, http2.ErrCodeProtocol)
		return
	}
	q.answer(s)
}

// Reset gives back what our body did not need.
func (q *foreign) Reset(s *Stream, _ error) {
	if q.answered {
		s.conn.send += int64(len(q.rest))
		q.rest = ""
	}
}

func (q *foreign) cut(s *Stream, code http2.ErrCode) {
	s.conn.cut(s, code)
	q.Reset(s, nil)
	q.Room()
}

// answer says 405 (RFC 9110 §15.5.6). The body is left out where the connection
// has no credit for it.
func (q *foreign) answer(s *Stream) {
	if q.answered {
		return
	}
	q.answered = true
	c := s.conn
	if c.send < int64(len(q.rest)) {
		q.rest = ""
	}
	c.send -= int64(len(q.rest))
	b := appendStatic(c.beginBlock(), staticStatus, "405")
	b = appendField(b, "allow", "CONNECT")
	b = appendField(b, "wishbone-reason", string(Malformed))
	c.writeBlock(s.id, b, false)
	q.Writable(s)
}

// Writable sends of our body what the stream has credit for. When all is said,
// the peer need not go on either (RFC 9113 §8.1).
func (q *foreign) Writable(s *Stream) {
	if !q.answered {
		return
	}
	c := s.conn
	if n := min(len(q.rest), int(max(0, s.send))); n > 0 {
		s.send -= int64(n)
		c.out = appendFrameHeader(c.out, n, http2.FrameData, 0, s.id)
		c.out = append(c.out, q.rest[:n]...)
		q.rest = q.rest[n:]
	}
	if q.rest != "" {
		return
	}
	s.End()
	if !s.gone {
		q.cut(s, http2.ErrCodeNo)
	}
}

// late answers a request that has not ended in time, and leaves one whose answer
// is not taken.
func (q *foreign) late(s *Stream) {
	q.answer(s)
	if !s.gone {
		q.cut(s, http2.ErrCodeCancel)
	}
}
