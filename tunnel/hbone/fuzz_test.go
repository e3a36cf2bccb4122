package hbone

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// FuzzServer and FuzzClient: a stranger's bytes, whatever they are and whenever
// they come, end the tunnel at worst. What is heard and said does not depend on how
// they were cut.
func FuzzServer(f *testing.F) { fuzzRole(f, Server) }

func FuzzClient(f *testing.F) { fuzzRole(f, Client) }

func fuzzRole(f *testing.F, role Role) {
	for _, seed := range seeds(role) {
		f.Add(seed, []byte{}, uint64(0))
		f.Add(seed, []byte{0, 30, 7, 0, 60, 70, 0, 20, 33, 0, 9, 255, 1, 0, 130}, uint64(1))
	}
	f.Fuzz(func(t *testing.T, in, clock []byte, cut uint64) {
		in = in[:min(len(in), 1<<20)]
		early := cut%2 == 1
		whole := feed(t, role, early, in, clock, chunkings["whole"])
		chunk := chunkings["bytes"]
		if cut != 0 {
			chunk = randomChunks(cut)
		}
		parts := feed(t, role, early, in, clock, chunk)
		if !slices.Equal(whole.events, parts.events) {
			t.Errorf("heard in one piece\n%q, in many\n%q", whole.events, parts.events)
		}
		if !bytes.Equal(whole.out, parts.out) {
			t.Errorf("said in one piece\n%q, in many\n%q", whole.out, parts.out)
		}
		if fmt.Sprint(whole.err) != fmt.Sprint(parts.err) {
			t.Errorf("ended in one piece with %v, in many with %v", whole.err, parts.err)
		}
	})
}

// fed is what came of a stranger's bytes.
type fed struct {
	events []string
	out    []byte
	err    error
}

// feed lets a Conn read them, cut by chunk, and holds it to what is always true.
// Of three bytes of clock, two are how much is read before time passes, and one is
// how much: up to a minute.
func feed(t *testing.T, role Role, early bool, in, clock []byte, chunk chunker) fed {
	now := time.Duration(1)
	rec := newRecorder(&now)
	rec.hold = true // when to deliver would depend on the cutting
	b := NewBudget(4 << 20)
	c := New(Config{Role: role, Budget: b, ConnWindow: 100_000, EarlyData: early}, rec, now)
	rec.request = answerer()
	if role == Client {
		for range 4 {
			s, err := c.Open(now, testRequest, nil)
			if err != nil {
				t.Fatal(err)
			}
			rec.known[s.id] = s
		}
	}
	f := fed{}
	// Everything that a byte can make us say: a few frames, none of them long.
	most := 4096 + 40*len(in)
	receive := func(rest []byte) {
		for len(rest) > 0 && f.err == nil {
			n := chunk(len(rest))
			piece := bytes.Clone(rest[:n])
			f.err = c.Receive(now, piece)
			clear(piece) // what is kept must be a copy
			rest = rest[n:]
			checkBudgets(t, c)
			if k := len(c.in.partial) + len(c.in.block); k > 2*(maxControlFrame+FrameHeader) {
				t.Fatalf("%d bytes are kept of a frame", k)
			}
			if c.ControlLen() > most {
				t.Fatalf("%d bytes to say after %d", c.ControlLen(), len(in))
			}
		}
	}
	for ; len(clock) >= 3 && f.err == nil; clock = clock[3:] {
		n := min(len(in), int(clock[0])<<8+int(clock[1]))
		receive(in[:n])
		in = in[n:]
		most += 200 // a PING, and the end of what waits
		f.pass(t, c, rec, &now, time.Duration(clock[2])*time.Duration(clock[2])*time.Millisecond)
	}
	receive(in)
	for c.HasControl() {
		f.out = c.AppendControl(slices.Grow(f.out, 512))
	}
	checkFrames(t, role, f.out)
	checkEmpty(t, c)
	if used := b.Used(); used != 0 {
		t.Errorf("the process's budget after the end: %d used, want none", used)
	}
	f.events = rec.take()
	for id, got := range rec.got {
		f.events = append(f.events, fmt.Sprintf("stream %d got %x", id, got))
	}
	slices.Sort(f.events[len(f.events)-len(rec.got):])
	return f
}

// pass lets time go by: what is due is done, and what came is delivered.
func (f *fed) pass(t *testing.T, c *Conn, rec *recorder, now *time.Duration, d time.Duration) {
	end := *now + d
	for f.err == nil && c.Deadline() <= end {
		*now = max(*now, c.Deadline())
		if f.err = c.Tick(*now); f.err == nil && c.Deadline() <= *now {
			t.Fatal("Tick at the deadline left a deadline in the past: a busy loop")
		}
		checkBudgets(t, c)
	}
	*now = end
	for _, id := range slices.Sorted(maps.Keys(rec.known)) {
		if n := rec.undel[id]; n > 0 && f.err == nil {
			rec.deliver(rec.known[id], n)
		}
	}
	checkBudgets(t, c)
}

