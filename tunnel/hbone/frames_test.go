package hbone

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestBadFrames: frames that end the tunnel, whatever its role and however they
// are cut. Stream 1 is open, 3 is closed, 5 was never opened.
func TestBadFrames(t *testing.T) {
	const (
		protocol = http2.ErrCodeProtocol
		size     = http2.ErrCodeFrameSize
	)
	type frame struct {
		kind    http2.FrameType
		flags   http2.Flags
		id      uint32
		payload []byte
	}
	zero := func(n int) []byte { return make([]byte, n) }
	tests := []struct {
		name string
		f    frame
		code http2.ErrCode
	}{
		{"DATA on stream 0", frame{http2.FrameData, 0, 0, zero(1)}, protocol},
		{"DATA on an idle stream", frame{http2.FrameData, 0, 5, zero(1)}, protocol},
		{"DATA on an even stream", frame{http2.FrameData, 0, 2, zero(1)}, protocol},
		{"DATA too large", frame{http2.FrameData, 0, 1, zero(1<<20 + 1)}, size},
		{"padded DATA without length", frame{http2.FrameData, http2.FlagDataPadded, 1, nil}, size},
		{"DATA all padding and more", frame{http2.FrameData, http2.FlagDataPadded, 1, []byte{1}}, protocol},
		{"DATA with more padding than frame", frame{http2.FrameData, http2.FlagDataPadded, 1, []byte{9, 0, 0}}, protocol},
		{"HEADERS on stream 0", frame{http2.FrameHeaders, http2.FlagHeadersEndHeaders, 0, zero(0)}, protocol},
		{"HEADERS too large", frame{http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, zero(64<<10 + 1)}, size},
		{"HEADERS padded without length", frame{http2.FrameHeaders, http2.FlagHeadersPadded, 1, nil}, protocol},
		{"HEADERS with more padding than frame", frame{http2.FrameHeaders, http2.FlagHeadersPadded, 1, []byte{9, 0}}, protocol},
		{"HEADERS too short for a priority", frame{http2.FrameHeaders, http2.FlagHeadersPriority, 1, zero(4)}, size},
		{"HEADERS that do not decode", frame{http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0xff}}, http2.ErrCodeCompression},
		{"HEADERS of index 0", frame{http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0x80}}, http2.ErrCodeCompression},
		{"HEADERS with a table of 4097", frame{http2.FrameHeaders, http2.FlagHeadersEndHeaders, 1, []byte{0x3f, 0xe2, 0x1f}}, http2.ErrCodeCompression},
		{"PRIORITY on stream 0", frame{http2.FramePriority, 0, 0, zero(5)}, protocol},
		{"PRIORITY of 4 for none", frame{http2.FramePriority, 0, 5, zero(4)}, size},
		{"RST_STREAM on stream 0", frame{http2.FrameRSTStream, 0, 0, zero(4)}, protocol},
		{"RST_STREAM on an idle stream", frame{http2.FrameRSTStream, 0, 5, zero(4)}, protocol},
		{"RST_STREAM of 3", frame{http2.FrameRSTStream, 0, 1, zero(3)}, size},
		{"RST_STREAM of 5", frame{http2.FrameRSTStream, 0, 1, zero(5)}, size},
		{"SETTINGS on a stream", frame{http2.FrameSettings, 0, 1, nil}, protocol},
		{"SETTINGS of 5", frame{http2.FrameSettings, 0, 0, zero(5)}, size},
		{"SETTINGS ack with payload", frame{http2.FrameSettings, http2.FlagSettingsAck, 0, zero(6)}, size},
		{"PUSH_PROMISE", frame{http2.FramePushPromise, http2.FlagPushPromiseEndHeaders, 1, zero(4)}, protocol},
		{"PING of 7", frame{http2.FramePing, 0, 0, zero(7)}, size},
		{"PING of 9", frame{http2.FramePing, 0, 0, zero(9)}, size},
		{"PING on a stream", frame{http2.FramePing, 0, 1, zero(8)}, protocol},
		{"GOAWAY on a stream", frame{http2.FrameGoAway, 0, 1, zero(8)}, protocol},
		{"GOAWAY of 7", frame{http2.FrameGoAway, 0, 0, zero(7)}, size},
		{"WINDOW_UPDATE of 3", frame{http2.FrameWindowUpdate, 0, 1, zero(3)}, size},
		{"WINDOW_UPDATE of 5", frame{http2.FrameWindowUpdate, 0, 0, zero(5)}, size},
		{"WINDOW_UPDATE on an idle stream", frame{http2.FrameWindowUpdate, 0, 5, []byte{0, 0, 0, 1}}, protocol},
		{"CONTINUATION of nothing", frame{http2.FrameContinuation, http2.FlagContinuationEndHeaders, 1, nil}, protocol},
		{"unknown and too large", frame{0xf0, 0, 0, zero(64<<10 + 1)}, size},
	}
	testRoles(t, func(t *testing.T, role Role) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				for name, chunk := range chunkings {
					p := newPeer(t, Config{Role: role})
					p.open()
					p.open().Reset(http2.ErrCodeCancel)
					p.read()
					p.chunk = chunk
					p.writeFrame(tt.f.kind, tt.f.flags, tt.f.id, tt.f.payload)
					wantCode(t, name, p.err, tt.code)
					p.wantGoAway(name, p.c.lastID, tt.code)
					p.wantIdle("a GOAWAY is the last word")
				}
			})
		}
	})
}

