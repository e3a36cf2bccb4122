package hbone

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// testPeer speaks frames with a Conn under test, by a script: write… sends a
// frame, want… reads what the Conn has to say and fails, with the sentence that
// it is given, unless it is that. TestTestPeer shows all of it.
type testPeer struct {
	t     testing.TB
	c     *Conn
	rec   *recorder
	now   time.Duration
	fr    *http2.Framer
	in    bytes.Buffer // from the Conn
	out   bytes.Buffer // to the Conn
	enc   *hpack.Encoder
	block bytes.Buffer
	chunk chunker
	err   error // what Receive or Tick returned
}

// testRoles runs f against a Conn in each role.
func testRoles(t *testing.T, f func(t *testing.T, role Role)) {
	t.Run("client", func(t *testing.T) { f(t, Client) })
	t.Run("server", func(t *testing.T) { f(t, Server) })
}

// newPeer starts a Conn and exchanges SETTINGS with it, so that a script begins
// with what it is about.
func newPeer(t testing.TB, cfg Config, settings ...http2.Setting) *testPeer {
	t.Helper()
	p := newRawPeer(t, cfg)
	p.greet(settings...)
	return p
}

// newRawPeer starts a Conn and says nothing to it.
func newRawPeer(t testing.TB, cfg Config) *testPeer {
	t.Helper()
	p := &testPeer{t: t, now: 1, chunk: chunkings["whole"]}
	p.rec = newRecorder(&p.now)
	p.c = New(cfg, p.rec, p.now)
	p.c.ping.next, p.c.ping.begun = forever, true // tests of PING set it back
	p.fr = http2.NewFramer(&p.out, &p.in)
	p.fr.AllowIllegalWrites = true
	p.fr.SetMaxReadFrameSize(1 << 20)
	p.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.enc = hpack.NewEncoder(&p.block)
	t.Cleanup(func() { checkEmpty(t, p.c) })
	return p
}

// greet is the beginning of a connection, both ways.
func (p *testPeer) greet(settings ...http2.Setting) {
	p.t.Helper()
	if p.c.cfg.Role == Server {
		p.writeRaw([]byte(http2.ClientPreface))
	}
	p.writeSettings(settings...)
	p.wantPreface("a connection begins with a preface")
	p.wantSettings("SETTINGS come first")
	if p.c.cfg.ConnWindow > 65535 {
		p.wantWindowUpdate("then the connection's credit", 0, p.c.cfg.ConnWindow-65535)
	}
	p.wantSettingsAck("our SETTINGS are acknowledged")
	p.fr.WriteSettingsAck()
	p.flush()
	p.rec.take()
}

// open brings a stream into being, in either role, that both sides may send on.
func (p *testPeer) open() *Stream {
	p.t.Helper()
	if p.c.cfg.Role == Client {
		s := p.request()
		p.writeHeaders(s.id, false, ":status", "200")
		p.wantEvents("the stream is accepted", fmt.Sprintf("accepted %d", s.id))
		return s
	}
	id := p.c.lastID + 1 + p.c.lastID%2 // the next odd number
	p.writeRequest(id)
	p.rec.take()
	s := p.rec.known[id]
	s.Accept()
	p.wantHeaders("the stream is accepted", id, false, ":status", "200")
	return s
}

// request makes a client open a stream, and reads its HEADERS.
func (p *testPeer) request() *Stream {
	p.t.Helper()
	s, err := p.c.Open(p.now, testRequest, nil)
	if err != nil {
		p.t.Fatalf("open: %v", err)
	}
	p.rec.known[s.id] = s
	p.wantHeaders("a request", s.id, false, ":method", "CONNECT",
		":authority", testTarget.String(), "forwarded", `for="`+testClient.String()+`"`)
	return s
}

// writeRequest asks a server for a stream.
func (p *testPeer) writeRequest(id uint32) {
	p.writeHeaders(id, false, ":method", "CONNECT", ":authority", testTarget.String())
}

