package hbone

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestConnCreditOnReceipt: the connection's credit comes back while the stream's
// does not, so that one stalled reader never stalls its neighbours.
func TestConnCreditOnReceipt(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		p := newPeer(t, Config{Role: role, ConnWindow: 256 << 10})
		p.rec.hold = true
		stalled, other := p.open(), p.open()
		for range 4 {
			p.writeData(stalled.id, false, make([]byte, 64<<10))
			p.wantWindowUpdate("a quarter was received, delivered or not", 0, 64<<10)
		}
		p.wantIdle("the stalled stream gets nothing back")
		p.rec.take()
		p.writeData(other.id, false, []byte("hello"))
		p.wantAlive("the neighbour's DATA has its credit")
		p.rec.deliver(other, 5)

		p.rec.deliver(stalled, 64<<10-1)
		p.wantIdle("less than a quarter was delivered")
		p.rec.deliver(stalled, 1)
		p.wantWindowUpdate("a quarter was delivered", stalled.id, 64<<10)
		p.rec.deliver(stalled, 192<<10)
		p.wantWindowUpdate("and the rest at once", stalled.id, 192<<10)
		p.wantIdle("all of it is given back")
	})
}

// TestWindowExceeded: more than the credit ends the stream, or the tunnel.
func TestWindowExceeded(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		t.Run("stream", func(t *testing.T) {
			p := newPeer(t, Config{Role: role})
			p.rec.hold = true
			s, other := p.open(), p.open()
			p.writeData(s.id, false, make([]byte, 256<<10))
			p.wantAlive("the whole window")
			p.rec.take()
			p.writeData(s.id, false, make([]byte, 1))
			p.wantRST("one byte more", s.id, http2.ErrCodeFlowControl)
			p.wantEvents("the stream is gone", "reset "+id(s)+" FLOW_CONTROL_ERROR")
			checkBudgets(t, p.c) // what came before is still reserved
			p.writeData(other.id, false, make([]byte, 1))
			p.wantAlive("its neighbour is not")
		})
		t.Run("connection", func(t *testing.T) {
			p := newPeer(t, Config{Role: role, ConnWindow: 100_000, StreamWindow: 1 << 20})
			s := p.open()
			p.c.unacked = -1 << 30 // nothing is given back
			p.writeData(s.id, false, make([]byte, 100_000))
			p.wantAlive("the whole window")
			p.writeData(s.id, false, make([]byte, 1))
			p.wantClosed("one byte more", http2.ErrCodeFlowControl)
		})
	})
}

// TestPadding: padding counts against both windows (RFC 9113 §6.9.1) and comes
// back without being delivered to anyone.
func TestPadding(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		testChunkings(t, func(t *testing.T, chunk chunker) {
			p := newPeer(t, Config{Role: role, ConnWindow: 256 << 10})
			p.rec.hold = true
			s := p.open()
			p.chunk = chunk
			sent := 0
			for sent < 64<<10 {
				checkBudgets(t, p.c)
				p.fr.WriteDataPadded(s.id, false, nil, make([]byte, 255))
				p.flush()
				sent += 256
			}
			p.wantWindowUpdate("a quarter of the connection's", 0, sent)
			p.wantWindowUpdate("a quarter of the stream's", s.id, sent)
			p.wantEvents("there was nothing to hand on")

			p.fr.WriteDataPadded(s.id, false, []byte("hello"), make([]byte, 3))
			p.fr.WriteDataPadded(s.id, true, []byte("world"), nil)
			p.flush()
			p.wantEvents("only the data is", "data "+id(s)+" 10", "end "+id(s))
			if got := string(p.rec.got[s.id]); got != "helloworld" {
				t.Errorf("data %q", got)
			}
			p.rec.deliver(s, 10)
			p.wantIdle("no credit for what has ended")
		})
	})
}

// id is a stream's number in an event.
func id(s *Stream) string { return fmt.Sprint(s.id) }

