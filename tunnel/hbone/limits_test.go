package hbone

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// flood is something that costs us more than the peer. It is borne up to a
// burst, then the tunnel is cut.
type flood struct {
	name  string
	kind  glitch
	role  []Role
	start func(p *testPeer)        // once
	once  func(p *testPeer, n int) // the n-th time
	loud  bool                     // each is answered: the answers are read
}

var (
	bothRoles  = []Role{Client, Server}
	serverOnly = []Role{Server}
	clientOnly = []Role{Client}
)

// odd is the n-th number of a client's stream.
func odd(n int) uint32 { return uint32(2*n + 1) }

var floods = []flood{
	{name: "PING", kind: glitchPing, role: bothRoles, loud: true,
		once: func(p *testPeer, n int) { p.writePing(false, [8]byte{}) }},
	{name: "PING answers", kind: glitchPing, role: bothRoles,
		once: func(p *testPeer, n int) { p.writePing(true, [8]byte{1}) }},
	{name: "SETTINGS", kind: glitchSettings, role: bothRoles, loud: true,
		once: func(p *testPeer, n int) { p.writeSettings() }},
	{name: "SETTINGS acknowledgements", kind: glitchSettings, role: bothRoles,
		once: func(p *testPeer, n int) { p.writeFrame(http2.FrameSettings, http2.FlagSettingsAck, 0, nil) }},
	{name: "WINDOW_UPDATE for a stream", kind: glitchWindow, role: bothRoles,
		start: func(p *testPeer) { p.open() },
		once:  func(p *testPeer, n int) { p.writeWindowUpdate(1, 1) }},
	{name: "WINDOW_UPDATE for the connection", kind: glitchWindow, role: bothRoles,
		once: func(p *testPeer, n int) { p.writeWindowUpdate(0, 1) }},
	{name: "empty DATA", kind: glitchEmptyData, role: bothRoles, // RUSTSEC-2026-0258
		start: func(p *testPeer) { p.open() },
		once:  func(p *testPeer, n int) { p.writeData(1, false, nil) }},
	{name: "empty DATA before the answer", kind: glitchEmptyData, role: serverOnly,
		start: func(p *testPeer) { p.writeRequest(1) },
		once:  func(p *testPeer, n int) { p.writeData(1, false, nil) }},
	{name: "DATA for a closed stream", kind: glitchClosed, role: bothRoles, loud: true,
		start: closedStream,
		once:  func(p *testPeer, n int) { p.writeData(1, false, nil) }},
	{name: "RST_STREAM for a closed stream", kind: glitchClosed, role: bothRoles,
		start: closedStream,
		once:  func(p *testPeer, n int) { p.writeRST(1, http2.ErrCodeCancel) }},
	{name: "HEADERS for a closed stream", kind: glitchClosed, role: clientOnly, loud: true,
		start: closedStream,
		once:  func(p *testPeer, n int) { p.writeHeaders(1, false, ":status", "200") }},
	{name: "rapid reset", kind: glitchRapidReset, role: serverOnly, // CVE-2023-44487
		once: func(p *testPeer, n int) { p.writeRequest(odd(n)); p.writeRST(odd(n), http2.ErrCodeCancel) }},
	{name: "resets made by WINDOW_UPDATE", kind: glitchRapidReset, role: serverOnly, loud: true, // CVE-2025-8671
		once: func(p *testPeer, n int) { p.writeRequest(odd(n)); p.writeWindowUpdate(odd(n), 0) }},
	{name: "resets made by window overflow", kind: glitchRapidReset, role: serverOnly, loud: true,
		once: func(p *testPeer, n int) { p.writeRequest(odd(n)); p.writeWindowUpdate(odd(n), 1<<31-1) }},
	{name: "resets made by early DATA", kind: glitchRapidReset, role: serverOnly, loud: true,
		once: func(p *testPeer, n int) { p.writeRequest(odd(n)); p.writeData(odd(n), false, []byte("x")) }},
	{name: "resets made by PRIORITY", kind: glitchRapidReset, role: serverOnly, loud: true,
		once: func(p *testPeer, n int) {
			p.writeRequest(odd(n))
			p.writeFrame(http2.FramePriority, 0, odd(n), make([]byte, 4))
		}},
	{name: "resets made by second HEADERS", kind: glitchRapidReset, role: serverOnly, loud: true,
		once: func(p *testPeer, n int) { p.writeRequest(odd(n)); p.writeRequest(odd(n)) }},
	{name: "resets made by malformed HEADERS", kind: glitchRapidReset, role: serverOnly, loud: true,
		once: func(p *testPeer, n int) { p.writeRequest(odd(n)); p.writeHeaders(odd(n), true, "A", "b") }},
	{name: "resets made by bad answers", kind: glitchRapidReset, role: clientOnly, loud: true,
		once: func(p *testPeer, n int) { s := p.request(); p.writeHeaders(s.id, false, "a", "b") }},
	{name: "requests above the limit", kind: glitchRefused, role: serverOnly, loud: true,
		start: func(p *testPeer) {
			for n := range 200 {
				p.writeRequest(odd(n))
			}
		},
		once: func(p *testPeer, n int) { p.writeRequest(odd(200 + n)) }},
	{name: "requests that cannot be read", kind: glitchRefused, role: serverOnly, loud: true,
		once: func(p *testPeer, n int) { p.writeHeaders(odd(n), true, ":method", "CONNECT") }},
	{name: "requests for something else", kind: glitchRefused, role: serverOnly, loud: true,
		once: func(p *testPeer, n int) {
			p.writeHeaders(odd(n), true, ":method", "GET", ":scheme", "https", ":path", "/")
		}},
	{name: "requests for something else taken back", kind: glitchRefused, role: serverOnly,
		once: func(p *testPeer, n int) {
			p.writeHeaders(odd(n), false, ":method", "GET", ":scheme", "https", ":path", "/")
			p.writeRST(odd(n), http2.ErrCodeCancel)
		}},
	{name: "resets made by content-length", kind: glitchRefused, role: serverOnly, loud: true,
		once: func(p *testPeer, n int) {
			p.writeHeaders(odd(n), true, ":method", "GET", ":scheme", "https", ":path", "/", "content-length", "1")
		}},
	{name: "malformed requests", kind: glitchOther, role: serverOnly, loud: true,
		once: func(p *testPeer, n int) { p.writeHeaders(odd(n), true, ":a", "b") }},
	{name: "requests without a path", kind: glitchOther, role: serverOnly, loud: true,
		once: func(p *testPeer, n int) { p.writeHeaders(odd(n), true, ":method", "GET") }},
	{name: "interim answers", kind: glitchOther, role: clientOnly,
		start: func(p *testPeer) { p.request() },
		once:  func(p *testPeer, n int) { p.writeHeaders(1, false, ":status", "100") }},
	{name: "PRIORITY", kind: glitchOther, role: bothRoles,
		once: func(p *testPeer, n int) { p.writeFrame(http2.FramePriority, 0, 1, make([]byte, 5)) }},
	{name: "unknown frames", kind: glitchOther, role: bothRoles,
		once: func(p *testPeer, n int) { p.writeFrame(0xab, 0, 1, nil) }},
	{name: "GOAWAY", kind: glitchOther, role: bothRoles,
		once: func(p *testPeer, n int) { p.writeGoAway(1<<31-1, http2.ErrCodeNo, "") }},
}

