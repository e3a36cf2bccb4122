package engine

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/tunnel/hbone"
	"wishbone/tunnel/record"
)

// TunnelHandler decides what a tunnel cannot. Its methods run on the loop.
type TunnelHandler interface {
	// Request is a peer's wish for a connection. The handler calls
	// Flow.Serve and then Flow.Connect, or Flow.Refuse, now or later.
	Request(f *Flow, r hbone.Request)
	// Malformed tells of a request that was refused as not understood.
	Malformed(t *Tunnel, why string)
	// Overloaded tells of one that was refused because memory was short.
	Overloaded(t *Tunnel, r hbone.Request)
	// Room says that the number of streams may have changed.
	Room(t *Tunnel)
	// Closed says that the tunnel is gone, and all its flows with it. Err is
	// nil if it had come to its end in order.
	Closed(t *Tunnel, err error)
	// Parted says, after Closed, that its connection is gone as well: what was ready
	// was sent, and the peer has closed too, or ten seconds have passed.
	Parted(t *Tunnel)
}

// Tunnel is one tunnel connection. It belongs to its loop.
type Tunnel struct {
	loop  *Loop
	rec   record.Conn
	h2    *hbone.Conn
	up    TunnelHandler
	place uint32
	timer Timer
	due   func() // mark, made once

	queue    flowQueue // flows whose sockets may have something to send
	readable bool      // the session may have more to read
	insist   bool      // ErrAgain is not to be believed, once
	full     bool      // the socket takes no more for now
	listed   bool      // on the loop's dirty list
	doomed   bool      // Close was called; the next turn does it
	closed   bool
	cause    error
	broken   error // the socket takes no more, ever; what came is still read

	line   line
	gather *Flow // the flow whose DATA is being gathered in loop.iov
}

// unsentLimit is how much of what was written the kernel may hold unsent (tcp(7),
// TCP_NOTSENT_LOWAT). What waits there is beyond the turns that flows take, and
// the next flow's first byte waits behind all of it.
const unsentLimit = 256 << 10

// AddTunnel takes an established session over; after an error it is closed. The
// tunnel lives until either side closes it. TCP_NODELAY is set on rec's socket,
// as the net package does, and whatever keepalive it has stays.
func (l *Loop) AddTunnel(rec record.Conn, cfg hbone.Config, up TunnelHandler) (*Tunnel, error) {
	t := &Tunnel{loop: l, rec: rec, up: up}
	t.due = t.mark
	if err := unix.SetsockoptInt(rec.FD(), unix.SOL_TCP, unix.TCP_NOTSENT_LOWAT, unsentLimit); err != nil {
		return nil, errors.Join(fmt.Errorf("watch tunnel: TCP_NOTSENT_LOWAT: %w", err), rec.Close())
	}
	place, err := l.add(rec.FD(), unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET, t)
	if err != nil {
		return nil, errors.Join(err, rec.Close())
	}
	t.place = place
	t.h2 = hbone.New(cfg, (*tunnelEvents)(t), l.now)
	t.measure()
	// crypto/tls may already hold what epoll will never report.
	t.readable = true
	t.mark()
	return t, nil
}

// Room is how many streams could be opened now.
func (t *Tunnel) Room() int {
	if t.closed || t.doomed {
		return 0
	}
	return t.h2.Room()
}

// Streams is how many streams are open.
func (t *Tunnel) Streams() int { return t.h2.Streams() }

// Records is how many TLS records were sealed.
func (t *Tunnel) Records() uint64 { return t.rec.Records() }

// Loop is the loop that the tunnel belongs to.
func (t *Tunnel) Loop() *Loop { return t.loop }

// Starved reports whether flows wait because the peer's connection window is
// exhausted.
func (t *Tunnel) Starved() bool { return !t.queue.empty() && t.h2.Credit() == 0 }

// Draining reports whether either side has announced the end.
func (t *Tunnel) Draining() bool { return t.h2.Draining() }

// Drain lets no new streams begin; the tunnel closes after the last one.
func (t *Tunnel) Drain() {
	t.h2.Drain()
	t.mark()
}

