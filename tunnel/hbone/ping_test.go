package hbone

import (
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestFirstPing: a peer is asked when the first stream begins, which is when the
// round trip begins to matter; without streams it is asked as at any time.
func TestFirstPing(t *testing.T) {
	begin := func(t *testing.T, role Role) *testPeer {
		p := newPeer(t, Config{Role: role})
		p.c.ping = pingState{}
		p.c.ping.init(p.c, p.now)
		return p
	}
	testRoles(t, func(t *testing.T, role Role) {
		t.Run("with a stream", func(t *testing.T) {
			p := begin(t, role)
			p.advance(time.Second)
			p.wantIdle("there is nothing to know it for")
			p.open()
			p.advance(0)
			if f, ok := p.read().(*http2.PingFrame); !ok || f.IsAck() {
				t.Fatal("no PING with the first stream")
			}
			p.writePing(true, [8]byte{7: 1})
			p.open()
			p.advance(0)
			p.wantIdle("once")
		})
		t.Run("without", func(t *testing.T) {
			p := begin(t, role)
			p.advance(9 * time.Second)
			p.wantIdle("it is early")
			p.advance(2 * time.Second)
			if f, ok := p.read().(*http2.PingFrame); !ok || f.IsAck() {
				t.Fatal("no PING in 11 s")
			}
		})
	})
}

// TestPing: a peer is asked every 10 s, a tenth more or less.
func TestPing(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		p := newPeer(t, Config{Role: role})
		p.c.ping.next = p.now
		var gaps []time.Duration
		for range 200 {
			p.advance(p.c.Deadline() - p.now)
			f, ok := p.read().(*http2.PingFrame)
			if !ok || f.IsAck() {
				t.Fatal("no PING when it is due")
			}
			p.wantIdle("one of them")
			p.advance(30 * time.Millisecond)
			p.writePing(true, f.Data)
			p.wantIdle("an answer is not answered")
			if got := p.c.RTT(); got != 30*time.Millisecond {
				t.Fatalf("round trip %v, want 30 ms", got)
			}
			gaps = append(gaps, p.c.Deadline()-p.now)
		}
		var below, above int
		for _, g := range gaps {
			switch {
			case g < 9*time.Second || g > 11*time.Second:
				t.Errorf("the next is due in %v, want 9 to 11 s", g)
			case g < 9500*time.Millisecond:
				below++
			case g > 10500*time.Millisecond:
				above++
			}
		}
		if below < 20 || above < 20 {
			t.Errorf("%d gaps in the first quarter and %d in the last, of 200: not spread", below, above)
		}
	})
}

// TestPingSpread: tunnels that begin together do not ask together.
func TestPingSpread(t *testing.T) {
	next := make(map[time.Duration]int)
	for i := range 100 {
		var p pingState
		p.init(&Conn{cfg: Config{}.withDefaults()}, time.Duration(i)*2*time.Microsecond)
		next[p.jittered(10*time.Second).Round(100*time.Millisecond)]++
	}
	if len(next) < 10 {
		t.Errorf("100 tunnels ask within %d tenths of a second: %v", len(next), next)
	}
}

// TestPingAnswered: the peer's PINGs are answered, with what they carry, before
// anything else is waited for.
func TestPingAnswered(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		p := newPeer(t, Config{Role: role})
		data := [8]byte{0x3b, 0x7c, 0xdb, 0x7a, 0x0b, 0x87, 0x16, 0xb4} // h2's
		p.writePing(false, data)
		p.wantPing("the answer", true, data)
		p.wantIdle("nothing else")
	})
}

// TestPingLost: a peer that is silent for 20 s after a PING is dead.
func TestPingLost(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		p := newPeer(t, Config{Role: role})
		p.c.ping.next = p.now + time.Minute
		p.advance(time.Minute)
		if _, ok := p.read().(*http2.PingFrame); !ok {
			t.Fatal("no PING")
		}
		p.advance(20*time.Second - 1)
		p.wantAlive("19.9 s")
		p.wantIdle("it is not asked again")
		p.advance(1)
		wantCode(t, "20 s", p.err, http2.ErrCodeNo)
		p.wantGoAway("in case it still listens", p.c.lastID, http2.ErrCodeNo)
	})
}

