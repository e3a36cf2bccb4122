package e2e

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"wishbone/e2e/netlab"
)

// early gives both gateways early data.
func early(west, east *site) {
	west.extra += "\nearlyData: true"
	east.extra += "\nearlyData: true"
}

// earlyDataSetting is the identifier of the offer in SETTINGS.
const earlyDataSetting http2.SettingID = 0x5742

// silentFor has east give a destination up that does not answer.
func silentFor(d time.Duration) func(west, east *site) {
	return func(_, east *site) {
		east.extra = fmt.Sprintf("timeouts: {handshake: 1s, request: 1s, connect: %s}", d)
	}
}

// data writes DATA.
func (h *hostile) data(stream uint32, p []byte) {
	for ; len(p) > 0; p = p[min(len(p), 16384):] {
		// As for write.
		_ = h.framer.WriteData(stream, false, p[:min(len(p), 16384)])
	}
}

// ask asks for a target and says something at once.
func (h *hostile) ask(target, word string) uint32 {
	id := h.request(target)
	h.data(id, []byte(word))
	h.flush()
	return id
}

// answered waits for the answer to a request.
func (h *hostile) answered(id uint32, status string) {
	h.t.Helper()
	h.await(fmt.Sprintf("the answer to stream %d", id), func(s heard) bool { return s.answers[id] != "" })
	if got := h.state().answers[id]; got != status {
		h.t.Errorf("stream %d: answer %s, want %s", id, got, status)
	}
}

func earlySeries(what, direction string) string {
	return fmt.Sprintf(`wishbone_early_data_%s_total{direction="%s"}`, what, direction)
}

// TestEarlyReachesNobody: what a peer says before the answer reaches no socket and
// no wire if the answer is 401, 503 or anything but 200, and if it is said after it
// (CVE-2025-64763). What it says on a connection that is made does.
func TestEarlyReachesNobody(t *testing.T) {
	const secret, word = "said to nobody at all", "said to the server"
	s := newSiege(t, silentFor(200*time.Millisecond), early)
	deadEnds(t, s.pair)
	ln := listen(t, s.Server, web)
	wire, err := s.Server.Capture(netlab.Inner)
	if err != nil {
		t.Fatal(err)
	}
	h := s.client()
	for _, tt := range []struct {
		name, status string
		ask          func() uint32
	}{
		{"denied", "401", func() uint32 {
			h.stream += 2
			h.headers(h.stream, false, ":method", "CONNECT", ":authority", web.String(), "forwarded", `for="10.1.0.2:40000"`)
			h.data(h.stream, []byte(secret))
			return h.stream
		}},
		{"not served", "401", func() uint32 { return h.ask("198.51.100.7:80", secret) }},
		{"refused", "503", func() uint32 { return h.ask(netip.AddrPortFrom(netlab.Server4, 9).String(), secret) }},
		{"no route", "503", func() uint32 { return h.ask(in(noRoute4).String(), secret) }},
		{"a router says so", "503", func() uint32 { return h.ask(in(told4).String(), secret) }},
		{"no answer", "503", func() uint32 { return h.ask(in(silent4).String(), secret) }},
		{"the gateway itself", "503", func() uint32 { return h.ask("192.0.2.20:15008", secret) }},
		{"malformed", "400", func() uint32 { return h.ask("example.org:80", secret) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := tt.ask()
			h.flush()
			h.answered(id, tt.status)
			h.data(id, []byte(secret)) // and after it
			h.alive(tt.name)
		})
	}
	nobody(t, ln)
	if n := scrape(t, s.East)[earlySeries("wasted_bytes", "inbound")]; n < float64(len(secret)) {
		t.Errorf("%v bytes were held and thrown away, want those of some streams at least", n)
	}
	// The control: the same from the same peer, and a server that is there.
	id := h.ask(web.String(), word)
	server := accept(t, ln)
	got := make([]byte, len(word))
	if _, err := io.ReadFull(server, got); err != nil || string(got) != word {
		t.Errorf("the server reads %q, %v", got, err)
	}
	h.answered(id, "200")
	traffic, err := wire.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if traffic.Contains([]byte(secret)) {
		t.Errorf("%q was on the server's network", secret)
	}
	if !traffic.Contains([]byte(word)) {
		t.Errorf("%q was not on the server's network: the capture shows nothing", word)
	}
}

