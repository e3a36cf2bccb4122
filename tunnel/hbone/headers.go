package hbone

import (
	"strings"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// maxFieldBytes bounds a header list, decoded (RFC 9113 §6.5.2: name, value
// and 32 for each), and its encoded form.
const maxFieldBytes = 64 << 10

// maxFragments bounds the CONTINUATION frames of one block (CVE-2023-45288).
const maxFragments = 8

// fields collects the header fields that mean something to a tunnel.
type fields struct {
	method, scheme, path, authority, status  string
	protocol                                 bool
	forwarded, reason                        string
	nForwarded                               int
	length                                   string // content-length
	nLength                                  int
	size                                     int
	bad                                      string // why the list is malformed (RFC 9113 §8.1.1)
	regular                                  bool   // a regular field was seen
	hasMethod, hasScheme, hasPath, hasTarget bool
	hasStatus                                bool
}

// add is called by the decoder for each field in turn.
func (f *fields) add(h hpack.HeaderField) {
	if f.size += int(h.Size()); f.size > maxFieldBytes {
		return // looked at when the block is done
	}
	if strings.HasPrefix(h.Name, ":") {
		f.addPseudo(h)
		return
	}
	f.regular = true
	switch h.Name {
	case "forwarded":
		f.forwarded = h.Value
		f.nForwarded++
	case "content-length":
		f.length = h.Value
		f.nLength++
	case "wishbone-reason":
		f.reason = h.Value
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		f.bad = "connection-specific field" // RFC 9113 §8.2.2
	case "te":
		if h.Value != "trailers" {
			f.bad = "te other than trailers"
		}
	default:
		if !validFieldName(h.Name) {
			f.bad = "invalid field name"
		}
	}
	if !validFieldValue(h.Value) {
		f.bad = "invalid field value"
	}
}

// addPseudo notes a pseudo-header field (RFC 9113 §8.3): once each, before the
// regular fields.
func (f *fields) addPseudo(h hpack.HeaderField) {
	if f.regular {
		f.bad = "pseudo-header field after a regular one"
	}
	set := func(v *string, seen *bool) {
		if *seen {
			f.bad = "pseudo-header field given twice"
		}
		*v, *seen = h.Value, true
	}
	switch h.Name {
	case ":method":
		set(&f.method, &f.hasMethod)
	case ":scheme":
		set(&f.scheme, &f.hasScheme)
	case ":path":
		set(&f.path, &f.hasPath)
	case ":authority":
		set(&f.authority, &f.hasTarget)
	case ":status":
		set(&f.status, &f.hasStatus)
	case ":protocol":
		f.protocol = true
	default:
		f.bad = "unknown pseudo-header field"
	}
}

// validFieldName holds RFC 9113 §8.2.1: a token in lower case.
func validFieldName(s string) bool {
	return s != "" && isToken(s) && strings.ToLower(s) == s
}

// validFieldValue holds RFC 9113 §8.2.1: no NUL, CR or LF, and no white space
// at either end.
func validFieldValue(s string) bool {
	return !strings.ContainsAny(s, "\x00\r\n") && strings.Trim(s, " \t") == s
}

// pseudo reports whether there is a pseudo-header field that only requests have.
func (f *fields) pseudo() bool {
	return f.hasMethod || f.hasScheme || f.hasPath || f.hasTarget || f.protocol
}

// onHeaders begins a header block (RFC 9113 §6.2).
func (c *Conn) onHeaders(now time.Duration, h frameHeader, p []byte) error {
	if h.stream == 0 {
		return c.fail(http2.ErrCodeProtocol, "HEADERS on stream 0")
	}
	p, err := c.stripPadding(h, p)
	if err != nil {
		return err
	}
	if h.flags&http2.FlagHeadersPriority != 0 {
		if len(p) < 5 {
			return c.fail(http2.ErrCodeFrameSize, "HEADERS too short for a priority")
		}
		p = p[5:] // deprecated, ignored
	}
	if h.flags&http2.FlagHeadersEndHeaders != 0 {
		return c.onBlock(now, h, p)
	}
	c.in.block, c.in.blockOf, c.in.frags = append(make([]byte, 0, len(p)+256), p...), h, 0
	return nil
}

// stripPadding removes padding (RFC 9113 §6.2).
func (c *Conn) stripPadding(h frameHeader, p []byte) ([]byte, error) {
	if h.flags&http2.FlagHeadersPadded == 0 {
		return p, nil
	}
	if len(p) == 0 || int(p[0]) > len(p)-1 {
		return nil, c.fail(http2.ErrCodeProtocol, "padding is longer than its frame")
	}
	return p[1 : len(p)-int(p[0])], nil
}

func (c *Conn) onContinuation(now time.Duration, h frameHeader, p []byte) error {
	in := &c.in
	if in.block == nil {
		return c.fail(http2.ErrCodeProtocol, "CONTINUATION without HEADERS")
	}
	if in.frags++; in.frags > maxFragments || len(in.block)+len(p) > maxFieldBytes {
		return c.exceed(faultHeaders, "header block is too large")
	}
	in.block = append(in.block, p...)
	if h.flags&http2.FlagContinuationEndHeaders == 0 {
		return nil
	}
	block, first := in.block, in.blockOf
	in.block = nil
	return c.onBlock(now, first, block)
}

// onBlock decodes a whole header block. It is always decoded, even for a stream
// that is gone, since the compression state is the connection's.
func (c *Conn) onBlock(now time.Duration, h frameHeader, p []byte) error {
	c.fields = fields{}
	if _, err := c.dec.Write(p); err != nil {
		return c.fail(http2.ErrCodeCompression, "header block: "+err.Error())
	}
	if err := c.dec.Close(); err != nil {
		return c.fail(http2.ErrCodeCompression, "header block: "+err.Error())
	}
	if c.fields.size > maxFieldBytes {
		return c.exceed(faultHeaders, "header list is too large")
	}
	end := h.flags&http2.FlagHeadersEndStream != 0
	if s := c.streams[h.stream]; s != nil {
		return c.onMoreHeaders(now, s, end)
	}
	if s := c.abandoned[h.stream]; s != nil {
		return c.onLateAnswer(now, s, end)
	}
	if c.cfg.Role == Server && h.stream%2 == 1 && h.stream > c.lastID {
		return c.onRequest(now, h.stream, end)
	}
	return c.onGoneHeaders(now, h)
}

// onGoneHeaders judges HEADERS for a stream that has ended. A second request on
// one number is a connection error (RFC 9113 §5.1.1).
func (c *Conn) onGoneHeaders(now time.Duration, h frameHeader) error {
	if c.cfg.Role == Server && !c.idle(h.stream) && !c.forgot.has(h.stream) {
		return c.fail(http2.ErrCodeStreamClosed, "HEADERS for a closed stream")
	}
	return c.onGone(now, h)
}

// onMoreHeaders handles HEADERS on a stream that exists: the answer (client),
// or trailers, which a tunnel has no use for but that may end it.
func (c *Conn) onMoreHeaders(now time.Duration, s *Stream, end bool) error {
	f := &c.fields
	switch {
	case s.recvEnd:
		return c.kill(now, s, http2.ErrCodeStreamClosed, "HEADERS after END_STREAM")
	case f.bad != "":
		return c.kill(now, s, http2.ErrCodeProtocol, f.bad)
	case f.pseudo():
		return c.kill(now, s, http2.ErrCodeProtocol, "pseudo-header field out of place")
	case s.waiting && c.cfg.Role == Client:
		return c.onAnswer(now, s, end)
	case !end || f.hasStatus:
		return c.kill(now, s, http2.ErrCodeProtocol, "HEADERS inside a tunnel")
	}
	c.remoteEnd(s)
	return nil
}

// onAnswer reads the answer to a request. Only 200 is success (as for ztunnel);
// 1xx are interim (RFC 9110 §15.2).
func (c *Conn) onAnswer(now time.Duration, s *Stream, end bool) error {
	f := &c.fields
	switch {
	case !validStatus(f.status):
		return c.kill(now, s, http2.ErrCodeProtocol, "answer without a status")
	case f.status[0] == '1' && !end:
		return c.count(now, glitchOther, "too many interim answers")
	case f.status != "200":
		// Our half is still open. The peer's may be, too: a body is not wanted.
		c.takeBacks.answered()
		c.cut(s, http2.ErrCodeCancel)
		c.refused(s, Refusal{Reason: reasonOf(f.status, f.reason), Status: f.status})
	default:
		c.takeBacks.answered()
		c.waiting.remove(s)
		s.open = true
		s.epoch = now
		c.h.Accepted(s)
		if end && !s.gone {
			c.remoteEnd(s)
		}
	}
	return nil
}

// validStatus holds RFC 9110 §15: three digits, the first from 1 to 5.
func validStatus(s string) bool {
	return len(s) == 3 && '1' <= s[0] && s[0] <= '5' &&
		'0' <= s[1] && s[1] <= '9' && '0' <= s[2] && s[2] <= '9'
}

// onRequest begins a stream (server role).
func (c *Conn) onRequest(now time.Duration, id uint32, end bool) error {
	f := &c.fields
	c.lastID = id
	if f.bad != "" {
		return c.malformed(now, id, f.bad)
	}
	if c.drain.local && id > c.drain.last || len(c.streams) >= c.cfg.MaxStreams {
		c.stop(id, http2.ErrCodeRefusedStream)
		return c.count(now, glitchRefused, "too many requests above the limit")
	}
	if f.method != "CONNECT" || f.protocol {
		return c.onForeignRequest(now, id, end)
	}
	req, err := f.request()
	if err != nil {
		c.h.Malformed(err.Error())
		return c.refuseEarly(now, id, end, Malformed.status(), string(Malformed))
	}
	if !c.reserve(int64(c.cfg.StreamWindow)) {
		c.h.Overloaded(req)
		return c.refuseEarly(now, id, end, Overloaded.status(), string(Overloaded))
	}
	s := c.newStream(id)
	c.ping.begin(now)
	s.epoch = now
	s.recvEnd, s.untold = end, end
	c.h.Request(s, req)
	if end && !s.gone {
		c.remoteEnd(s)
	}
	return nil
}

// malformed resets a request that is not one (RFC 9113 §8.1.1).
func (c *Conn) malformed(now time.Duration, id uint32, why string) error {
	c.stop(id, http2.ErrCodeProtocol)
	c.h.Malformed(why)
	return c.count(now, glitchOther, "too many malformed requests")
}

// refuseEarly answers a request that never became a stream.
func (c *Conn) refuseEarly(now time.Duration, id uint32, end bool, status, reason string) error {
	c.writeRefusal(id, status, reason)
	if !end {
		c.stop(id, http2.ErrCodeNo)
	}
	return c.count(now, glitchRefused, "too many requests that could not be served")
}

// request makes a Request of the fields (RFC 9113 §8.5: CONNECT has neither
// :scheme nor :path).
func (f *fields) request() (Request, error) {
	var r Request
	var err error
	switch {
	case f.hasScheme || f.hasPath:
		return r, errMalformed(":scheme or :path in a CONNECT request")
	case f.hasStatus:
		return r, errMalformed(":status in a request")
	case f.nForwarded > 1:
		return r, errMalformed("forwarded is given twice")
	}
	if r.Target, err = parseAuthority(f.authority); err != nil {
		return r, err
	}
	if f.nForwarded == 1 {
		r.Client, err = parseForwarded(f.forwarded)
	}
	return r, err
}

type errMalformed string

func (e errMalformed) Error() string { return string(e) }

// writeRequest queues the HEADERS of a request (RFC 9113 §8.5).
func (c *Conn) writeRequest(id uint32, r Request) {
	var text [64]byte // an IPv6 address with its port has 47
	b := appendStatic(c.beginBlock(), staticMethod, "CONNECT")
	b = appendStatic(b, staticAuthority, r.Target.AppendTo(text[:0]))
	if r.Client.IsValid() {
		b = appendField(b, "forwarded", appendForwardedFor(text[:0], r.Client))
	}
	c.writeBlock(id, b, false)
}

func (c *Conn) writeAccept(id uint32) {
	c.writeBlock(id, append(c.beginBlock(), indexedOK), false)
}

func (c *Conn) writeRefusal(id uint32, status, reason string) {
	b := appendStatic(c.beginBlock(), staticStatus, status)
	b = appendField(b, "wishbone-reason", reason)
	c.writeBlock(id, b, true)
}

// beginBlock begins a header block in the connection's scratch space.
func (c *Conn) beginBlock() []byte {
	if c.told {
		return c.block[:0]
	}
	c.told = true
	return append(c.block[:0], noTable)
}

// writeBlock queues a header block as one HEADERS frame; our blocks are far below
// every peer's frame size.
func (c *Conn) writeBlock(id uint32, b []byte, end bool) {
	flags := http2.FlagHeadersEndHeaders
	if end {
		flags |= http2.FlagHeadersEndStream
	}
	c.out = appendFrameHeader(c.out, len(b), http2.FrameHeaders, flags, id)
	c.out = append(c.out, b...)
	c.block = b
}
