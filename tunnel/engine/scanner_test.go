package engine_test

import (
	"io"
	"net"
	"testing"

	"wishbone/tunnel/engine"
	"wishbone/tunnel/hbone"
)

// TestScanner: thousands of clients that connect and reset at once, before the
// peer can answer, do no harm to another connection on their tunnel.
func TestScanner(t *testing.T) {
	const rounds, each = 10, 300
	p := newPairOf(t, server(t, echo), hbone.Config{MaxStreams: 1 + each, StreamWindow: 64 << 10})
	neighbour := dial(t, p.address)
	say := func() {
		t.Helper()
		if _, err := io.WriteString(neighbour, "hello"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(neighbour, make([]byte, 5)); err != nil {
			t.Fatalf("the neighbour's connection has ended: %v", err)
		}
	}
	say()
	unasked := 0
	p.on(p.east, func() { p.requested = func(f *engine.Flow) { unasked-- } })
	for range rounds {
		release := p.hold(p.east)
		began, over := p.begun.Load(), p.over.Load()
		clients := make([]*net.TCPConn, each)
		for i := range clients {
			clients[i] = dial(t, p.address)
		}
		eventually(t, "all have asked", func() bool { return p.begun.Load() == began+each })
		for _, c := range clients {
			c.SetLinger(0)
			c.Close()
		}
		eventually(t, "all have gone", func() bool { return p.over.Load() == over+each })
		release()
		eventually(t, "the peer has answered all", func() (none bool) {
			p.on(p.west, func() { none = p.tunnel.Streams() == 1 })
			return none
		})
		say()
	}
	p.on(p.east, func() { unasked += rounds * each })
	if unasked != 0 {
		t.Errorf("%d requests did not reach the peer: this shows less than it says", unasked)
	}
	neighbour.Close()
	p.settled(t)
}
