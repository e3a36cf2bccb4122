package hbone

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestDrainServer: a server that stops announces it, and names the last stream
// that it takes when the peer has certainly heard of it (RFC 9113 §6.8).
func TestDrainServer(t *testing.T) {
	p := newPeer(t, Config{Role: Server})
	s := p.open()
	p.c.Drain()
	p.wantGoAway("the announcement takes nothing away", 1<<31-1, http2.ErrCodeNo)
	p.c.Drain()
	p.wantIdle("it is made once")
	p.advance(0)
	ping, ok := p.read().(*http2.PingFrame)
	if !ok {
		t.Fatal("no PING to measure the round trip")
	}
	p.writeRequest(3)
	p.wantEvents("a request that was on its way is served", "request 3 10.2.0.5:80")
	p.writePing(true, ping.Data)
	p.wantGoAway("now the peer knows", 3, http2.ErrCodeNo)
	p.writeRequest(5)
	p.wantRST("what comes now may be tried elsewhere", 5, http2.ErrCodeRefusedStream)
	p.wantEvents("nobody hears of it")

	p.c.ping.next = forever
	p.advance(time.Hour)
	p.writeData(s.id, false, []byte("still here"))
	p.wantEvents("the streams there are go on", "data 1 10")
	s.Reset(http2.ErrCodeCancel)
	if p.c.Done() {
		t.Error("done with a stream left")
	}
	p.rec.known[3].Refuse(Draining)
	if !p.c.Done() {
		t.Error("not done with none left")
	}
}

// TestDrainOldPing: the answer to a PING that was sent before the announcement
// does not say that the peer has read it.
func TestDrainOldPing(t *testing.T) {
	p := newPeer(t, Config{Role: Server})
	p.c.ping.next = p.now
	p.advance(0)
	old := p.read().(*http2.PingFrame).Data
	p.c.Drain()
	p.wantGoAway("the announcement", 1<<31-1, http2.ErrCodeNo)
	p.writePing(true, old)
	p.wantIdle("that says nothing")
	p.writeRequest(1)
	p.wantEvents("so this request was on its way", "request 1 10.2.0.5:80")
	p.advance(0)
	p.writePing(true, p.read().(*http2.PingFrame).Data)
	p.wantGoAway("that does", 1, http2.ErrCodeNo)
}

// TestGoAwayServer: a server that has no time to drain, or no more, names the last
// stream that it has looked at, and looks at none after.
func TestGoAwayServer(t *testing.T) {
	for _, announced := range []bool{false, true} {
		t.Run(fmt.Sprintf("announced %t", announced), func(t *testing.T) {
			p := newPeer(t, Config{Role: Server})
			s := p.open()
			var ping [8]byte
			if announced {
				p.c.Drain()
				p.wantGoAway("the announcement", 1<<31-1, http2.ErrCodeNo)
				p.advance(0)
				ping = p.read().(*http2.PingFrame).Data
			}
			p.c.GoAway()
			p.wantGoAway("what was looked at", 1, http2.ErrCodeNo)
			p.writeRequest(3)
			p.wantRST("what comes now may be tried elsewhere", 3, http2.ErrCodeRefusedStream)
			p.wantEvents("nobody hears of it")
			if announced {
				p.writePing(true, ping)
			}
			p.c.GoAway()
			p.c.Drain()
			p.wantIdle("it is said once")
			p.writeData(s.id, false, []byte("still here"))
			p.wantEvents("the streams there are go on", "data 1 10")
			s.Reset(http2.ErrCodeCancel)
			if !p.c.Done() {
				t.Error("not done with no stream left")
			}
		})
	}
	p := newPeer(t, Config{})
	p.c.GoAway()
	p.wantIdle("a server opens no streams that a client could take")
}

// TestDrainIdle: a server without streams is done one round trip after it began
// to drain, not before.
func TestDrainIdle(t *testing.T) {
	p := newPair(t, pairConfig{delay: 50 * time.Millisecond})
	p.settle()
	p.server.Drain()
	if p.server.Done() {
		t.Error("done before the peer knows")
	}
	p.advance(99 * time.Millisecond)
	if p.server.Done() {
		t.Error("done before the peer has answered")
	}
	p.advance(time.Millisecond)
	if !p.server.Done() || !p.client.Done() {
		t.Error("not done after a round trip")
	}
}

