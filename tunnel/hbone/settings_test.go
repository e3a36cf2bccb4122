package hbone

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestOffer: what each role says of itself before anything else.
func TestOffer(t *testing.T) {
	common := []http2.Setting{
		{ID: http2.SettingInitialWindowSize, Val: 256 << 10},
		{ID: http2.SettingMaxFrameSize, Val: 1 << 20},
		{ID: http2.SettingMaxHeaderListSize, Val: 64 << 10},
	}
	own := map[Role]http2.Setting{
		Client: {ID: http2.SettingEnablePush, Val: 0},
		Server: {ID: http2.SettingMaxConcurrentStreams, Val: 200},
	}
	testRoles(t, func(t *testing.T, role Role) {
		p := newRawPeer(t, Config{Role: role})
		p.wantPreface("the client's preface, or nothing")
		f, ok := p.read().(*http2.SettingsFrame)
		if !ok {
			t.Fatalf("first frame is %s, want SETTINGS", show(f))
		}
		want := append(common[:3:3], own[role])
		if f.NumSettings() != len(want) {
			t.Errorf("%d settings, want %d", f.NumSettings(), len(want))
		}
		for _, w := range want {
			if v, ok := f.Value(w.ID); !ok || v != w.Val {
				t.Errorf("%s: %d, want %d", w.ID, v, w.Val)
			}
		}
		p.wantWindowUpdate("the connection's credit is raised to 16 MiB", 0, 16<<20-65535)
		p.wantIdle("that is all")
	})
}

// TestSmallWindows: windows below what a peer may assume before it has read our
// SETTINGS are not to be had.
func TestSmallWindows(t *testing.T) {
	p := newPeer(t, Config{Role: Server, StreamWindow: 1, ConnWindow: 1})
	s := p.open()
	p.rec.hold = true
	for range 3 {
		p.writeData(s.id, false, make([]byte, 65535/3))
	}
	p.wantAlive("RFC 9113 §6.9.2: both windows are 65535 at first")
	p.wantEvents("it is handed on", "data 1 65535")
	p.rec.deliver(s, 65535)
}

// TestSettingsValues: each parameter at its bounds, in both roles
// (RFC 9113 §6.5.2).
func TestSettingsValues(t *testing.T) {
	const fine = http2.ErrCodeNo
	tests := []struct {
		id             http2.SettingID
		val            uint32
		client, server http2.ErrCode // what a Conn in this role answers
	}{
		{http2.SettingHeaderTableSize, 0, fine, fine},
		{http2.SettingHeaderTableSize, 1<<32 - 1, fine, fine},
		{http2.SettingEnablePush, 0, fine, fine},
		{http2.SettingEnablePush, 1, http2.ErrCodeProtocol, fine},
		{http2.SettingEnablePush, 2, http2.ErrCodeProtocol, http2.ErrCodeProtocol},
		{http2.SettingMaxConcurrentStreams, 0, fine, fine},
		{http2.SettingMaxConcurrentStreams, 1<<32 - 1, fine, fine},
		{http2.SettingInitialWindowSize, 0, fine, fine},
		{http2.SettingInitialWindowSize, 1<<31 - 1, fine, fine},
		{http2.SettingInitialWindowSize, 1 << 31, http2.ErrCodeFlowControl, http2.ErrCodeFlowControl},
		{http2.SettingInitialWindowSize, 1<<32 - 1, http2.ErrCodeFlowControl, http2.ErrCodeFlowControl},
		{http2.SettingMaxFrameSize, 0, http2.ErrCodeProtocol, http2.ErrCodeProtocol}, // CVE-2026-33814
		{http2.SettingMaxFrameSize, 16383, http2.ErrCodeProtocol, http2.ErrCodeProtocol},
		{http2.SettingMaxFrameSize, 16384, fine, fine},
		{http2.SettingMaxFrameSize, 1<<24 - 1, fine, fine},
		{http2.SettingMaxFrameSize, 1 << 24, http2.ErrCodeProtocol, http2.ErrCodeProtocol},
		{http2.SettingMaxHeaderListSize, 0, fine, fine},
		{http2.SettingMaxHeaderListSize, 1<<32 - 1, fine, fine},
		{http2.SettingEnableConnectProtocol, 1, fine, fine},
		{http2.SettingEnableConnectProtocol, 2, http2.ErrCodeProtocol, http2.ErrCodeProtocol},
		{0x0, 7, fine, fine},
		{0x7, 7, fine, fine},
		{0xffff, 1<<32 - 1, fine, fine},
	}
	testRoles(t, func(t *testing.T, role Role) {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%v=%d", tt.id, tt.val), func(t *testing.T) {
				p := newPeer(t, Config{Role: role})
				p.writeSettings(http2.Setting{ID: tt.id, Val: tt.val})
				want := tt.client
				if role == Server {
					want = tt.server
				}
				if want != fine {
					p.wantClosed("a value out of range", want)
					return
				}
				p.wantAlive("a value in range")
				p.wantSettingsAck("RFC 9113 §6.5.3: at once")
			})
		}
	})
}