// answerer treats requests in turn as a gateway might.
func answerer() func(*Stream, Request) {
	n := 0
	return func(s *Stream, _ Request) {
		switch n++; n % 5 {
		case 0: // later
		case 1, 2:
			s.Accept()
		case 3:
			s.Refuse(Denied)
		case 4:
			s.Accept()
			s.End()
		}
	}
}

// checkFrames fails unless out is a preface and whole frames that x/net can
// read.
func checkFrames(t *testing.T, role Role, out []byte) {
	t.Helper()
	if role == Client {
		rest, ok := bytes.CutPrefix(out, []byte(http2.ClientPreface))
		if !ok {
			t.Fatalf("no preface: %q", out)
		}
		out = rest
	}
	fr := http2.NewFramer(nil, bytes.NewReader(out))
	fr.ReadMetaHeaders = hpack.NewDecoder(0, nil)
	for {
		switch f, err := fr.ReadFrame(); {
		case err == io.EOF:
			return
		case err != nil:
			t.Fatalf("what was said cannot be read: %v, in %q", err, out)
		case f.Header().Length > 16384:
			t.Fatalf("a frame of %d for a peer that has not allowed that", f.Header().Length)
		}
	}
}

// seeds are scripts that reach every kind of frame.
func seeds(role Role) [][]byte {
	var all [][]byte
	add := func(script func(fr *http2.Framer, block func(fields ...string) []byte)) {
		var b, block bytes.Buffer
		if role == Server {
			b.WriteString(http2.ClientPreface)
		}
		fr := http2.NewFramer(&b, nil)
		fr.AllowIllegalWrites = true
		enc := hpack.NewEncoder(&block)
		fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000}, offer(1))
		script(fr, func(fields ...string) []byte {
			block.Reset()
			for i := 0; i < len(fields); i += 2 {
				enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
			}
			return block.Bytes()
		})
		all = append(all, b.Bytes())
	}
	first := func(block func(...string) []byte) []byte {
		if role == Server {
			return block(":method", "CONNECT", ":authority", "10.2.0.5:80", "forwarded", `for="10.1.0.7:1"`)
		}
		return block(":status", "200", "wishbone-reason", "refused")
	}
	add(func(fr *http2.Framer, block func(...string) []byte) {})
	add(func(fr *http2.Framer, block func(...string) []byte) {
		fr.WriteSettingsAck()
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: first(block), EndHeaders: true})
		fr.WriteData(1, false, []byte("hello"))
		fr.WriteDataPadded(1, false, []byte("hello"), make([]byte, 7))
		fr.WriteWindowUpdate(1, 77)
		fr.WriteWindowUpdate(0, 77)
		fr.WriteData(1, true, nil)
		fr.WritePing(false, [8]byte{1})
	})
	add(func(fr *http2.Framer, block func(...string) []byte) {
		for id := uint32(1); id < 12; id += 2 {
			b := first(block)
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b[:1], PadLength: 3, Priority: http2.PriorityParam{Weight: 1}})
			fr.WriteContinuation(id, false, b[1:2])
			fr.WriteContinuation(id, true, b[2:])
			fr.WriteData(id, false, []byte{byte(id)})
		}
		fr.WriteRSTStream(3, http2.ErrCodeConnect)
		fr.WritePriority(1, http2.PriorityParam{StreamDep: 3})
		fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block("a", "trailer"), EndHeaders: true, EndStream: true})
		fr.WriteRawFrame(0x42, 0xff, 9, []byte("?"))
		fr.WriteGoAway(3, http2.ErrCodeNo, []byte("bye"))
		fr.WriteData(7, true, make([]byte, 30000))
		fr.WriteGoAway(1, http2.ErrCodeInternal, nil)
	})
	add(func(fr *http2.Framer, block func(...string) []byte) {
		fr.WriteSettings(offer(0), offer(2), offer(1))
		for id := uint32(1); id < 12; id += 2 { // the fifth request gets no answer
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first(block), EndHeaders: true})
		}
		fr.WriteData(9, false, []byte("early"))
		fr.WriteDataPadded(9, true, []byte("data"), make([]byte, 7))
	})
	add(func(fr *http2.Framer, block func(...string) []byte) {
		post := func(id uint32, length string) {
			fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true,
				BlockFragment: block(":method", "POST", ":scheme", "https", ":path", "/", "content-length", length)})
		}
		fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 3})
		post(1, "4")
		fr.WriteDataPadded(1, true, []byte("test"), make([]byte, 7))
		fr.WriteWindowUpdate(1, 2)
		fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 9})
		post(3, "4")
		fr.WriteData(3, true, []byte("short"))
		post(5, "99999")
		fr.WriteData(5, false, make([]byte, 70000))
		fr.WriteRSTStream(1, http2.ErrCodeCancel)
	})
	add(func(fr *http2.Framer, block func(...string) []byte) {
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block(":status", "503", "wishbone-reason", "no_port"), EndHeaders: true})
		fr.WriteData(1, true, []byte("no"))
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: block(":method", "GET", ":scheme", "https", ":path", "/"), EndHeaders: true})
		fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 5, BlockFragment: block(":status", "100"), EndHeaders: true})
		fr.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, EndHeaders: true})
	})
	return all
}

