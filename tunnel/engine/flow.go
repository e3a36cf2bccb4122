package engine

import (
	"fmt"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"wishbone/tunnel/hbone"
)

// FlowHandler decides what a flow cannot. Its methods run on the loop.
type FlowHandler interface {
	// Answered is the peer's answer to Flow.Open: nil when it has connected,
	// and bytes flow from now on. Otherwise the handler calls Flow.Open again
	// (on another tunnel, if Refusal.Retry) or Flow.Abort.
	Answered(f *Flow, r *hbone.Refusal)
	// Connected says how Flow.Connect has ended. After nil the handler calls
	// Flow.Accept; after an error, Flow.Connect again or Flow.Refuse.
	Connected(f *Flow, err error)
	// Ended is called exactly once, when the flow is over and its socket is
	// closed.
	Ended(f *Flow, e End)
}

// End says how a flow ended.
type End struct {
	Why      Why
	Err      error // more, for the log; nil after an orderly end
	Sent     uint64
	Received uint64 // bytes out of and into this gateway's socket
	Early    uint64 // bytes that went before the answer
	Wasted   uint64 // of them: all if the answer was not yes, and no socket got any
	Took     time.Duration
}

// Why is the reason for the end of a flow, of a closed list.
type Why string

// The reasons.
const (
	Closed      Why = "closed"       // both sides closed, in order
	ClientReset Why = "client_reset" // the client reset the connection
	ServerReset Why = "server_reset" // the server did
	PeerCut     Why = "peer_cut"     // the peer gateway cut the stream
	TunnelLost  Why = "tunnel_lost"  // the tunnel broke
	Cut         Why = "cut"          // we cut it: drain, policy, shutdown
	Replaced    Why = "replaced"     // its client began anew from the same port
	Unserved    Why = "refused"      // it never began
)

// Whys lists every Why, for metrics with a bounded number of series.
func Whys() []Why {
	return []Why{Closed, ClientReset, ServerReset, PeerCut, TunnelLost, Cut, Replaced, Unserved}
}

// Flow joins a socket to a stream. It belongs to its loop.
type Flow struct {
	loop    *Loop
	tunnel  *Tunnel
	stream  *hbone.Stream
	handler FlowHandler
	next    *Flow // in Tunnel.queue
	timer   *Timer
	pending chunks // received and not yet taken by the socket

	fd    int // -1 while there is no socket
	place uint32

	began          time.Duration
	sent, received uint64
	early          int // bytes that were sent, or came, before the answer
	end            End

	inbound    bool // the socket is the server's
	queued     bool // in Tunnel.queue
	connecting bool
	open       bool          // bytes flow
	readable   bool          // the socket may have something
	insist     bool          // a short read proves nothing: read until there is no more
	reset      bool          // the socket was reset; sticky (see sock.go)
	readEnd    bool          // we read the socket's FIN
	wantEnd    bool          // the stream has ended; FIN follows what is pending
	writeEnd   bool          // we sent the FIN
	aborting   bool          // RST follows what is pending
	giveUp     time.Duration // until when bytes before a reset may take
	done       bool
}