// TestSettingsOrder: the last of several values counts, and all are applied
// before the acknowledgement (RFC 9113 §6.5.3).
func TestSettingsOrder(t *testing.T) {
	p := newPeer(t, Config{})
	s := p.open()
	p.writeSettings(
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: 5},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: 7},
		http2.Setting{ID: http2.SettingMaxFrameSize, Val: 20000},
	)
	p.wantSettingsAck("acknowledged")
	if got := s.Credit(); got != 7 {
		t.Errorf("credit %d, want that of the last parameter, 7", got)
	}
}

// TestFrameSize: no DATA frame is larger than the peer allows, nor than we
// like.
func TestFrameSize(t *testing.T) {
	for _, tt := range []struct{ setting, want int }{
		{16384, 16384},
		{100000, 100000},
		{256 << 10, 256 << 10},
		{1<<24 - 1, 256 << 10},
	} {
		p := newPeer(t, Config{},
			http2.Setting{ID: http2.SettingMaxFrameSize, Val: uint32(tt.setting)},
			http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
		p.writeWindowUpdate(0, 1<<20)
		if got := p.open().Credit(); got != tt.want {
			t.Errorf("SETTINGS_MAX_FRAME_SIZE %d: frames of %d, want %d", tt.setting, got, tt.want)
		}
	}
}

// TestRoom: how many streams a client may open, before and after the peer has
// said what it bears.
func TestRoom(t *testing.T) {
	p := newRawPeer(t, Config{})
	if got := p.c.Room(); got != 100 {
		t.Errorf("room before SETTINGS: %d, want a guess of 100", got)
	}
	p.greet()
	if got := p.c.Room(); got != 200 {
		t.Errorf("room with a peer that names no limit: %d, want our own, 200", got)
	}
	for _, tt := range []struct {
		limit uint32
		room  int
	}{{3, 3}, {1, 1}, {0, 0}, {200, 200}, {201, 200}, {1<<32 - 1, 200}, {2, 2}} {
		rooms := p.rec.rooms
		p.writeSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: tt.limit})
		p.wantSettingsAck("acknowledged")
		if got := p.c.Room(); got != tt.room {
			t.Errorf("room with a limit of %d: %d, want %d", tt.limit, got, tt.room)
		}
		if p.rec.rooms == rooms {
			t.Error("Room was not called")
		}
	}
	a, b := p.open(), p.request()
	if _, err := p.c.Open(p.now, testRequest, nil); err != ErrFull {
		t.Errorf("open above the limit: %v, want %v", err, ErrFull)
	}
	if got := p.c.Streams(); got != 2 {
		t.Errorf("streams: %d, want 2", got)
	}
	p.writeSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
	p.wantSettingsAck("acknowledged")
	if got := p.c.Room(); got != 0 {
		t.Errorf("room below what is open: %d, want 0", got)
	}
	a.Reset(http2.ErrCodeCancel)
	b.Reset(http2.ErrCodeCancel)
	if got := p.c.Room(); got != 1 {
		t.Errorf("room when all is gone: %d, want 1", got)
	}
}

// TestServerOpensNothing: pushing streams is not part of this.
func TestServerOpensNothing(t *testing.T) {
	p := newPeer(t, Config{Role: Server})
	if got := p.c.Room(); got != 0 {
		t.Errorf("room: %d, want 0", got)
	}
	if _, err := p.c.Open(p.now, testRequest, nil); err != ErrFull {
		t.Errorf("open: %v, want %v", err, ErrFull)
	}
	p.wantIdle("nothing is sent")
}

