package engine

import (
	"time"

	"golang.org/x/sys/unix"
)

// acceptBurst is how many connections are taken before other work has a turn.
const acceptBurst = 64

// Listener watches a listening socket.
type Listener struct {
	loop   *Loop
	fd     int
	place  uint32
	on     bool // in the epoll
	closed bool
	accept func() error
	timer  Timer
	quota  int    // connections that are taken at once
	used   uint64 // the round in which the quota was last used up
}

// Listen watches fd, which stays the caller's: it is closed by whoever opened
// it, after Close. accept takes one connection and returns EAGAIN when there
// was none; on any other error the listener rests for a while (descriptors may
// have run out) and then goes on.
func (l *Loop) Listen(fd int, accept func() error) (*Listener, error) {
	ln := &Listener{loop: l, fd: fd, accept: accept, quota: 1}
	return ln, ln.resume()
}

func (ln *Listener) resume() error {
	place, err := ln.loop.add(ln.fd, unix.EPOLLIN, ln)
	if err == nil {
		ln.place, ln.on = place, true
	}
	return err
}

// ready takes as many connections as there seem to be: to find that there is no other
// costs as much as to take one (accept(2) makes the socket first), and epoll goes on
// to tell of those that are left.
func (ln *Listener) ready(uint32) {
	if ln.used+1 == ln.loop.round {
		ln.quota = min(2*ln.quota, acceptBurst)
	}
	for i := 0; i < ln.quota && ln.on; i++ {
		switch err := ln.accept(); err {
		case nil:
		case unix.EAGAIN:
			ln.quota = max(1, i)
			return
		default:
			ln.rest()
			return
		}
	}
	ln.used = ln.loop.round
}

// restTime is how long a listener rests after a failure.
const restTime = 100 * time.Millisecond

func (ln *Listener) rest() {
	ln.pause()
	if ln.closed {
		return
	}
	ln.loop.After(&ln.timer, restTime, func() {
		if ln.resume() != nil {
			ln.rest()
		}
	})
}

func (ln *Listener) pause() {
	if ln.on {
		ln.loop.remove(ln.place, ln.fd)
		ln.on = false
	}
}

func (ln *Listener) drop() { ln.Close() }

// Close stops watching. It may be called from within accept.
func (ln *Listener) Close() {
	ln.closed = true
	ln.pause()
	ln.loop.Cancel(&ln.timer)
}