// flush hands what was written to the Conn.
func (p *testPeer) flush() {
	b := slices.Clone(p.out.Bytes())
	p.out.Reset()
	for len(b) > 0 && p.err == nil {
		n := p.chunk(len(b))
		p.err = p.c.Receive(p.now, b[:n])
		b = b[n:]
	}
}

func (p *testPeer) writeRaw(b []byte) {
	p.out.Write(b)
	p.flush()
}

// writeFrame sends any frame at all.
func (p *testPeer) writeFrame(kind http2.FrameType, flags http2.Flags, id uint32, payload []byte) {
	p.fr.WriteRawFrame(kind, flags, id, payload)
	p.flush()
}

// encode makes a header block of names and values in turn.
func (p *testPeer) encode(fields ...string) []byte {
	p.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	return bytes.Clone(p.block.Bytes())
}

func (p *testPeer) writeHeaders(id uint32, end bool, fields ...string) {
	p.fr.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: p.encode(fields...), EndHeaders: true, EndStream: end,
	})
	p.flush()
}

func (p *testPeer) writeData(id uint32, end bool, data []byte) {
	p.fr.WriteData(id, end, data)
	p.flush()
}

func (p *testPeer) writeRST(id uint32, code http2.ErrCode) {
	p.fr.WriteRSTStream(id, code)
	p.flush()
}

func (p *testPeer) writeSettings(settings ...http2.Setting) {
	p.fr.WriteSettings(settings...)
	p.flush()
}

func (p *testPeer) writeWindowUpdate(id, n uint32) {
	p.fr.WriteWindowUpdate(id, n)
	p.flush()
}

func (p *testPeer) writePing(ack bool, data [8]byte) {
	p.fr.WritePing(ack, data)
	p.flush()
}

func (p *testPeer) writeGoAway(last uint32, code http2.ErrCode, debug string) {
	p.fr.WriteGoAway(last, code, []byte(debug))
	p.flush()
}

// advance lets time pass and runs the Conn's timers when they are due.
func (p *testPeer) advance(d time.Duration) {
	p.t.Helper()
	end := p.now + d
	for p.err == nil && p.c.Deadline() <= end {
		p.now = max(p.now, p.c.Deadline())
		if p.err = p.c.Tick(p.now); p.err == nil && p.c.Deadline() <= p.now {
			p.t.Fatal("Tick at the deadline left a deadline in the past: a busy loop")
		}
	}
	p.now = end
}

// pull takes everything that the Conn has to say.
func (p *testPeer) pull() {
	for p.c.HasControl() {
		p.in.Write(p.c.AppendControl(make([]byte, 0, 4096)))
	}
}

// read returns the next frame, or nil.
func (p *testPeer) read() http2.Frame {
	p.t.Helper()
	p.pull()
	f, err := p.fr.ReadFrame()
	if err == io.EOF {
		return nil
	}
	if err != nil {
		p.t.Fatalf("the Conn has sent what x/net cannot read: %v", err)
	}
	return f
}

func (p *testPeer) wantPreface(why string) {
	p.t.Helper()
	p.pull()
	if p.c.cfg.Role == Server {
		return
	}
	if got := string(p.in.Next(len(http2.ClientPreface))); got != http2.ClientPreface {
		p.t.Fatalf("%s: got %q", why, got)
	}
}

// wantFrame fails unless the next frame reads like this.
func (p *testPeer) wantFrame(why, want string) {
	p.t.Helper()
	if got := show(p.read()); got != want {
		p.t.Fatalf("%s:\n\tgot  %s\n\twant %s", why, got, want)
	}
}

func (p *testPeer) wantHeaders(why string, id uint32, end bool, fields ...string) {
	p.t.Helper()
	p.wantFrame(why, fmt.Sprintf("HEADERS %d end=%t %q", id, end, fields))
}

func (p *testPeer) wantData(why string, id uint32, end bool, data string) {
	p.t.Helper()
	p.wantFrame(why, fmt.Sprintf("DATA %d end=%t %q", id, end, data))
}

