package hbone

import (
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// ask sends the beginning of a request that is not for a tunnel.
func (p *testPeer) ask(id uint32, end bool, method string, more ...string) {
	p.writeHeaders(id, end, append([]string{":method", method, ":scheme", "https", ":path", "/", ":authority", "a"}, more...)...)
	p.wantEvents("said, and no stream", "malformed: method is not CONNECT")
}

func (p *testPeer) want405(why string, id uint32) {
	p.t.Helper()
	p.wantHeaders(why, id, false, ":status", "405", "allow", "CONNECT", "wishbone-reason", "malformed")
}

// TestForeign: what is not for a tunnel is answered when it has ended, however
// it does.
func TestForeign(t *testing.T) {
	for name, tt := range map[string]struct {
		method string
		fields []string
		body   func(p *testPeer)
	}{
		"no body":          {"GET", nil, nil},
		"nothing said of":  {"POST", nil, func(p *testPeer) { p.writeData(1, false, []byte("te")); p.writeData(1, true, []byte("st")) }},
		"as long as said":  {"POST", []string{"content-length", "4"}, func(p *testPeer) { p.writeData(1, true, []byte("test")) }},
		"trailers":         {"PUT", nil, func(p *testPeer) { p.writeData(1, false, []byte("test")); p.writeHeaders(1, true, "a", "b") }},
		"none after all":   {"POST", []string{"content-length", "0"}, func(p *testPeer) { p.writeData(1, true, nil) }},
		"extended CONNECT": {"CONNECT", []string{":protocol", "websocket"}, func(p *testPeer) { p.writeData(1, true, nil) }},
		"padding":          {"POST", nil, func(p *testPeer) { p.fr.WriteDataPadded(1, true, []byte("test"), make([]byte, 9)); p.flush() }},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t, Config{Role: Server})
			p.ask(1, tt.body == nil, tt.method, tt.fields...)
			if tt.body != nil {
				p.wantIdle("it may still turn out to be malformed")
				tt.body(p)
			}
			p.want405("answered", 1)
			p.wantData("for people", 1, false, foreignBody)
			p.wantData("all of it", 1, true, "")
			p.wantIdle("nothing else")
			p.wantEvents("nobody hears of it")
			if n := p.c.Streams(); n != 0 {
				t.Errorf("%d streams are left", n)
			}
		})
	}
	t.Run("HEAD", func(t *testing.T) {
		p := newPeer(t, Config{Role: Server})
		p.ask(1, true, "HEAD")
		p.want405("answered", 1)
		p.wantData("without a body (RFC 9110 §9.3.2)", 1, true, "")
	})
}

// TestForeignMalformed: what makes it malformed is told as that, and not as 405
// (RFC 9113 §8.1.1).
func TestForeignMalformed(t *testing.T) {
	protocol, closed := http2.ErrCodeProtocol, http2.ErrCodeStreamClosed
	for name, tt := range map[string]struct {
		fields []string
		then   func(p *testPeer)
		code   http2.ErrCode
	}{
		"shorter than said": {[]string{"content-length", "5"}, func(p *testPeer) { p.writeData(1, true, []byte("test")) }, protocol},
		"longer than said":  {[]string{"content-length", "3"}, func(p *testPeer) { p.writeData(1, true, []byte("test")) }, protocol},
		"second HEADERS":    {nil, func(p *testPeer) { p.writeHeaders(1, false, "a", "b") }, protocol},
		"pseudo trailers":   {nil, func(p *testPeer) { p.writeHeaders(1, true, ":method", "GET") }, protocol},
		"WINDOW_UPDATE 0":   {nil, func(p *testPeer) { p.writeWindowUpdate(1, 0) }, protocol},
		"too much DATA":     {nil, func(p *testPeer) { p.writeData(1, true, make([]byte, 256<<10+1)) }, http2.ErrCodeFlowControl},
		"after its reset":   {nil, func(p *testPeer) { p.writeRST(1, http2.ErrCodeCancel); p.writeData(1, true, nil) }, closed},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t, Config{Role: Server})
			p.ask(1, false, "POST", tt.fields...)
			tt.then(p)
			p.wantRST("of the one stream", 1, tt.code)
			p.wantIdle("no answer besides")
			p.wantEvents("nobody hears of it")
			p.writeRequest(3)
			p.wantEvents("the tunnel lives", "request 3 10.2.0.5:80")
		})
	}
}