// NewFlow takes a captured connection over: from now on the loop owns fd, which nobody
// has a duplicate of, and h hears of everything. Its options are [intercept.Listen]'s. Its
// stream comes with Open.
func (l *Loop) NewFlow(fd int, h FlowHandler) (*Flow, error) {
	l.home.begun++
	f := &Flow{loop: l, handler: h, fd: fd, began: l.now}
	if err := f.watch(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return f, nil
}

// watch registers the socket once and for everything; edges tell what changed.
func (f *Flow) watch() error {
	const events = unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET
	place, err := f.loop.add(f.fd, events, f)
	f.place = place
	return err
}

// Open asks the peer behind t for the flow's target. Errors are hbone's: the
// stream did not begin, and nothing was sent. If the client has gone meanwhile
// the flow ends, and the peer is not troubled.
func (f *Flow) Open(t *Tunnel, r hbone.Request) error {
	if f.done {
		return nil
	}
	if t.closed || t.doomed {
		return hbone.ErrDraining
	}
	if outcome(f.fd) != nil {
		f.reset = true
		f.abandon()
		return nil
	}
	s, err := t.h2.Open(f.loop.now, r, f)
	if err != nil {
		return err
	}
	if f.queued { // for early data, before another answer
		f.tunnel.queue.remove(f)
	}
	f.tunnel, f.stream, f.early = t, s, 0
	t.mark()
	f.enqueue()
	return nil
}

// Serve makes h hear of an inbound flow.
func (f *Flow) Serve(h FlowHandler) { f.handler = h }

// Connect waits for the connection attempt on fd, which is the loop's from now on and
// has [intercept.Connect]'s options, to end. A flow that is over closes it.
func (f *Flow) Connect(fd int) error {
	if f.done {
		return unix.Close(fd)
	}
	f.fd = fd
	if err := f.watch(); err != nil {
		unix.Close(fd)
		f.fd = -1
		return err
	}
	f.connecting = true
	return nil
}

// Accept answers the peer that the destination is connected.
func (f *Flow) Accept() {
	if f.done {
		return
	}
	f.stream.Accept()
	f.open = true
	f.received += uint64(f.early)
	f.tunnel.mark()
	switch {
	case f.reset:
		f.afterReset()
	case f.pending.size > 0:
		f.drain() // what came before the answer
	case f.wantEnd:
		f.shutdown() // the peer half-closed before it had its answer
	}
	f.enqueue()
}

// Refuse answers an inbound flow that nothing is connected, and ends it.
func (f *Flow) Refuse(r hbone.Reason, cause error) {
	if f.done {
		return
	}
	f.stream.Refuse(r)
	f.tunnel.mark()
	f.finish(Unserved, cause)
}

// Decline ends an inbound flow that nothing was done for: its peer may ask again on
// another tunnel (RFC 9113 §8.7, REFUSED_STREAM).
func (f *Flow) Decline(cause error) {
	if f.done {
		return
	}
	f.cancelStream(http2.ErrCodeRefusedStream)
	f.finish(Unserved, cause)
}

// Abort ends the flow now: the socket with a reset, the stream with CANCEL.
func (f *Flow) Abort(why Why, cause error) {
	if f.done {
		return
	}
	f.cancelStream(http2.ErrCodeCancel)
	f.resetSocket()
	f.finish(why, cause)
}

// Tunnel is the tunnel that carries the flow, or nil before Open.
func (f *Flow) Tunnel() *Tunnel { return f.tunnel }

// Loop is the loop that the flow belongs to.
func (f *Flow) Loop() *Loop { return f.loop }

// Traffic is how many bytes the socket has given and taken so far.
func (f *Flow) Traffic() (sent, received uint64) { return f.sent, f.received }

// Began is when the flow began, on the loop's clock.
func (f *Flow) Began() time.Duration { return f.began }

// Done reports whether the flow is over.
func (f *Flow) Done() bool { return f.done }

// ready hears of the socket.
func (f *Flow) ready(events uint32) {
	if f.connecting {
		f.connected(events)
		return
	}
	f.note(events)
	switch {
	case !f.open && f.reset:
		f.abandon()
	case !f.open:
	case f.reset:
		f.afterReset()
	case events&unix.EPOLLOUT != 0:
		f.drain()
	}
	f.enqueue()
}

// note remembers what an event says. A short read shows that the socket is
// empty (epoll(7)), so that the next bytes will be an edge; but the end that
// stands behind the bytes was told with them, and a read stops short before an
// urgent byte (tcp(7)). Both have to be fetched by reading on.
func (f *Flow) note(events uint32) {
	const end = unix.EPOLLRDHUP | unix.EPOLLHUP | unix.EPOLLERR
	if events&(unix.EPOLLIN|unix.EPOLLPRI|end) != 0 {
		f.readable = true
	}
	if events&(unix.EPOLLPRI|end) != 0 {
		f.insist = true
	}
	if events&unix.EPOLLERR != 0 {
		f.reset = true
	}
}

// connected ends a connection attempt.
func (f *Flow) connected(events uint32) {
	if events&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) == 0 {
		return
	}
	f.connecting = false
	f.note(events)
	var err error
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		err = outcome(f.fd)
	}
	switch err {
	case nil:
	case unix.ECONNRESET, unix.EPIPE:
		// It was connected, and reset since: a refusal is ECONNREFUSED. The
		// server may have said something before; see Accept.
		f.reset = true
	default:
		f.closeSocket()
		f.reset, f.readable, f.insist = false, false, false // for the next attempt
		f.handler.Connected(f, err)
		return
	}
	f.handler.Connected(f, nil)
}