// TestCredit: what may be sent is the least of both windows.
func TestCredit(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		p := newPeer(t, Config{Role: role}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 20})
		a, b := p.open(), p.open()
		wantCredit(t, "RFC 9113 §6.9.2", a, 65535)
		put(a, 65535)
		wantCredit(t, "both windows are empty", a, 0)
		if !a.Starved() {
			t.Error("it is not said that the stream's own is")
		}
		wantCredit(t, "the connection's is empty", b, 0)
		if b.Starved() {
			t.Error("it is said that the stream's own is")
		}
		if got := p.c.Credit(); got != 0 {
			t.Errorf("connection's credit %d, want 0", got)
		}

		p.writeWindowUpdate(0, 10)
		p.wantEvents("nobody is called: the caller looks at Conn.Credit")
		if got := p.c.Credit(); got != 10 {
			t.Errorf("connection's credit %d, want 10", got)
		}
		wantCredit(t, "the connection's", b, 10)
		p.writeWindowUpdate(a.id, 7)
		p.wantEvents("credit where was none", "writable "+id(a))
		if a.Starved() {
			t.Error("still starved")
		}
		p.writeWindowUpdate(a.id, 100)
		p.wantEvents("more of it")
		wantCredit(t, "the connection's", a, 10)
		put(a, 10)
		wantCredit(t, "the connection's", a, 0)
		if a.Starved() {
			t.Error("it is said that the stream's own window is empty")
		}
	})
}

func wantCredit(t testing.TB, why string, s *Stream, want int) {
	t.Helper()
	if got := s.Credit(); got != want {
		t.Fatalf("%s: credit %d, want %d", why, got, want)
	}
}

func put(s *Stream, n int) {
	var hdr [FrameHeader]byte
	s.PutData(&hdr, n)
}

// TestPutData: the header that it writes.
func TestPutData(t *testing.T) {
	p := newPeer(t, Config{})
	s := p.open()
	var hdr [FrameHeader]byte
	s.PutData(&hdr, 5)
	p.in.Write(append(hdr[:], "hello"...))
	p.wantData("what was put", s.id, false, "hello")
}

// TestNegativeWindow: a lowered SETTINGS_INITIAL_WINDOW_SIZE takes credit that
// is already spent (RFC 9113 §6.9.2).
func TestNegativeWindow(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		p := newPeer(t, Config{Role: role})
		a, b, c := p.open(), p.open(), p.open()
		put(a, 65535)
		put(b, 5)
		p.writeWindowUpdate(0, 1<<20)
		p.writeSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100})
		p.wantEvents("nobody can send more than before")
		wantCredit(t, "100 - 65535", a, 0)
		wantCredit(t, "100 - 5", b, 95)
		wantCredit(t, "100", c, 100)
		if !a.Starved() || b.Starved() {
			t.Errorf("starved: %t and %t, want true and false", a.Starved(), b.Starved())
		}
		p.writeWindowUpdate(a.id, 65435)
		p.wantEvents("back to zero is not writable")
		wantCredit(t, "0", a, 0)
		p.writeWindowUpdate(a.id, 1)
		p.wantEvents("above it is", "writable "+id(a))
		wantCredit(t, "1", a, 1)

		put(a, 1)
		c.End()
		put(c, 0)
		p.writeSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		p.rec.take()
		p.writeSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 200})
		p.wantEvents("those that were empty and can still send, in order", "writable "+id(a), "writable "+id(b))
		wantCredit(t, "100 more", a, 100)
		wantCredit(t, "200 - 5", b, 195)
	})
}

// TestWindowOverflow: credit above 2^31-1 (RFC 9113 §6.9.1).
func TestWindowOverflow(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		t.Run("stream", func(t *testing.T) {
			p := newPeer(t, Config{Role: role})
			s := p.open()
			p.writeWindowUpdate(s.id, 1<<31-1-65535)
			p.wantAlive("exactly as much as there may be")
			p.writeWindowUpdate(s.id, 1)
			p.wantRST("one more", s.id, http2.ErrCodeFlowControl)
			p.wantEvents("the stream is gone", "reset "+id(s)+" FLOW_CONTROL_ERROR")
			p.writeWindowUpdate(s.id, 1)
			p.wantAlive("RFC 9113 §5.1: the peer does not know yet")
			p.wantIdle("and is not told twice")
		})
		t.Run("connection", func(t *testing.T) {
			p := newPeer(t, Config{Role: role})
			p.writeWindowUpdate(0, 1<<31-1-65535)
			p.wantAlive("exactly as much as there may be")
			p.writeWindowUpdate(0, 1)
			p.wantClosed("one more", http2.ErrCodeFlowControl)
		})
		t.Run("settings", func(t *testing.T) {
			p := newPeer(t, Config{Role: role})
			s := p.open()
			p.writeWindowUpdate(s.id, 1)
			p.writeSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 2})
			p.wantSettingsAck("exactly as much as there may be")
			p.writeSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1})
			p.wantClosed("one more", http2.ErrCodeFlowControl)
		})
	})
}