// Close ends the tunnel in its next turn; cause is told to its flows and may be
// nil. What the tunnel had ready is still sent, if the peer takes it within ten
// seconds, though Closed is called before. There are no more requests, and the peer
// is told which ones were not looked at. It may be called from within any handler.
func (t *Tunnel) Close(cause error) {
	if !t.closed && !t.doomed {
		t.doomed, t.cause = true, cause
		t.h2.GoAway()
		t.mark()
	}
}

// teardown ends the tunnel and everything on it.
func (t *Tunnel) teardown(cause error) {
	t.closed = true
	l := t.loop
	l.Cancel(&t.timer)
	t.goodbye()
	if cause == nil {
		t.h2.Fail(errClosed)
	} else {
		t.h2.Fail(cause)
	}
	l.remove(t.place, t.rec.FD())
	t.up.Closed(t, cause)
	l.part(t.rec, func() { t.up.Parted(t) })
}

func (t *Tunnel) drop() { t.teardown(errStopped) }

var errClosed = errors.New("tunnel closed")

// goodbye seals what the state machine still has to say: the ends of streams,
// and a GOAWAY with the reason. It bounds what a peer that does not read can make
// us keep.
func (t *Tunnel) goodbye() {
	for t.h2.HasControl() && t.rec.Queued() < 2*stagingSize {
		if t.rec.Seal(t.h2.AppendControl(t.loop.staging[:0])) != nil {
			return
		}
	}
}

// ready hears of the tunnel's socket.
func (t *Tunnel) ready(events uint32) {
	const end = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	if events&^unix.EPOLLOUT != 0 {
		// Neither an end nor what comes before a turn has read to the end of what was
		// there is told of again; see record.Conn.Read.
		t.insist = t.insist || t.readable || events&end != 0
		t.readable = true
	}
	if events&unix.EPOLLOUT != 0 && t.broken == nil {
		t.full = false
	}
	t.mark()
}

// mark puts the tunnel on the list of those that get a turn this round.
func (t *Tunnel) mark() {
	if !t.listed && !t.closed {
		t.listed = true
		t.loop.dirty = append(t.loop.dirty, t)
	}
}

// turn reads what has come, does what is due, and sends what is ready.
func (t *Tunnel) turn() {
	if t.closed {
		return
	}
	err := t.work()
	switch {
	case t.doomed:
		t.teardown(t.cause)
		return
	case t.h2.Err() == nil && t.h2.Done() && (!t.h2.HasControl() || t.broken != nil):
		t.teardown(nil)
		return
	case err != nil:
		t.teardown(err)
		return
	}
	t.arm()
	if t.readable || t.canSend() {
		t.mark()
	}
}

// work is a turn's work. A tunnel whose socket takes no more is read to its end
// first: the peer may have said its last words before it closed.
func (t *Tunnel) work() error {
	if err := t.read(); err != nil {
		return cmp.Or(t.broken, err)
	}
	if t.broken != nil && !t.readable {
		return t.broken
	}
	if t.loop.now-t.line.measured >= time.Second {
		t.measure()
	}
	if err := t.h2.Tick(t.loop.now); err != nil {
		return err
	}
	return t.send()
}

// arm sets the timer for what is due next.
func (t *Tunnel) arm() {
	t.loop.At(&t.timer, max(t.h2.Deadline(), t.loop.now+time.Millisecond), t.due)
}

// canSend reports whether another turn would get something out.
func (t *Tunnel) canSend() bool {
	return !t.full && (t.h2.HasControl() || t.h2.Credit() > 0 && !t.queue.empty())
}

// readTurn is how often a turn fills the plaintext buffer, so that a busy
// tunnel leaves time for its neighbours.
const readTurn = 4