// closedStream leaves stream 1 closed, by the peer.
func closedStream(p *testPeer) {
	p.open()
	p.writeRST(1, http2.ErrCodeCancel)
}

// TestFloods: each is cut at its allowance, not before and not later, and what
// waits to be sent stays small.
func TestFloods(t *testing.T) {
	for _, f := range floods {
		for _, role := range f.role {
			t.Run(fmt.Sprintf("%s/%s", f.name, [...]string{"client", "server"}[role]), func(t *testing.T) {
				p := newPeer(t, Config{Role: role})
				if f.start != nil {
					f.start(p)
				}
				p.c.glitch = glitches{}
				burst := int(allowances[f.kind].burst)
				for n := range burst {
					f.once(p, n)
					f.drop(p)
				}
				p.wantAlive("a burst is borne")
				f.once(p, burst)
				p.wantCut("one more", http2.ErrCodeEnhanceYourCalm)
				if e, ok := errors.AsType[*ConnError](p.err); !ok || e.Fault != allowances[f.kind].fault {
					t.Errorf("cut for %v, want the fault %s", p.err, allowances[f.kind].fault)
				}
				checkBudgets(t, p.c)
			})
		}
	}
}

// drop throws away what the Conn says and its handler hears.
func (f *flood) drop(p *testPeer) {
	p.rec.take()
	for id, s := range p.rec.known {
		if s.gone && s.undel == 0 {
			delete(p.rec.known, id)
		}
	}
	if !f.loud && p.c.HasControl() {
		p.t.Fatalf("%s: the Conn says %s", f.name, show(p.read()))
	}
	p.pull()
	p.in.Reset()
}

