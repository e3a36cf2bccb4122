package hbone

import (
	"time"

	"golang.org/x/net/http2"
)

// maxControlFrame is the largest frame other than DATA that is looked at. A
// peer has no use for larger ones, though SETTINGS_MAX_FRAME_SIZE (which is
// there for DATA) would allow them.
const maxControlFrame = 64 << 10

// input is the state of the reader between two calls of Receive.
type input struct {
	preface bool   // the client's preface has yet to come
	partial []byte // the beginning of a frame header or of a control frame
	block   []byte // a header block that CONTINUATION goes on with
	blockOf frameHeader
	frags   int

	data *Stream // the DATA frame under way; nil if its stream is gone
	left int     // of its payload, padding excluded
	pad  int     // of its padding
	fin  bool    // it ends the stream
	on   bool    // a DATA frame is under way
}

// Receive takes what the peer sent. All of p is consumed; p may be reused when
// Receive returns. An error ends the tunnel: the caller sends what waits in
// AppendControl, calls Fail and closes.
func (c *Conn) Receive(now time.Duration, p []byte) error {
	if c.err != nil {
		return c.err
	}
	c.ping.heard = now
	c.company.tick(now)
	for len(p) > 0 {
		n, err := c.step(now, p)
		if err != nil {
			return err
		}
		p = p[n:]
	}
	return nil
}

// step consumes the beginning of p: a piece of DATA, or bytes of a frame that
// has to be seen whole.
func (c *Conn) step(now time.Duration, p []byte) (int, error) {
	in := &c.in
	switch {
	case in.on:
		return c.dataBytes(p), nil
	case in.preface:
		return c.readPreface(p)
	}
	// The common case, without a copy: the header is all there.
	if len(in.partial) == 0 && len(p) >= FrameHeader {
		return c.frame(now, p)
	}
	return c.gather(now, p)
}

// readPreface compares what comes with the client's preface (RFC 9113 §3.4).
func (c *Conn) readPreface(p []byte) (int, error) {
	in := &c.in
	want := http2.ClientPreface[len(in.partial):]
	n := min(len(p), len(want))
	if string(p[:n]) != want[:n] {
		return 0, c.fail(http2.ErrCodeProtocol, "bad connection preface")
	}
	in.partial = append(in.partial, p[:n]...)
	if len(in.partial) == len(http2.ClientPreface) {
		in.preface, in.partial = false, in.partial[:0]
	}
	return n, nil
}

// frame handles the frame at the beginning of p, whose header is complete.
func (c *Conn) frame(now time.Duration, p []byte) (int, error) {
	h := parseFrameHeader(p)
	if err := c.checkHeader(h); err != nil {
		return 0, err
	}
	if h.kind == http2.FrameData {
		return c.beginData(now, h, p[FrameHeader:])
	}
	if len(p) < FrameHeader+h.length {
		return c.gather(now, p)
	}
	return FrameHeader + h.length, c.control(now, h, p[FrameHeader:FrameHeader+h.length])
}

// gather copies bytes of a frame until it is whole.
func (c *Conn) gather(now time.Duration, p []byte) (int, error) {
	in := &c.in
	taken := 0
	if need := FrameHeader - len(in.partial); need > 0 {
		taken = min(need, len(p))
		in.partial = append(in.partial, p[:taken]...)
		if len(in.partial) < FrameHeader {
			return taken, nil
		}
	}
	h := parseFrameHeader(in.partial)
	if err := c.checkHeader(h); err != nil {
		return 0, err
	}
	if h.kind == http2.FrameData {
		in.partial = in.partial[:0]
		n, err := c.beginData(now, h, p[taken:])
		return taken + n - FrameHeader, err
	}
	n := min(FrameHeader+h.length-len(in.partial), len(p)-taken)
	in.partial = append(in.partial, p[taken:taken+n]...)
	taken += n
	if len(in.partial) < FrameHeader+h.length {
		return taken, nil
	}
	err := c.control(now, h, in.partial[FrameHeader:])
	in.partial = in.partial[:0]
	if cap(in.partial) > 4096 {
		in.partial = nil
	}
	return taken, err
}

// checkHeader refuses what no frame may be, before its payload is kept.
func (c *Conn) checkHeader(h frameHeader) error {
	switch {
	case len(c.out) > maxControlQueue:
		return c.exceed(faultUnread, "control frames are not being read")
	case h.length > maxFrame, h.kind != http2.FrameData && h.length > maxControlFrame:
		return c.fail(http2.ErrCodeFrameSize, "frame is too large")
	case c.in.block != nil && (h.kind != http2.FrameContinuation || h.stream != c.in.blockOf.stream):
		return c.fail(http2.ErrCodeProtocol, "header block is interrupted") // RFC 9113 §4.3
	case !c.peer.seen && h.kind != http2.FrameSettings:
		return c.fail(http2.ErrCodeProtocol, "first frame is not SETTINGS") // RFC 9113 §3.4
	}
	return nil
}