// FuzzAuthority: what is read as a target is an address and a port without a
// zone, and is read again from what we would write.
func FuzzAuthority(f *testing.F) {
	for _, s := range []string{"10.2.0.5:80", "[2001:db8::1]:443", "[::ffff:10.2.0.5]:80", "[fe80::1%eth0]:80", "u@h:1", "a.b:0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ap, err := parseAuthority(s)
		if err != nil {
			return
		}
		checkAddrPort(t, s, ap)
		if again, err := parseAuthority(ap.String()); err != nil || again != ap {
			t.Errorf("%q is %s, which is %s, %v", s, ap, again, err)
		}
	})
}

// FuzzForwarded: the same for the original source.
func FuzzForwarded(f *testing.F) {
	for _, s := range []string{
		`for="10.1.0.7:40000"`, `for="[2001:db8::7]:1";host=a`, `by=x;for=10.1.0.7:1`,
		`for="10.1.0.7:1", for="10.1.0.8:2"`, `for="10.1.0.7:1";host="a;b"`, `for=unknown`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ap, err := parseForwarded(s)
		if err != nil {
			return
		}
		checkAddrPort(t, s, ap)
		if again, err := parseForwarded(string(appendForwardedFor(nil, ap))); err != nil || again != ap {
			t.Errorf("%q is %s, which is %s, %v", s, ap, again, err)
		}
		if n := bytes.Count(bytes.ToLower([]byte(s)), []byte("for=")); n == 0 {
			t.Errorf("%q names no source, but %s was found", s, ap)
		}
	})
}

func checkAddrPort(t *testing.T, s string, ap netip.AddrPort) {
	t.Helper()
	if !ap.IsValid() || ap.Port() == 0 || ap.Addr().Zone() != "" || ap.Addr().Is4In6() {
		t.Errorf("%q is read as %s", s, ap)
	}
}

// FuzzPair: whatever two gateways do to each other, in whatever order and with
// whatever delays, each byte arrives in its place, or the stream is reset.
func FuzzPair(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 9, 2, 9, 3, 9, 4, 9}, uint64(1))
	f.Add([]byte{0, 9, 17, 200, 33, 100, 2, 9, 18, 9, 5, 9, 6, 9, 7, 9}, uint64(2))
	// Four streams with more to say, together, than the connection's window.
	f.Add([]byte("\x00\x00\x00\x00\x09\x09\x09\x01\x11\x21\x31\x09\x09\x09\xf2\xe2\xd2\xc2\xf3\xe3\x0b\x09\x08\x14\x15\x16\x27"), uint64(0))
	f.Add(bytes.Repeat([]byte{0, 1, 9, 2, 30, 8, 3, 19, 35, 10, 9, 4, 20, 9}, 8), uint64(3))
	f.Fuzz(func(t *testing.T, ops []byte, seed uint64) {
		p := newFuzzedPair(t, seed)
		for _, op := range ops[:min(len(ops), 400)] {
			p.do(op&0x0f, op>>4)
		}
		p.finish()
	})
}

// fuzzedPair is a pair and what was sent on its streams.
type fuzzedPair struct {
	*pair
	streams []uint32
	sent    map[*side]map[uint32][]byte
	ended   map[*side]map[uint32]bool
	cut     map[uint32]bool // by either side
}

func newFuzzedPair(t *testing.T, seed uint64) *fuzzedPair {
	small := Config{EarlyData: seed%2 == 1, MaxStreams: 6, ConnWindow: 100_000, StreamWindow: 65535, MaxStreamWindow: 150_000, TunnelBudget: 1 << 20}
	p := &fuzzedPair{
		pair:  newPair(t, pairConfig{client: small, server: small, delay: 3 * time.Millisecond, chunk: randomChunks(seed), silent: true}),
		sent:  make(map[*side]map[uint32][]byte),
		ended: make(map[*side]map[uint32]bool),
		cut:   make(map[uint32]bool),
	}
	for _, s := range []*side{p.client, p.server} {
		p.sent[s], p.ended[s] = make(map[uint32][]byte), make(map[uint32]bool)
	}
	return p
}