// TestEarlyIsHeld: within a stream's window, and all streams' within the memory that
// there is for them; what is beyond the window ends the stream, what is beyond the
// memory is not taken on. When the peer has gone it is all given back.
func TestEarlyIsHeld(t *testing.T) {
	const window, memory = 256 << 10, 8 << 20
	s := newSiege(t, early, func(_, east *site) { east.extra += "\nlimits: {memory: 8MiB}" })
	deadEnds(t, s.pair)
	h := s.client()
	piece := make([]byte, window)
	held := func() int64 { return status(t, s.east).Memory.Used }

	id := h.request(in(silent4).String())
	h.data(id, piece)
	h.flush()
	h.alive("a window is held")
	if got := held(); got != window {
		t.Errorf("%d bytes are reserved, want %d", got, window)
	}
	h.data(id, piece[:1])
	h.flush()
	h.await("a byte more", func(s heard) bool { return s.resets[id] != 0 })
	if code := h.state().resets[id]; code != http2.ErrCodeFlowControl {
		t.Errorf("a byte more is answered by %s", code)
	}
	h.alive("it is the stream's fault")
	if got := held(); got != 0 {
		t.Errorf("%d bytes are reserved after it, want none", got)
	}

	heap := func() float64 { return scrape(t, s.East)["go_memstats_heap_inuse_bytes"] }
	before, streams := heap(), 150
	first := h.stream + 2
	for range streams {
		id := h.request(in(silent4).String())
		h.data(id, piece)
		h.flush()
	}
	h.alive("all of them have been looked at")
	if got := held(); got != memory {
		t.Errorf("%d bytes are reserved, want %d", got, memory)
	}
	refused := func(s heard) (n int) {
		for id := first; id <= h.stream; id += 2 {
			if s.answers[id] == "503" {
				n++
			}
		}
		return n
	}
	if n := refused(h.state()); n != streams-memory/window {
		t.Errorf("%d of %d are overloaded, want all but %d", n, streams, memory/window)
	}
	more := heap() - before
	if most := float64(2*memory + mostMemory); more > most { // with garbage
		t.Errorf("it has cost %.0f bytes, want %.0f at most", more, most)
	}
	if more < memory/2 {
		t.Errorf("it has cost %.0f bytes: nothing is held", more)
	}
	h.conn.Close()
	eventually(t, "all is given back", func() bool { return held() == 0 })
	s.connect(t, s.Client, listen(t, s.Server, web))
}

