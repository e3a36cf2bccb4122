package hbone

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Handler hears what happens on a Conn. Its methods are called from within
// [Conn.Receive], [Conn.Tick] and [Conn.Fail], on the caller's goroutine (and
// Room from within whatever ends a stream); they may call the Conn's and the
// Stream's methods, but not those three.
type Handler interface {
	// Request is a peer's wish for a connection (server role). The stream
	// waits until Accept, Refuse or Reset is called on it, now or later.
	Request(s *Stream, r Request)
	// Malformed tells of a request that was refused because it could not be
	// understood (server role). There is no stream.
	Malformed(why string)
	// Overloaded tells of one that was refused because memory was short (server
	// role). There is no stream.
	Overloaded(r Request)
	// Accepted says that the peer has connected the stream (client role).
	Accepted(s *Stream)
	// Refused says that the peer did not (client role). The stream is gone.
	Refused(s *Stream, r Refusal)
	// Data is what the peer sent; p is valid until Data returns. The bytes
	// count as undelivered, and are reserved in the budgets, until
	// Stream.Delivered or Stream.Discard says otherwise, even if the stream is
	// gone before. With Config.EarlyData it may come before Accept: then it must
	// be held, within the stream's window, and reach nobody unless Accept follows.
	Data(s *Stream, p []byte)
	// End says that the peer will send no more (half-close).
	End(s *Stream)
	// Reset says that the stream is gone in both directions; cause is a
	// *ResetError, or what Fail was given.
	Reset(s *Stream, cause error)
	// Writable says that a stream without credit has credit again, or has some before
	// the answer, now that the peer has offered to hold early data.
	Writable(s *Stream)
	// Room says that the number of streams that can be opened may have
	// changed (client role), or that a stream has ended.
	Room()
}

// Refusal is a peer's answer other than 200.
type Refusal struct {
	Reason Reason
	Status string // as the peer sent it; empty if there was none
	// Retry says that the peer has certainly not acted on the request
	// (RFC 9113 §8.7), so that it may be sent again on another tunnel.
	Retry bool
}

// Conn is one side of a tunnel connection. It is owned by one goroutine.
//
// Times are durations since an epoch of the caller's choice that never goes
// back.
type Conn struct {
	cfg Config
	h   Handler

	in  input
	out []byte // control frames that wait to be sent; see AppendControl

	block  []byte // scratch for header blocks that are written
	told   bool   // noTable was written
	dec    *hpack.Decoder
	fields fields

	streams map[uint32]*Stream
	// abandoned are gone for their owners, and wait for an answer all the same
	// (client; see takeBack).
	abandoned map[uint32]*Stream
	nextID    uint32 // client: the next stream's number
	lastID    uint32 // server: the highest number seen
	peer      peerSettings
	send      int64 // connection credit that the peer gave us
	recv      int64 // connection credit that the peer has left
	unacked   int64 // received and not yet given back
	credited  int64 // credit given to streams now, against TunnelBudget
	holding   int   // streams that have what streams start with; the others are settled
	company   company
	waiting   waitList
	forgot    recentResets
	takeBacks takeBacks

	ping    pingState
	drain   drainState
	glitch  glitches
	started time.Duration
	line    time.Duration // see SetRTT
	err     error         // set once: the tunnel is over
}

// peerSettings is what the peer's SETTINGS said (RFC 9113 §6.5.2).
type peerSettings struct {
	seen       bool
	maxStreams int64 // before SETTINGS a guess, so that streams need not wait
	window     int64
	maxFrame   int64
	earlyData  bool // client: see settingEarlyData
}

// New starts one side of a tunnel connection. What it has to say first (the
// preface and SETTINGS) waits in AppendControl.
func New(cfg Config, h Handler, now time.Duration) *Conn {
	c := &Conn{
		cfg:     cfg.withDefaults(),
		h:       h,
		streams: make(map[uint32]*Stream),
		nextID:  1,
		send:    initialWindow,
		peer:    peerSettings{maxStreams: 100, window: initialWindow, maxFrame: 16384},
		started: now,
	}
	c.recv = int64(c.cfg.ConnWindow)
	c.dec = hpack.NewDecoder(4096, c.fields.add)
	c.dec.SetMaxStringLength(maxFieldBytes)
	c.ping.init(c, now)
	c.in.preface = cfg.Role == Server
	c.appendPreface()
	return c
}

