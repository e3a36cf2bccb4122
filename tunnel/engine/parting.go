package engine

import (
	"time"

	"golang.org/x/sys/unix"

	"wishbone/tunnel/record"
)

// partLimit bounds how long a closed tunnel's connection lives on: half a
// megabyte, about what is ready to be sent at most, needs half a megabit a second.
const partLimit = 10 * time.Second

// parting is the connection of a tunnel that is over. What was sealed is sent,
// then close_notify and a FIN, and what still comes is thrown away until the
// peer has closed too. A plain close(2) would answer the next byte that comes (a
// WINDOW_UPDATE is always on its way) with a RST, and throw away what the peer
// has not yet acknowledged: the end of a stream that both sides think complete.
type parting struct {
	loop  *Loop
	rec   record.Conn // nil once it has said all
	fd    int
	place uint32
	timer Timer
}

// part takes over the connection of a tunnel that is out of the epoll. A
// connection that is broken, or whose loop ends, is closed at once.
func (l *Loop) part(rec record.Conn) {
	p := &parting{loop: l, rec: rec, fd: rec.FD()}
	if _, err := rec.Flush(); err == nil {
		p.place, err = l.add(p.fd, unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET, p)
		if err == nil {
			l.parting++
			l.After(&p.timer, partLimit, p.end)
			return
		}
	}
	// It is given up; there is nobody left to tell.
	_ = rec.Close()
}

func (p *parting) ready(uint32) {
	if p.rec == nil {
		p.discard()
		return
	}
	switch done, err := p.rec.Flush(); {
	case err != nil:
		p.end()
	case done:
		p.hangUp()
	}
}

// hangUp says the last words. The session closes its descriptor as it says
// close_notify, so that the connection goes on behind a duplicate.
func (p *parting) hangUp() {
	dup, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		p.end() // out of descriptors: the close has to do
		return
	}
	p.loop.remove(p.place, p.fd)
	// The duplicate is what counts now.
	_ = p.rec.Close()
	p.rec, p.fd = nil, dup
	err = unix.Shutdown(dup, unix.SHUT_WR)
	if err == nil {
		p.place, err = p.loop.add(dup, unix.EPOLLIN, p)
	}
	if err != nil { // the peer has reset it
		p.loop.Cancel(&p.timer)
		p.loop.parting--
		unix.Close(dup)
	}
}

// discard throws a piece of input away and looks for the end.
func (p *parting) discard() {
	n, err := readSocket(p.fd, p.loop.plain)
	if n == 0 && err != unix.EAGAIN {
		p.end()
	}
}

func (p *parting) end() {
	p.loop.Cancel(&p.timer)
	p.loop.remove(p.place, p.fd)
	p.loop.parting--
	if p.rec != nil {
		// Nothing hangs on how it ends any more.
		_ = p.rec.Close()
		return
	}
	unix.Close(p.fd)
}

func (p *parting) drop() { p.end() }
