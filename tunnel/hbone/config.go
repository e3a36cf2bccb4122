package hbone

import (
	"cmp"
	"sync/atomic"
	"time"
)

// Role is the side of the tunnel connection that a Conn speaks for.
type Role uint8

// The roles.
const (
	Client Role = iota // opens streams
	Server             // answers them
)

// Config sets up a Conn. The zero value is a client with the defaults.
type Config struct {
	Role Role

	// MaxStreams is how many streams may be open at once: advertised by a
	// server, kept by a client below the peer's own limit. 0 means 200.
	MaxStreams int
	// StreamWindow is the credit in bytes that a stream starts with: 64 KiB or
	// more, since a peer may spend that before it has read our SETTINGS (RFC
	// 9113 §6.9.2). 0 means 256 KiB.
	StreamWindow int
	// MaxStreamWindow is what a stream's credit may grow to. 0 means 4 MiB.
	MaxStreamWindow int
	// ConnWindow is the connection's credit in bytes, 64 KiB or more likewise.
	// 0 means 16 MiB.
	ConnWindow int
	// TunnelBudget bounds the credit given to all streams of this Conn
	// together, in bytes, and what their ends have left undelivered. Windows grow
	// only by what MaxStreams do not start with, and shrink again when undelivered
	// bytes take of that. 0 means 48 MiB beyond what MaxStreams start with.
	TunnelBudget int
	// Budget does the same for the whole process, where windows stop growing while a
	// quarter is still free, and shrink beyond that; nil means no bound.
	Budget *Budget

	// EarlyData allows DATA before the answer, between two of us that both have it.
	// A server offers it, and hands to Handler.Data what comes before Accept; a
	// client makes use of the offer. False: nothing is sent before the 200, and a
	// stream on which something comes is reset.
	EarlyData bool

	// PingInterval is how often a peer is asked whether it lives. 0 means
	// 10 s; it is varied by up to a tenth.
	PingInterval time.Duration
	// PingTimeout is how long the peer may owe the answer and be silent. 0
	// means 20 s.
	PingTimeout time.Duration
	// RequestTimeout is how long a client waits for the answer to a request, and a
	// server for the end of one that is not for a tunnel. 0 means 15 s.
	RequestTimeout time.Duration
	// SettingsTimeout is how long the peer's first SETTINGS may take. 0 means
	// 10 s.
	SettingsTimeout time.Duration
}

// initialWindow is both windows' size before anything is agreed on (RFC 9113
// §6.9.2).
const initialWindow = 65535

// maxStreamID is the highest stream number there is (RFC 9113 §5.1.1).
const maxStreamID = 1<<31 - 1

// maxFrame is the SETTINGS_MAX_FRAME_SIZE that we advertise (RFC 9113 §6.5.2),
// the same as ztunnel's.
const maxFrame = 1 << 20

// maxDataFrame is the largest DATA frame that we send: larger ones save
// nothing and make neighbours wait.
const maxDataFrame = 256 << 10

// growth is by how much the windows of a tunnel may have grown in all, unless its budget
// is given.
const growth = 48 << 20

// withDefaults fills what is zero.
func (c Config) withDefaults() Config {
	c.MaxStreams = cmp.Or(c.MaxStreams, 200)
	c.StreamWindow = cmp.Or(c.StreamWindow, 256<<10)
	c.MaxStreamWindow = cmp.Or(c.MaxStreamWindow, 4<<20)
	c.ConnWindow = cmp.Or(c.ConnWindow, 16<<20)
	c.StreamWindow = max(c.StreamWindow, initialWindow)
	c.ConnWindow = max(c.ConnWindow, initialWindow)
	c.TunnelBudget = cmp.Or(c.TunnelBudget, growth+c.MaxStreams*c.StreamWindow)
	c.PingInterval = cmp.Or(c.PingInterval, 10*time.Second)
	c.PingTimeout = cmp.Or(c.PingTimeout, 20*time.Second)
	c.RequestTimeout = cmp.Or(c.RequestTimeout, 15*time.Second)
	c.SettingsTimeout = cmp.Or(c.SettingsTimeout, 10*time.Second)
	return c
}

// Budget is an amount of memory, in bytes, that many owners draw on. It is
// safe for concurrent use.
type Budget struct {
	left atomic.Int64
	size int64
}

// NewBudget returns a budget of n bytes.
func NewBudget(n int64) *Budget {
	b := &Budget{size: n}
	b.left.Store(n)
	return b
}

// Take reserves n bytes, or says that they are not there.
func (b *Budget) Take(n int) bool {
	if b == nil {
		return true
	}
	if b.left.Add(-int64(n)) >= 0 {
		return true
	}
	b.left.Add(int64(n))
	return false
}

// spare reports whether a quarter is still free when n more bytes are taken.
func (b *Budget) spare(n int64) bool {
	return b == nil || (b.left.Load()-n)*4 >= b.size
}

// Give returns n bytes that were taken.
func (b *Budget) Give(n int) {
	if b != nil {
		b.left.Add(int64(n))
	}
}

// Used returns how many bytes are reserved now.
func (b *Budget) Used() int64 {
	if b == nil {
		return 0
	}
	return b.size - b.left.Load()
}