// appendPreface queues the connection preface (RFC 9113 §3.4).
func (c *Conn) appendPreface() {
	if c.cfg.Role == Client {
		c.out = append(c.out, http2.ClientPreface...)
	}
	set := []http2.Setting{
		{ID: http2.SettingInitialWindowSize, Val: uint32(c.cfg.StreamWindow)},
		{ID: http2.SettingMaxFrameSize, Val: maxFrame},
		{ID: http2.SettingMaxHeaderListSize, Val: maxFieldBytes},
	}
	if c.cfg.Role == Client {
		set = append(set, http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	} else {
		set = append(set, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(c.cfg.MaxStreams)})
	}
	if c.holds() {
		set = append(set, http2.Setting{ID: settingEarlyData, Val: 1})
	}
	c.out = appendFrameHeader(c.out, 6*len(set), http2.FrameSettings, 0, 0)
	for _, s := range set {
		c.out = binary.BigEndian.AppendUint16(c.out, uint16(s.ID))
		c.out = binary.BigEndian.AppendUint32(c.out, s.Val)
	}
	c.appendWindowUpdate(0, c.cfg.ConnWindow-initialWindow)
}

// Open asks the peer for a connection (client role). The answer comes to the
// Handler. It returns ErrFull, ErrDraining or ErrBudget where no stream can be
// had here now. owner is the caller's, found again as Stream.Owner.
func (c *Conn) Open(now time.Duration, r Request, owner any) (*Stream, error) {
	switch {
	case c.err != nil || c.drain.begun():
		return nil, ErrDraining
	case c.places() == 0:
		return nil, ErrFull
	case !c.reserve(int64(c.cfg.StreamWindow)):
		return nil, ErrBudget
	}
	s := c.newStream(c.nextID)
	c.ping.begin(now)
	s.Owner = owner
	c.nextID += 2
	c.waiting.push(s, now+c.cfg.RequestTimeout)
	c.writeRequest(s.id, r)
	if c.nextID > maxStreamID { // RFC 9113 §5.1.1: numbers are never used again
		c.Drain()
	}
	return s, nil
}

// Room returns how many streams could be opened now: none by a server. Before
// the peer's SETTINGS it takes the peer for one that bears 100. What streams that have
// ended left undelivered can leave the others less than they are allowed.
func (c *Conn) Room() int {
	credit := (int64(c.cfg.TunnelBudget) - c.credited) / int64(c.cfg.StreamWindow)
	return int(min(int64(c.places()), credit))
}

// places is how many streams both sides' limits still allow.
func (c *Conn) places() int {
	if c.err != nil || c.drain.begun() || c.cfg.Role != Client {
		return 0
	}
	limit := min(c.peer.maxStreams, int64(c.cfg.MaxStreams))
	return max(0, int(limit)-c.Streams())
}

// Streams returns how many streams are open or being opened, as the peer counts
// them: with those that were reset and whose peer has yet to hear of it.
func (c *Conn) Streams() int { return len(c.streams) + len(c.abandoned) }

// Credit returns how many bytes of DATA the connection window still takes;
// each stream has its own limit besides. Nothing tells when it is no longer
// zero: streams that wait for it are the caller's to remember, who looks here
// after each Receive.
func (c *Conn) Credit() int { return int(max(0, c.send)) }

// Err returns why the tunnel is over, or nil.
func (c *Conn) Err() error { return c.err }

// HasControl reports whether control frames wait to be sent.
func (c *Conn) HasControl() bool { return len(c.out) > 0 }

// ControlLen returns the size in bytes of the control frames that wait.
func (c *Conn) ControlLen() int { return len(c.out) }

