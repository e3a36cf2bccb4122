package hbone

import (
	"time"

	"golang.org/x/net/http2"
)

// Stream carries one TCP connection. It ends when both directions have ended
// or either side resets it; from then on its methods do nothing, but for
// Delivered and Discard: bytes that it has handed on are reserved in the
// budgets until these say that they have left.
type Stream struct {
	// Owner is the caller's own; hbone never looks at it.
	Owner any

	conn    *Conn
	id      uint32
	counted uint32 // see company; 0: never

	send   int64 // credit that the peer gave us
	recv   int64 // credit that the peer has left
	window int64 // credit in all, reserved in the budgets; see settle
	owed   int64 // delivered and not yet given back
	epoch  time.Duration
	undel  int64 // received and not yet delivered; reserved even when gone

	waiting    bool          // client: for the answer; server: foreign; in Conn.waiting
	deadline   time.Duration // until when it waits
	prev, next *Stream       // in Conn.waiting
	open       bool          // 200 was sent or received
	sentEnd    bool
	recvEnd    bool
	untold     bool // recvEnd, and the handler has yet to hear of it
	settled    bool // see settle
	gone       bool
	starved    bool // asked for credit and found none

	foreign *foreign // server: not for a tunnel

	late http2.ErrCode // abandoned: what it is reset with; see takeBack
}

// ID returns the stream's number (RFC 9113 §5.1.1).
func (s *Stream) ID() uint32 { return s.id }

// Gone reports whether the stream has ended in both directions.
func (s *Stream) Gone() bool { return s.gone }

// Accept answers 200: the destination is connected (server role).
func (s *Stream) Accept() {
	if s.gone || s.open {
		return
	}
	s.open = true
	s.conn.glitch.answered()
	s.conn.writeAccept(s.id)
}

// Refuse answers with the reason's status and ends the stream (server role).
func (s *Stream) Refuse(r Reason) {
	if s.gone || s.open {
		return
	}
	c := s.conn
	c.glitch.answered()
	c.writeRefusal(s.id, r.status(), string(r))
	if !s.recvEnd {
		c.stop(s.id, http2.ErrCodeNo)
	}
	c.ended(s)
}

// Reset ends the stream in both directions. Code is CONNECT_ERROR for a TCP
// reset, CANCEL for our own cuts. A client's request that has no answer yet is
// taken back at once only where not too many are: the peer may hear of it as late
// as at the answer or the request's timeout, and has a stream less for us until then.
func (s *Stream) Reset(code http2.ErrCode) {
	switch {
	case s.gone:
		return
	case s.waiting:
		s.conn.takeBack(s, code)
	default:
		s.conn.cut(s, code)
	}
	s.conn.h.Room()
}

// Credit returns how many bytes of DATA may be sent now, at most one frame.
// When it is zero because of the stream's own window, Handler.Writable comes
// once there is more; when it is zero because of the connection's, see
// Conn.Credit.
func (s *Stream) Credit() int {
	if !s.maySend() {
		return 0
	}
	n := min(s.send, s.conn.send, s.conn.peer.maxFrame, maxDataFrame)
	s.starved = s.send <= 0
	return int(max(0, n))
}

// Starved reports whether the last Credit found the stream's own window empty.
func (s *Stream) Starved() bool { return s.starved }

// FrameHeader is the length of a frame header (RFC 9113 §4.1).
const FrameHeader = 9

// PutData spends credit for n bytes of DATA, which the caller sends right
// behind the header that is written into hdr. n is at most Credit.
func (s *Stream) PutData(hdr *[FrameHeader]byte, n int) {
	s.send -= int64(n)
	s.conn.send -= int64(n)
	s.conn.glitch.sent(n)
	putFrameHeader(hdr, n, http2.FrameData, 0, s.id)
}

// End says that nothing more will be sent (half-close). It has no place before the
// 200, early data or not, and does nothing there.
func (s *Stream) End() {
	if s.gone || s.sentEnd || !s.open {
		return
	}
	s.sentEnd = true
	s.conn.out = appendFrameHeader(s.conn.out, 0, http2.FrameData, http2.FlagDataEndStream, s.id)
	s.endBoth()
}

func (s *Stream) endBoth() {
	if s.sentEnd && s.recvEnd && !s.untold {
		s.conn.ended(s)
	}
}

// Delivered gives back credit for n received bytes that have left for good,
// and their place in the budgets.
func (s *Stream) Delivered(now time.Duration, n int) {
	n = min(n, int(s.undel)) // Discard may have been there before
	s.undel -= int64(n)
	switch {
	case s.gone:
		s.conn.release(n)
	case s.recvEnd:
		s.window -= int64(n)
		s.conn.release(n)
	default:
		s.repay(now, n)
	}
}

// Discard gives up whatever is undelivered: the caller has thrown it away. It
// is due when a stream is gone whose bytes will not all be delivered, and does
// nothing while it lives, since its peer would wait for the credit.
func (s *Stream) Discard() {
	if s.gone {
		s.conn.release(int(s.undel))
		s.undel = 0
	}
}

// repay owes the peer n bytes of credit more, and pays when a quarter of the
// window has come together.
func (s *Stream) repay(now time.Duration, n int) {
	s.owed += int64(n)
	if s.owed*4 < s.window {
		return
	}
	give := s.owed + s.resize(now)
	s.owed = 0
	s.epoch = now
	s.recv += give
	s.conn.appendWindowUpdate(s.id, int(give))
}

// settle keeps of the reservation only what has come and is undelivered: the
// peer will send no more.
func (s *Stream) settle() {
	if !s.settled {
		s.settled = true
		s.conn.holding--
	}
	s.conn.release(int(s.window - s.undel))
	s.window = s.undel
}

// resize returns by how much the window changes: it shrinks while memory is short, and
// where it is too large and others are busy, and doubles while delivery asks for it.
func (s *Stream) resize(now time.Duration) int64 {
	c := s.conn
	if !c.spare(0) {
		return -s.shrink(0)
	}
	if !s.open || s.epoch == 0 || c.RTT() == 0 { // what is held before the answer is one window
		return 0
	}
	switch want := s.wanted(now); {
	case want >= s.window:
		return s.grow()
	case want < s.window/5*4 && c.company.streams() > 1:
		return -s.shrink(want)
	}
	return 0
}

// grow doubles the window if it may, and returns by how much it has grown.
func (s *Stream) grow() int64 {
	c := s.conn
	more := min(s.window, int64(c.cfg.MaxStreamWindow)-s.window)
	if more <= 0 || !c.spare(more) || !c.reserve(more) {
		return 0
	}
	s.window += more
	return more
}

// shrink keeps back credit that is owed, but not below what a stream starts with,
// and returns how much.
func (s *Stream) shrink(to int64) int64 {
	less := min(s.owed, s.window-max(to, int64(s.conn.cfg.StreamWindow)))
	if less <= 0 {
		return 0
	}
	s.window -= less
	s.conn.release(int(less))
	return less
}