func (p *testPeer) wantRST(why string, id uint32, code http2.ErrCode) {
	p.t.Helper()
	p.wantFrame(why, fmt.Sprintf("RST_STREAM %d %s", id, code))
}

func (p *testPeer) wantWindowUpdate(why string, id uint32, n int) {
	p.t.Helper()
	p.wantFrame(why, fmt.Sprintf("WINDOW_UPDATE %d %d", id, n))
}

func (p *testPeer) wantPing(why string, ack bool, data [8]byte) {
	p.t.Helper()
	p.wantFrame(why, fmt.Sprintf("PING ack=%t %x", ack, data))
}

func (p *testPeer) wantSettings(why string) {
	p.t.Helper()
	if f, ok := p.read().(*http2.SettingsFrame); !ok || f.IsAck() {
		p.t.Fatalf("%s: got %s, want SETTINGS", why, show(f))
	}
}

func (p *testPeer) wantSettingsAck(why string) {
	p.t.Helper()
	p.wantFrame(why, "SETTINGS ack")
}

func (p *testPeer) wantGoAway(why string, last uint32, code http2.ErrCode) {
	p.t.Helper()
	f, ok := p.read().(*http2.GoAwayFrame)
	if !ok || f.LastStreamID != last || f.ErrCode != code {
		p.t.Fatalf("%s: got %s, want GOAWAY %d %s", why, show(f), last, code)
	}
}

// wantIdle fails unless the Conn has nothing to say.
func (p *testPeer) wantIdle(why string) {
	p.t.Helper()
	p.wantFrame(why, "nothing")
}

// wantEvents fails unless the handler has heard exactly this.
func (p *testPeer) wantEvents(why string, events ...string) {
	p.t.Helper()
	if got := p.rec.take(); !slices.Equal(got, events) {
		p.t.Fatalf("%s: the handler heard\n\t%q, want\n\t%q", why, got, events)
	}
}

// wantAlive fails if the tunnel has ended.
func (p *testPeer) wantAlive(why string) {
	p.t.Helper()
	if p.err != nil {
		p.t.Fatalf("%s: %v", why, p.err)
	}
}

// wantClosed fails unless the tunnel was ended with code, and its GOAWAY is the
// next frame.
func (p *testPeer) wantClosed(why string, code http2.ErrCode) {
	p.t.Helper()
	wantCode(p.t, why, p.err, code)
	p.wantGoAway(why, p.c.lastID, code)
}

// wantCut is wantClosed after a flood: other frames may wait before the GOAWAY.
func (p *testPeer) wantCut(why string, code http2.ErrCode) {
	p.t.Helper()
	wantCode(p.t, why, p.err, code)
	for f := p.read(); f != nil; f = p.read() {
		if g, ok := f.(*http2.GoAwayFrame); ok && g.ErrCode == code {
			p.wantIdle(why)
			return
		}
	}
	p.t.Fatalf("%s: no GOAWAY with %s", why, code)
}

// show renders a frame for comparison.
func show(f http2.Frame) string {
	switch f := f.(type) {
	case nil:
		return "nothing"
	case *http2.MetaHeadersFrame:
		var fields []string
		for _, h := range f.Fields {
			fields = append(fields, h.Name, h.Value)
		}
		return fmt.Sprintf("HEADERS %d end=%t %q", f.StreamID, f.StreamEnded(), fields)
	case *http2.DataFrame:
		return fmt.Sprintf("DATA %d end=%t %q", f.StreamID, f.StreamEnded(), f.Data())
	case *http2.RSTStreamFrame:
		return fmt.Sprintf("RST_STREAM %d %s", f.StreamID, f.ErrCode)
	case *http2.WindowUpdateFrame:
		return fmt.Sprintf("WINDOW_UPDATE %d %d", f.StreamID, f.Increment)
	case *http2.PingFrame:
		return fmt.Sprintf("PING ack=%t %x", f.IsAck(), f.Data)
	case *http2.SettingsFrame:
		if f.IsAck() {
			return "SETTINGS ack"
		}
	}
	return strings.TrimSpace(fmt.Sprint(f))
}