// TestPingBehindBulk: on a thin line the answer waits its turn behind data; as
// long as that comes the peer lives.
func TestPingBehindBulk(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		p := newPeer(t, Config{Role: role})
		s := p.open()
		p.c.ping.next = p.now
		p.advance(0)
		ping := p.read().(*http2.PingFrame).Data
		for range 10 {
			p.advance(19 * time.Second)
			p.writeData(s.id, false, make([]byte, 100))
			p.wantAlive("data comes")
		}
		p.writePing(true, ping)
		if got := p.c.RTT(); got != 190*time.Second {
			t.Errorf("round trip %v, want all the time that it took", got)
		}
		p.c.ping.next = p.now
		p.advance(20*time.Second - 1)
		p.wantAlive("it may still come")
		p.advance(1)
		wantCode(t, "but nothing does", p.err, http2.ErrCodeNo)
	})
}

// TestRTT: the round trip is the least that a PING took, since more is a queue's
// doing; the transport knows better, unless it ends before the peer does.
func TestRTT(t *testing.T) {
	p := newPeer(t, Config{})
	if got := p.c.RTT(); got != 0 {
		t.Errorf("before the first answer %v, want 0", got)
	}
	for _, tt := range []struct{ sample, want time.Duration }{
		{80 * time.Millisecond, 80 * time.Millisecond},
		{160 * time.Millisecond, 80 * time.Millisecond},
		{10 * time.Millisecond, 10 * time.Millisecond},
		{0, time.Microsecond},
	} {
		p.pong(tt.sample)
		if got := p.c.RTT(); got != tt.want {
			t.Errorf("after one of %v: %v, want %v", tt.sample, got, tt.want)
		}
	}
	p = newPeer(t, Config{})
	p.pong(20 * time.Millisecond)
	for _, tt := range []struct{ line, want time.Duration }{
		{18 * time.Millisecond, 18 * time.Millisecond},
		{60 * time.Millisecond, 60 * time.Millisecond},
		{time.Millisecond, 20 * time.Millisecond},
	} {
		p.c.SetRTT(tt.line)
		if got := p.c.RTT(); got != tt.want {
			t.Errorf("PINGs take 20 ms, segments %v: %v, want %v", tt.line, got, tt.want)
		}
	}
}

// TestWrongAnswer: an answer to another PING is none.
func TestWrongAnswer(t *testing.T) {
	p := newPeer(t, Config{})
	p.c.ping.next = p.now
	p.advance(0)
	p.writePing(true, [8]byte{0xff})
	if got := p.c.RTT(); got != 0 {
		t.Errorf("round trip %v from an answer that was made up", got)
	}
	p.wantAlive("it may be a mistake")
}

// TestIdleDay: two gateways with one silent stream, for a day, with the peer
// 100 ms away: pings keep going, and nothing else does.
func TestIdleDay(t *testing.T) {
	p := newPair(t, pairConfig{delay: 50 * time.Millisecond})
	s, far := p.opened()
	p.advance(24 * time.Hour)
	p.client.want("silence")
	p.server.want("silence")
	for _, side := range []*side{p.client, p.server} {
		if side.err != nil {
			t.Fatalf("%s: %v", side.name, side.err)
		}
		if n := side.ping.count; n < 24*3600/11 || n > 24*3600/9 {
			t.Errorf("%s: %d pings in a day, want one every 10 s", side.name, n)
		}
		if got := side.RTT(); got != 100*time.Millisecond {
			t.Errorf("%s: round trip %v, want 100 ms", side.name, got)
		}
	}
	p.client.write(s, []byte("still there?"))
	p.settle()
	p.server.want("the stream is as it was", "data 1 12")
	p.server.end(far)
	p.settle()
	p.client.want("both ways", "end 1")
}

// TestLostLine: when nothing arrives any more, both sides find out within an
// interval and a timeout.
func TestLostLine(t *testing.T) {
	p := newPair(t, pairConfig{delay: time.Millisecond})
	p.opened()
	p.advance(time.Minute)
	p.delay = 1000 * time.Hour
	p.advance(31*time.Second + 2*time.Millisecond)
	for _, side := range []*side{p.client, p.server} {
		wantCode(t, side.name, side.err, http2.ErrCodeNo)
		side.want("its streams are cut", "reset 1 closing tunnel: NO_ERROR: no answer to PING")
	}
}