// beginData starts a DATA frame: everything is counted against the windows at
// once (RFC 9113 §6.9.1), then the payload streams through dataBytes. It
// returns how many bytes of header (and pad length) are consumed.
func (c *Conn) beginData(now time.Duration, h frameHeader, rest []byte) (int, error) {
	if h.stream == 0 {
		return 0, c.fail(http2.ErrCodeProtocol, "DATA on stream 0")
	}
	used := FrameHeader
	in := &c.in
	in.left, in.pad = h.length, 0
	if h.flags&http2.FlagDataPadded != 0 {
		if h.length == 0 {
			return 0, c.fail(http2.ErrCodeFrameSize, "padded DATA without a pad length")
		}
		if len(rest) == 0 { // wait for the pad length: keep the header
			var hdr [FrameHeader]byte
			putFrameHeader(&hdr, h.length, h.kind, h.flags, h.stream)
			in.partial = append(in.partial[:0], hdr[:]...)
			return used, nil
		}
		in.pad = int(rest[0])
		in.left = h.length - 1 - in.pad
		used++
		if in.left < 0 {
			return 0, c.fail(http2.ErrCodeProtocol, "padding is longer than its frame")
		}
	}
	if c.recv -= int64(h.length); c.recv < 0 {
		return 0, c.fail(http2.ErrCodeFlowControl, "connection window exceeded")
	}
	c.unacked += int64(h.length)
	c.creditConn()
	s, err := c.dataStream(now, h)
	if err != nil {
		return 0, err
	}
	if n := h.length - in.left; s != nil && n > 0 {
		s.repay(now, n) // padding is delivered to nobody
	}
	in.data, in.fin, in.on = s, h.flags&http2.FlagDataEndStream != 0, true
	if in.left == 0 && in.pad == 0 {
		c.dataBytes(nil)
	}
	return used, nil
}

// creditConn gives back connection credit, on receipt.
func (c *Conn) creditConn() {
	if c.unacked*4 < int64(c.cfg.ConnWindow) {
		return
	}
	c.recv += c.unacked
	c.appendWindowUpdate(0, int(c.unacked))
	c.unacked = 0
}

// dataStream finds the stream of a DATA frame and counts the frame against its
// window. It is nil where the bytes are to be thrown away.
func (c *Conn) dataStream(now time.Duration, h frameHeader) (*Stream, error) {
	s := c.streams[h.stream]
	if s == nil {
		return nil, c.onGone(now, h)
	}
	if h.length == 0 && h.flags&http2.FlagDataEndStream == 0 {
		if err := c.count(now, glitchEmptyData, "too many empty DATA frames"); err != nil {
			return nil, err
		}
	}
	c.company.count(s)
	var why string
	code := http2.ErrCodeProtocol
	switch s.recv -= int64(h.length); {
	case s.recv < 0:
		code, why = http2.ErrCodeFlowControl, "stream window exceeded"
	case s.recvEnd:
		code, why = http2.ErrCodeStreamClosed, "DATA after END_STREAM"
	case !s.open && h.length > 0 && !c.holds():
		// A client may send it early, but to hold it was not agreed on, and to
		// throw it away would leave a hole (CVE-2025-64763). A server may not.
		why = "DATA before the answer"
	default:
		return s, nil
	}
	return nil, c.kill(now, s, code, why)
}

// kill resets a stream for what the peer did on it. Making us do so is as cheap
// for the peer as taking a request back, and counts as that (CVE-2025-8671).
func (c *Conn) kill(now time.Duration, s *Stream, code http2.ErrCode, why string) error {
	c.cut(s, code)
	s.handler().Reset(s, &ResetError{Code: code, Reason: why})
	c.h.Room()
	return c.count(now, glitchRapidReset, "too many streams that had to be reset")
}

// dataBytes hands on the part of p that belongs to the DATA frame under way.
func (c *Conn) dataBytes(p []byte) int {
	in := &c.in
	n := min(in.left, len(p))
	if s := in.data; n > 0 && s != nil && !s.gone {
		s.undel += int64(n)
		s.handler().Data(s, p[:n])
	}
	in.left -= n
	if in.left > 0 {
		return n
	}
	skip := min(in.pad, len(p)-n)
	in.pad -= skip
	if in.pad == 0 {
		c.endData()
	}
	return n + skip
}

// endData finishes the DATA frame under way.
func (c *Conn) endData() {
	in := &c.in
	s, fin := in.data, in.fin
	in.data, in.on = nil, false
	if s == nil || s.gone || !fin {
		return
	}
	c.remoteEnd(s)
}

// remoteEnd notes that the peer has half-closed the stream.
func (c *Conn) remoteEnd(s *Stream) {
	s.recvEnd, s.untold = true, false
	s.settle()
	s.handler().End(s)
	if !s.gone {
		s.endBoth()
	}
}

// onGone judges a frame for a stream that is not there: one that we reset is
// still being talked to in good faith; an idle one is the peer's mistake.
func (c *Conn) onGone(now time.Duration, h frameHeader) error {
	if c.idle(h.stream) {
		return c.fail(http2.ErrCodeProtocol, "frame for a stream that was never opened") // RFC 9113 §5.1
	}
	if s := c.abandoned[h.stream]; s != nil { // DATA before the answer, see dataStream
		c.quitLate(s)
		return nil
	}
	if c.forgot.has(h.stream) {
		return nil
	}
	if err := c.count(now, glitchClosed, "too many frames for closed streams"); err != nil {
		return err
	}
	c.appendReset(h.stream, http2.ErrCodeStreamClosed)
	return nil
}

// idle reports whether the stream has not been opened yet.
func (c *Conn) idle(id uint32) bool {
	if c.cfg.Role == Server {
		return id > c.lastID || id%2 == 0
	}
	return id >= c.nextID || id%2 == 0
}