// TestBadWindowUpdate: those that mean nothing (RFC 9113 §6.9).
func TestBadWindowUpdate(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		p := newPeer(t, Config{Role: role})
		s := p.open()
		p.writeWindowUpdate(s.id, 0)
		p.wantRST("0 for a stream", s.id, http2.ErrCodeProtocol)
		p.writeWindowUpdate(s.id, 1)
		p.wantAlive("for a stream that has ended")
		p.writeWindowUpdate(0, 0)
		p.wantClosed("0 for the connection", http2.ErrCodeProtocol)
	})
}

// ping answers the Conn's next PING after d.
func (p *testPeer) pong(d time.Duration) {
	p.t.Helper()
	p.c.ping.next = p.now
	p.advance(0)
	f, ok := p.read().(*http2.PingFrame)
	if !ok {
		p.t.Fatal("no PING")
	}
	p.now += d
	p.writePing(true, f.Data)
	p.c.ping.next = forever
}

// TestWindowGrowth: the window doubles while a quarter of it is delivered in
// less than a round trip, up to 4 MiB.
func TestWindowGrowth(t *testing.T) {
	const rtt = 100 * time.Millisecond
	start := func(t *testing.T, cfg Config) (*testPeer, *Stream) {
		p := newPeer(t, cfg)
		p.pong(rtt)
		if got := p.c.RTT(); got != rtt {
			t.Fatalf("round trip %v, want %v", got, rtt)
		}
		return p, p.open()
	}
	// quarter sends a quarter of the window, which is delivered after d.
	quarter := func(p *testPeer, s *Stream, d time.Duration) int {
		p.now += d
		n := int(s.window / 4)
		p.writeData(s.id, false, make([]byte, n))
		return n
	}
	testRoles(t, func(t *testing.T, role Role) {
		p, s := start(t, Config{Role: role})
		for window := 256 << 10; window < 4<<20; window *= 2 {
			n := quarter(p, s, rtt)
			checkBudgets(t, p.c)
			p.wantWindowUpdate("fast: it doubles", s.id, n+window)
		}
		quarter(p, s, rtt)
		p.wantWindowUpdate("but not beyond 4 MiB", s.id, 1<<20)
	})
	t.Run("slow", func(t *testing.T) {
		p, s := start(t, Config{})
		n := quarter(p, s, rtt+time.Millisecond)
		p.wantWindowUpdate("slower than the line: as it is", s.id, n)
		n = quarter(p, s, rtt)
		p.wantWindowUpdate("faster: it doubles", s.id, n+256<<10)
	})
	t.Run("unknown round trip", func(t *testing.T) {
		p := newPeer(t, Config{})
		s := p.open()
		n := quarter(p, s, 1)
		p.wantWindowUpdate("as it is", s.id, n)
	})
	t.Run("odd maximum", func(t *testing.T) {
		p, s := start(t, Config{MaxStreamWindow: 300_000})
		n := quarter(p, s, 1)
		p.wantWindowUpdate("up to it", s.id, n+300_000-256<<10)
		n = quarter(p, s, 1)
		p.wantWindowUpdate("and not beyond", s.id, n)
	})
	t.Run("maximum below the start", func(t *testing.T) {
		p, s := start(t, Config{MaxStreamWindow: 100_000})
		n := quarter(p, s, 1)
		p.wantWindowUpdate("as it is", s.id, n)
	})
}

