package hbone

import (
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestReentry: a handler may reset, refuse and open streams from within any
// event, also while the Conn goes through all of them.
func TestReentry(t *testing.T) {
	type script struct {
		name  string
		cause func(p *testPeer) // makes the event, on a client with streams 1, 3, 5 open and 7 waiting
		event string            // at which
		want  []string
	}
	scripts := []script{
		{"SETTINGS make all writable", func(p *testPeer) {
			p.writeSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			for _, id := range []uint32{1, 3, 5} {
				p.rec.known[id].Credit()
			}
			p.writeSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100})
		}, "writable", []string{"writable 1"}},
		{"WINDOW_UPDATE", func(p *testPeer) {
			p.writeSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			p.writeWindowUpdate(3, 1)
		}, "writable", []string{"writable 3"}},
		{"GOAWAY", func(p *testPeer) {
			p.writeGoAway(1, http2.ErrCodeNo, "")
		}, "reset 3", []string{"reset 3 REFUSED_STREAM by peer"}},
		{"GOAWAY with an error", func(p *testPeer) {
			p.writeGoAway(5, http2.ErrCodeInternal, "")
		}, "refused 7", []string{"refused 7 draining retry"}},
		{"the end", func(p *testPeer) {
			p.c.Fail(errTestOver)
		}, "reset 1", []string{"reset 1 the test is over"}},
		{"timeout", func(p *testPeer) {
			p.advance(15 * time.Second)
		}, "refused 7", []string{"refused 7 timeout"}},
		{"DATA with END_STREAM", func(p *testPeer) {
			p.writeData(3, true, []byte("hello"))
		}, "data 3", []string{"data 3 5"}},
		{"END_STREAM", func(p *testPeer) {
			p.writeData(3, true, nil)
		}, "end 3", []string{"end 3"}},
		{"200 with END_STREAM", func(p *testPeer) {
			p.writeHeaders(7, true, ":status", "200")
		}, "accepted 7", []string{"accepted 7"}},
		{"refusal", func(p *testPeer) {
			p.writeHeaders(7, false, ":status", "503")
		}, "refused 7", []string{"refused 7 unknown 503"}},
		{"reset", func(p *testPeer) {
			p.writeRST(5, http2.ErrCodeCancel)
		}, "reset 5", []string{"reset 5 CANCEL by peer"}},
		{"kill", func(p *testPeer) {
			p.writeWindowUpdate(5, 0)
		}, "reset 5", []string{"reset 5 PROTOCOL_ERROR"}},
	}
	start := func(t *testing.T) *testPeer {
		p := newPeer(t, Config{})
		for range 3 {
			p.open()
		}
		p.request()
		p.rec.take()
		return p
	}
	for _, tt := range scripts {
		t.Run(tt.name+"/all are reset", func(t *testing.T) {
			p := start(t)
			p.rec.hook = func(e string) {
				if strings.HasPrefix(e, tt.event) {
					for _, s := range p.rec.known {
						s.Reset(http2.ErrCodeCancel)
					}
				}
			}
			tt.cause(p)
			p.wantEvents("nothing is heard of a stream that is gone", tt.want...)
			if got := p.c.Streams(); got != 0 {
				t.Errorf("%d streams are left", got)
			}
			wantWaiting(t, p.c)
			checkBudgets(t, p.c)
		})
		t.Run(tt.name+"/more are opened", func(t *testing.T) {
			p := start(t)
			var opened []*Stream
			p.rec.hook = func(e string) {
				for range 20 {
					s, err := p.c.Open(p.now, testRequest, nil)
					if err != nil {
						return
					}
					p.rec.known[s.id] = s
					opened = append(opened, s)
				}
			}
			tt.cause(p)
			for _, s := range opened {
				if s.send != p.c.peer.window || s.gone || !s.waiting {
					t.Errorf("stream %d: credit %d, want the peer's %d; gone %t, waiting %t",
						s.id, s.send, p.c.peer.window, s.gone, s.waiting)
				}
			}
			checkBudgets(t, p.c)
		})
	}
}

// TestReentryServer: the same for a server's own event.
func TestReentryServer(t *testing.T) {
	for name, act := range map[string]func(s *Stream){
		"accept and end": func(s *Stream) { s.Accept(); s.End() },
		"refuse":         func(s *Stream) { s.Refuse(Denied) },
		"reset":          func(s *Stream) { s.Reset(http2.ErrCodeRefusedStream) },
		"drain":          func(s *Stream) { s.conn.Drain(); s.Refuse(Draining) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t, Config{Role: Server})
			p.rec.request = func(s *Stream, _ Request) { act(s) }
			p.writeHeaders(1, true, ":method", "CONNECT", ":authority", "10.2.0.5:80")
			want := []string{"request 1 10.2.0.5:80"}
			if name == "accept and end" {
				want = append(want, "end 1")
			}
			p.wantEvents("the request", want...)
			if got := p.c.Streams(); got != 0 {
				t.Errorf("%d streams are left", got)
			}
			p.wantAlive("the tunnel goes on")
		})
	}
}

// TestRoomReentry: a pool opens a stream as soon as it hears of room.
func TestRoomReentry(t *testing.T) {
	p := newPeer(t, Config{MaxStreams: 2})
	a := p.open()
	p.open()
	rooms := &roomTaker{recorder: p.rec, c: p.c}
	p.c.h = rooms
	a.Reset(http2.ErrCodeCancel)
	p.writeRST(3, http2.ErrCodeCancel)
	p.writeRST(5, http2.ErrCodeCancel)
	p.writeHeaders(7, true, ":status", "503")
	p.writeWindowUpdate(9, 0)
	p.c.h = p.rec
	if len(rooms.opened) != 5 || p.c.Streams() != 2 {
		t.Errorf("%d were opened, %d are open; want 5 and 2", len(rooms.opened), p.c.Streams())
	}
}

// roomTaker opens a stream whenever it can.
type roomTaker struct {
	*recorder
	c      *Conn
	opened []*Stream
}

func (r *roomTaker) Room() {
	for r.c.Room() > 0 {
		s, err := r.c.Open(*r.clock, testRequest, nil)
		if err != nil {
			return
		}
		r.known[s.id] = s
		r.opened = append(r.opened, s)
	}
}
