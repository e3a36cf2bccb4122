package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
)

// conversation is what the two ends of one connection do. The actor is the end
// that the name speaks of; each is held with the client as actor and with the
// server. Where one end has to wait for what the other, or its kernel, has
// done, it does: so that a direct connection has only one outcome.
type conversation struct {
	name         string
	actor, other func(e *talker)
	reset        bool // the actor's, as the gateways name the end
}

// talker is one end of a connection, and what it has seen so far.
type talker struct {
	*net.TCPConn
	t            *testing.T
	seed         uint64
	mine, theirs chan struct{} // cues that pass beside the connection
	saw          observation
}

// observation is what an application can tell of a connection.
type observation struct {
	bytes int64
	sum   [sha256.Size]byte // of the bytes
	fate  string            // how reading, and then writing, ended
}

func (o observation) String() string {
	return fmt.Sprintf("%d bytes (%x), %s", o.bytes, o.sum[:4], o.fate)
}

// fate names the way that a call ended, as a program sees it.
func fate(err error) string {
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return "end"
	case errors.Is(err, syscall.ECONNRESET):
		return "ECONNRESET"
	case errors.Is(err, syscall.EPIPE):
		return "EPIPE"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "nothing"
	}
	return err.Error()
}

// text is n bytes that are known beforehand.
func text(seed uint64, n int) []byte {
	b := make([]byte, n)
	// It never fails.
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

func (e *talker) send(n int) {
	if _, err := e.Write(text(e.seed, n)); err != nil {
		e.saw.fate += "send: " + fate(err) + "; "
	}
}

func (e *talker) readAll() {
	h := sha256.New()
	n, err := io.Copy(h, onlyReader{e.TCPConn})
	e.saw.bytes += n
	h.Sum(e.saw.sum[:0])
	e.saw.fate += fate(err)
}

// onlyReader hides that a connection could be spliced.
type onlyReader struct{ io.Reader }

func (e *talker) read(n int) {
	if _, err := io.ReadFull(e, make([]byte, n)); err != nil {
		e.saw.fate += "early " + fate(err)
	}
	e.saw.bytes += int64(n)
}

// writeOn writes until it fails.
func (e *talker) writeOn() {
	for {
		if _, err := e.Write(make([]byte, 1000)); err != nil {
			e.saw.fate += ", then " + fate(err)
			return
		}
	}
}

func (e *talker) try(err error) {
	if err != nil {
		e.t.Error(err)
	}
}

func (e *talker) fin()     { e.try(e.CloseWrite()) }
func (e *talker) linger0() { e.try(e.SetLinger(0)); e.try(e.Close()) }
func (e *talker) tell()    { e.mine <- struct{}{} }

// disconnect resets the connection and keeps the socket (connect(2), AF_UNSPEC).
func (e *talker) disconnect() {
	withFD(e.t, e.TCPConn, func(fd int) {
		unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
		_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
		if errno != 0 {
			e.t.Errorf("disconnect: %v", errno)
		}
	})
}

func (e *talker) hear() {
	select {
	case <-e.theirs:
	case <-time.After(patience):
		e.t.Error("the other end never got so far")
	}
}

// acknowledged waits until the other end, or whoever stands for it, has
// everything that was sent.
func (e *talker) acknowledged() { awaitQueue(e.t, e.TCPConn, unix.SIOCOUTQ, 0) }

// unread waits until n bytes are here that nobody has read.
func (e *talker) unread(n int) { awaitQueue(e.t, e.TCPConn, unix.SIOCINQ, n) }

// withFD gives the descriptor of c to f.
func withFD(t *testing.T, c syscall.Conn, f func(fd int)) {
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { f(int(fd)) })
	}
	if err != nil {
		t.Error(err)
	}
}