// TestBadStreamFrames: frames that end one stream only.
func TestBadStreamFrames(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		p := newPeer(t, Config{Role: role})
		p.open()
		p.writeFrame(http2.FramePriority, 0, 1, make([]byte, 4))
		p.wantRST("PRIORITY of 4", 1, http2.ErrCodeFrameSize)
		p.wantEvents("the stream is gone", "reset 1 FRAME_SIZE_ERROR")
		p.wantAlive("the tunnel goes on")
	})
}

// TestUnknownFrames: all of them are ignored (RFC 9113 §5.5), and so are
// unknown flags, the reserved bit and priorities.
func TestUnknownFrames(t *testing.T) {
	testRoles(t, func(t *testing.T, role Role) {
		p := newPeer(t, Config{Role: role})
		s := p.open()
		for kind := int(http2.FrameContinuation) + 1; kind < 256; kind++ {
			p.writeFrame(http2.FrameType(kind), 0xff, uint32(kind%3), make([]byte, kind))
		}
		p.writeFrame(http2.FramePriority, 0, s.id, []byte{0, 0, 0, byte(s.id), 1})
		p.writeFrame(http2.FramePriority, 0, 99, make([]byte, 5))
		p.wantAlive("nothing of it is known")
		p.wantIdle("or answered")
		p.writeFrame(http2.FrameData, 0xff&^(http2.FlagDataPadded|http2.FlagDataEndStream), s.id|1<<31, []byte("hello"))
		p.wantEvents("the reserved bit and other flags say nothing", "data "+id(s)+" 5")
		p.writePing(false, [8]byte{1})
		p.wantPing("the tunnel goes on", true, [8]byte{1})
	})
}

// TestPriorityInHeaders: the old fields are skipped (RFC 9113 §6.2), with
// padding or without.
func TestPriorityInHeaders(t *testing.T) {
	testChunkings(t, func(t *testing.T, chunk chunker) {
		p := newPeer(t, Config{Role: Server})
		p.chunk = chunk
		p.fr.WriteHeaders(http2.HeadersFrameParam{
			StreamID: 1, EndHeaders: true, PadLength: 200,
			Priority:      http2.PriorityParam{StreamDep: 7, Exclusive: true, Weight: 3},
			BlockFragment: p.encode(":method", "CONNECT", ":authority", "10.2.0.5:80"),
		})
		p.flush()
		p.wantEvents("a request", "request 1 10.2.0.5:80")
	})
}

