package hbone

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

var early = Config{EarlyData: true}

func earlyServer() Config { return Config{Role: Server, EarlyData: true} }

// offer is what a server's SETTINGS say of early data.
func offer(v uint32) http2.Setting { return http2.Setting{ID: settingEarlyData, Val: v} }

// put spends credit for a word of DATA and sends it to the peer.
func (p *testPeer) put(s *Stream, word string) {
	p.t.Helper()
	if s.Credit() < len(word) {
		p.t.Fatalf("credit for %d bytes, want %d", s.Credit(), len(word))
	}
	p.pull()
	var hdr [FrameHeader]byte
	s.PutData(&hdr, len(word))
	p.in.Write(hdr[:])
	p.in.WriteString(word)
}

// TestEarlyOffer: only a server that was asked to offers it, to a server nobody
// does, and only 1 is an offer.
func TestEarlyOffer(t *testing.T) {
	for _, cfg := range []Config{{}, early, {Role: Server}, earlyServer()} {
		p := newRawPeer(t, cfg)
		p.wantPreface("the client's preface, or nothing")
		v, ok := p.read().(*http2.SettingsFrame).Value(settingEarlyData)
		if want := cfg == earlyServer(); ok != want || want && v != 1 {
			t.Errorf("%+v: the setting is there: %t, with %d; want %t", cfg, ok, v, want)
		}
	}
	p := newPeer(t, earlyServer(), offer(1))
	p.writeRequest(1)
	wantCredit(t, "an offer to a server gives it nothing", p.rec.known[1], 0)
	for _, tt := range []struct {
		name    string
		cfg     Config
		say     []http2.Setting
		allowed bool
	}{
		{"not offered", early, nil, false},
		{"offered", early, []http2.Setting{offer(1)}, true},
		{"offered to one that was not asked to use it", Config{}, []http2.Setting{offer(1)}, false},
		{"0", early, []http2.Setting{offer(0)}, false},
		{"another's number", early, []http2.Setting{offer(2)}, false},
		{"the largest", early, []http2.Setting{offer(1<<32 - 1)}, false},
		{"offered and taken back", early, []http2.Setting{offer(1), offer(0)}, false},
		{"the last one counts", early, []http2.Setting{offer(0), offer(7), offer(1)}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPeer(t, tt.cfg, tt.say...)
			s := p.request()
			want := 0
			if tt.allowed {
				want = 16384
			}
			wantCredit(t, "before the answer", s, want)
			if s.Early() != tt.allowed {
				t.Errorf("early: %t, want %t", s.Early(), tt.allowed)
			}
			p.writeHeaders(s.id, false, ":status", "200")
			p.wantEvents("the answer", "accepted 1")
			wantCredit(t, "after the answer", s, 16384)
			if s.Early() {
				t.Error("early still after the answer")
			}
		})
	}
}

// TestEarlyClient: nothing goes before the server's SETTINGS have come; then as much
// as the stream's credit allows, and no end; then the answer decides.
func TestEarlyClient(t *testing.T) {
	p := newRawPeer(t, early)
	s, err := p.c.Open(p.now, testRequest, nil)
	if err != nil {
		t.Fatal(err)
	}
	p.rec.known[s.id] = s
	wantCredit(t, "before SETTINGS", s, 0)
	p.writeSettings(offer(1), http2.Setting{ID: http2.SettingInitialWindowSize, Val: 5})
	p.wantEvents("there is something to be sent", "writable 1")
	p.wantPreface("at first")
	p.wantSettings("at first")
	p.wantWindowUpdate("at first", 0, 16<<20-65535)
	p.read() // the request
	p.wantSettingsAck("acknowledged")
	p.put(s, "hello")
	p.wantData("right behind the request", 1, false, "hello")
	wantCredit(t, "the window is used up", s, 0)
	p.writeWindowUpdate(1, 3)
	p.wantEvents("a server may give more", "writable 1")
	wantCredit(t, "its credit is good", s, 3)
	s.End()
	p.wantIdle("the end waits for the answer")

	p.writeSettings(offer(0))
	p.wantSettingsAck("taken back")
	wantCredit(t, "nothing more", s, 0)
	p.writeWindowUpdate(1, 3)
	p.wantEvents("credit is of no use now")
	p.writeSettings(offer(1))
	p.wantSettingsAck("offered again")
	p.wantEvents("again", "writable 1")
	p.writeSettings(offer(1))
	p.wantSettingsAck("nothing has changed")
	p.wantEvents("nothing new")

	p.writeHeaders(1, false, ":status", "200")
	p.wantEvents("the answer", "accepted 1")
	p.put(s, "world!")
	p.wantData("the rest follows", 1, false, "world!")
	s.End()
	p.wantData("and the end", 1, true, "")
}