// TestFloodsRecover: what an honest peer does in a second is borne for ever.
func TestFloodsRecover(t *testing.T) {
	for kind, a := range allowances {
		var g glitches
		now := time.Duration(0)
		for range int(a.burst) {
			if !g.add(now, glitch(kind)) {
				t.Fatalf("kind %d: cut within its burst of %v", kind, a.burst)
			}
		}
		for range 100 {
			now += 100 * time.Millisecond
			if a.perSecond < 10 {
				now += 900 * time.Millisecond
			}
			for range int(max(1, a.perSecond/10)) {
				if !g.add(now, glitch(kind)) {
					t.Fatalf("kind %d: cut at its rate of %v a second", kind, a.perSecond)
				}
			}
		}
		if g.add(now, glitch(kind)) {
			t.Errorf("kind %d: above its rate and not cut", kind)
		}
		if g.add(now+24*time.Hour, glitch(kind)); g[kind].level != 1 {
			t.Errorf("kind %d: after a day the level is %v", kind, g[kind].level)
		}
	}
}

// TestUnread: a peer that makes us talk and does not listen is cut while what
// waits is still small.
func TestUnread(t *testing.T) {
	longest := 2 * maxControlQueue
	for name, once := range map[string]func(p *testPeer, s *Stream, n int){
		"PING":     func(p *testPeer, s *Stream, n int) { p.writePing(false, [8]byte{}) },
		"requests": func(p *testPeer, s *Stream, n int) { p.writeHeaders(odd(n+1), true, ":method", "CONNECT") },
		"DATA": func(p *testPeer, s *Stream, n int) {
			s.window, s.recv, p.c.credited = 8, 8, 8 // as small as it can be made
			p.writeData(s.id, false, make([]byte, 8))
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t, Config{Role: Server})
			s := p.open()
			n := 0
			for ; p.err == nil && n < 1e6; n++ {
				p.now += 100 * time.Millisecond // slow enough for every allowance
				once(p, s, n)
				p.rec.take()
				clear(p.rec.got)
				if p.c.ControlLen() > longest {
					t.Fatalf("%d bytes wait to be sent", p.c.ControlLen())
				}
			}
			p.wantCut(fmt.Sprintf("after %d", n), http2.ErrCodeEnhanceYourCalm)
			s.window, s.recv, s.owed, p.c.credited = 0, 0, 0, 0
		})
	}
}

// TestContinuationFlood: a block without an end is cut by its frames and by its
// bytes (CVE-2023-45288).
func TestContinuationFlood(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		for _, size := range []int{0, 1, 8 << 10, 32 << 10} {
			p := newPeer(t, Config{Role: role})
			p.open()
			p.rec.take()
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1})
			p.flush()
			n, kept := 0, 0
			for ; p.err == nil && n < 100; n++ {
				kept = max(kept, len(p.c.in.block))
				p.fr.WriteContinuation(1, false, make([]byte, size))
				p.flush()
			}
			p.wantClosed("too much of it", http2.ErrCodeEnhanceYourCalm)
			if n > maxFragments+1 || kept > maxFieldBytes {
				t.Errorf("frames of %d: cut after %d, with %d bytes kept", size, n, kept)
			}
		}
	})
}

// TestHeaderList: the list is bounded as decoded, not as sent.
func TestHeaderList(t *testing.T) {
	connect := []string{":method", "CONNECT", ":authority", "10.2.0.5:80"}
	t.Run("large", func(t *testing.T) {
		p := newPeer(t, Config{Role: Server})
		size := 0
		for i := 0; i < len(connect); i += 2 {
			size += len(connect[i]) + len(connect[i+1]) + 32
		}
		// The digits have codes of more than 5 bits, so that the encoder does not shrink them below a frame.
		value := func(n int) string { return strings.Repeat("8", n) }
		p.writeHeaders(1, false, append(connect[:4:4], "a", value(maxFieldBytes-size-33))...)
		p.wantEvents("exactly as much as we said", "request 1 10.2.0.5:80")
		p.writeHeaders(3, false, append(connect[:4:4], "a", value(maxFieldBytes-size-32))...)
		p.wantClosed("one byte more", http2.ErrCodeEnhanceYourCalm)
		p.wantEvents("nobody hears of it")
	})
	t.Run("repeats", func(t *testing.T) { // CVE-2026-47774
		p := newPeer(t, Config{Role: Server})
		p.enc.SetMaxDynamicTableSizeLimit(4096)
		p.writeHeaders(1, false, append(connect[:4:4], "a", strings.Repeat("8", 3000))...)
		p.rec.take()
		block := p.encode(connect...)
		for range 40 << 10 { // index 62: one byte for 3033
			block = append(block, 0x80|62)
		}
		p.writeFrame(http2.FrameHeaders, http2.FlagHeadersEndHeaders, 3, block)
		p.wantClosed("40 KiB that mean 120 MiB", http2.ErrCodeEnhanceYourCalm)
		p.wantEvents("nobody hears of it")
	})
	t.Run("names", func(t *testing.T) {
		p := newPeer(t, Config{Role: Server})
		p.chunk = randomChunks(1)
		for n := range 100 {
			p.writeHeaders(odd(n), true, append(connect[:4:4], fmt.Sprintf("x%d%s", n, strings.Repeat("a", 10000)), "")...)
			p.rec.known[odd(n)].Refuse(Denied)
		}
		p.wantAlive("many large names are decoded")
		for p.read() != nil {
		}
		if p.c.in.block != nil || cap(p.c.in.partial) > 4096 {
			t.Error("and something is kept of them")
		}
	})
	t.Run("answer", func(t *testing.T) {
		p := newPeer(t, Config{})
		p.request()
		var fields []string
		for range 30 {
			fields = append(fields, "a", strings.Repeat("8", 3000))
		}
		p.writeHeaders(1, false, append([]string{":status", "200"}, fields...)...)
		p.wantClosed("90 kB", http2.ErrCodeEnhanceYourCalm)
		p.wantEvents("nobody hears of it")
	})
}