// abandon ends a flow whose client has gone before the peer has answered. It is
// the client's reset all the same (RFC 9113 §8.5), not a cut of ours.
func (f *Flow) abandon() {
	f.cancelStream(http2.ErrCodeConnect)
	f.finish(f.localReset(), fmt.Errorf("gone before the peer had answered"))
}

// localReset and remoteResetWhy name a reset by the side that it came from.
func (f *Flow) localReset() Why {
	if f.inbound {
		return ServerReset
	}
	return ClientReset
}

func (f *Flow) remoteResetWhy(cause error) Why {
	switch {
	case !hbone.IsReset(cause):
		return TunnelLost
	case f.open && f.wantEnd && !f.inbound && hbone.IsGoodbye(cause):
		return Closed
	case !hbone.IsTCPReset(cause):
		return PeerCut
	case f.inbound:
		return ClientReset
	}
	return ServerReset
}

// accepted is the peer's 200.
func (f *Flow) accepted() {
	f.open = true
	f.handler.Answered(f, nil)
	if err := f.takeEarly(); err != nil {
		f.sendReset(err)
		return
	}
	f.enqueue()
}

// refused is any other answer.
func (f *Flow) refused(r hbone.Refusal) {
	f.stream = nil
	f.handler.Answered(f, &r)
}

// enqueue gives the flow a place among those that may send.
func (f *Flow) enqueue() {
	if (f.open || f.stream != nil && f.stream.Early()) && f.readable && !f.readEnd && !f.done && !f.aborting {
		f.tunnel.queue.push(f)
		f.tunnel.mark()
	}
}

// fill reads from the socket straight into buf, at most room bytes of DATA.
func (f *Flow) fill(buf []byte, room int) []byte {
	if f.stream == nil || f.readEnd || f.aborting || !f.readable {
		return buf
	}
	if !f.open {
		return f.fillEarly(buf, room)
	}
	n := min(f.stream.Credit(), room)
	if n == 0 {
		return buf // collect saw to the connection's window; for the stream's, Writable comes
	}
	at := len(buf)
	m, err := readSocket(f.fd, buf[at+header:at+header+n])
	switch {
	case err == unix.EAGAIN:
		f.readable = false
		return buf
	case err != nil:
		f.sendReset(err)
		return buf
	case m == 0:
		f.localEnd()
		return buf
	}
	f.stream.PutData((*[header]byte)(buf[at:at+header]), m)
	f.sent += uint64(m)
	f.readable = m == n || f.insist
	f.enqueue()
	return buf[:at+header+m]
}

// localEnd is the socket's end of input: a FIN, or what looks like one after a
// reset.
func (f *Flow) localEnd() {
	if f.reset {
		f.sendReset(nil)
		return
	}
	f.readEnd = true
	f.stream.End()
	f.maybeFinish()
}

// sendReset passes a reset of the socket on (RFC 9113 §8.5: CONNECT_ERROR). So
// it does with other errors that end a connection: a keepalive without answer,
// say. Closing must never look like an orderly end then.
func (f *Flow) sendReset(cause error) {
	if cause == unix.ECONNRESET || cause == unix.EPIPE {
		cause = nil // as the name of the end says
	}
	f.cancelStream(http2.ErrCodeConnect)
	f.resetSocket()
	f.finish(f.localReset(), cause)
}