// TestEarlyAnswers: what an answer means does not depend on what was sent before it.
func TestEarlyAnswers(t *testing.T) {
	for _, tt := range []struct {
		name string
		say  func(p *testPeer)
		want string
		rst  http2.ErrCode
	}{
		{"401", func(p *testPeer) { p.writeHeaders(1, true, ":status", "401") }, "refused 1 denied 401", http2.ErrCodeCancel},
		{"503", func(p *testPeer) { p.writeHeaders(1, false, ":status", "503", "wishbone-reason", "timeout") },
			"refused 1 timeout 503", http2.ErrCodeCancel},
		{"REFUSED_STREAM", func(p *testPeer) { p.writeRST(1, http2.ErrCodeRefusedStream) }, "refused 1 unknown retry", 0},
		{"GOAWAY", func(p *testPeer) { p.writeGoAway(0, http2.ErrCodeNo, "") }, "refused 1 draining retry", 0},
		{"none in time", func(p *testPeer) { p.advance(15 * time.Second) }, "refused 1 timeout", http2.ErrCodeCancel},
		{"DATA instead", func(p *testPeer) { p.writeData(1, false, []byte("x")) }, "reset 1 PROTOCOL_ERROR", http2.ErrCodeProtocol},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPeer(t, early, offer(1))
			s := p.request()
			p.put(s, "hello")
			p.wantData("early", 1, false, "hello")
			tt.say(p)
			p.wantEvents("its owner hears of it", tt.want)
			if tt.rst != 0 {
				p.wantRST("the stream is over", 1, tt.rst)
			}
			wantCredit(t, "over", s, 0)
			if s.Early() {
				t.Error("early on a stream that is gone")
			}
		})
	}
	t.Run("taken back", func(t *testing.T) {
		p := newPeer(t, early, offer(1))
		s := p.abandon()
		wantCredit(t, "nobody's stream", s, 0)
		if s.Early() {
			t.Error("early on a stream that is nobody's")
		}
		p.writeSettings(offer(0), offer(1))
		p.wantSettingsAck("acknowledged")
		p.wantEvents("its owner hears nothing")
	})
}

// TestEarlyServer: what comes before the answer goes to the handler, within one
// window, without any of it given back until it has been delivered.
func TestEarlyServer(t *testing.T) {
	const window = 65535
	for _, f := range []struct {
		name   string
		answer func(s *Stream)
	}{
		{"401", func(s *Stream) { s.Refuse(Denied) }},
		{"503", func(s *Stream) { s.Refuse(Refused) }},
		{"reset", func(s *Stream) { s.Reset(http2.ErrCodeRefusedStream) }},
		{"200", nil},
	} {
		t.Run(f.name, func(t *testing.T) {
			budget := NewBudget(1 << 20)
			cfg := earlyServer()
			cfg.StreamWindow, cfg.Budget = window, budget
			p := newPeer(t, cfg)
			p.rec.hold = true
			p.writeRequest(1)
			s := p.rec.known[1]
			for range 5 {
				p.writeData(1, false, pattern(window/5))
			}
			p.wantEvents("all of it", "request 1 10.2.0.5:80", fmt.Sprintf("data 1 %d", window))
			p.advance(time.Second)
			p.wantIdle("no credit, and no answer yet")
			if got := budget.Used(); got != window {
				t.Errorf("%d bytes reserved, want a window", got)
			}
			if f.answer != nil {
				f.answer(s)
				s.Discard()
				if got := budget.Used(); got != 0 {
					t.Errorf("%d bytes reserved after the answer, want none", got)
				}
				for f := p.read(); f != nil; f = p.read() { // the answer
				}
				p.writeData(1, true, []byte("more"))
				p.wantIdle("what was on its way is thrown away")
				p.wantEvents("nobody hears of it")
				return
			}
			s.Accept()
			p.wantHeaders("accepted", 1, false, ":status", "200")
			p.rec.deliver(s, window)
			p.wantWindowUpdate("delivered, and given back", 1, window)
			p.writeData(1, true, []byte("more"))
			p.wantEvents("the stream goes on", "data 1 4", "end 1")
			p.rec.deliver(s, 4)
		})
	}
	t.Run("too much", func(t *testing.T) {
		cfg := earlyServer()
		cfg.StreamWindow = window
		p := newPeer(t, cfg)
		p.rec.hold = true
		p.writeRequest(1)
		for range 5 {
			p.writeData(1, false, pattern(window/5))
		}
		p.writeData(1, false, []byte("x"))
		p.wantRST("one byte beyond the window", 1, http2.ErrCodeFlowControl)
		p.wantEvents("over", "request 1 10.2.0.5:80", fmt.Sprintf("data 1 %d", window), "reset 1 FLOW_CONTROL_ERROR")
		p.rec.known[1].Discard()
		p.wantAlive("it is the stream's fault")
	})
	t.Run("and the end", func(t *testing.T) {
		p := newPeer(t, earlyServer())
		p.writeRequest(1)
		p.writeData(1, true, []byte("all"))
		p.wantEvents("held, and its end", "request 1 10.2.0.5:80", "data 1 3", "end 1")
		p.rec.known[1].Accept()
		p.wantHeaders("accepted", 1, false, ":status", "200")
		p.writeData(1, false, []byte("x"))
		p.wantRST("after the end", 1, http2.ErrCodeStreamClosed)
	})
	t.Run("padding", func(t *testing.T) {
		cfg := earlyServer()
		cfg.MaxStreamWindow = 4 << 20
		p := newPeer(t, cfg)
		p.c.ping.rtt = time.Hour // any delivery would be fast
		p.rec.hold = true
		p.writeRequest(1)
		for range 2000 {
			p.fr.WriteDataPadded(1, false, []byte("x"), make([]byte, 255))
			p.flush()
		}
		if s := p.rec.known[1]; s.window != 256<<10 {
			t.Errorf("the window has grown to %d before the answer", s.window)
		}
		p.wantAlive("padding is nobody's")
	})
}

