package hbone

import (
	"encoding/binary"
	"time"

	"golang.org/x/net/http2"
)

// maxControlQueue bounds the control frames that wait for a peer that does not
// read: answers to its PINGs and SETTINGS, mostly.
const maxControlQueue = 256 << 10

// maxParameters bounds the parameters of one SETTINGS frame: each may mean work
// on every stream.
const maxParameters = 64

// control handles a whole frame other than DATA.
func (c *Conn) control(now time.Duration, h frameHeader, p []byte) error {
	switch h.kind {
	case http2.FrameHeaders:
		return c.onHeaders(now, h, p)
	case http2.FrameContinuation:
		return c.onContinuation(now, h, p)
	case http2.FrameWindowUpdate:
		return c.onWindowUpdate(now, h, p)
	case http2.FrameRSTStream:
		return c.onReset(now, h, p)
	case http2.FrameSettings:
		return c.onSettings(now, h, p)
	case http2.FramePing:
		return c.onPing(now, h, p)
	case http2.FrameGoAway:
		return c.onGoAway(now, h, p)
	case http2.FramePriority:
		return c.onPriority(now, h, p)
	case http2.FramePushPromise:
		return c.fail(http2.ErrCodeProtocol, "PUSH_PROMISE") // RFC 9113 §8.4: we said no
	}
	return c.count(now, glitchOther, "too many unknown frames") // RFC 9113 §5.5: ignored
}

// count notes a frame that costs us more than the peer; too many end the tunnel.
func (c *Conn) count(now time.Duration, g glitch, reason string) error {
	if c.glitch.add(now, g) {
		return nil
	}
	return c.exceed(allowances[g].fault, reason)
}

// onSettings applies the peer's parameters and acknowledges (RFC 9113 §6.5).
func (c *Conn) onSettings(now time.Duration, h frameHeader, p []byte) error {
	ack := h.flags&http2.FlagSettingsAck != 0
	switch {
	case h.stream != 0:
		return c.fail(http2.ErrCodeProtocol, "SETTINGS on a stream")
	case ack && len(p) > 0, len(p)%6 != 0:
		return c.fail(http2.ErrCodeFrameSize, "SETTINGS of a wrong size")
	case ack && !c.peer.seen:
		return c.fail(http2.ErrCodeProtocol, "first frame is not SETTINGS")
	case len(p) > 6*maxParameters:
		return c.exceed(faultSettings, "too many parameters in SETTINGS")
	}
	if err := c.count(now, glitchSettings, "too many SETTINGS"); err != nil || ack {
		return err
	}
	if !c.peer.seen {
		c.peer.seen = true
		c.peer.maxStreams = 1<<32 - 1 // RFC 9113 §6.5.2: no limit, unless one follows
	}
	window := c.peer.window
	for ; len(p) > 0; p = p[6:] {
		if err := c.setting(http2.SettingID(binary.BigEndian.Uint16(p)), binary.BigEndian.Uint32(p[2:])); err != nil {
			return err
		}
	}
	more := c.peer.window - window
	if c.overflows(more) {
		return c.fail(http2.ErrCodeFlowControl, "SETTINGS_INITIAL_WINDOW_SIZE overflows a window")
	}
	// Before any DATA that the new values let go (RFC 9113 §6.5.3: immediately).
	c.out = appendFrameHeader(c.out, 0, http2.FrameSettings, http2.FlagSettingsAck, 0)
	c.moveWindows(more)
	c.h.Room()
	return nil
}

// setting applies one parameter (RFC 9113 §6.5.2). Unknown ones are ignored,
// and so is the header table size: we index nothing.
func (c *Conn) setting(id http2.SettingID, v uint32) error {
	if err := (http2.Setting{ID: id, Val: v}).Valid(); err != nil {
		code := http2.ErrCodeProtocol
		if id == http2.SettingInitialWindowSize {
			code = http2.ErrCodeFlowControl
		}
		return c.fail(code, "SETTINGS value out of range")
	}
	switch id {
	case http2.SettingEnablePush:
		if v == 1 && c.cfg.Role == Client {
			return c.fail(http2.ErrCodeProtocol, "server sent SETTINGS_ENABLE_PUSH")
		}
	case http2.SettingMaxConcurrentStreams:
		c.peer.maxStreams = int64(v)
	case http2.SettingMaxFrameSize:
		c.peer.maxFrame = int64(v)
	case http2.SettingInitialWindowSize:
		c.peer.window = int64(v)
	case settingEarlyData:
		c.offerEarlyData(v == 1)
	}
	return nil
}