// TestCompany: on a line without length a stream by itself gets what the loops' turns
// need; several share that, and give back what one of them had alone.
func TestCompany(t *testing.T) {
	start := func(t *testing.T, role Role) (*testPeer, *Stream) {
		p := newPeer(t, Config{Role: role})
		p.c.SetRTT(100 * time.Microsecond)
		return p, p.open()
	}
	// quarter delivers a quarter of the window, all at once.
	quarter := func(p *testPeer, s *Stream) int {
		n := int(s.window / 4)
		p.writeData(s.id, false, make([]byte, n))
		checkBudgets(p.t, p.c)
		return n
	}
	testRoles(t, func(t *testing.T, role Role) {
		t.Run("alone", func(t *testing.T) {
			p, s := start(t, role)
			for range 2 {
				n := quarter(p, s)
				p.wantWindowUpdate("it doubles", s.id, n+4*n)
			}
			p.wantWindowUpdate("that is enough", s.id, quarter(p, s))
			p.rec.take()

			other := p.open()
			p.writeData(other.id, false, make([]byte, 1))
			for range 3 {
				quarter(p, s)
				p.wantIdle("not alone any more: what was delivered is kept back")
			}
			p.wantWindowUpdate("down to half of what is enough, more or less", s.id, quarter(p, s))
			if s.window != 432<<10 {
				t.Errorf("window %d", s.window)
			}
			p.now += 2 * busyTime
			p.wantWindowUpdate("alone, and slow", s.id, quarter(p, s))
			n := quarter(p, s)
			p.wantWindowUpdate("alone, and fast", s.id, n+4*n)
		})
		t.Run("one of four", func(t *testing.T) {
			p, s := start(t, role)
			for range 3 {
				p.writeData(p.open().id, false, make([]byte, 1))
				p.rec.take()
			}
			p.wantWindowUpdate("as it is", s.id, quarter(p, s))
		})
		t.Run("far away", func(t *testing.T) {
			p, s := start(t, role)
			other := p.open()
			p.c.SetRTT(10 * time.Millisecond)
			p.writeData(other.id, false, make([]byte, 1))
			n := quarter(p, s)
			p.wantWindowUpdate("the line holds more", s.id, n+4*n)
		})
	})
}

// TestGrowthLeavesRoom: windows grow while a quarter of the process's budget is free for
// new streams, and shrink again when new streams take of that.
func TestGrowthLeavesRoom(t *testing.T) {
	p := newPeer(t, Config{Budget: NewBudget(1 << 20)})
	p.pong(time.Second)
	s := p.open()
	p.writeData(s.id, false, make([]byte, 64<<10))
	p.wantWindowUpdate("half of the budget", s.id, 64<<10+256<<10)
	p.writeData(s.id, false, make([]byte, 128<<10))
	p.wantWindowUpdate("no more of it", s.id, 128<<10)

	p.rec.take()
	other := p.open()
	p.writeData(s.id, false, make([]byte, 128<<10))
	p.wantWindowUpdate("a quarter is still free", s.id, 128<<10)
	p.rec.take()
	third := p.open()
	if _, err := p.c.Open(p.now, testRequest, nil); err != ErrBudget {
		t.Fatalf("open: %v, want %v", err, ErrBudget)
	}
	p.writeData(s.id, false, make([]byte, 200<<10))
	checkBudgets(t, p.c)
	p.wantIdle("memory is short: what was delivered is kept back")
	p.writeData(s.id, false, make([]byte, 100<<10))
	p.wantWindowUpdate("down to what it began with", s.id, 100<<10-56<<10)
	fourth := p.request() // there is room again
	p.writeData(s.id, false, make([]byte, 64<<10))
	p.wantWindowUpdate("and not below", s.id, 64<<10)
	for _, s := range []*Stream{other, third, fourth} {
		s.Reset(http2.ErrCodeCancel)
	}
	p.read()
	p.read()
	p.read()
	p.writeData(s.id, false, make([]byte, 64<<10))
	p.wantWindowUpdate("until there is room to grow", s.id, 64<<10+256<<10)
}

// TestGrowthLeavesPlaces: windows that have grown, and whose bytes nobody reads, take
// nothing from the streams that a tunnel may have besides; nor do they after streams
// have ended on which nothing came any more.
func TestGrowthLeavesPlaces(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		for _, quiet := range []int{0, 176} {
			p := newPeer(t, Config{Role: role})
			p.pong(time.Second)
			var ended []*Stream
			for range quiet {
				s := p.open()
				p.writeData(s.id, true, nil)
				p.rec.take()
				ended = append(ended, s)
			}
			streams := 0
			for grown := int64(0); grown < growth; streams++ {
				s := p.open()
				grown -= s.window
				for before := int64(0); s.window > before; p.rec.take() {
					before = s.window
					p.writeData(s.id, false, make([]byte, s.window/4))
					for p.read() != nil {
					}
				}
				grown += s.window
			}
			for _, s := range ended {
				s.End()
				for p.read() != nil {
				}
			}
			for ; streams < p.c.cfg.MaxStreams; streams++ {
				p.open()
				p.rec.take()
			}
			checkBudgets(t, p.c)
		}
	})
}

