package hbone

import (
	"encoding/binary"
	"time"

	"golang.org/x/net/http2"
)

// drainState is how far the end of a tunnel has come.
type drainState struct {
	local  bool   // we said that we stop
	remote bool   // the peer said so
	final  bool   // the last GOAWAY has been sent
	last   uint32 // server: streams above it are not taken any more
	ping   uint64 // the first PING that was sent behind the announcement
}

func (d *drainState) begun() bool { return d.local || d.remote }

// lastOfServer is the highest number that a stream of a server's may have, and what a
// client's GOAWAY names: 0 is as true of one that has got none, but there are servers
// (the h2 crate until the spring of 2026, which ztunnel is built on) that reset the
// client's own streams above it. nghttp2 takes no number that is not a server's.
const lastOfServer = maxStreamID - 1

// Drain stops new streams; those that exist go on. A server first announces it
// and names the last stream it takes one round trip later, so that requests on
// their way are not lost (RFC 9113 §6.8).
func (c *Conn) Drain() {
	if c.drain.local || c.err != nil {
		return
	}
	c.drain.local = true
	if c.cfg.Role == Client {
		c.drain.final = true
		c.appendGoAway(lastOfServer, http2.ErrCodeNo, "")
		return
	}
	c.drain.last = maxStreamID
	c.appendGoAway(c.drain.last, http2.ErrCodeNo, "")
	c.drain.ping = c.ping.count + 1
	c.ping.next = 0
}

// answered is told of each PING answer. That to a PING which followed the
// announcement says that the peer has read it; an older one says nothing.
func (d *drainState) answered(c *Conn, now time.Duration) {
	if !d.local || d.final {
		return
	}
	if c.ping.count < d.ping {
		c.ping.next = now
		return
	}
	c.GoAway()
}

// GoAway names the last stream that a server has looked at, and takes none above it:
// the peer may ask elsewhere (RFC 9113 §6.8). It is for a connection that is about to
// be closed; one that has time is drained.
func (c *Conn) GoAway() {
	if c.cfg.Role == Client || c.drain.final || c.err != nil {
		return
	}
	c.drain.local, c.drain.final, c.drain.last = true, true, c.lastID
	c.appendGoAway(c.drain.last, http2.ErrCodeNo, "")
}

// Draining reports whether either side has said that it stops.
func (c *Conn) Draining() bool { return c.drain.begun() }

// Done reports whether a draining tunnel has nothing left to do: it may be
// closed once what waits in AppendControl is sent.
func (c *Conn) Done() bool {
	return c.err != nil || c.drain.begun() && len(c.streams) == 0 && (c.drain.final || c.drain.remote)
}

// onGoAway hears that the peer stops (RFC 9113 §6.8). Streams above the last
// one that it names were not acted on and may be tried elsewhere.
func (c *Conn) onGoAway(now time.Duration, h frameHeader, p []byte) error {
	switch {
	case h.stream != 0:
		return c.fail(http2.ErrCodeProtocol, "GOAWAY on a stream")
	case len(p) < 8:
		return c.fail(http2.ErrCodeFrameSize, "GOAWAY of a wrong size")
	}
	last := binary.BigEndian.Uint32(p) & (1<<31 - 1)
	code := http2.ErrCode(binary.BigEndian.Uint32(p[4:]))
	c.drain.remote = true
	for _, s := range c.ordered() {
		if c.cfg.Role == Client && s.id > last && !s.gone {
			c.unprocessed(s)
		}
	}
	for _, s := range c.abandoned {
		if s.id > last {
			c.quit(s)
		}
	}
	if code != http2.ErrCodeNo {
		c.err = &ConnError{Code: code, Reason: printable(p[8:]), Remote: true}
		return c.err
	}
	c.h.Room()
	return c.count(now, glitchOther, "too many GOAWAYs")
}

// unprocessed ends a stream that the peer says it never saw.
func (c *Conn) unprocessed(s *Stream) {
	if s.waiting {
		c.refused(s, Refusal{Reason: Draining, Retry: true})
		return
	}
	c.forget(s)
	c.h.Reset(s, &ResetError{Code: http2.ErrCodeRefusedStream, Remote: true})
}

// printable cuts a peer's debug text down to what a log line can bear.
func printable(p []byte) string {
	p = p[:min(len(p), 128)]
	out := make([]byte, len(p))
	for i, b := range p {
		if b < ' ' || b > '~' {
			b = '.'
		}
		out[i] = b
	}
	return string(out)
}