// awaitQueue waits until one of a socket's queues holds n bytes (tcp(7)). That
// of a connection that has gone does.
func awaitQueue(t *testing.T, c *net.TCPConn, request uint, n int) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-tick.C {
		done := false
		withFD(t, c, func(fd int) {
			queued, err := unix.IoctlGetInt(fd, request)
			done = err != nil || queued == n
		})
		if done {
			return
		}
	}
	t.Errorf("a queue of %s never held %d bytes", c.LocalAddr(), n)
}

var conversations = []conversation{
	{name: "FIN first",
		actor: func(e *talker) { e.send(100); e.fin(); e.readAll() },
		other: func(e *talker) { e.readAll(); e.send(200) }},
	{name: "both FIN at once",
		actor: func(e *talker) { e.send(100); e.fin(); e.readAll() },
		other: func(e *talker) { e.send(200); e.fin(); e.readAll() }},
	{name: "half-close, then a mebibyte the other way",
		actor: func(e *talker) { e.fin(); e.readAll() },
		other: func(e *talker) { e.readAll(); e.send(1 << 20) }},
	{name: "speaks first",
		actor: func(e *talker) { e.send(50); e.readAll() },
		other: func(e *talker) { e.read(50); e.send(60) }},
	{name: "nothing sent at all",
		actor: func(e *talker) {},
		other: func(e *talker) { e.readAll() }},
	{name: "nothing sent, half-closed",
		actor: func(e *talker) { e.fin(); e.readAll() },
		other: func(e *talker) { e.readAll() }},
	{name: "reset with nothing sent", reset: true,
		actor: func(e *talker) { e.hear(); e.disconnect() },
		other: func(e *talker) { e.tell(); e.readAll() }},
	{name: "reset between words", reset: true,
		actor: func(e *talker) { e.send(1); e.read(1); e.hear(); e.disconnect() },
		other: func(e *talker) { e.read(1); e.send(1); e.tell(); e.readAll() }},
	{name: "reset while the other sends", reset: true,
		actor: func(e *talker) { e.read(1 << 20); e.disconnect() },
		other: func(e *talker) { e.writeOn() }},
	{name: "reset after FIN", reset: true,
		actor: func(e *talker) { e.send(10); e.fin(); e.hear(); e.disconnect(); e.tell() },
		other: func(e *talker) { e.readAll(); e.tell(); e.hear(); e.writeOn() }},
	{name: "linger 0 behind data", reset: true,
		actor: func(e *talker) { e.send(100_000); e.acknowledged(); e.linger0(); e.tell() },
		other: func(e *talker) { e.hear(); e.readAll() }},
	{name: "linger 0 behind data, read meanwhile", reset: true,
		actor: func(e *talker) { e.send(8 << 20); e.acknowledged(); e.linger0() },
		other: func(e *talker) { e.readAll() }},
	{name: "linger 0 after FIN", reset: true,
		actor: func(e *talker) { e.fin(); e.hear(); e.linger0(); e.tell() },
		other: func(e *talker) { e.readAll(); e.tell(); e.hear(); e.writeOn() }},
	{name: "close with unread data", reset: true,
		actor: func(e *talker) { e.unread(1000) },
		other: func(e *talker) { e.send(1000); e.readAll() }},
	{name: "close with unread data, behind data", reset: true,
		actor: func(e *talker) { e.unread(1000); e.send(50_000); e.acknowledged(); e.Close(); e.tell() },
		other: func(e *talker) { e.send(1000); e.hear(); e.readAll() }},
	{name: "close while the other goes on", reset: true,
		actor: func(e *talker) { e.send(10) },
		other: func(e *talker) { e.readAll(); e.writeOn() }},
	{name: "a byte at a time",
		actor: func(e *talker) {
			for range 200 {
				e.send(1)
				e.read(1)
			}
			e.fin()
			e.readAll()
		},
		other: func(e *talker) {
			for range 200 {
				e.read(1)
				e.send(1)
			}
			e.readAll()
		}},
}

var actors = []string{"client", "server"}