// TestDrainLosesNothing: requests that meet a draining server on the way are
// served; later ones are not made.
func TestDrainLosesNothing(t *testing.T) {
	p := newPair(t, pairConfig{delay: 50 * time.Millisecond})
	p.settle()
	var streams []*Stream
	for at := range 20 { // one every 10 ms, the server drains in the middle
		if at == 10 {
			p.server.Drain()
		}
		if p.client.Room() > 0 {
			streams = append(streams, p.open())
		}
		p.advance(10 * time.Millisecond)
	}
	p.settle()
	if n := len(streams); n != 15 {
		t.Errorf("%d streams, want 10 before and 5 until the client knew", n)
	}
	for _, s := range streams {
		if !s.open {
			t.Errorf("stream %d is lost", s.id)
		}
		p.client.write(s, []byte("bye"))
		p.client.end(s)
		p.server.end(p.server.rec.known[s.id])
	}
	p.settle()
	if !p.client.Done() || !p.server.Done() {
		t.Error("not done when all streams have ended")
	}
	if _, err := p.client.Open(p.now, testRequest, nil); err != ErrDraining {
		t.Errorf("open: %v, want %v", err, ErrDraining)
	}
}

// TestDrainClient: a client that stops opens nothing more, says so, and goes on
// with what it has. The server closes after the last stream.
func TestDrainClient(t *testing.T) {
	p := newPeer(t, Config{})
	s := p.open()
	p.c.Drain()
	p.wantGoAway("said", 1<<31-2, http2.ErrCodeNo)
	if _, err := p.c.Open(p.now, testRequest, nil); err != ErrDraining {
		t.Errorf("open: %v, want %v", err, ErrDraining)
	}
	p.advance(time.Hour)
	p.writeData(s.id, true, []byte("bye"))
	p.wantEvents("the stream goes on", "data 1 3", "end 1")
	if p.c.Done() {
		t.Error("done with a stream left")
	}
	s.End()
	if !p.c.Done() {
		t.Error("not done with none left")
	}

	p = newPeer(t, Config{Role: Server})
	s = p.open()
	p.writeGoAway(0, http2.ErrCodeNo, "")
	if !p.c.Draining() || p.c.Done() {
		t.Error("a server that was told to drain does not, or too fast")
	}
	p.writeRequest(3)
	p.wantEvents("a client may still ask: its GOAWAY is about a server's streams", "request 3 10.2.0.5:80")
	p.rec.known[3].Refuse(Failed)
	s.Reset(http2.ErrCodeCancel)
	if !p.c.Done() {
		t.Error("not done with no stream left")
	}
}

// TestGoAway: what a client does when the server says goodbye, in one step, in
// two, and in anger.
func TestGoAway(t *testing.T) {
	p := newPeer(t, Config{})
	a := p.open()
	p.request()
	p.request()
	p.writeGoAway(1<<31-1, http2.ErrCodeNo, "")
	p.wantEvents("the announcement takes nothing away")
	if !p.c.Draining() || p.c.Room() != 0 {
		t.Error("streams can still be opened")
	}
	p.writeGoAway(3, http2.ErrCodeNo, "")
	p.wantEvents("what was not processed may be tried elsewhere", "refused 5 draining retry")
	p.writeHeaders(3, false, ":status", "200")
	p.wantEvents("what was is answered", "accepted 3")
	p.writeGoAway(1, http2.ErrCodeNo, "")
	p.wantEvents("it was not after all", "reset 3 REFUSED_STREAM by peer")
	p.writeGoAway(1<<31-1, http2.ErrCodeNo, "")
	p.wantEvents("a higher number gives nothing back")
	p.writeData(a.id, true, nil)
	p.wantEvents("the rest goes on", "end 1")
	a.End()
	if !p.c.Done() {
		t.Error("not done with no stream left")
	}
	p.wantAlive("an orderly end is no error")
}

