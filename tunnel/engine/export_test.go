package engine

import "time"

// Advance moves the loop's clock on. It is called on the loop.
func (l *Loop) Advance(d time.Duration) { l.start = l.start.Add(-d) }

// Watched is how many descriptors are in the loop's epoll.
func (l *Loop) Watched() int { return len(l.slots) - len(l.free) }

// Parting is how many connections of closed tunnels are not yet done.
func (l *Loop) Parting() int { return l.parting }

// Held is how many bytes the flow holds for its socket.
func (f *Flow) Held() int { return f.pending.size }

// EarlyLimit is how many bytes of a flow go before the answer.
const EarlyLimit = earlyLimit

// Resting reports whether the listener is out of the epoll.
func (ln *Listener) Resting() bool { return !ln.on }

// AbortLimit and RestTime are for tests that advance the clock past them.
const (
	AbortLimit   = abortLimit
	RestTime     = restTime
	PartLimit    = partLimit
	HurriedLimit = hurriedLimit
)