// TestEarlyTunnel: two machines that have it agree by themselves, and save a round
// trip; with one that has not it is as ever.
func TestEarlyTunnel(t *testing.T) {
	const line = 20 * time.Millisecond
	for _, tt := range []struct {
		client, server, early bool
	}{{true, true, true}, {true, false, false}, {false, true, false}} {
		t.Run(fmt.Sprintf("client %t, server %t", tt.client, tt.server), func(t *testing.T) {
			p := newPair(t, pairConfig{
				client: Config{EarlyData: tt.client}, server: Config{EarlyData: tt.server},
				delay: line, chunk: randomChunks(1), silent: true,
			})
			p.server.rec.hold = true
			p.settle()
			word := pattern(300_000) // more than a window
			s := p.open()
			p.client.write(s, word)
			p.client.end(s)
			p.advance(line)
			far := p.server.rec.known[s.id]
			if got, want := len(p.server.rec.got[s.id]) > 0, tt.early; got != want {
				t.Errorf("DATA has come with the request: %t, want %t", got, want)
			}
			p.advance(time.Second)
			if got := len(p.server.rec.got[s.id]); tt.early && got != 256<<10 || !tt.early && got != 0 {
				t.Errorf("%d bytes before the answer", got)
			}
			far.Accept()
			p.server.rec.hold = false
			p.server.rec.deliver(far, p.server.rec.undel[s.id])
			p.advance(time.Second)
			if !bytes.Equal(p.server.rec.got[s.id], word) || !far.recvEnd {
				t.Error("the bytes are not what was sent, or have no end")
			}
		})
	}
}

// TestEarlyFlood: early data on as many streams as there may be, none of them
// answered, takes what was reserved for them and no more; then there is room again.
func TestEarlyFlood(t *testing.T) {
	cfg := earlyServer()
	cfg.TunnelBudget, cfg.Budget = 20<<20, NewBudget(1<<30)
	p := newPeer(t, cfg)
	p.rec.hold = true
	const most = 20 << 20 / (256 << 10)
	piece := make([]byte, 16384)
	for n := range 200 {
		id := uint32(2*n + 1)
		p.writeRequest(id)
		for range 256 << 10 / len(piece) {
			p.writeData(id, false, piece)
		}
	}
	p.wantAlive("an ordinary peer may be in a hurry, too")
	if len(p.rec.known) != most || p.c.credited != 20<<20 {
		t.Errorf("%d streams hold %d bytes, want %d and the budget", len(p.rec.known), p.c.credited, most)
	}
	for _, s := range p.rec.known {
		s.Refuse(Timeout)
		s.Discard()
	}
	if p.c.credited != 0 || cfg.Budget.Used() != 0 {
		t.Errorf("%d bytes are still reserved, %d of the process's", p.c.credited, cfg.Budget.Used())
	}
	p.writeRequest(401)
	if p.rec.known[401] == nil {
		t.Error("no room again")
	}
}
