package hbone

import "golang.org/x/net/http2"

// settingEarlyData is how a server says, with 1, that it holds what comes before
// its answer. The number is ours alone, in no registry (RFC 9113 §6.5.2: others
// ignore it), so that another value is no error: it may be somebody else's word
// for something else, and offers nothing.
const settingEarlyData http2.SettingID = 0x5742

// offerEarlyData hears what a server says of early data. It may take an offer back:
// what was sent before counts, and nothing follows until the answer.
func (c *Conn) offerEarlyData(offered bool) {
	if c.cfg.Role != Client || !c.cfg.EarlyData || c.peer.earlyData == offered {
		return
	}
	c.peer.earlyData = offered
	for _, s := range c.ordered() {
		if s.Early() { // the handler may have reset it meanwhile
			c.h.Writable(s)
		}
	}
}

// Early reports whether DATA may be sent although the request has no answer yet:
// the server has offered to hold it. It may be thrown away there.
func (s *Stream) Early() bool {
	return s.waiting && !s.gone && s.conn.peer.earlyData
}

// maySend reports whether DATA has its place on the stream now.
func (s *Stream) maySend() bool {
	return !s.gone && !s.sentEnd && (s.open || s.Early())
}

// holds reports whether DATA on a stream without an answer goes to the handler.
func (c *Conn) holds() bool { return c.cfg.Role == Server && c.cfg.EarlyData }