// TestGoAwayError: a peer that has had enough. What it did not process may be
// tried elsewhere, the rest is the caller's to fail.
func TestGoAwayError(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		p := newPeer(t, Config{Role: role})
		p.open()
		p.open()
		if role == Client {
			p.request()
			p.request()
		}
		p.rec.take()
		p.writeGoAway(5, http2.ErrCodeEnhanceYourCalm, "too_many\npings\xff"+string(make([]byte, 1000)))
		e, ok := p.err.(*ConnError)
		if !ok || e.Code != http2.ErrCodeEnhanceYourCalm || !e.Remote {
			t.Fatalf("%v, want the peer's ENHANCE_YOUR_CALM", p.err)
		}
		if len(e.Reason) != 128 || e.Reason[:15] != "too_many.pings." {
			t.Errorf("reason %q: want it short and printable", e.Reason)
		}
		if role == Client {
			p.wantEvents("the last was not processed", "refused 7 draining retry")
		}
		p.wantIdle("there is nothing to answer")
		if err := p.c.Receive(p.now, []byte("more")); err != p.err {
			t.Errorf("receive afterwards: %v", err)
		}
		if err := p.c.Tick(p.now); err != p.err || p.c.Err() != p.err || !p.c.Done() {
			t.Errorf("tick afterwards: %v, err %v, done %t", err, p.c.Err(), p.c.Done())
		}
		p.c.Fail(p.err)
		want := []string{"reset 1 " + e.Error(), "reset 3 " + e.Error()}
		if role == Client {
			want = append(want, "reset 5 "+e.Error())
		}
		p.wantEvents("each stream hears why, in order", want...)
		p.c.Fail(errTestOver)
		p.wantEvents("once")
		if p.c.Err() != e {
			t.Errorf("the tunnel's end is now %v", p.c.Err())
		}
	})
}

// TestFail: the end of a tunnel for the caller's reasons.
func TestFail(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		p := newPeer(t, Config{Role: role})
		s := p.open()
		if role == Client {
			p.request()
		} else {
			p.writeRequest(3)
		}
		p.rec.take()
		p.c.Fail(errTestOver)
		p.wantEvents("all of them", "reset 1 the test is over", "reset 3 the test is over")
		if p.c.Err() != errTestOver || p.c.Room() != 0 || !p.c.Done() || !s.Gone() {
			t.Error("the tunnel is not over")
		}
		if _, err := p.c.Open(p.now, testRequest, nil); err != ErrDraining {
			t.Errorf("open: %v, want %v", err, ErrDraining)
		}
		p.c.Drain()
		p.wantIdle("there is nothing to drain")
		wantWaiting(t, p.c)
	})
}

// TestErrors: what is said of the end of a tunnel or a stream.
func TestErrors(t *testing.T) {
	for _, tt := range []struct {
		err                      error
		want                     string
		reset, tcpReset, goodbye bool
	}{
		{&ConnError{Code: http2.ErrCodeProtocol, Reason: "GOAWAY on a stream"}, "closing tunnel: PROTOCOL_ERROR: GOAWAY on a stream", false, false, false},
		{&ConnError{Code: http2.ErrCodeNo, Reason: "bye", Remote: true}, "peer closed tunnel: NO_ERROR: bye", false, false, false},
		{&ResetError{Code: http2.ErrCodeConnect, Remote: true}, "reset by peer gateway: CONNECT_ERROR", true, true, false},
		{&ResetError{Code: http2.ErrCodeCancel, Remote: true}, "reset by peer gateway: CANCEL", true, false, false},
		{&ResetError{Code: http2.ErrCodeProtocol, Reason: "WINDOW_UPDATE of 0"}, "reset: WINDOW_UPDATE of 0 (PROTOCOL_ERROR)", true, false, false},
		{&ResetError{Code: http2.ErrCodeNo, Remote: true}, "reset by peer gateway: NO_ERROR", true, false, true},
		{fmt.Errorf("flow: %w", &ResetError{Code: http2.ErrCodeConnect, Remote: true}), "flow: reset by peer gateway: CONNECT_ERROR", true, true, false},
		{ErrFull, "tunnel has no room for another stream", false, false, false},
	} {
		if tt.err.Error() != tt.want || IsReset(tt.err) != tt.reset || IsTCPReset(tt.err) != tt.tcpReset || IsGoodbye(tt.err) != tt.goodbye {
			t.Errorf("%q: a reset %t, a TCP reset %t, a goodbye %t; want %q, %t, %t, %t",
				tt.err, IsReset(tt.err), IsTCPReset(tt.err), IsGoodbye(tt.err), tt.want, tt.reset, tt.tcpReset, tt.goodbye)
		}
	}
}