// TestFidelity: both ends of a connection observe through the tunnel what they
// observed without it, on the same hosts, with early data too. Each conversation is
// first held twice over routers that know the way, with one outcome.
func TestFidelity(t *testing.T) {
	p := newWorld(t)
	direct := map[string][2]observation{}
	everyConversation(t, p, func(t *testing.T, c conversation, actor string, ln net.Listener, name string) {
		direct[name], _ = c.hold(t, p.Client, actor, ln, false)
		if again, _ := c.hold(t, p.Client, actor, ln, false); again != direct[name] {
			t.Fatalf("a direct connection has more than one outcome: %v, and %v", direct[name], again)
		}
	})
	asDirect(t, p, direct, false)
	if n := earlyOf(t, p.West) + earlyOf(t, p.East); n != 0 {
		t.Errorf("%v connections had early data, and nobody has asked for it", n)
	}
	if err := errors.Join(p.west.Kill(), p.east.Kill()); err != nil {
		t.Fatal(err)
	}
	early(&p.westSite, &p.eastSite)
	t.Run("early", func(t *testing.T) { asDirect(t, p, direct, true) })
	if earlyOf(t, p.West) == 0 || earlyOf(t, p.East) == 0 {
		t.Error("no connection had early data: this shows nothing about it")
	}
}

// asDirect holds the conversations with gateways in the way. With atOnce clients do
// not wait until their server is there.
func asDirect(t *testing.T, p *pair, direct map[string][2]observation, atOnce bool) {
	p.startWest()
	p.startEast()
	everyConversation(t, p, func(t *testing.T, c conversation, actor string, ln net.Listener, name string) {
		hasty := c.name == "linger 0 behind data" // such a client would be gone by then
		saw, client := c.hold(t, p.Client, actor, ln, atOnce && !hasty)
		if saw != direct[name] {
			t.Errorf("actor and other saw\n\t%v, without the tunnel\n\t%v", saw, direct[name])
		}
		why := "why=closed"
		if c.reset {
			why = "why=" + actor + "_reset"
		}
		for _, g := range []*lab.Gateway{p.west, p.east} {
			awaitLog(t, g, "connection closed", "client="+client.String(), "target="+ln.Addr().String(), why)
		}
	})
}

// everyConversation calls f for each, with each actor and over both families.
func everyConversation(t *testing.T, p *pair, f func(t *testing.T, c conversation, actor string, ln net.Listener, name string)) {
	for _, family := range families {
		ln, err := p.Server.Listen("tcp", netip.AddrPortFrom(family.server, 8080).String())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range conversations {
			for _, actor := range actors {
				name := c.name + "/" + actor + "/" + family.name
				t.Run(name, func(t *testing.T) { f(t, c, actor, ln, name) })
			}
		}
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// hold has the conversation, and returns what the actor and the other end saw,
// and who the client was.
func (c conversation) hold(t *testing.T, from *netlab.Host, actor string, ln net.Listener, atOnce bool) (saw [2]observation, client netip.AddrPort) {
	cues := [2]chan struct{}{make(chan struct{}, 4), make(chan struct{}, 4)}
	play := func(conn *net.TCPConn, i int) observation {
		e := &talker{TCPConn: conn, t: t, seed: uint64(i), mine: cues[i], theirs: cues[1-i]}
		[]func(*talker){c.actor, c.other}[i](e)
		e.Close()
		return e.saw
	}
	clientIs, serverIs := 0, 1
	if actor == "server" {
		clientIs, serverIs = 1, 0
	}
	conn := dial(t, from, addr(ln.Addr()))
	client = addr(conn.LocalAddr())
	said := make(chan observation, 1)
	speak := func() { said <- play(conn, clientIs) }
	if atOnce {
		go speak()
	}
	server := accept(t, ln)
	if !atOnce {
		go speak()
	}
	saw[serverIs] = play(server, serverIs)
	saw[clientIs] = <-said
	return saw, client
}