// TestDeadBytes: what a stream has handed on stays reserved when it is gone,
// until it has left or is thrown away.
func TestDeadBytes(t *testing.T) {
	ends := map[string]func(p *testPeer, s *Stream){
		"reset by peer": func(p *testPeer, s *Stream) { p.writeRST(s.id, http2.ErrCodeCancel) },
		"reset by us":   func(p *testPeer, s *Stream) { s.Reset(http2.ErrCodeCancel) },
		"in order":      func(p *testPeer, s *Stream) { s.End(); p.writeData(s.id, true, nil) },
		"killed":        func(p *testPeer, s *Stream) { p.writeWindowUpdate(s.id, 0) },
		"tunnel lost":   func(p *testPeer, s *Stream) { p.c.Fail(errTestOver) },
	}
	testRoles(t, func(t *testing.T, role Role) {
		for name, end := range ends {
			t.Run(name, func(t *testing.T) {
				b := NewBudget(1 << 20)
				p := newPeer(t, Config{Role: role, Budget: b})
				wantUsed := func(why string, want int64) {
					t.Helper()
					if got := b.Used(); got != want || p.c.credited != want {
						t.Fatalf("%s: %d of the process's and %d of the tunnel's budget used, want %d",
							why, got, p.c.credited, want)
					}
				}
				p.rec.hold = true
				s := p.open()
				p.writeData(s.id, false, make([]byte, 1000))
				wantUsed("a window", 256<<10)
				end(p, s)
				if !s.Gone() {
					t.Fatal("the stream is not gone")
				}
				wantUsed("what is undelivered", 1000)
				p.rec.deliver(s, 300)
				wantUsed("some was delivered", 700)
				s.Discard()
				wantUsed("the rest is discarded", 0)
				s.Discard()
				s.Delivered(p.now, 100)
				wantUsed("what is discarded is not delivered", 0)
			})
		}
	})
}

// TestEndedInput: a peer that has half-closed needs no credit any more; what it
// has sent is reserved until it has left.
func TestEndedInput(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		p := newPeer(t, Config{Role: role})
		p.rec.hold = true
		s := p.open()
		p.writeData(s.id, false, make([]byte, 100_000))
		p.writeData(s.id, true, nil)
		if p.c.credited != 100_000 {
			t.Fatalf("reserved: %d, want 100000", p.c.credited)
		}
		p.rec.deliver(s, 99_999)
		p.wantIdle("nobody needs the credit")
		checkBudgets(t, p.c)
		if p.c.credited != 1 {
			t.Fatalf("reserved: %d, want 1", p.c.credited)
		}
	})
}

// TestBudgetsEmpty: a server without memory says so, a client gets an error.
func TestBudgetsEmpty(t *testing.T) {
	for _, cfg := range []Config{{TunnelBudget: 600 << 10}, {Budget: NewBudget(600 << 10)}} {
		p := newPeer(t, cfg)
		room := func(want int) {
			t.Helper()
			if got := p.c.Room(); cfg.TunnelBudget > 0 && got != want {
				t.Errorf("room for %d, want %d", got, want)
			}
		}
		room(2)
		a, b := p.request(), p.request()
		room(0)
		if _, err := p.c.Open(p.now, testRequest, nil); err != ErrBudget {
			t.Errorf("open: %v, want %v", err, ErrBudget)
		}
		p.wantIdle("nothing is sent")
		a.Reset(http2.ErrCodeCancel)
		b.Reset(http2.ErrCodeCancel)
		p.read()
		p.read()
		room(2)

		cfg.Role = Server
		p = newPeer(t, cfg)
		a, b = p.open(), p.open()
		p.writeRequest(5)
		p.wantHeaders("the third", 5, true, ":status", "503", "wishbone-reason", "overloaded")
		p.wantRST("and no more of it", 5, http2.ErrCodeNo)
		p.wantEvents("there is no stream", "overloaded: 10.2.0.5:80")
		a.Reset(http2.ErrCodeCancel)
		p.read()
		p.writeRequest(7)
		p.wantEvents("there is room again", "request 7 10.2.0.5:80")
		b.Reset(http2.ErrCodeCancel)
		p.rec.known[7].Refuse(Failed)
	}
}

// TestBudget: many owners, never more than there is.
func TestBudget(t *testing.T) {
	b := NewBudget(10)
	if !b.Take(4) || !b.Take(6) || b.Take(1) {
		t.Error("10 bytes are 4 and 6 and nothing more")
	}
	b.Give(4)
	if b.Used() != 6 || b.Take(5) || !b.Take(4) {
		t.Error("4 came back")
	}
	var none *Budget
	if !none.Take(1<<40) || none.Used() != 0 {
		t.Error("no budget is no bound")
	}
	none.Give(1)
}