// TestContinuation: a header block in pieces.
func TestContinuation(t *testing.T) {
	testChunkings(t, func(t *testing.T, chunk chunker) {
		p := newPeer(t, Config{Role: Server})
		p.chunk = chunk
		for i, id := range []uint32{1, 3, 5} { // the table goes on across them
			block := p.encode(":method", "CONNECT", ":authority", "10.2.0.5:80", "baggage", strings.Repeat("x", 100*i))
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id})
			for piece := range slices.Chunk(block, len(block)/6+1) {
				p.fr.WriteContinuation(id, false, piece)
			}
			p.fr.WriteContinuation(id, true, nil)
			p.flush()
			p.wantEvents("the whole", fmt.Sprintf("request %d 10.2.0.5:80", id))
		}
	})
	for name, between := range map[string]func(p *testPeer){
		"PING":             func(p *testPeer) { p.writePing(false, [8]byte{}) },
		"DATA":             func(p *testPeer) { p.writeData(1, false, nil) },
		"HEADERS":          func(p *testPeer) { p.writeRequest(1) },
		"unknown":          func(p *testPeer) { p.writeFrame(0xf0, 0, 0, nil) },
		"another stream's": func(p *testPeer) { p.fr.WriteContinuation(3, true, nil); p.flush() },
		"another's, one before": func(p *testPeer) {
			p.fr.WriteContinuation(1, false, nil)
			p.fr.WriteContinuation(3, true, nil)
			p.flush()
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPeer(t, Config{Role: Server})
			p.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: p.encode(":method", "CONNECT")})
			p.flush()
			between(p)
			p.wantClosed("RFC 9113 §4.3: nothing comes between", http2.ErrCodeProtocol)
		})
	}
}

