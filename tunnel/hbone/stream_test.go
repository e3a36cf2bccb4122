package hbone

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestHalfClose: each direction ends by itself, in either order, and data flows
// in the other as long as it likes.
func TestHalfClose(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		t.Run("we first", func(t *testing.T) {
			p := newPeer(t, Config{Role: role})
			s := p.open()
			s.End()
			p.wantData("our end", s.id, true, "")
			wantCredit(t, "nothing follows an end", s, 0)
			p.advance(100 * time.Hour)
			p.writeData(s.id, false, []byte("still here"))
			p.wantEvents("what the peer sends arrives", "data 1 10")
			s.End()
			p.wantIdle("there is one end")
			p.writeData(s.id, true, []byte("bye"))
			p.wantEvents("the last of it", "data 1 3", "end 1")
			if !s.Gone() || p.c.Streams() != 0 {
				t.Error("the stream is not gone")
			}
			p.wantIdle("an orderly end needs no reset")
		})
		t.Run("peer first", func(t *testing.T) {
			p := newPeer(t, Config{Role: role})
			s := p.open()
			p.writeData(s.id, true, []byte("bye"))
			p.wantEvents("its last words", "data 1 3", "end 1")
			p.advance(100 * time.Hour)
			wantCredit(t, "we may still send", s, 16384)
			p.writeWindowUpdate(s.id, 1)
			wantCredit(t, "credit is still accepted", s, 16384)
			rooms := p.rec.rooms
			s.End()
			p.wantData("our end", s.id, true, "")
			if !s.Gone() || p.rec.rooms != rooms+1 {
				t.Error("the stream is not gone, or nobody was told of the room")
			}
		})
		t.Run("trailers", func(t *testing.T) {
			p := newPeer(t, Config{Role: role})
			s := p.open()
			p.writeHeaders(s.id, true, "some", "trailer")
			p.wantEvents("RFC 9113 §8.1: they end it", "end 1")
			s.End()
			p.wantData("our end", s.id, true, "")
		})
	})
}

// TestAfterEnd: what the peer may not send once it has ended (RFC 9113 §5.1).
func TestAfterEnd(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		for name, send := range map[string]func(p *testPeer){
			"DATA":       func(p *testPeer) { p.writeData(1, false, []byte("more")) },
			"empty DATA": func(p *testPeer) { p.writeData(1, false, nil) },
			"END_STREAM": func(p *testPeer) { p.writeData(1, true, nil) },
			"HEADERS":    func(p *testPeer) { p.writeHeaders(1, true, "a", "b") },
		} {
			t.Run(name, func(t *testing.T) {
				p := newPeer(t, Config{Role: role})
				s := p.open()
				p.writeData(s.id, true, nil)
				p.rec.take()
				send(p)
				p.wantRST("after END_STREAM", s.id, http2.ErrCodeStreamClosed)
				p.wantEvents("the stream is gone", "reset 1 STREAM_CLOSED")
			})
		}
	})
}

// TestReset: each way, and what may still come afterwards.
func TestReset(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		for _, code := range []http2.ErrCode{http2.ErrCodeConnect, http2.ErrCodeCancel, http2.ErrCodeNo} {
			p := newPeer(t, Config{Role: role})
			s := p.open()
			p.writeRST(s.id, code)
			p.wantEvents("it says what the peer said", fmt.Sprintf("reset 1 %s by peer", code))
			p.wantIdle("a reset is not answered")
			if !s.Gone() {
				t.Error("the stream is not gone")
			}
			p.writeData(s.id, false, []byte("x"))
			p.wantRST("RFC 9113 §5.1: nothing comes after it", s.id, http2.ErrCodeStreamClosed)
			p.wantEvents("nobody hears of it")

			s = p.open()
			s.Reset(code)
			p.wantRST("ours", s.id, code)
			p.wantEvents("the caller knows")
			p.writeData(s.id, false, make([]byte, 100))
			p.writeData(s.id, true, nil)
			p.writeHeaders(s.id, true, "a", "b")
			p.writeWindowUpdate(s.id, 1)
			p.writeRST(s.id, http2.ErrCodeCancel)
			p.wantIdle("RFC 9113 §5.1: what was on its way is ignored")
			p.wantEvents("and heard by nobody")
			p.wantAlive("in either role")
		}
	})
}

