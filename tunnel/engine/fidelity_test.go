package engine_test

import (
	"encoding/hex"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// conversation is what the two ends of one connection do. The actor is the end
// that the name speaks of; each is held once with the client as actor and once
// with the server.
type conversation struct {
	name         string
	actor, other func(e *end)
}

// end is one end of a connection, and what it has seen so far.
type end struct {
	*net.TCPConn
	tb           testing.TB
	seed         uint64
	mine, theirs chan struct{} // cues that pass beside the connection
	saw          observation
}

// observation is what an application can tell of a connection.
type observation struct {
	Bytes int64
	Sum   string // of the bytes
	Fate  string // how reading, or writing, ended
}

func (e *end) send(n int64) {
	// A reset may be in the way, which the observation will tell.
	_, _ = io.Copy(e.TCPConn, noise(e.seed, n))
}

func (e *end) readAll() {
	h, n, err := sum(e.TCPConn)
	e.saw = observation{n, hex.EncodeToString(h.Sum(nil)[:8]), fate(err)}
}

func (e *end) read(n int) {
	if _, err := io.ReadFull(e, make([]byte, n)); err != nil {
		e.saw.Fate = "early " + fate(err)
	}
}

// writeOn writes until it fails.
func (e *end) writeOn() {
	for {
		if _, err := e.Write(make([]byte, 1000)); err != nil {
			e.saw.Fate += ", then " + fate(err)
			return
		}
	}
}

func (e *end) fin()          { e.CloseWrite() }
func (e *end) reset()        { e.SetLinger(0); e.Close() }
func (e *end) acknowledged() { waitSent(e.tb, e.TCPConn) }
func (e *end) unread(n int)  { waitQueue(e.tb, e.TCPConn, unix.SIOCINQ, n) }
func (e *end) tell()         { e.mine <- struct{}{} }
func (e *end) inlineUrgent() {
	control(e.tb, e, func(fd int) { unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1) })
}
func (e *end) urgent(p string) {
	control(e.tb, e, func(fd int) { unix.Send(fd, []byte(p), unix.MSG_OOB) })
}

func (e *end) hear() {
	select {
	case <-e.theirs:
	case <-time.After(20 * time.Second):
		e.tb.Error("the other end never got so far")
	}
}

var conversations = []conversation{
	{"FIN first",
		func(e *end) { e.send(100); e.fin(); e.readAll() },
		func(e *end) { e.readAll(); e.send(200) }},
	{"both FIN at once",
		func(e *end) { e.send(100); e.fin(); e.readAll() },
		func(e *end) { e.send(200); e.fin(); e.readAll() }},
	{"half-close, then a mebibyte the other way",
		func(e *end) { e.fin(); e.readAll() },
		func(e *end) { e.readAll(); e.send(1 << 20) }},
	{"speaks first",
		func(e *end) { e.send(50); e.readAll() },
		func(e *end) { e.read(50); e.send(60) }},
	{"nothing sent at all",
		func(e *end) {},
		func(e *end) { e.readAll() }},
	{"nothing sent, half-closed",
		func(e *end) { e.fin(); e.readAll() },
		func(e *end) { e.readAll() }},
	{"reset",
		func(e *end) { e.send(1); e.read(1); e.hear(); e.reset() },
		func(e *end) { e.read(1); e.send(1); e.tell(); e.readAll() }},
	{"reset behind data",
		func(e *end) { e.send(100_000); e.acknowledged(); e.reset(); e.tell() },
		func(e *end) { e.hear(); e.readAll() }},
	{"reset behind more data than the buffers hold",
		func(e *end) { e.tell(); e.send(8 << 20); e.acknowledged(); e.reset() },
		func(e *end) { e.hear(); e.readAll() }},
	{"reset after FIN",
		func(e *end) { e.send(10); e.fin(); e.hear(); e.reset(); e.tell() },
		func(e *end) { e.readAll(); e.tell(); e.hear(); e.writeOn() }},
	{"reset while the other sends",
		func(e *end) { e.read(1 << 20); e.reset() },
		func(e *end) { e.writeOn() }},
	{"close with unread data",
		func(e *end) { e.unread(1000); e.Close() },
		func(e *end) { e.send(1000); e.readAll() }},
	{"close with unread data, behind data",
		func(e *end) { e.unread(1000); e.send(50_000); e.acknowledged(); e.Close(); e.tell() },
		func(e *end) { e.send(1000); e.hear(); e.readAll() }},
	{"close while the other goes on",
		func(e *end) { e.send(10); e.Close() },
		func(e *end) { e.readAll(); e.writeOn() }},
	{"a byte at a time",
		func(e *end) {
			for range 300 {
				e.send(1)
				e.read(1)
			}
			e.fin()
			e.readAll()
		},
		func(e *end) { echo(e.TCPConn) }},
	// The pointer is not carried, but its byte is, in its place (RFC 6093 §4).
	{"urgent byte",
		func(e *end) { e.send(3); e.urgent("!"); e.send(3); e.fin(); e.readAll() },
		func(e *end) { e.inlineUrgent(); e.readAll() }},
	{"urgent byte, then nothing",
		func(e *end) { e.send(3); e.urgent("!"); e.send(3); e.hear() },
		func(e *end) { e.inlineUrgent(); e.read(7); e.tell() }},
}

// TestFidelity: through a pair of gateways both ends observe what they observe
// on a direct connection.
func TestFidelity(t *testing.T) {
	for _, c := range conversations {
		for _, actor := range []string{"client", "server"} {
			t.Run(c.name+"/"+actor, func(t *testing.T) {
				want := c.hold(t, actor, func(target string) string { return target })
				ways := []func(testing.TB, string) *pair{newPair, newEarlyPair}
				if c.name == "reset behind data" {
					ways = ways[:1] // a far gateway that takes its time would find the client gone
				}
				for _, way := range ways {
					var p *pair
					got := c.hold(t, actor, func(target string) string {
						p = way(t, target)
						return p.address
					})
					if got != want {
						t.Errorf("actor and other saw\n\t%+v, on a direct connection\n\t%+v", got, want)
					}
					p.settled(t)
				}
			})
		}
	}
}

// hold has the conversation over a connection to the address that route gives
// for the server's, and returns what the actor and the other end saw.
func (c conversation) hold(t *testing.T, actor string, route func(string) string) (saw [2]observation) {
	cues := [2]chan struct{}{make(chan struct{}, 4), make(chan struct{}, 4)}
	play := func(conn *net.TCPConn, i int) observation {
		e := &end{TCPConn: conn, tb: t, seed: uint64(i), mine: cues[i], theirs: cues[1-i]}
		[]func(*end){c.actor, c.other}[i](e)
		e.Close()
		return e.saw
	}
	clientIs, serverIs := 0, 1
	if actor == "server" {
		clientIs, serverIs = 1, 0
	}
	served := make(chan observation, 1)
	address := route(server(t, func(conn *net.TCPConn) { served <- play(conn, serverIs) }))
	saw[clientIs] = play(dial(t, address), clientIs)
	saw[serverIs] = <-served
	return saw
}
