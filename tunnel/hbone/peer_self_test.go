package hbone

import (
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestTestPeer is the manual of testPeer.
func TestTestPeer(t *testing.T) {
	// newPeer starts a Conn in some role; the preface and SETTINGS are exchanged.
	p := newPeer(t, Config{Role: Server})

	// write… sends a frame, and the Conn has received it when it returns.
	p.writeHeaders(1, false, ":method", "CONNECT", ":authority", "10.2.0.5:80")

	// wantEvents says what the Conn's Handler has heard since the last look.
	p.wantEvents("a request is handed to the server", "request 1 10.2.0.5:80")

	// wantIdle says that the Conn sends nothing.
	p.wantIdle("the request waits for a decision")

	// p.rec.known has each stream that the Handler has heard of.
	p.rec.known[1].Accept()

	// want… reads the next frame that the Conn sends.
	p.wantHeaders("the stream is accepted", 1, false, ":status", "200")

	// What comes is delivered at once, unless p.rec.hold is set.
	p.writeData(1, false, []byte("hello"))
	p.wantEvents("DATA is handed on", "data 1 5")

	// DATA that the Conn would send is the engine's: ask for Credit, PutData.
	p.rec.known[1].End()
	p.wantData("a half-close", 1, true, "")

	// Time passes only when it is told to; timers fire on the way.
	p.advance(time.Minute)
	p.wantAlive("nothing is due: newPeer stops the pings")

	// wantClosed is the end of a tunnel: an error and a GOAWAY.
	p.writeFrame(http2.FramePushPromise, 0, 1, make([]byte, 4))
	p.wantClosed("nobody may push", http2.ErrCodeProtocol)
	p.wantIdle("that was all")
	p.wantEvents("the streams are the caller's to fail")
}

// TestTestPeerAsServer is the same for a Conn that is a client.
func TestTestPeerAsServer(t *testing.T) {
	p := newPeer(t, Config{})
	s := p.request() // Open, and its HEADERS are read
	p.writeHeaders(s.ID(), false, ":status", "200")
	p.wantEvents("the stream is accepted", "accepted 1")
	p.writeRST(1, http2.ErrCodeConnect)
	p.wantEvents("a reset", "reset 1 CONNECT_ERROR by peer")

	s = p.open() // both steps in one, in either role
	p.writeData(s.ID(), true, []byte("bye"))
	p.wantEvents("DATA and its end", "data 3 3", "end 3")
}