// TestMalformedRequests: what breaks the rules of RFC 9113 §8 ends its stream;
// what is well formed and not for us is answered.
func TestMalformedRequests(t *testing.T) {
	connect := []string{":method", "CONNECT", ":authority", "10.2.0.5:80"}
	with := func(more ...string) []string { return append(connect[:4:4], more...) }
	const reset = ""
	tests := []struct {
		fields []string
		status string // or reset
		why    string
	}{
		{with(":method", "CONNECT"), reset, "pseudo-header field given twice"},
		{with(":authority", "10.2.0.5:80"), reset, "pseudo-header field given twice"},
		{with(":unknown", "x"), reset, "unknown pseudo-header field"},
		{with(":", "x"), reset, "unknown pseudo-header field"},
		{[]string{"a", "b", ":method", "CONNECT", ":authority", "10.2.0.5:80"}, reset, "pseudo-header field after a regular one"},
		{with("Upper", "x"), reset, "invalid field name"},
		{with("", "x"), reset, "invalid field name"},
		{with("sp ace", "x"), reset, "invalid field name"},
		{with("a\x00", "x"), reset, "invalid field name"},
		{with("ü", "x"), reset, "invalid field name"},
		{with("a", "x\x00"), reset, "invalid field value"},
		{with("a", "x\r\nb: c"), reset, "invalid field value"},
		{with("a", " x"), reset, "invalid field value"},
		{with("a", "x\t"), reset, "invalid field value"},
		{with("forwarded", "for=\"10.1.0.7:1\"\n"), reset, "invalid field value"},
		{with("connection", "close"), reset, "connection-specific field"},
		{with("proxy-connection", "close"), reset, "connection-specific field"},
		{with("keep-alive", "1"), reset, "connection-specific field"},
		{with("transfer-encoding", "chunked"), reset, "connection-specific field"},
		{with("upgrade", "h2c"), reset, "connection-specific field"},
		{with("te", "gzip"), reset, "te other than trailers"},
		{[]string{":method", "GET"}, reset, "request without method, scheme or path"},
		{[]string{":method", "GET", ":scheme", "http", ":path", ""}, reset, "request without method, scheme or path"},
		{[]string{":scheme", "http", ":path", "/"}, reset, "request without method, scheme or path"},
		{nil, reset, "request without method, scheme or path"},
		{[]string{":method", "GET", ":scheme", "https", ":path", "/", ":status", "200"}, reset, ":status in a request"},

		{with(":status", "200"), "400", ":status in a request"},
		{with(":path", "/"), "400", ":scheme or :path in a CONNECT request"},
		{with(":scheme", "https"), "400", ":scheme or :path in a CONNECT request"},
		{connect[:2], "400", `:authority "": want address:port, an IPv6 address in brackets`},
		{[]string{":method", "CONNECT", ":authority", "svc.ns:80"}, "400", `:authority "svc.ns:80": want address:port, an IPv6 address in brackets`},
		{with("forwarded", `for="10.1.0.7:1"`, "forwarded", `for="10.1.0.7:1"`), "400", "forwarded is given twice"},
		{with("forwarded", ``), "400", `forwarded "": want name=value`},
		{with("forwarded", `for=unknown`), "400", `forwarded "for=unknown": want address:port, an IPv6 address in brackets`},
		{[]string{":method", "POST", ":scheme", "https", ":path", "/", "content-length", "1", "content-length", "1"}, reset, "content-length is not one number"},
		{[]string{":method", "POST", ":scheme", "https", ":path", "/", "content-length", "-1"}, reset, "content-length is not one number"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.fields), func(t *testing.T) {
			p := newPeer(t, Config{Role: Server})
			p.writeHeaders(1, false, tt.fields...)
			p.wantEvents("said, and no stream", "malformed: "+tt.why)
			switch tt.status {
			case reset:
				p.wantRST("RFC 9113 §8.1.1", 1, http2.ErrCodeProtocol)
			default:
				p.wantHeaders("answered", 1, true, ":status", tt.status, "wishbone-reason", "malformed")
				p.wantRST("no more is wanted", 1, http2.ErrCodeNo)
			}
			p.writeData(1, true, []byte("body"))
			p.wantIdle("what was on its way is ignored")
			p.wantAlive("one bad request is not the tunnel's")
			p.writeRequest(3)
			p.wantEvents("the next", "request 3 10.2.0.5:80")
		})
	}
}

// TestStreamNumbers: they go up and are odd (RFC 9113 §5.1.1).
func TestStreamNumbers(t *testing.T) {
	t.Run("skipped", func(t *testing.T) {
		p := newPeer(t, Config{Role: Server})
		p.writeRequest(1)
		p.writeRequest(7)
		p.wantEvents("numbers may be skipped", "request 1 10.2.0.5:80", "request 7 10.2.0.5:80")
		p.writeRequest(5)
		p.wantClosed("and are then closed", http2.ErrCodeStreamClosed)
	})
	t.Run("again", func(t *testing.T) {
		p := newPeer(t, Config{Role: Server})
		s := p.open()
		s.End()
		p.wantData("our end", 1, true, "")
		p.writeData(1, true, nil)
		p.writeRequest(1)
		p.wantClosed("a number is used once", http2.ErrCodeStreamClosed)
	})
	for _, id := range []uint32{2, 1 << 30} {
		p := newPeer(t, Config{Role: Server})
		p.writeRequest(id)
		p.wantClosed("an even number is a server's", http2.ErrCodeProtocol)
	}
	t.Run("client", func(t *testing.T) {
		for _, id := range []uint32{2, 3} {
			p := newPeer(t, Config{})
			p.request()
			p.writeHeaders(id, false, ":status", "200")
			p.wantClosed("an answer to nothing", http2.ErrCodeProtocol)
		}
	})
}