// TestStreamLimit: a server takes as many as it said, and is not impressed by
// more.
func TestStreamLimit(t *testing.T) {
	p := newPeer(t, Config{Role: Server, MaxStreams: 3})
	for n := range 3 {
		p.writeRequest(odd(n))
	}
	p.rec.take()
	p.writeRequest(7)
	p.wantRST("the fourth may be tried elsewhere", 7, http2.ErrCodeRefusedStream)
	p.writeData(7, false, []byte("x"))
	p.wantIdle("what was on its way is ignored")
	p.wantEvents("nobody hears of it")
	p.rec.known[3].Refuse(Denied)
	for p.read() != nil {
	}
	p.writeRequest(9)
	p.wantEvents("there is room again", "request 9 10.2.0.5:80")
}

// TestRecentResets: only so many are remembered, the latest.
func TestRecentResets(t *testing.T) {
	var r recentResets
	for id := range uint32(1000) {
		r.add(id)
	}
	for id := range uint32(1000) {
		if got, want := r.has(id), id >= 1000-maxRecentResets; got != want {
			t.Errorf("stream %d remembered: %t, want %t", id, got, want)
		}
	}
	if len(r.ids) != maxRecentResets {
		t.Errorf("%d are kept", len(r.ids))
	}
}

// TestAppendControl: what waits comes in pieces that fit, in order, and its
// memory goes when it was much.
func TestAppendControl(t *testing.T) {
	p := newPeer(t, Config{})
	for n := range 50 {
		p.writePing(false, [8]byte{byte(n)})
	}
	if !p.c.HasControl() || p.c.ControlLen() != 50*17 {
		t.Errorf("%d bytes wait, want %d", p.c.ControlLen(), 50*17)
	}
	if got := p.c.AppendControl(nil); len(got) != 0 {
		t.Errorf("%d bytes in no space", len(got))
	}
	for p.c.HasControl() {
		before := p.c.ControlLen()
		got := p.c.AppendControl(append(make([]byte, 0, 10), "abc"...))
		if string(got[:3]) != "abc" || len(got) > 10 || p.c.ControlLen() != before-len(got)+3 {
			t.Fatalf("appended to %q, %d left of %d", got, p.c.ControlLen(), before)
		}
		p.in.Write(got[3:])
	}
	for n := range 50 {
		p.wantPing("in order", true, [8]byte{byte(n)})
	}
	p.c.out = make([]byte, 100<<10)
	p.c.AppendControl(make([]byte, 0, 200<<10))
	if cap(p.c.out) != 0 {
		t.Errorf("%d bytes are kept for nothing", cap(p.c.out))
	}
}

// TestCrumbs: a peer that gives credit for 4 KiB at a time, as net/http does, is
// borne at any speed; one that makes us send in crumbs is cut.
func TestCrumbs(t *testing.T) {
	for crumb, fine := range map[int]bool{4 << 10: true, 1: false} {
		p := newPeer(t, Config{})
		s := p.open()
		for n := 0; n < 50000 && p.err == nil; n++ {
			if s.Credit() < crumb {
				t.Fatalf("credit %d", s.Credit())
			}
			put(s, crumb)
			p.writeWindowUpdate(0, uint32(crumb))
			p.writeWindowUpdate(s.id, uint32(crumb))
		}
		if fine {
			p.wantAlive("200 MB in no time")
		} else {
			p.wantCut("50 kB in 100,000 frames", http2.ErrCodeEnhanceYourCalm)
		}
	}
}

// TestCrossingResets: both sides reset what was refused; ours reaches the peer
// when its own is on the way. That is nobody's fault, at any rate.
func TestCrossingResets(t *testing.T) {
	p := newPeer(t, Config{Role: Server})
	p.rec.request = func(s *Stream, _ Request) { s.Refuse(Refused) }
	for n := range 2 * int(allowances[glitchClosed].burst) {
		p.writeRequest(odd(n))
		p.writeRST(odd(n), http2.ErrCodeCancel)
		p.pull()
		p.in.Reset()
	}
	p.wantAlive("10,000 in no time")
}
