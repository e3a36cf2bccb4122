package hbone

import (
	"encoding/binary"
	"time"

	"golang.org/x/net/http2"
)

// pingState asks the peer whether it lives, and measures the round trip.
type pingState struct {
	next   time.Duration // when to ask
	begun  bool          // there has been a stream
	asked  bool          // an answer is due
	sentAt time.Duration // since then
	heard  time.Duration // the last sign of life
	count  uint64
	rtt    time.Duration // the least; 0 until the first answer
	seed   uint32
}

func (p *pingState) init(c *Conn, now time.Duration) {
	p.seed = uint32(now) | 1
	p.next = now + p.jittered(c.cfg.PingInterval)
}

// begin is told of each stream. The first is when the round trip begins to matter:
// windows grow with it.
func (p *pingState) begin(now time.Duration) {
	if !p.begun {
		p.begun, p.next = true, now
	}
}

// jittered varies the interval by up to a tenth, so that many tunnels do not
// ask at once.
func (p *pingState) jittered(interval time.Duration) time.Duration {
	p.seed = p.seed*1664525 + 1013904223 // Numerical Recipes' LCG: any spread will do
	spread := float64(p.seed) / (1 << 32)
	return interval - interval/10 + time.Duration(spread*float64(interval/5))
}

// tick sends a ping that is due, and says whether the peer is dead.
func (p *pingState) tick(c *Conn, now time.Duration) (dead bool) {
	if p.asked {
		return now >= p.deadline(c)
	}
	if now < p.next {
		return false
	}
	p.count++
	p.asked, p.sentAt = true, now
	var data [8]byte
	binary.BigEndian.PutUint64(data[:], p.count)
	c.appendPing(0, data)
	return false
}

// deadline is when tick has something to do. The answer may be long in coming
// behind bulk on a thin line, and is waited for as long as anything comes: what
// the peer's TCP sends, our acknowledgements have reached it for.
func (p *pingState) deadline(c *Conn) time.Duration {
	if p.asked {
		return max(p.sentAt, p.heard) + c.cfg.PingTimeout
	}
	return p.next
}

// answer takes the peer's acknowledgement.
func (p *pingState) answer(c *Conn, now time.Duration, data []byte) bool {
	if !p.asked || binary.BigEndian.Uint64(data) != p.count {
		return false
	}
	sample := max(now-p.sentAt, time.Microsecond)
	if p.rtt == 0 || sample < p.rtt {
		p.rtt = sample
	}
	p.asked = false
	p.next = now + p.jittered(c.cfg.PingInterval)
	return true
}

func (c *Conn) onPing(now time.Duration, h frameHeader, data []byte) error {
	switch {
	case len(data) != 8:
		return c.fail(http2.ErrCodeFrameSize, "PING of a wrong size")
	case h.stream != 0:
		return c.fail(http2.ErrCodeProtocol, "PING on a stream")
	}
	if h.flags&http2.FlagPingAck != 0 {
		if !c.ping.answer(c, now, data) {
			return c.count(now, glitchPing, "too many PING answers that nobody asked for")
		}
		c.drain.answered(c, now)
		return nil
	}
	if err := c.count(now, glitchPing, "too many PINGs"); err != nil {
		return err
	}
	c.appendPing(http2.FlagPingAck, [8]byte(data))
	return nil
}

// RTT returns the round trip of the line to the peer, without the queues that a busy
// tunnel has: what SetRTT said, or the least that a PING took, where that is much more.
// It is 0 while unknown.
func (c *Conn) RTT() time.Duration {
	if c.line > 0 && c.ping.rtt < c.line+behindProxy {
		return c.line
	}
	return c.ping.rtt
}

// behindProxy is how much longer a PING takes if the transport ends before the peer
// does. Less may be the time that a busy peer took to answer.
const behindProxy = 5 * time.Millisecond

// SetRTT tells the least round trip that the transport has lately measured (tcp(7),
// TCP_INFO). It is the better one: PINGs are seldom, and wait behind what was sent.
func (c *Conn) SetRTT(d time.Duration) { c.line = max(d, time.Microsecond) }

// Tick does what is due at now. Like Receive it returns an error when the
// tunnel is over.
func (c *Conn) Tick(now time.Duration) error {
	if c.err != nil {
		return c.err
	}
	if !c.peer.seen { // pings wait for that too
		if now-c.started >= c.cfg.SettingsTimeout {
			return c.cutFor(faultNoSettings, http2.ErrCodeSettingsTimeout, "no SETTINGS from the peer")
		}
	} else if c.ping.tick(c, now) {
		return c.cutFor(faultSilent, http2.ErrCodeNo, "no answer to PING")
	}
	for s := c.waiting.first; s != nil && s.deadline <= now; s = c.waiting.first {
		if s.gone {
			c.quitLate(s)
			continue
		}
		if s.foreign != nil {
			s.foreign.late(s)
			continue
		}
		c.cut(s, http2.ErrCodeCancel)
		c.refused(s, Refusal{Reason: Timeout})
	}
	return nil
}

// Deadline returns when Tick has something to do next.
func (c *Conn) Deadline() time.Duration {
	d := c.ping.deadline(c)
	if !c.peer.seen {
		d = c.started + c.cfg.SettingsTimeout
	}
	if s := c.waiting.first; s != nil {
		d = min(d, s.deadline)
	}
	return d
}
