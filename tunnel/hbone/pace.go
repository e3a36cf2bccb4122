package hbone

import "time"

// A stream's window follows what the line holds: up to four times what is delivered in
// a round trip. More would not make it faster, and whatever else is on the tunnel would
// wait behind it, in the buffers of a receiver that has not come to it yet. The round
// trip is therefore the line's, without those queues; see Conn.RTT.

// A line without length has to bridge the turns that the loops at both ends take:
// with turnSize for all streams that are busy together. What happens within turnTime
// is one turn's doing and tells nothing of the line.
const (
	turnTime = 500 * time.Microsecond
	turnSize = 768 << 10
)

// wanted returns the window that suits the stream: what is owed was delivered since
// the epoch began.
func (s *Stream) wanted(now time.Duration) int64 {
	c := s.conn
	within := func(d time.Duration) int64 {
		return int64(float64(s.owed) * float64(d) / float64(max(now-s.epoch, 2*turnTime)))
	}
	return 4*within(max(0, c.RTT()-turnTime)) + min(8*within(turnTime), turnSize/int64(c.company.streams()))
}

// busyTime is how long a stream is counted as busy.
const busyTime = 20 * time.Millisecond

// company counts the streams that something comes on.
type company struct {
	since     time.Duration
	number    uint32 // of this busyTime
	now, last int    // in it, and in the one before
}

// tick is told of the time.
func (k *company) tick(now time.Duration) {
	switch past := now - k.since; {
	case past < busyTime:
		return
	case past < 2*busyTime:
		k.last = k.now
	default:
		k.last = 0
	}
	k.since, k.now = now, 0
	k.number++
}

// count is told of each frame of a stream.
func (k *company) count(s *Stream) {
	if s.counted != k.number+1 {
		s.counted = k.number + 1
		k.now++
	}
}

// streams returns how many there are, at least one.
func (k *company) streams() int { return max(1, k.now, k.last) }