// TestGoneStream: the methods of a stream that is gone do nothing.
func TestGoneStream(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		p := newPeer(t, Config{Role: role})
		s := p.open()
		p.writeRST(s.id, http2.ErrCodeCancel)
		s.Accept()
		s.Refuse(Failed)
		s.Reset(http2.ErrCodeCancel)
		s.End()
		s.Delivered(p.now, 1<<20)
		s.Discard()
		p.wantIdle("nothing is sent")
		wantCredit(t, "none", s, 0)
		if s.ID() != 1 {
			t.Errorf("ID %d, want 1", s.ID())
		}
	})
}

// TestRequestResponse: a server's possible answers.
func TestRequestResponse(t *testing.T) {
	t.Run("accept", func(t *testing.T) {
		p := newPeer(t, Config{Role: Server})
		p.writeHeaders(1, false, ":method", "CONNECT", ":authority", "[fd00::5]:443",
			"forwarded", `for="[fd00::7]:40000"`, "baggage", "a=b", "traceparent", "zzz")
		p.wantEvents("both addresses are known, the rest is skipped", "request 1 [fd00::5]:443 from [fd00::7]:40000")
		s := p.rec.known[1]
		p.advance(time.Hour)
		p.wantIdle("a server may take its time")
		wantCredit(t, "nothing is sent before the answer", s, 0)
		s.End()
		p.wantIdle("no end either")
		s.Accept()
		p.wantHeaders("accepted", 1, false, ":status", "200")
		s.Accept()
		s.Refuse(Failed)
		p.wantIdle("there is one answer")
	})
	for _, r := range Reasons() {
		t.Run("refuse/"+string(r), func(t *testing.T) {
			status := map[Reason]string{Denied: "401", Malformed: "400"}[r]
			if status == "" {
				status = "503"
			}
			p := newPeer(t, Config{Role: Server})
			p.writeRequest(1)
			p.rec.known[1].Refuse(r)
			p.wantHeaders("refused", 1, true, ":status", status, "wishbone-reason", string(r))
			p.wantRST("RFC 9113 §8.1: no more is wanted", 1, http2.ErrCodeNo)
			p.writeData(1, false, []byte("early"))
			p.writeRST(1, http2.ErrCodeCancel)
			p.wantIdle("what was on its way is ignored")
			if p.c.Streams() != 0 {
				t.Error("the stream is still there")
			}
		})
	}
	t.Run("reset", func(t *testing.T) {
		p := newPeer(t, Config{Role: Server})
		p.writeRequest(1)
		p.rec.known[1].Reset(http2.ErrCodeRefusedStream)
		p.wantRST("neither accepted nor refused", 1, http2.ErrCodeRefusedStream)
	})
	t.Run("taken back", func(t *testing.T) {
		p := newPeer(t, Config{Role: Server})
		p.writeRequest(1)
		p.writeRST(1, http2.ErrCodeCancel)
		p.wantEvents("the dial can stop", "request 1 10.2.0.5:80", "reset 1 CANCEL by peer")
		p.rec.known[1].Accept()
		p.wantIdle("too late to accept")
	})
}

// TestEndBeforeAnswer: a client may have nothing to say, and say so at once.
func TestEndBeforeAnswer(t *testing.T) {
	connect := []string{":method", "CONNECT", ":authority", "10.2.0.5:80"}
	for name, send := range map[string]func(p *testPeer){
		"with the request": func(p *testPeer) { p.writeHeaders(1, true, connect...) },
		"empty DATA":       func(p *testPeer) { p.writeHeaders(1, false, connect...); p.writeData(1, true, nil) },
		"trailers":         func(p *testPeer) { p.writeHeaders(1, false, connect...); p.writeHeaders(1, true, "a", "b") },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t, Config{Role: Server})
			send(p)
			p.wantEvents("the request, and its end", "request 1 10.2.0.5:80", "end 1")
			s := p.rec.known[1]
			s.Accept()
			p.wantHeaders("accepted", 1, false, ":status", "200")
			wantCredit(t, "we may send", s, 16384)
			s.End()
			p.wantData("our end", 1, true, "")
			if !s.Gone() {
				t.Error("the stream is not gone")
			}
		})
		t.Run(name+", refused", func(t *testing.T) {
			p := newPeer(t, Config{Role: Server})
			p.rec.request = func(s *Stream, _ Request) { s.Refuse(Denied) }
			send(p)
			p.wantHeaders("refused", 1, true, ":status", "401", "wishbone-reason", "denied")
			if name == "with the request" {
				p.wantIdle("both halves have ended: RFC 9113 §5.1 allows no reset")
			}
		})
	}
}

