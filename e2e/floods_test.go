package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"wishbone/e2e/netlab"
)

// flood is what a peer may do to a gateway: so much of it is borne, and then the
// tunnel is cut for the fault (docs/limits.md).
type flood struct {
	name  string
	fault string
	code  http2.ErrCode // of the GOAWAY; 0 is ENHANCE_YOUR_CALM
	only  string        // the role; both if empty
	borne int           // so many, and the tunnel lives
	quiet bool          // without a PING to see that, which would count
	start func(h *hostile)
	once  func(h *hostile, n int)
}

// unknown is a frame type that RFC 9113 does not know, any of them in turn.
func unknown(n int) http2.FrameType { return http2.FrameType(0x0a + n%(256-0x0a)) }

// fill is a header block's worth of fields, encoded: literals that go into no
// table, of n bytes each and more (RFC 7541 §6.2.2).
func fill(fields, n int) []byte {
	var b []byte
	for range fields {
		b = append(b, 0, 1, 'a')
		b = appendInteger(b, 0, 7, uint64(n))
		b = append(b, strings.Repeat("8", n)...)
	}
	return b
}

// appendInteger appends an integer with a prefix of some bits (RFC 7541 §5.1).
func appendInteger(b []byte, first byte, bits uint, n uint64) []byte {
	limit := uint64(1)<<bits - 1
	if n < limit {
		return append(b, first|byte(n))
	}
	b = append(b, first|byte(limit))
	for n -= limit; n >= 128; n >>= 7 {
		b = append(b, byte(n)|128)
	}
	return append(b, byte(n))
}

// setting is a SETTINGS frame of one parameter, repeated.
func setting(h *hostile, id http2.SettingID, v uint32, times int) {
	var p []byte
	for range times {
		p = binary.BigEndian.AppendUint16(p, uint16(id))
		p = binary.BigEndian.AppendUint32(p, v)
	}
	h.frame(http2.FrameSettings, 0, 0, p)
}

// frame writes a frame as it is given.
func (h *hostile) frame(kind http2.FrameType, flags http2.Flags, stream uint32, p []byte) {
	h.check(h.framer.WriteRawFrame(kind, flags, stream, p))
}

// blocks writes a whole header block on the newest stream, or on a new one, in
// frames of at most size bytes.
func (h *hostile) blocks(p []byte, size int) {
	stream := h.stream
	if h.client {
		h.stream += 2
		stream = h.stream
	}
	n := min(size, len(p))
	h.check(h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: p[:n], EndHeaders: n == len(p)}))
	for p = p[n:]; len(p) > 0; p = p[n:] {
		n = min(size, len(p))
		h.check(h.framer.WriteContinuation(stream, n == len(p), p[:n]))
	}
}

// endless begins a header block that does not end.
func endless(h *hostile) {
	stream := h.stream
	if h.client {
		stream += 2
	}
	h.check(h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream}))
}

// more goes on with it.
func more(size int) func(h *hostile, n int) {
	return func(h *hostile, n int) {
		stream := h.stream
		if h.client {
			stream += 2
		}
		h.check(h.framer.WriteContinuation(stream, false, make([]byte, size)))
	}
}

func opened(h *hostile) { h.open() }

// closed leaves the newest stream closed, by the peer.
func closed(h *hostile) {
	id := h.open()
	h.check(h.framer.WriteRSTStream(id, http2.ErrCodeCancel))
}