// do is one step: op on the stream that which chooses.
func (p *fuzzedPair) do(op, which byte) {
	from, to := p.client, p.server
	if op&1 == 1 {
		from, to = to, from
	}
	var s *Stream
	if len(p.streams) > 0 {
		s = from.rec.known[p.streams[len(p.streams)-1-int(which)%len(p.streams)]]
	}
	switch op {
	case 0:
		if s, err := p.client.Open(p.now, testRequest, nil); err == nil {
			p.client.rec.known[s.id] = s
			p.streams = append(p.streams, s.id)
		}
		return
	case 9:
		p.advance(2 * time.Millisecond)
		return
	case 10:
		p.advance(time.Duration(which) * time.Second)
		return
	case 11:
		from.rec.hold = !from.rec.hold
		return
	case 12:
		if which == 0 {
			from.Drain()
		}
		return
	}
	if s == nil {
		return
	}
	switch op {
	case 1:
		s.Accept()
	case 2, 3:
		n := 1 + int(which)*7000
		p.sent[from][s.id] = append(p.sent[from][s.id], pattern(n)...)
		if s.gone || p.ended[from][s.id] {
			p.sent[from][s.id] = p.sent[from][s.id][:len(p.sent[from][s.id])-n]
			return
		}
		from.write(s, pattern(n))
	case 4, 5:
		p.ended[from][s.id] = true
		from.end(s)
	case 6, 7:
		p.cut[s.id] = p.cut[s.id] || !s.gone
		s.Reset(http2.ErrCodeConnect)
	case 8:
		if far := to.rec.known[s.id]; far != nil && to.rec.undel[s.id] > 0 {
			to.rec.deliver(far, 1+(to.rec.undel[s.id]-1)/(1+int(which)))
		}
	case 13:
		s.Refuse(Overloaded)
	case 14, 15:
		if s.gone {
			s.Discard()
			from.rec.undel[s.id] = 0
		}
	}
	checkBudgets(p.t, p.client.Conn)
	checkBudgets(p.t, p.server.Conn)
}

// finish lets everything that can arrive do so, and looks at all of it.
func (p *fuzzedPair) finish() {
	for i := 0; i < 50 || p.busy() && i < 1000; i++ { // each round gives back what was held
		for _, side := range []*side{p.client, p.server} {
			side.rec.hold = false
			for id, n := range side.rec.undel {
				side.rec.deliver(side.rec.known[id], n)
			}
		}
		for _, s := range p.server.rec.known {
			s.Accept()
		}
		p.advance(20 * time.Millisecond)
	}
	for _, side := range []*side{p.client, p.server} {
		if side.err != nil {
			p.t.Fatalf("%s ended with %v", side.name, side.err)
		}
		for _, e := range side.rec.events {
			var id uint32
			var word string
			if n, _ := fmt.Sscan(e, &word, &id); n == 2 && (word == "reset" || word == "refused") {
				p.cut[id] = true
			}
		}
	}
	p.whole(p.client, p.server)
	p.whole(p.server, p.client)
}

// busy reports whether there is something left to send that can be sent, or
// something on its way.
func (p *fuzzedPair) busy() bool {
	alive := func(f *flow) bool { return !f.s.gone }
	return slices.ContainsFunc(p.client.flows, alive) || slices.ContainsFunc(p.server.flows, alive) ||
		len(p.client.wire)+len(p.server.wire) > 0
}

// whole fails unless what one side has sent has arrived at the other, or on
// streams that were cut a beginning of it.
func (p *fuzzedPair) whole(from, to *side) {
	for _, id := range p.streams {
		sent, got := p.sent[from][id], to.rec.got[id]
		if !bytes.HasPrefix(sent, got) {
			p.t.Errorf("stream %d: the %s got other bytes than were sent", id, to.name)
		}
		if p.cut[id] {
			continue
		}
		if len(got) != len(sent) {
			p.t.Errorf("stream %d: the %s got %d bytes of %d", id, to.name, len(got), len(sent))
		}
		if far := to.rec.known[id]; far.recvEnd != p.ended[from][id] {
			p.t.Errorf("stream %d: ended %t, seen by the %s: %t", id, p.ended[from][id], to.name, far.recvEnd)
		}
		if both := p.ended[from][id] && p.ended[to][id]; from.rec.known[id].gone != both {
			p.t.Errorf("stream %d: both ends have ended: %t, and it is gone: %t", id, both, !both)
		}
	}
}