// TestEarlyData: bytes before the 200 reach nobody. A server that has not agreed
// to hold them cannot go on without them; a client has no use for them.
func TestEarlyData(t *testing.T) {
	t.Run("server", func(t *testing.T) {
		testChunkings(t, func(t *testing.T, chunk chunker) {
			p := newPeer(t, Config{Role: Server})
			p.writeRequest(1)
			p.chunk = chunk
			p.writeData(1, false, []byte("GET / HTTP/1.1\r\n"))
			p.wantEvents("the stream ends, and its bytes with it", "request 1 10.2.0.5:80", "reset 1 PROTOCOL_ERROR")
			p.wantRST("RFC 9113 §8.1.1", 1, http2.ErrCodeProtocol)
			s := p.rec.known[1]
			s.Accept()
			s.Refuse(Refused)
			p.writeData(1, false, []byte("more"))
			p.wantIdle("that was all")
			p.writeRequest(3)
			p.wantEvents("the tunnel goes on", "request 3 10.2.0.5:80")
		})
	})
	t.Run("client", func(t *testing.T) {
		p := newPeer(t, Config{})
		s := p.request()
		wantCredit(t, "nothing is sent before the 200", s, 0)
		s.End()
		p.wantIdle("not even an end")
		p.writeData(1, false, []byte("banner"))
		p.wantRST("an answer begins with HEADERS", 1, http2.ErrCodeProtocol)
		p.wantEvents("the stream ends", "reset 1 PROTOCOL_ERROR")
		p.writeHeaders(1, false, ":status", "200")
		p.wantIdle("too late")
		p.wantEvents("nobody hears of it")
	})
}

// TestAnswers: what a client makes of each answer.
func TestAnswers(t *testing.T) {
	tests := []struct {
		fields []string
		want   string
	}{
		{[]string{":status", "200"}, "accepted 1"},
		{[]string{":status", "200", "baggage", "k8s.namespace.name=a"}, "accepted 1"},
		{[]string{":status", "201"}, "refused 1 unknown 201"},
		{[]string{":status", "204"}, "refused 1 unknown 204"},
		{[]string{":status", "302", "location", "/"}, "refused 1 unknown 302"},
		{[]string{":status", "400"}, "refused 1 malformed 400"},
		{[]string{":status", "401"}, "refused 1 denied 401"},
		{[]string{":status", "403", "server", "envoy"}, "refused 1 denied 403"},
		{[]string{":status", "404"}, "refused 1 unknown 404"},
		{[]string{":status", "503"}, "refused 1 unknown 503"},
		{[]string{":status", "503", "wishbone-reason", "refused"}, "refused 1 refused 503"},
		{[]string{":status", "503", "wishbone-reason", "no_port"}, "refused 1 no_port 503"},
		{[]string{":status", "503", "wishbone-reason", "REFUSED"}, "refused 1 unknown 503"},
		{[]string{":status", "401", "wishbone-reason", "because"}, "refused 1 denied 401"},
		{[]string{":status", "503", "wishbone-reason", "unknown"}, "refused 1 unknown 503"},
		{[]string{":status", "20"}, "reset 1 PROTOCOL_ERROR"},
		{[]string{":status", "2000"}, "reset 1 PROTOCOL_ERROR"},
		{[]string{":status", "2x0"}, "reset 1 PROTOCOL_ERROR"},
		{[]string{":status", "000"}, "reset 1 PROTOCOL_ERROR"},
		{[]string{":status", "600"}, "reset 1 PROTOCOL_ERROR"},
		{[]string{":status", ""}, "reset 1 PROTOCOL_ERROR"},
		{[]string{"server", "envoy"}, "reset 1 PROTOCOL_ERROR"},
		{[]string{":status", "200", ":status", "200"}, "reset 1 PROTOCOL_ERROR"},
		{[]string{":status", "200", ":path", "/"}, "reset 1 PROTOCOL_ERROR"},
		{[]string{":status", "200", ":method", "CONNECT"}, "reset 1 PROTOCOL_ERROR"},
		{[]string{"a", "b", ":status", "200"}, "reset 1 PROTOCOL_ERROR"},
		{[]string{":status", "200", "connection", "close"}, "reset 1 PROTOCOL_ERROR"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.fields), func(t *testing.T) {
			p := newPeer(t, Config{})
			p.request()
			p.writeHeaders(1, false, tt.fields...)
			p.wantEvents("the answer", tt.want)
			p.wantAlive("one stream's answer is not the tunnel's")
		})
	}
}

// TestEveryReason: each word arrives as what was said.
func TestEveryReason(t *testing.T) {
	for _, r := range Reasons() {
		p := newPair(t, pairConfig{})
		p.server.rec.request = func(s *Stream, _ Request) { s.Refuse(r) }
		p.open()
		p.run()
		p.client.want("the reason", fmt.Sprintf("refused 1 %s %s", r, r.status()))
		if got := p.client.Streams() + p.server.Streams(); got != 0 {
			t.Errorf("streams after the refusal: %d", got)
		}
	}
}