// overflows reports whether a stream cannot bear so much more credit.
func (c *Conn) overflows(more int64) bool {
	for _, s := range c.streams {
		if s.send+more > maxWindow {
			return true
		}
	}
	return false
}

// moveWindows changes the credit of all streams by the difference that
// SETTINGS_INITIAL_WINDOW_SIZE has made (RFC 9113 §6.9.2); it may become negative.
func (c *Conn) moveWindows(more int64) {
	if more == 0 {
		return
	}
	for _, s := range c.ordered() {
		if !s.gone { // the handler may have reset it meanwhile
			s.addCredit(more)
		}
	}
}

// maxWindow is the largest credit there may be (RFC 9113 §6.9.1).
const maxWindow = 1<<31 - 1

// addCredit adds to what may be sent, and tells if there was none before.
func (s *Stream) addCredit(n int64) {
	before := s.send
	s.send += n
	if before <= 0 && s.send > 0 && s.maySend() {
		s.starved = false
		s.handler().Writable(s)
	}
}

func (c *Conn) onWindowUpdate(now time.Duration, h frameHeader, p []byte) error {
	if len(p) != 4 {
		return c.fail(http2.ErrCodeFrameSize, "WINDOW_UPDATE of a wrong size")
	}
	if err := c.count(now, glitchWindow, "too many WINDOW_UPDATEs"); err != nil {
		return err
	}
	n := int64(binary.BigEndian.Uint32(p) & (1<<31 - 1))
	if h.stream == 0 {
		return c.connCredit(n)
	}
	s := c.streams[h.stream]
	switch {
	case s == nil && c.idle(h.stream):
		return c.fail(http2.ErrCodeProtocol, "WINDOW_UPDATE for a stream that was never opened")
	case s == nil: // RFC 9113 §6.9: may arrive after the end
	case n == 0:
		return c.kill(now, s, http2.ErrCodeProtocol, "WINDOW_UPDATE of 0")
	case s.send+n > maxWindow:
		return c.kill(now, s, http2.ErrCodeFlowControl, "stream window overflows")
	default:
		s.addCredit(n)
	}
	return nil
}

func (c *Conn) connCredit(n int64) error {
	switch {
	case n == 0:
		return c.fail(http2.ErrCodeProtocol, "WINDOW_UPDATE of 0")
	case c.send+n > maxWindow:
		return c.fail(http2.ErrCodeFlowControl, "connection window overflows")
	}
	c.send += n
	return nil
}

// onReset ends a stream (RFC 9113 §6.4).
func (c *Conn) onReset(now time.Duration, h frameHeader, p []byte) error {
	switch {
	case len(p) != 4:
		return c.fail(http2.ErrCodeFrameSize, "RST_STREAM of a wrong size")
	case h.stream == 0 || c.idle(h.stream):
		return c.fail(http2.ErrCodeProtocol, "RST_STREAM for a stream that was never opened")
	}
	s := c.streams[h.stream]
	switch {
	case s == nil && c.abandoned[h.stream] != nil:
		c.quit(c.abandoned[h.stream])
		return nil
	case s == nil && c.forgot.has(h.stream): // it crossed ours
		return nil
	case s == nil:
		return c.count(now, glitchClosed, "too many frames for closed streams")
	}
	code := http2.ErrCode(binary.BigEndian.Uint32(p))
	if s.waiting && c.cfg.Role == Client {
		c.refused(s, Refusal{Reason: Unknown, Retry: code == http2.ErrCodeRefusedStream})
		return nil
	}
	early := !s.open
	c.forget(s)
	s.handler().Reset(s, &ResetError{Code: code, Remote: true})
	c.h.Room()
	if early {
		// A request taken back before its answer has cost us a dial (CVE-2023-44487).
		return c.count(now, glitchRapidReset, "too many requests taken back")
	}
	return nil
}

// refused tells of an answer other than 200 and forgets the stream.
func (c *Conn) refused(s *Stream, r Refusal) {
	c.forget(s)
	c.h.Refused(s, r)
	c.h.Room()
}

// onPriority looks at what is deprecated and otherwise ignored (RFC 9113
// §6.3).
func (c *Conn) onPriority(now time.Duration, h frameHeader, p []byte) error {
	s := c.streams[h.stream]
	switch {
	case h.stream == 0:
		return c.fail(http2.ErrCodeProtocol, "PRIORITY on stream 0")
	case len(p) != 5 && s != nil:
		return c.kill(now, s, http2.ErrCodeFrameSize, "PRIORITY of a wrong size")
	case len(p) != 5:
		return c.fail(http2.ErrCodeFrameSize, "PRIORITY of a wrong size")
	}
	return c.count(now, glitchOther, "too many PRIORITY frames")
}
