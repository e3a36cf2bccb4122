package hbone

import (
	"time"

	"golang.org/x/net/http2"
)

// A request that is reset before its answer has cost the peer a dial for nothing,
// and peers end a tunnel on which there are many (CVE-2023-44487), with all that
// is on it. Whoever scans ports through a gateway makes such requests, so that a
// client must see to its own part: it takes a few back at once, and what is beyond
// that is abandoned until the answer comes.

// takeBacks is how many requests may be taken back at once. Time gives nothing:
// some peers count for as long as the tunnel lives.
type takeBacks struct{ spent int } // in parts of 1/answersEach

const (
	// maxTakeBacks is how many may come together. ztunnel ends a tunnel at the
	// 21st that it has not looked at yet (h2, max_pending_accept_reset_streams).
	maxTakeBacks = 10
	// answersEach is how many answers pay for another. Envoy ends a tunnel of whose
	// streams half were taken back within a second of their beginning
	// (overload.premature_reset_total_stream_count). A peer like us bears 500,
	// 200 a second, and as many as its answers pay for (see glitches).
	answersEach = 4
)

// take reserves one, or says that there is none left.
func (t *takeBacks) take() bool {
	if t.spent+answersEach > maxTakeBacks*answersEach {
		return false
	}
	t.spent += answersEach
	return true
}

// answered notes that the peer has answered a request, whatever it said.
func (t *takeBacks) answered() { t.spent = max(0, t.spent-1) }

// takeBack ends a request that waits for its answer. The stream is gone for its
// owner in any case.
func (c *Conn) takeBack(s *Stream, code http2.ErrCode) {
	if c.takeBacks.take() {
		c.cut(s, code)
		return
	}
	c.abandon(s, code)
}

// abandon leaves a stream to its peer, which counts it until it has answered: it
// stays among those that wait, until their time is over. Nothing that may still
// come on it is kept, so that it needs no credit.
func (c *Conn) abandon(s *Stream, code http2.ErrCode) {
	s.gone, s.Owner, s.late = true, nil, code
	delete(c.streams, s.id)
	s.settle()
	if c.abandoned == nil {
		c.abandoned = make(map[uint32]*Stream)
	}
	c.abandoned[s.id] = s
}

// quit forgets an abandoned stream, and tells of the room it left.
func (c *Conn) quit(s *Stream) {
	c.waiting.remove(s)
	delete(c.abandoned, s.id)
	c.h.Room()
}

// quitLate resets an abandoned stream, as its owner has asked for.
func (c *Conn) quitLate(s *Stream) {
	c.stop(s.id, s.late)
	c.quit(s)
}

// onLateAnswer reads HEADERS on an abandoned stream. Any final answer will do.
func (c *Conn) onLateAnswer(now time.Duration, s *Stream, end bool) error {
	status := c.fields.status
	if validStatus(status) && status[0] == '1' && !end {
		return c.count(now, glitchOther, "too many interim answers")
	}
	c.takeBacks.answered()
	c.quitLate(s)
	return nil
}