// TestInterim: 1xx are not the answer (RFC 9110 §15.2).
func TestInterim(t *testing.T) {
	p := newPeer(t, Config{})
	s := p.request()
	p.writeHeaders(1, false, ":status", "100")
	p.writeHeaders(1, false, ":status", "103", "link", "a")
	p.wantEvents("there is no answer yet")
	wantCredit(t, "nor anything to send", s, 0)
	p.writeHeaders(1, false, ":status", "200")
	p.wantEvents("the answer", "accepted 1")
	p.request()
	p.writeHeaders(3, true, ":status", "100")
	p.wantEvents("an interim answer that ends is no success", "refused 3 unknown 100")
}

// TestRefusedWithBody: others explain themselves at length, as Envoy does. The
// stream is closed from our side too, the text is thrown away, and its credit
// comes back.
func TestRefusedWithBody(t *testing.T) {
	p := newPeer(t, Config{ConnWindow: 128 << 10})
	p.request()
	p.writeHeaders(1, false, ":status", "503", "content-length", "65536", "content-type", "text/plain")
	p.wantEvents("refused", "refused 1 unknown 503")
	p.wantRST("no text is wanted", 1, http2.ErrCodeCancel)
	p.writeData(1, false, make([]byte, 32<<10))
	p.wantWindowUpdate("the connection's credit comes back", 0, 32<<10)
	p.writeData(1, true, make([]byte, 32<<10))
	p.wantWindowUpdate("all of it", 0, 32<<10)
	p.writeRST(1, http2.ErrCodeNo)
	p.wantIdle("that was all")
	p.wantEvents("and nobody hears of it")
	p.wantAlive("the tunnel goes on")

	p.request()
	p.writeHeaders(3, true, ":status", "401")
	p.wantEvents("refused", "refused 3 denied 401")
	p.wantRST("our half was still open", 3, http2.ErrCodeCancel)
	p.writeRST(3, http2.ErrCodeNo)
	p.wantAlive("they crossed")
}

// TestAcceptedAndEnded: a destination may have nothing to say.
func TestAcceptedAndEnded(t *testing.T) {
	p := newPeer(t, Config{})
	s := p.request()
	p.writeHeaders(1, true, ":status", "200")
	p.wantEvents("both at once", "accepted 1", "end 1")
	wantCredit(t, "our direction is open", s, 16384)
	s.End()
	p.wantData("our end", 1, true, "")
	if !s.Gone() {
		t.Error("the stream is not gone")
	}
}

// TestResetBeforeAnswer: REFUSED_STREAM is safe to repeat (RFC 9113 §8.7),
// nothing else is.
func TestResetBeforeAnswer(t *testing.T) {
	for code := http2.ErrCodeNo; code <= http2.ErrCodeHTTP11Required; code++ {
		p := newPeer(t, Config{})
		p.request()
		p.writeRST(1, code)
		want := "refused 1 unknown"
		if code == http2.ErrCodeRefusedStream {
			want += " retry"
		}
		p.wantEvents(code.String(), want)
		p.wantIdle("a reset is not answered")
	}
}

// TestHeadersInTunnel: there is nothing that they could say.
func TestHeadersInTunnel(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		for _, tt := range []struct {
			end    bool
			fields []string
		}{
			{false, []string{"a", "b"}},
			{false, []string{":status", "200"}},
			{true, []string{":status", "200"}},
			{true, []string{":method", "CONNECT"}},
			{true, []string{":path", "/"}},
			{true, []string{"Upper", "case"}},
		} {
			p := newPeer(t, Config{Role: role})
			s := p.open()
			p.writeHeaders(s.id, tt.end, tt.fields...)
			p.wantRST(fmt.Sprint(tt), s.id, http2.ErrCodeProtocol)
			p.wantEvents("the stream is gone", "reset 1 PROTOCOL_ERROR")
		}
	})
}

