package hbone

import (
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// exhaust takes requests back until the allowance is used up.
func (p *testPeer) exhaust() {
	p.t.Helper()
	for range maxTakeBacks {
		s := p.request()
		s.Reset(http2.ErrCodeCancel)
		p.wantRST("within the allowance", s.id, http2.ErrCodeCancel)
	}
}

// abandon is a stream that was reset beyond the allowance.
func (p *testPeer) abandon() *Stream {
	p.t.Helper()
	p.exhaust()
	s := p.request()
	s.Reset(http2.ErrCodeConnect)
	p.wantIdle("the peer does not hear of it")
	p.rec.take()
	return s
}

// TestTakeBack: beyond the allowance a request is reset when its answer comes, and
// until then it is only the peer's.
func TestTakeBack(t *testing.T) {
	for _, tt := range []struct {
		name string
		say  func(p *testPeer, id uint32)
		rst  bool
	}{
		{"200", func(p *testPeer, id uint32) { p.writeHeaders(id, false, ":status", "200") }, true},
		{"200 and the end", func(p *testPeer, id uint32) { p.writeHeaders(id, true, ":status", "200") }, true},
		{"refusal", func(p *testPeer, id uint32) { p.writeHeaders(id, true, ":status", "503") }, true},
		{"malformed answer", func(p *testPeer, id uint32) { p.writeHeaders(id, false, "a", "b") }, true},
		{"DATA instead", func(p *testPeer, id uint32) { p.writeData(id, false, []byte("x")) }, true},
		{"RST_STREAM", func(p *testPeer, id uint32) { p.writeRST(id, http2.ErrCodeRefusedStream) }, false},
		{"timeout", func(p *testPeer, _ uint32) { p.advance(15 * time.Second) }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			budget := NewBudget(1 << 30)
			p := newPeer(t, Config{Budget: budget})
			s := p.abandon()
			if !s.Gone() || budget.Used() != 0 {
				t.Errorf("gone: %t, reserved: %d bytes; want true, 0", s.Gone(), budget.Used())
			}
			if p.c.Streams() != 1 || p.c.Room() != 199 {
				t.Errorf("%d streams, room for %d; want 1, 199", p.c.Streams(), p.c.Room())
			}
			p.writeWindowUpdate(s.id, 1)
			p.writeHeaders(s.id, false, ":status", "100")
			p.wantIdle("not an answer")
			rooms := p.rec.rooms
			tt.say(p, s.id)
			if tt.rst {
				p.wantRST("now", s.id, http2.ErrCodeConnect)
			}
			p.wantIdle("once")
			p.wantEvents("its owner hears nothing")
			if p.c.Streams() != 0 || p.c.Room() != 200 || p.rec.rooms == rooms {
				t.Errorf("%d streams, room for %d (told: %t); want 0, 200, true", p.c.Streams(), p.c.Room(), p.rec.rooms > rooms)
			}
			wantWaiting(t, p.c)
			p.writeData(s.id, true, []byte("on its way"))
			if tt.rst {
				p.wantIdle("what crosses the reset is thrown away")
			}
			p.wantAlive("the tunnel goes on")
		})
	}
}

// TestTakeBackEarned: answers pay for more, whatever they say; time does not, and
// nothing is saved beyond the burst.
func TestTakeBackEarned(t *testing.T) {
	p := newPeer(t, Config{})
	p.exhaust()
	p.advance(time.Hour)
	for p.read() != nil { // PING
	}
	for _, status := range []string{"200", "503"} {
		for range 2 {
			p.writeHeaders(p.request().id, true, ":status", status)
			p.read()
		}
	}
	for p.read() != nil {
	}
	s := p.request()
	s.Reset(http2.ErrCodeCancel)
	p.wantRST("four answers pay for one", s.id, http2.ErrCodeCancel)
	late := p.request()
	late.Reset(http2.ErrCodeCancel)
	p.wantIdle("and not for two")

	p.writeHeaders(late.id, false, ":status", "200")
	p.wantRST("the abandoned one", late.id, http2.ErrCodeCancel)
	p.rec.take()
	for range 3 {
		p.open().Reset(http2.ErrCodeCancel)
		p.read()
	}
	s = p.request()
	s.Reset(http2.ErrCodeCancel)
	p.wantRST("its answer paid as others do", s.id, http2.ErrCodeCancel)

	for range 100 * answersEach {
		p.open().Reset(http2.ErrCodeCancel)
		p.read()
	}
	p.exhaust()
	p.request().Reset(http2.ErrCodeCancel)
	p.wantIdle("no more than the burst was saved")
}

// TestAbandonedGoAway: what the peer never saw it does not count.
func TestAbandonedGoAway(t *testing.T) {
	p := newPeer(t, Config{})
	s := p.abandon()
	p.writeGoAway(s.id, http2.ErrCodeNo, "")
	if p.c.Streams() != 1 {
		t.Errorf("%d streams, want the one that the peer may have seen", p.c.Streams())
	}
	if !p.c.Done() {
		t.Error("a tunnel that drains waits for a stream that is nobody's")
	}
	p.writeGoAway(s.id-2, http2.ErrCodeNo, "")
	wantWaiting(t, p.c)
	if p.c.Streams() != 0 {
		t.Errorf("%d streams, want none", p.c.Streams())
	}
}

// TestScanner: clients that connect and reset at once do not harm the tunnel or
// a neighbour, whether their servers answer or not; and there is room again.
func TestScanner(t *testing.T) {
	for name, answers := range map[string]bool{"servers answer": true, "servers are silent": false} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, pairConfig{delay: time.Millisecond})
			neighbour, far := p.opened()
			var dialled []*Stream
			p.server.rec.request = func(s *Stream, _ Request) { dialled = append(dialled, s) }
			for n := 0; n < 3000 && p.client.Err() == nil; {
				for range 200 { // at once
					if p.client.Room() > 0 {
						p.open().Reset(http2.ErrCodeConnect)
						n++
					}
				}
				p.settle()
				for _, s := range dialled {
					if answers {
						s.Accept()
					}
				}
				dialled = nil
				if !answers {
					p.advance(time.Second)
				}
			}
			p.advance(time.Minute)
			if p.client.Err() != nil || p.server.Err() != nil {
				t.Fatalf("the tunnel has ended: %v, %v", p.client.Err(), p.server.Err())
			}
			p.client.write(neighbour, []byte("hello"))
			p.settle()
			if got := string(p.server.rec.got[far.id]); got != "hello" {
				t.Errorf("the neighbour got %q", got)
			}
			if c, s := p.client.Streams(), p.server.Streams(); c != 1 || s != 1 {
				t.Errorf("%d and %d streams are left, want the neighbour", c, s)
			}
		})
	}
}