// floods are those of faults.md and of the advisories that are named, as far as
// they carry no credit.
var floods = []flood{
	// CVE-2019-9512, -9515, -9511, -9518, -9513 and the like.
	{name: "PING", fault: "ping", borne: 99, quiet: true,
		once: func(h *hostile, n int) { h.check(h.framer.WritePing(false, [8]byte{})) }},
	{name: "answers to no PING", fault: "ping", borne: 95,
		once: func(h *hostile, n int) { h.check(h.framer.WritePing(true, [8]byte{7})) }},
	{name: "SETTINGS", fault: "settings", borne: 95,
		once: func(h *hostile, n int) { h.check(h.framer.WriteSettings()) }},
	{name: "SETTINGS acknowledgements", fault: "settings", borne: 95,
		once: func(h *hostile, n int) { h.check(h.framer.WriteSettingsAck()) }},
	{name: "WINDOW_UPDATE of 1 for the tunnel", fault: "window_update", borne: 9000,
		once: func(h *hostile, n int) { h.check(h.framer.WriteWindowUpdate(0, 1)) }},
	{name: "WINDOW_UPDATE of 1 for a stream", fault: "window_update", borne: 9000, start: opened,
		once: func(h *hostile, n int) { h.check(h.framer.WriteWindowUpdate(h.stream, 1)) }},
	{name: "empty DATA", fault: "empty_data", borne: 1000, start: opened, // RUSTSEC-2026-0258
		once: func(h *hostile, n int) { h.check(h.framer.WriteData(h.stream, false, nil)) }},
	{name: "PRIORITY", fault: "idle_frames", borne: 1000,
		once: func(h *hostile, n int) { h.check(h.framer.WritePriority(1, http2.PriorityParam{})) }},
	{name: "unknown frames", fault: "idle_frames", borne: 1000, // CVE-2026-27141
		once: func(h *hostile, n int) { h.frame(unknown(n), http2.Flags(n), uint32(n%3), make([]byte, n%32)) }},
	{name: "GOAWAY", fault: "idle_frames", borne: 900, start: opened,
		once: func(h *hostile, n int) { h.check(h.framer.WriteGoAway(1<<31-1, http2.ErrCodeNo, nil)) }},
	{name: "DATA for a stream that is over", fault: "closed_stream", borne: 4000, start: closed, // CVE-2026-26311
		once: func(h *hostile, n int) { h.check(h.framer.WriteData(h.stream, false, nil)) }},
	{name: "RST_STREAM for a stream that is over", fault: "closed_stream", borne: 4000, start: closed,
		once: func(h *hostile, n int) { h.check(h.framer.WriteRSTStream(h.stream, http2.ErrCodeCancel)) }},

	// CVE-2023-45288 and the like, HPACK.
	{name: "CONTINUATION of 0 bytes", fault: "headers", start: endless, once: more(0)},
	{name: "CONTINUATION of 1 byte", fault: "headers", start: endless, once: more(1)},
	{name: "CONTINUATION of 16 KiB", fault: "headers", start: endless, once: more(16 << 10)},
	{name: "header list of 1 MB", fault: "headers", once: func(h *hostile, n int) { h.blocks(fill(16, 64<<10), 16<<10) }},
	{name: "10,000 header fields", fault: "headers", once: func(h *hostile, n int) { h.blocks(fill(10000, 1), 16<<10) }},
	{name: "a frame of headers that is too large", fault: "protocol", code: http2.ErrCodeFrameSize,
		once: func(h *hostile, n int) { h.blocks(fill(1, 70<<10), 100<<10) }},
	{name: "HPACK bomb", fault: "headers", // CVE-2026-47774: one byte for 3 kB
		once: func(h *hostile, n int) {
			block := append([]byte{0x40, 1, 'a'}, appendInteger(nil, 0, 7, 3000)...)
			block = append(block, strings.Repeat("8", 3000)...)
			h.blocks(append(block, strings.Repeat("\xbe", 12<<10)...), 16<<10)
		}},
	{name: "huge HPACK integer", fault: "protocol", code: http2.ErrCodeCompression,
		once: func(h *hostile, n int) { h.blocks([]byte(strings.Repeat("\xff", 100)), 16<<10) }},
	{name: "huge HPACK string", fault: "protocol", code: http2.ErrCodeCompression,
		once: func(h *hostile, n int) {
			h.blocks(append([]byte{0, 1, 'a'}, appendInteger(nil, 0, 7, 1<<31)...), 16<<10)
		}},
	{name: "huge HPACK table", fault: "protocol", code: http2.ErrCodeCompression,
		once: func(h *hostile, n int) { h.blocks(appendInteger(nil, 0x20, 5, 1<<31), 16<<10) }},

	{name: "SETTINGS_MAX_FRAME_SIZE of 0", fault: "protocol", code: http2.ErrCodeProtocol, // CVE-2026-33814
		once: func(h *hostile, n int) { setting(h, http2.SettingMaxFrameSize, 0, 1) }},
	{name: "SETTINGS_INITIAL_WINDOW_SIZE of 2^31", fault: "flow_control", code: http2.ErrCodeFlowControl,
		once: func(h *hostile, n int) { setting(h, http2.SettingInitialWindowSize, 1<<31, 1) }},
	{name: "SETTINGS_ENABLE_PUSH of 2", fault: "protocol", code: http2.ErrCodeProtocol,
		once: func(h *hostile, n int) { setting(h, http2.SettingEnablePush, 2, 1) }},
	{name: "SETTINGS of 1000 parameters", fault: "settings",
		once: func(h *hostile, n int) { setting(h, http2.SettingInitialWindowSize, uint32(n), 1000) }},
	{name: "a window that overflows", fault: "flow_control", code: http2.ErrCodeFlowControl,
		once: func(h *hostile, n int) { h.check(h.framer.WriteWindowUpdate(0, 1<<31-1)) }},

	{name: "requests taken back", only: "client", fault: "rapid_reset", borne: 500, // CVE-2023-44487
		once: func(h *hostile, n int) {
			h.check(h.framer.WriteRSTStream(h.request(nowhere), http2.ErrCodeCancel))
		}},
	{name: "requests that have to be reset", only: "client", fault: "rapid_reset", borne: 500, // CVE-2025-8671
		once: func(h *hostile, n int) { h.check(h.framer.WriteWindowUpdate(h.request(nowhere), 0)) }},
	{name: "requests with early DATA", only: "client", fault: "rapid_reset", borne: 500,
		once: func(h *hostile, n int) { h.check(h.framer.WriteData(h.request(nowhere), false, []byte("x"))) }},
	{name: "requests above the limit", only: "client", fault: "refused_requests", borne: 4000,
		start: func(h *hostile) {
			for range 200 {
				h.request(nowhere)
			}
		},
		once: func(h *hostile, n int) { h.request(nowhere) }},
	{name: "requests that cannot be read", only: "client", fault: "refused_requests", borne: 4000,
		once: func(h *hostile, n int) { h.request("nowhere") }},

	{name: "interim answers", only: "server", fault: "idle_frames", borne: 1000,
		once: func(h *hostile, n int) { h.headers(h.stream, false, ":status", "100") }},
	{name: "PUSH_PROMISE", only: "server", fault: "protocol", code: http2.ErrCodeProtocol,
		once: func(h *hostile, n int) {
			h.check(h.framer.WritePushPromise(http2.PushPromiseParam{StreamID: h.stream, PromiseID: 2, BlockFragment: h.fields(":method", "GET"), EndHeaders: true}))
		}},
	{name: "a server's SETTINGS_ENABLE_PUSH", only: "server", fault: "protocol", code: http2.ErrCodeProtocol,
		once: func(h *hostile, n int) { setting(h, http2.SettingEnablePush, 1, 1) }},
}