// read opens what has come and lets the state machine see it.
func (t *Tunnel) read() error {
	for i := 0; t.readable && i < readTurn; i++ {
		n, err := t.fill()
		if n > 0 {
			if err := t.receive(t.loop.plain[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// fill reads records until the plaintext buffer is full or there are no more.
func (t *Tunnel) fill() (int, error) {
	n, err := t.rec.Read(t.loop.plain)
	if errors.Is(err, record.ErrAgain) {
		t.readable, t.insist = t.insist, false
		err = nil
	}
	return n, err
}

// receive feeds the state machine and delivers what it handed on.
func (t *Tunnel) receive(p []byte) error {
	err := t.h2.Receive(t.loop.now, p)
	t.deliver()
	return err
}

// deliver writes the gathered DATA of one flow to its socket.
func (t *Tunnel) deliver() {
	if f := t.gather; f != nil {
		t.gather = nil
		f.deliver(0)
	}
}

// send gathers, seals and writes a batch, unless the socket is full. The next one has
// to wait for the next turn: flows whose sockets were emptied have their place in it
// only after the loop has heard of what came since.
func (t *Tunnel) send() error {
	if t.full {
		return nil
	}
	if !t.flush() {
		return nil
	}
	buf := t.collect(t.loop.staging[:0])
	if len(buf) == 0 {
		return nil
	}
	if err := t.rec.Seal(buf); err != nil {
		return err
	}
	t.flush()
	return nil
}

// flush writes what is sealed and reports whether the socket took all of it.
func (t *Tunnel) flush() bool {
	done, err := t.rec.Flush()
	t.full = !done
	if err != nil {
		t.broken, t.readable = err, true
	}
	return done
}

// smallFrame bounds a frame while other flows wait for their turn. With its header it
// fills four records.
const smallFrame = 64<<10 - header

// leastRoom is the space below which no more DATA is put into a batch.
const leastRoom = 4 << 10

// collect fills buf with control frames and with the flows' DATA, in turn.
func (t *Tunnel) collect(buf []byte) []byte {
	buf = t.h2.AppendControl(buf)
	for !t.queue.empty() && t.h2.Credit() > 0 && !t.h2.HasControl() {
		room, least := cap(buf)-len(buf)-header, leastRoom
		if !t.queue.single() {
			least = smallFrame // the rest of a turn that is cut short would be lost
		}
		if room < least {
			break
		}
		f := t.queue.pop()
		if !t.queue.empty() {
			room = min(room, smallFrame)
		}
		buf = f.fill(buf, room)
		if len(buf) < cap(buf) {
			buf = t.h2.AppendControl(buf)
		}
	}
	return buf
}

// tunnelEvents is the hbone.Handler of a Tunnel.
type tunnelEvents Tunnel

func (e *tunnelEvents) Request(s *hbone.Stream, r hbone.Request) {
	t := (*Tunnel)(e)
	t.loop.home.begun++
	f := &Flow{loop: t.loop, tunnel: t, stream: s, fd: -1, began: t.loop.now, inbound: true}
	s.Owner = f
	t.up.Request(f, r)
}

func (e *tunnelEvents) Malformed(why string) { e.up.Malformed((*Tunnel)(e), why) }

func (e *tunnelEvents) Overloaded(r hbone.Request) { e.up.Overloaded((*Tunnel)(e), r) }

func (e *tunnelEvents) Accepted(s *hbone.Stream) { s.Owner.(*Flow).accepted() }

func (e *tunnelEvents) Refused(s *hbone.Stream, r hbone.Refusal) { s.Owner.(*Flow).refused(r) }

func (e *tunnelEvents) Data(s *hbone.Stream, p []byte) {
	f := s.Owner.(*Flow)
	t := (*Tunnel)(e)
	if t.gather != f {
		t.deliver()
		t.gather = f
	}
	f.take(p)
	if len(t.loop.iov) == cap(t.loop.iov) {
		t.deliver()
	}
}

func (e *tunnelEvents) End(s *hbone.Stream) {
	f := s.Owner.(*Flow)
	t := (*Tunnel)(e)
	if t.gather == f { // the FIN goes with the last bytes, in one segment
		t.gather = nil
		f.deliver(unix.MSG_MORE)
	}
	t.deliver()
	f.remoteEnd()
}

func (e *tunnelEvents) Reset(s *hbone.Stream, cause error) {
	(*Tunnel)(e).deliver()
	s.Owner.(*Flow).remoteReset(cause)
}

func (e *tunnelEvents) Writable(s *hbone.Stream) { s.Owner.(*Flow).enqueue() }

func (e *tunnelEvents) Room() { e.up.Room((*Tunnel)(e)) }