// AppendControl moves waiting control frames to dst, as many bytes as fit into
// its capacity without growing it. Frames may be cut; the rest comes next.
//
// Before DATA of a stream is written, everything that waits must have been
// taken, so that the frames of a stream keep their order.
func (c *Conn) AppendControl(dst []byte) []byte {
	n := min(len(c.out), cap(dst)-len(dst))
	dst = append(dst, c.out[:n]...)
	rest := copy(c.out, c.out[n:])
	c.out = c.out[:rest]
	if rest == 0 && cap(c.out) > 64<<10 {
		c.out = nil
	}
	return dst
}

// Fail ends the tunnel at once: every stream is reset with cause. The caller
// closes the connection; what waits in AppendControl (a GOAWAY) may be sent
// first.
func (c *Conn) Fail(cause error) {
	if c.err == nil {
		c.err = cause
	}
	for _, s := range c.ordered() {
		if !s.gone { // the handler may have reset it meanwhile
			c.forget(s)
			s.handler().Reset(s, cause)
		}
	}
	for _, s := range c.abandoned {
		c.waiting.remove(s)
	}
	clear(c.abandoned)
}

// fail ends the tunnel because of what the peer did: GOAWAY says so, and the
// error goes to the caller of Receive or Tick.
func (c *Conn) fail(code http2.ErrCode, reason string) error {
	f := faultProtocol
	if code == http2.ErrCodeFlowControl {
		f = faultFlowControl
	}
	return c.cutFor(f, code, reason)
}

// exceed does the same for a peer that goes beyond a limit of ours.
func (c *Conn) exceed(f Fault, reason string) error {
	return c.cutFor(f, http2.ErrCodeEnhanceYourCalm, reason)
}

func (c *Conn) cutFor(f Fault, code http2.ErrCode, reason string) error {
	err := &ConnError{Code: code, Fault: f, Reason: reason}
	if c.err == nil {
		c.err = err
		c.appendGoAway(c.lastID, code, string(f)+": "+reason)
	}
	return err
}

// reserve takes n bytes of credit out of both budgets, or none.
func (c *Conn) reserve(n int64) bool {
	if c.credited+n > int64(c.cfg.TunnelBudget) || !c.cfg.Budget.Take(int(n)) {
		return false
	}
	c.credited += n
	return true
}

// spare reports whether n more bytes leave every place of the tunnel that nobody holds
// now what streams start with, and a quarter of the process's budget free.
func (c *Conn) spare(n int64) bool {
	free := int64(max(0, c.cfg.MaxStreams-c.holding)) * int64(c.cfg.StreamWindow)
	return c.credited+n+free <= int64(c.cfg.TunnelBudget) && c.cfg.Budget.spare(n)
}

func (c *Conn) release(n int) {
	c.credited -= int64(n)
	c.cfg.Budget.Give(n)
}

// newStream registers a stream whose starting credit is already reserved.
func (c *Conn) newStream(id uint32) *Stream {
	s := &Stream{
		conn:   c,
		id:     id,
		send:   c.peer.window,
		recv:   int64(c.cfg.StreamWindow),
		window: int64(c.cfg.StreamWindow),
	}
	c.streams[id] = s
	c.holding++
	return s
}

// ordered returns the streams that exist now, in the order of their numbers: to
// go through while handlers open and end streams.
func (c *Conn) ordered() []*Stream {
	return slices.SortedFunc(maps.Values(c.streams), func(a, b *Stream) int { return cmp.Compare(a.id, b.id) })
}

// forget takes a stream off the tables and returns its credit, but for what is
// undelivered.
func (c *Conn) forget(s *Stream) {
	if s.gone {
		return
	}
	s.gone = true
	c.waiting.remove(s)
	delete(c.streams, s.id)
	s.settle()
}

// cut resets a stream.
func (c *Conn) cut(s *Stream, code http2.ErrCode) {
	c.stop(s.id, code)
	c.forget(s)
}

// stop tells the peer that a stream, which may never have become one here, is
// over. The peer may go on until it hears of it. NO_ERROR asks for nothing more
// after a complete answer (RFC 9113 §8.1).
func (c *Conn) stop(id uint32, code http2.ErrCode) {
	c.appendReset(id, code)
	c.forgot.add(id)
}

// ended forgets a stream and tells of the room it left.
func (c *Conn) ended(s *Stream) {
	c.forget(s)
	c.h.Room()
}
