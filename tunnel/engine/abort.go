package engine

import (
	"time"

	"golang.org/x/sys/unix"
)

// abortLimit bounds how long a reset waits for the bytes before it: closing
// with SO_LINGER 0 throws the socket's send queue away (socket(7)), and bytes
// towards a stream wait for its credit.
const abortLimit = 5 * time.Second

// remoteReset is a reset of the stream, or the loss of the tunnel: what came
// before it is delivered first, then the socket is reset. It is never a FIN,
// which would make a cut look like a complete answer.
//
// One reset is none: a peer that has said everything and takes no more, as
// ztunnel and Envoy do where a server closes first. It is that server's close(2):
// the end is a FIN, and what is sent to it afterwards is answered by a reset. Only
// servers may say so (RFC 9113 §8.1): of a peer that is our client it is a reset, or it
// could have any number of connections wait here whose streams are gone.
func (f *Flow) remoteReset(cause error) {
	if f.done || f.aborting {
		return
	}
	f.end.Why, f.end.Err = f.remoteResetWhy(cause), cause
	if f.end.Why == Closed {
		f.end.Err = nil
	}
	if !f.open || f.reset {
		f.abortNow()
		return
	}
	f.aborting = true
	f.giveUp = f.loop.now + abortLimit
	f.tryAbort()
}

// tryAbort resets the socket once everything before has been acknowledged, or
// the limit has passed; else it looks again later. It runs whenever pending has
// been written, and by the flow's timer. An orderly end has no limit, since our own
// client is all that it waits for, but waits all the same: to close a socket that has
// something unread is a reset.
func (f *Flow) tryAbort() {
	left, orderly := f.giveUp-f.loop.now, f.end.Why == Closed
	switch {
	case f.done:
	case left <= 0 && !orderly, f.pending.size == 0 && sendQueue(f.fd) == 0:
		f.abortNow()
	case f.pending.size == 0:
		f.setTimer(outqPoll(abortLimit-left), f.tryAbort)
	case !orderly:
		f.setTimer(left, f.tryAbort)
	}
}

// outqPoll is when to look at a send queue again that has been looked at for
// so long: the kernel has no event for an empty one.
func outqPoll(waited time.Duration) time.Duration {
	return min(max(waited/2, time.Millisecond), 50*time.Millisecond)
}

func (f *Flow) abortNow() {
	if f.end.Why != Closed {
		f.resetSocket()
	}
	f.finish(f.end.Why, f.end.Err)
}

// resetSocket makes the close to come a reset (socket(7), SO_LINGER). Without
// it the close is a FIN or a RST, as the input queue has it.
func (f *Flow) resetSocket() {
	if f.fd >= 0 {
		// It cannot fail on a socket that is ours.
		_ = unix.SetsockoptLinger(f.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
}

// afterReset deals with a socket that was reset while the stream lives: what it
// had received before is still readable and goes first, but not for ever, since
// the far side may not take it. Nothing can be written any more.
func (f *Flow) afterReset() {
	switch {
	case f.done:
		return
	case f.aborting:
		f.abortNow()
		return
	}
	if n := f.pending.drop(); n > 0 {
		f.stream.Delivered(f.loop.now, n)
		f.tunnel.mark()
	}
	if f.readEnd {
		f.sendReset(nil)
		return
	}
	f.readable, f.insist = true, true
	if f.giveUp == 0 {
		f.giveUp = f.loop.now + abortLimit
		f.setTimer(abortLimit, func() { f.sendReset(nil) })
	}
	f.enqueue()
}

func (f *Flow) setTimer(d time.Duration, fn func()) {
	if f.timer == nil {
		f.timer = new(Timer)
	}
	f.loop.After(f.timer, d, fn)
}