// TestForeignWindows: the text for people keeps within the peer's windows.
func TestForeignWindows(t *testing.T) {
	small := http2.Setting{ID: http2.SettingInitialWindowSize, Val: 4}
	t.Run("the stream's", func(t *testing.T) {
		p := newPeer(t, Config{Role: Server}, small)
		p.ask(1, true, "GET")
		p.want405("answered", 1)
		p.wantData("as far as it goes", 1, false, "this")
		p.wantIdle("until there is more")
		p.writeSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 7})
		p.wantSettingsAck("first that it is known (RFC 9113 §6.5.3)")
		p.wantData("then what it is good for", 1, false, " se")
		p.writeWindowUpdate(1, 100)
		p.wantData("the rest", 1, false, foreignBody[7:])
		p.wantData("all of it", 1, true, "")
		if got, want := p.c.Credit(), initialWindow-len(foreignBody); got != want {
			t.Errorf("connection's credit: %d, want %d", got, want)
		}
	})
	t.Run("given early", func(t *testing.T) {
		p := newPeer(t, Config{Role: Server}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		p.ask(1, false, "POST")
		p.writeWindowUpdate(1, 100)
		p.wantIdle("the request goes on")
		p.writeData(1, true, nil)
		p.want405("answered", 1)
		p.wantData("all of it", 1, false, foreignBody)
	})
	t.Run("the connection's", func(t *testing.T) {
		p := newPeer(t, Config{Role: Server})
		p.c.send = int64(len(foreignBody)) - 1
		p.ask(1, true, "GET")
		p.want405("answered", 1)
		p.wantData("without", 1, true, "")
	})
	t.Run("given back", func(t *testing.T) {
		p := newPeer(t, Config{Role: Server}, small)
		p.ask(1, true, "GET")
		p.writeRST(1, http2.ErrCodeCancel)
		if got, want := p.c.Credit(), initialWindow-4; got != want {
			t.Errorf("connection's credit: %d, want %d", got, want)
		}
	})
}

// TestForeignLimits: neither much nor slowly holds a stream for ever.
func TestForeignLimits(t *testing.T) {
	t.Run("much", func(t *testing.T) {
		p := newPeer(t, Config{Role: Server})
		p.ask(1, false, "POST")
		p.writeData(1, false, make([]byte, maxForeignBody))
		p.wantIdle("it may end")
		p.writeData(1, false, make([]byte, 1))
		p.want405("answered", 1)
		p.wantData("for people", 1, false, foreignBody)
		p.wantData("all of it", 1, true, "")
		p.wantRST("no more is wanted (RFC 9113 §8.1)", 1, http2.ErrCodeNo)
		p.writeData(1, true, make([]byte, 100))
		p.wantIdle("what was on its way is ignored")
	})
	t.Run("slowly asked", func(t *testing.T) {
		p := newPeer(t, Config{Role: Server})
		p.ask(1, false, "POST")
		p.advance(15*time.Second - 1)
		p.wantIdle("it may end")
		p.advance(1)
		p.want405("answered", 1)
		p.wantData("for people", 1, false, foreignBody)
		p.wantData("all of it", 1, true, "")
		p.wantRST("no more is wanted", 1, http2.ErrCodeNo)
	})
	t.Run("slowly read", func(t *testing.T) {
		p := newPeer(t, Config{Role: Server}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		p.ask(1, true, "GET")
		p.want405("answered", 1)
		p.advance(15*time.Second - 1)
		p.wantIdle("it may read")
		p.advance(1)
		p.wantRST("given up", 1, http2.ErrCodeCancel)
		if n := p.c.Streams(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
	})
	t.Run("many", func(t *testing.T) {
		p := newPeer(t, Config{Role: Server, MaxStreams: 3}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		for n := range 3 {
			p.ask(odd(n), true, "GET")
			p.want405("answered", odd(n))
		}
		p.writeRequest(7)
		p.wantRST("they are streams like all others", 7, http2.ErrCodeRefusedStream)
	})
	t.Run("memory", func(t *testing.T) {
		p := newPeer(t, Config{Role: Server, TunnelBudget: 300 << 10})
		p.ask(1, false, "POST")
		p.writeHeaders(3, true, ":method", "GET", ":scheme", "https", ":path", "/")
		p.wantHeaders("no credit for another", 3, true, ":status", "503", "wishbone-reason", "overloaded")
		p.writeData(1, true, nil)
		p.pull()
		p.in.Reset()
		if p.c.credited != 0 {
			t.Errorf("%d bytes stay reserved", p.c.credited)
		}
	})
}
