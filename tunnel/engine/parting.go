package engine

import (
	"time"

	"golang.org/x/sys/unix"

	"wishbone/tunnel/record"
)

// partLimit bounds how long a closed tunnel's connection lives on: half a
// megabyte, about what is ready to be sent at most, needs half a megabit a second.
const partLimit = 10 * time.Second

// hurriedLimit is the bound when there is a hurry: what a living peer needs.
const hurriedLimit = time.Second

// parting is the connection of a tunnel that is over. What was sealed is sent,
// then close_notify and a FIN, and what still comes is thrown away until the
// peer has closed too. A plain close(2) would answer the next byte that comes (a
// WINDOW_UPDATE is always on its way) with a RST, and throw away what the peer
// has not yet acknowledged: the end of a stream that both sides think complete.
type parting struct {
	loop  *Loop
	rec   record.Conn
	gone  func() // is told of the end
	said  bool   // all of it
	place uint32
	timer Timer
	until time.Duration
}

// part takes over the connection of a tunnel that is out of the epoll, and calls gone
// when it is closed. A connection that is broken, or whose loop ends, is so at once.
func (l *Loop) part(rec record.Conn, gone func()) {
	p := &parting{loop: l, rec: rec, gone: gone}
	l.parting++
	if p.say() {
		p.until = l.now + partLimit
		p.arm()
	}
}

// arm sets the timer, which leaves less time when there is a hurry.
func (p *parting) arm() {
	if p.loop.hurried {
		p.until = min(p.until, p.loop.now+hurriedLimit)
	}
	p.loop.At(&p.timer, p.until, p.end)
}

// say goes on with the last words, and watches the connection for what comes
// next: room for more of them, or the peer's end. It reports false when the
// connection is over.
func (p *parting) say() bool {
	var err error
	if p.said, err = p.rec.CloseWrite(); err == nil {
		events := uint32(unix.EPOLLIN)
		if !p.said {
			events = unix.EPOLLOUT
		}
		p.place, err = p.loop.add(p.rec.FD(), events, p)
	}
	if err != nil { // the peer has reset it, or the loop ends
		p.close()
	}
	return err == nil
}

func (p *parting) ready(uint32) {
	if p.said {
		p.discard()
		return
	}
	p.loop.remove(p.place, p.rec.FD())
	p.say()
}

// discard throws a piece of input away and looks for the end.
func (p *parting) discard() {
	n, err := readSocket(p.rec.FD(), p.loop.plain)
	if n == 0 && err != unix.EAGAIN {
		p.end()
	}
}

// end takes the connection out of the epoll and closes it.
func (p *parting) end() {
	p.loop.remove(p.place, p.rec.FD())
	p.close()
}

func (p *parting) close() {
	p.loop.Cancel(&p.timer)
	p.loop.parting--
	// Nothing hangs on how it ends any more.
	_ = p.rec.Close()
	p.gone()
}

func (p *parting) drop() { p.end() }