// take keeps p, a piece of the loop's plaintext buffer, for the socket.
func (f *Flow) take(p []byte) {
	if !f.open {
		f.early += len(p)
		f.pending.add(p)
		return
	}
	f.received += uint64(len(p))
	switch {
	case f.reset:
		f.stream.Delivered(f.loop.now, len(p)) // to nobody
	case f.pending.size > 0:
		f.pending.add(p)
	default:
		f.loop.iov = appendIovec(f.loop.iov, p)
	}
}

// deliver writes what take has gathered, with flags as of send(2); what the socket
// refuses waits.
func (f *Flow) deliver(flags int) {
	iov := f.loop.iov
	f.loop.iov = iov[:0]
	if len(iov) == 0 || f.done { // an end has already given up what was gathered
		return
	}
	n, err := writeSocket(f.fd, iov, flags)
	if err != nil && err != unix.EAGAIN {
		f.reset = true
		f.stream.Delivered(f.loop.now, iovecLen(iov))
		f.afterReset()
		return
	}
	f.stream.Delivered(f.loop.now, n)
	for _, v := range iov {
		p := iovecBytes(v)
		skip := min(n, len(p))
		n -= skip
		f.pending.add(p[skip:])
	}
}

// drain writes what waits for the socket.
func (f *Flow) drain() {
	n, err := f.pending.writeTo(f.fd)
	if n > 0 {
		f.stream.Delivered(f.loop.now, n)
		f.tunnel.mark()
	}
	switch {
	case err != nil:
		f.reset = true
		f.afterReset()
	case f.pending.size == 0:
		f.drained()
	}
}

// drained does what had to wait until everything was written.
func (f *Flow) drained() {
	if f.wantEnd && !f.writeEnd {
		f.shutdown()
	}
	if f.aborting {
		f.tryAbort()
	}
}

// remoteEnd is the end of the stream's input.
func (f *Flow) remoteEnd() {
	f.wantEnd = true
	if f.open && f.pending.size == 0 {
		f.shutdown()
	}
}

// shutdown passes a half-close on, or the end of the second half: then close(2)
// does it.
func (f *Flow) shutdown() {
	f.writeEnd = true
	if f.readEnd {
		f.maybeFinish()
		return
	}
	if err := unix.Shutdown(f.fd, unix.SHUT_WR); err != nil { // ENOTCONN
		f.reset = true
		f.afterReset()
	}
}

// maybeFinish ends the flow when both directions have ended.
func (f *Flow) maybeFinish() {
	if f.readEnd && f.writeEnd {
		f.finish(Closed, nil)
	}
}

// finish closes the socket and tells the handler, once.
func (f *Flow) finish(why Why, cause error) {
	if f.done {
		return
	}
	f.done = true
	if f.timer != nil {
		f.loop.Cancel(f.timer)
	}
	f.pending.drop()
	if f.stream != nil {
		f.stream.Discard()
	}
	f.closeSocket()
	f.stream = nil
	f.end = End{Why: why, Err: cause, Sent: f.sent, Received: f.received, Early: uint64(f.early), Took: f.loop.now - f.began}
	if !f.open {
		f.end.Wasted = f.end.Early
	}
	if f.handler != nil {
		f.handler.Ended(f, f.end)
	}
}

func (f *Flow) closeSocket() {
	if f.fd < 0 {
		return
	}
	// With its only descriptor the socket leaves the epoll (epoll(7)). What a process that
	// is being started has inherited for a moment could still be told of: of an empty slot.
	f.loop.vacate(f.place)
	unix.Close(f.fd)
	f.fd = -1
}

// cancelStream resets the stream if it still lives.
func (f *Flow) cancelStream(code http2.ErrCode) {
	if f.stream != nil && !f.stream.Gone() {
		f.stream.Reset(code)
		f.tunnel.mark()
	}
}

func (f *Flow) drop() { f.Abort(Cut, errStopped) }