// TestRequestTimeout: a request without an answer is taken back, whichever were
// answered meanwhile, and the list of those that wait keeps nothing else.
func TestRequestTimeout(t *testing.T) {
	p := newPeer(t, Config{RequestTimeout: 15 * time.Second})
	var ids []uint32
	for range 10 {
		ids = append(ids, p.request().id)
		p.advance(time.Second)
	}
	// The first waits on; the others are answered out of order.
	for _, id := range []uint32{ids[9], ids[3], ids[1], ids[5]} {
		p.writeHeaders(id, false, ":status", "200")
	}
	p.writeHeaders(ids[2], true, ":status", "503")
	p.writeRST(ids[8], http2.ErrCodeCancel)
	p.rec.known[ids[7]].Reset(http2.ErrCodeCancel)
	p.rec.take()
	for p.read() != nil {
	}
	wantWaiting(t, p.c, ids[0], ids[4], ids[6])

	p.advance(5*time.Second - 1)
	p.wantEvents("14.9 s after the first")
	p.advance(1)
	p.wantRST("15 s: taken back", ids[0], http2.ErrCodeCancel)
	p.wantEvents("and told", fmt.Sprintf("refused %d timeout", ids[0]))
	p.writeHeaders(ids[0], false, ":status", "200")
	p.wantIdle("an answer that comes too late is ignored")
	p.wantEvents("by us too")
	p.advance(4 * time.Second)
	p.wantEvents("the next", fmt.Sprintf("refused %d timeout", ids[4]))
	p.advance(time.Hour)
	p.wantEvents("the last", fmt.Sprintf("refused %d timeout", ids[6]))
	wantWaiting(t, p.c)
	for p.read() != nil {
	}
	p.wantAlive("it takes more to end a tunnel")
}

// wantWaiting fails unless these streams wait for an answer, and their list is
// sound both ways.
func wantWaiting(t testing.TB, c *Conn, ids ...uint32) {
	t.Helper()
	var got []uint32
	var last *Stream
	for s := c.waiting.first; s != nil; s = s.next {
		if s.prev != last || !s.waiting {
			t.Fatalf("stream %d: previous %v, want %v", s.id, s.prev, last)
		}
		got, last = append(got, s.id), s
	}
	if fmt.Sprint(got) != fmt.Sprint(ids) || c.waiting.last != last {
		t.Fatalf("waiting: %v, last %v, want %v", got, c.waiting.last, ids)
	}
}

// TestTimeZero: an epoch's beginning is a time like others.
func TestTimeZero(t *testing.T) {
	for _, now := range []time.Duration{0, -15 * time.Second} {
		rec := newRecorder(&now)
		c := New(Config{RequestTimeout: 15 * time.Second, SettingsTimeout: time.Hour}, rec, now)
		s, err := c.Open(now, testRequest, nil)
		if err != nil {
			t.Fatal(err)
		}
		rec.known[s.id] = s
		if got := c.Deadline(); got != now+15*time.Second {
			t.Errorf("deadline %v, want 15 s after %v", got, now)
		}
		now += 15 * time.Second
		if err := c.Tick(now); err != nil {
			t.Fatal(err)
		}
		if e := rec.take(); len(e) != 1 || e[0] != "refused 1 timeout" {
			t.Errorf("heard %q, want a timeout", e)
		}
		checkEmpty(t, c)
	}
}

// TestLastNumber: stream numbers are not used twice; a tunnel that has none left
// drains.
func TestLastNumber(t *testing.T) {
	p := newPeer(t, Config{})
	p.c.nextID = maxStreamID
	s := p.request()
	if s.id != 1<<31-1 {
		t.Fatalf("stream %d, want the last", s.id)
	}
	p.wantGoAway("there will be no more", 1<<31-2, http2.ErrCodeNo)
	if !p.c.Draining() || p.c.Room() != 0 || p.c.Done() {
		t.Error("the tunnel does not drain")
	}
	if _, err := p.c.Open(p.now, testRequest, nil); err != ErrDraining {
		t.Errorf("open: %v, want %v", err, ErrDraining)
	}
	p.writeHeaders(s.id, false, ":status", "200")
	p.wantEvents("the last stream is one like others", fmt.Sprintf("accepted %d", s.id))
	s.Reset(http2.ErrCodeCancel)
	if !p.c.Done() {
		t.Error("nothing is left to do, but it is not done")
	}

	p = newPeer(t, Config{Role: Server})
	p.writeRequest(1<<31 - 1)
	p.wantEvents("a server takes it", "request 2147483647 10.2.0.5:80")
}

// TestOpenWithoutClient: a client that keeps its source to itself.
func TestOpenWithoutClient(t *testing.T) {
	p := newPeer(t, Config{})
	owner := new(int)
	s, err := p.c.Open(p.now, Request{Target: netip.MustParseAddrPort("[fd00::1]:443")}, owner)
	if err != nil {
		t.Fatal(err)
	}
	p.rec.known[s.id] = s
	p.wantHeaders("no forwarded", 1, false, ":method", "CONNECT", ":authority", "[fd00::1]:443")
	if s.Owner != owner {
		t.Error("the owner is lost")
	}
}