// TestCompression: our blocks stand alone, whatever table the peer offers; the
// peer's may use all of the 4096 bytes of ours.
func TestCompression(t *testing.T) {
	for _, size := range []uint32{0, 100, 1<<32 - 1} {
		p := newPeer(t, Config{}, http2.Setting{ID: http2.SettingHeaderTableSize, Val: size})
		for range 2 {
			p.c.Open(p.now, testRequest, nil)
		}
		p.pull()
		fr := http2.NewFramer(nil, &p.in)
		for i := range 2 {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			// A decoder without a table, and new for each block.
			fields, err := hpack.NewDecoder(0, nil).DecodeFull(f.(*http2.HeadersFrame).HeaderBlockFragment())
			if err != nil || len(fields) != 3 {
				t.Errorf("table of %d: block %d: %v, %v", size, i, fields, err)
			}
		}
	}
	p := newPeer(t, Config{Role: Server})
	for i := range 200 { // each evicts the one before
		p.writeHeaders(uint32(2*i+1), false, ":method", "CONNECT", ":authority", "10.2.0.5:80", "a", strings.Repeat(fmt.Sprint(i%10), 2000))
		p.wantAlive("the table is kept")
	}
	p.enc.SetMaxDynamicTableSize(0)
	p.writeRequest(401)
	p.enc.SetMaxDynamicTableSize(4096)
	p.writeRequest(403)
	p.wantAlive("its size may go down and up")
	p.rec.take()
	p.rec.known[399].Reset(http2.ErrCodeCancel)
	p.writeHeaders(399, true, "new", "entry") // for a stream that is gone
	p.writeHeaders(405, false, ":method", "CONNECT", ":authority", "10.2.0.5:80", "new", "entry")
	p.wantAlive("blocks of dead streams count for the table")
}

// TestCutting: however the bytes are cut, the same is heard and said.
func TestCutting(t *testing.T) {
	var script bytes.Buffer
	fr := http2.NewFramer(&script, nil)
	fr.AllowIllegalWrites = true
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	script.WriteString(http2.ClientPreface)
	fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100})
	for id := uint32(1); id < 20; id += 2 {
		block.Reset()
		for _, f := range [][2]string{{":method", "CONNECT"}, {":authority", "10.2.0.5:80"}, {"baggage", strings.Repeat("x", int(id))}} {
			enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes()[:1]})
		fr.WriteContinuation(id, true, block.Bytes()[1:])
		fr.WriteDataPadded(id, false, make([]byte, id), make([]byte, 3*id))
		fr.WriteWindowUpdate(id, id)
		fr.WritePing(false, [8]byte{byte(id)})
		fr.WriteRawFrame(0xfe, 0xff, id, make([]byte, id))
		fr.WriteDataPadded(id, id%4 == 1, nil, make([]byte, id))
		if id%3 == 0 {
			fr.WriteRSTStream(id, http2.ErrCodeConnect)
		}
	}
	fr.WriteGoAway(0, http2.ErrCodeNo, []byte("bye"))
	fr.WriteData(19, true, make([]byte, 100000))
	fr.WriteRawFrame(http2.FramePing, 0, 1, nil)

	run := func(chunk chunker) (events []string, out []byte) {
		p := newRawPeer(t, Config{Role: Server})
		p.rec.request = func(s *Stream, _ Request) { s.Accept() }
		p.rec.hold = true // when to deliver is the caller's choice
		p.chunk = chunk
		p.writeRaw(bytes.Clone(script.Bytes()))
		wantCode(t, "the last frame is a bad one", p.err, http2.ErrCodeFrameSize)
		p.pull()
		return p.rec.take(), p.in.Bytes()
	}
	events, out := run(chunkings["whole"])
	if len(events) < 20 {
		t.Fatalf("only %q", events)
	}
	testChunkings(t, func(t *testing.T, chunk chunker) {
		e, o := run(chunk)
		if !slices.Equal(e, events) {
			t.Errorf("heard\n%q, in one piece\n%q", e, events)
		}
		if !bytes.Equal(o, out) {
			t.Errorf("said %d bytes, in one piece %d", len(o), len(out))
		}
	})
}