// TestEarlyOffer: west sends what a client says at once to a peer that has offered
// to hold it, before that has answered, and to no other. Either way the server's
// side has all of it once it has answered, and a refusal is the client's reset.
func TestEarlyOffer(t *testing.T) {
	say := func(v uint32) http2.Setting { return http2.Setting{ID: earlyDataSetting, Val: v} }
	for _, site := range []struct {
		name    string
		options []func(west, east *site)
	}{{"earlyData: true", []func(west, east *site){early}}, {"default", nil}} {
		s := newSiege(t, site.options...)
		for _, tt := range []struct {
			name  string
			say   []http2.Setting
			early bool
		}{
			{"no offer", nil, false},
			{"offer", []http2.Setting{say(1)}, site.options != nil},
			{"0", []http2.Setting{say(0)}, false},
			{"2", []http2.Setting{say(2)}, false},
			{"offer, taken back", []http2.Setting{say(1), say(0)}, false},
			{"offer, later", []http2.Setting{say(0), say(1)}, site.options != nil},
		} {
			t.Run(site.name+"/"+tt.name, func(t *testing.T) {
				h := s.during(t).tlsServer()
				if _, err := io.WriteString(h.app, "said at once"); err != nil {
					t.Fatal(err)
				}
				awaitQueue(t, h.app.(*net.TCPConn), unix.SIOCOUTQ, 0) // west's kernel has it
				for _, one := range append([]http2.Setting{{ID: http2.SettingEnablePush}}, tt.say...) {
					h.check(h.framer.WriteSettings(one))
				}
				h.flush()
				go h.listen() // ends with the connection, which ends with the test
				h.stream = 1
				frames := func(kind http2.FrameType) func(heard) bool {
					return func(s heard) bool { return s.frames[kind] > 0 }
				}
				h.await("west asks for a stream", frames(http2.FrameHeaders))
				if tt.early {
					h.await("DATA comes before the answer", frames(http2.FrameData))
				}
				h.alive("once")
				h.alive("twice")
				if got := frames(http2.FrameData)(h.state()); got != tt.early {
					t.Errorf("DATA before the answer: %t, want %t", got, tt.early)
				}
				h.open()
				h.await("DATA comes", frames(http2.FrameData))
				h.check(h.framer.WriteRSTStream(h.stream, http2.ErrCodeConnect))
				h.flush()
				if err := readEnd(t, h.app); !isReset(err) {
					t.Errorf("the client reads %v, want a reset", err)
				}
			})
		}
	}
}

// TestEarlyRefused: a client that speaks at once and is refused sees what it sees
// without early data, and its words are nobody's.
func TestEarlyRefused(t *testing.T) {
	p := newPair(t, early)
	ln := listen(t, p.Server, web)
	p.connect(t, p.Client, ln).end(t) // so that there are tunnels
	wire, err := p.Server.Capture(netlab.Inner)
	if err != nil {
		t.Fatal(err)
	}
	const secret = "said to nobody at all"
	for _, f := range families {
		at := netip.AddrPortFrom(f.server, 9)
		c, err := tryDial(t, p.Client, at)
		if err == nil {
			if _, err = io.WriteString(c, secret); err == nil {
				err = readEnd(t, c)
			}
		}
		if !isReset(err) && fate(err) != "EPIPE" {
			t.Errorf("the client of %s is told %v, want a reset", at, err)
		}
		mustSay(t, p, at, "refused", "connection refused")
	}
	traffic, err := wire.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if traffic.Contains([]byte(secret)) {
		t.Errorf("%q was on the server's network", secret)
	}
	if packets, _ := traffic.Count(netlab.TCP, 9); packets == 0 {
		t.Error("no attempt was on the server's network: the capture shows nothing")
	}
}

// TestToEnvoyEarly: Envoy offers nothing, and gets nothing before its answer.
func TestToEnvoyEarly(t *testing.T) {
	needsEnvoy(t)
	p := newWorld(t, early)
	startEnvoy(t, p, p.East, "east", envoyConfig{Peer: westID, MaxStreams: 10})
	p.startWest()
	ln := listen(t, p.Server, web)
	g := split(text(30, 1<<20), 1)
	swap(t, through(t, p, p.west, web, ln, "v4", true), g, g)
	refused(t, p.Client, netip.AddrPortFrom(netlab.Server4, 9))
	awaitLog(t, p.west, "connection refused", "reason=unknown", "status 503")
	if n := scrape(t, p.West)[earlySeries("connections", "outbound")]; n != 0 {
		t.Errorf("%v connections had early data, want none", n)
	}
}

// earlyOf is how many connections of a gateway had early data.
func earlyOf(t *testing.T, h *netlab.Host) (n float64) {
	series := scrape(t, h)
	return series[earlySeries("connections", "inbound")] + series[earlySeries("connections", "outbound")]
}