// TestUseBeforeSettings: a client need not wait for the server's SETTINGS, and
// what they say then holds for the streams there are.
func TestUseBeforeSettings(t *testing.T) {
	p := newRawPeer(t, Config{})
	var streams []*Stream
	for range 100 {
		s, err := p.c.Open(p.now, testRequest, nil)
		if err != nil {
			t.Fatal(err)
		}
		p.rec.known[s.id] = s
		streams = append(streams, s)
	}
	if _, err := p.c.Open(p.now, testRequest, nil); err != ErrFull {
		t.Errorf("the 101st: %v, want %v", err, ErrFull)
	}
	p.writeSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000},
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
	p.writeHeaders(1, false, ":status", "200")
	p.writeRST(3, http2.ErrCodeRefusedStream)
	p.wantEvents("one is accepted, one may be tried elsewhere", "accepted 1", "refused 3 unknown retry")
	if got := streams[0].Credit(); got != 1000 {
		t.Errorf("credit: %d, want 1000", got)
	}
}

// TestSettingsTimeout: a peer that never says SETTINGS is given up.
func TestSettingsTimeout(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		p := newRawPeer(t, Config{Role: role})
		p.wantPreface("the preface")
		p.wantSettings("our SETTINGS")
		p.wantWindowUpdate("our credit", 0, 16<<20-65535)
		p.advance(10*time.Second - 1)
		p.wantAlive("9.9 s")
		p.wantIdle("nobody is asked for a sign of life yet")
		p.advance(1)
		p.wantClosed("10 s", http2.ErrCodeSettingsTimeout)
	})
}

// TestFirstFrame: nothing comes before SETTINGS (RFC 9113 §3.4).
func TestFirstFrame(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		for kind := range 256 {
			if http2.FrameType(kind) == http2.FrameSettings {
				continue
			}
			p := newRawPeer(t, Config{Role: role})
			if role == Server {
				p.writeRaw([]byte(http2.ClientPreface))
			}
			p.writeFrame(http2.FrameType(kind), 0, 0, make([]byte, 8))
			wantCode(t, http2.FrameType(kind).String(), p.err, http2.ErrCodeProtocol)
		}
		p := newRawPeer(t, Config{Role: role})
		if role == Server {
			p.writeRaw([]byte(http2.ClientPreface))
		}
		p.writeFrame(http2.FrameSettings, http2.FlagSettingsAck, 0, nil)
		wantCode(t, "an acknowledgement is not SETTINGS", p.err, http2.ErrCodeProtocol)
	})
}

// TestPreface: what is not HTTP/2 is cut at the first byte that says so.
func TestPreface(t *testing.T) {
	for _, in := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"\x16\x03\x01\x02\x00\x01",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX",
		"PRJ",
	} {
		testChunkings(t, func(t *testing.T, chunk chunker) {
			p := newRawPeer(t, Config{Role: Server})
			p.chunk = chunk
			p.writeRaw([]byte(in))
			wantCode(t, in, p.err, http2.ErrCodeProtocol)
		})
	}
	testChunkings(t, func(t *testing.T, chunk chunker) {
		p := newRawPeer(t, Config{Role: Server})
		p.chunk = chunk
		p.greet()
		p.wantAlive("the real one")
	})
}

// TestSlowPreface: one that does not get done is cut by the clock.
func TestSlowPreface(t *testing.T) {
	p := newRawPeer(t, Config{Role: Server})
	for _, b := range []byte(http2.ClientPreface)[:10] {
		p.advance(time.Second - 1)
		p.writeRaw([]byte{b})
	}
	p.wantAlive("almost 10 s")
	p.advance(time.Second)
	wantCode(t, "10 s", p.err, http2.ErrCodeSettingsTimeout)
}

// TestManyParameters: one frame cannot mean work without end.
func TestManyParameters(t *testing.T) {
	frame := func(n int) []byte {
		var b []byte
		for i := range n {
			b = binary.BigEndian.AppendUint16(b, uint16(http2.SettingInitialWindowSize))
			b = binary.BigEndian.AppendUint32(b, uint32(i))
		}
		return b
	}
	testRoles(t, func(t *testing.T, role Role) {
		p := newPeer(t, Config{Role: role})
		p.writeFrame(http2.FrameSettings, 0, 0, frame(maxParameters))
		p.wantSettingsAck("64 are borne")
		p.writeFrame(http2.FrameSettings, 0, 0, frame(maxParameters+1))
		p.wantClosed("65 are not", http2.ErrCodeEnhanceYourCalm)
	})
}