// nowhere is behind east, and nobody answers there: a connection to it goes on
// being made.
var nowhere = net.JoinHostPort(silent4.Addr().Next().String(), "80")

// most is how many more than are borne a flood is given: what leaks from the
// buckets while it is under way is less.
const most = 50000

// mostMemory is what floods that carry no credit may cost a gateway, bytes.
const mostMemory = 10 << 20

// TestFloods: each flood, from a peer with a good certificate and in both roles,
// is borne as far as it may be honest; then its tunnel is cut with the name of the
// fault in the GOAWAY, the counter and the log. The gateway needs no memory for
// it, and connections on another tunnel go on.
func TestFloods(t *testing.T) {
	for _, r := range roles {
		t.Run(r.name, func(t *testing.T) {
			s := newSiege(t)
			deadEnds(t, s.pair)
			listen(t, s.Server, web)
			honest := s.newBystanders(listen(t, s.Server, netip.AddrPortFrom(netlab.Server4, 8081)), 2)
			honest.rounds("nothing")
			r.open(s).alive("a peer that behaves")
			target := map[string]func() int64{
				"client": func() int64 { return peak(t, s.east) }, "server": func() int64 { return peak(t, s.west) },
			}[r.name]
			before := target()
			for _, f := range floods {
				if f.only == "" || f.only == r.name {
					t.Run(f.name, func(t *testing.T) {
						was := target()
						f.run(t, r.open(s.during(t)))
						honest.rounds(f.name)
						if more := target() - was; more > mostMemory {
							t.Errorf("it has cost %d KiB, want %d at most", more>>10, mostMemory>>10)
						}
					})
				}
			}
			// Garbage that waits to be collected, mostly; but none has hidden behind another.
			if more := target() - before; more > 2*mostMemory {
				t.Errorf("all of them have cost %d KiB, want %d at most", more>>10, 2*mostMemory>>10)
			}
		})
	}
}

// during is s for a part of its test.
func (s *siege) during(t *testing.T) *siege {
	p := *s.pair
	p.t = t
	part := *s
	part.pair = &p
	s.next++
	return &part
}

// run floods a gateway until it has enough.
func (f flood) run(t *testing.T, h *hostile) {
	was := h.cuts(f.fault)
	if f.start != nil {
		f.start(h)
	}
	for n := range f.borne {
		f.once(h, n)
	}
	h.flush()
	if f.borne > 0 && !f.quiet {
		h.alive(fmt.Sprintf("%d are borne", f.borne))
	}
	n := f.borne
	for ; n < f.borne+most && !h.done(); n++ {
		f.once(h, n)
		if n%100 == 0 || n == f.borne {
			h.flush()
		}
	}
	h.flush()
	want := http2.ErrCodeEnhanceYourCalm
	if f.code != 0 {
		want = f.code
	}
	h.await(fmt.Sprintf("GOAWAY %s %s", want, f.fault), func(s heard) bool {
		return strings.HasPrefix(s.goaway, fmt.Sprintf("%s %s: ", want, f.fault))
	})
	eventually(t, "it is counted", func() bool { return h.cuts(f.fault) == was+1 })
	awaitLog(t, h.gateway, "tunnel down", fmt.Sprintf("peer=m%d", h.peer), "reason="+f.fault)
	if !h.client {
		if err := h.app.SetDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		if err := readEnd(t, h.app); !isReset(err) {
			t.Errorf("the client's connection ends with %v, want a reset", err)
		}
	}
}
