package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
	"wishbone/identity"
)

// siege is a pair with a host beside it, linked to both, whose tunnels are
// whatever a test makes of them. It is many peers of both gateways, so that what
// becomes of one says nothing of the next.
type siege struct {
	*pair
	mallory *netlab.Host
	next    int            // the next peer
	ports   *atomic.Uint32 // of clients that Mallory names
}

// Mallory's host, as west and as east reach it: there are many addresses, to come
// from, beside the first.
var (
	toWest = netip.MustParsePrefix("198.18.1.2/24")
	toEast = netip.MustParsePrefix("198.18.2.2/24")
)

// malloryPeers is how many peers Mallory is.
const malloryPeers = 60

// peersToEast is where they come from: each from an address of its own, so that the
// rest that one is given is not another's.
var peersToEast = netip.MustParsePrefix("198.18.2.128/25")

// source is where a peer of Mallory's comes from.
func source(peer int) netip.Addr {
	a := peersToEast.Addr().As4()
	a[3] += byte(peer)
	return netip.AddrFrom4(a)
}

// newSiege starts a pair that waits for nobody long.
func newSiege(t *testing.T, options ...func(west, east *site)) *siege {
	t.Helper()
	var mallories strings.Builder
	for n := range malloryPeers {
		fmt.Fprintf(&mallories, `
  - {name: m%[1]d, ids: ["spiffe://mesh.example/gateway/m%[1]d"], endpoints: ["%[2]s:%[3]d"], networks: [10.9.%[1]d.0/24]}`,
			n, toWest.Addr(), 15100+n)
	}
	s := &siege{ports: new(atomic.Uint32), pair: newWorld(t, append([]func(west, east *site){func(west, east *site) {
		for _, p := range []struct{ s, other *site }{{west, east}, {east, west}} {
			p.s.peers = fmt.Sprintf(`
  - {name: %[1]s, ids: ["spiffe://mesh.example/gateway/%[1]s"], endpoints: %[2]s, networks: %[3]s}`,
				p.other.name, p.s.peerEndpoints, p.s.peerNetworks) + mallories.String()
			p.s.extra = "timeouts: {handshake: 1s, request: 1s}"
		}
	}}, options...)...)}
	var err error
	if s.mallory, err = s.World.Host("mallory"); err != nil {
		t.Fatal(err)
	}
	hub := func(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(p.Masked().Addr().Next(), p.Bits()) }
	if err := errors.Join(
		s.Link(s.West, "mallory", []netip.Prefix{hub(toWest)}, s.mallory, "west", []netip.Prefix{toWest}),
		s.Link(s.East, "mallory", []netip.Prefix{hub(toEast)}, s.mallory, "east", []netip.Prefix{toEast}),
		s.mallory.Route(netip.PrefixFrom(netlab.EastOuter4, 32), hub(toEast).Addr()),
	); err != nil {
		t.Fatal(err)
	}
	own(t, s.mallory, peersToEast)
	s.startWest()
	s.startEast()
	return s
}

// hostile is a tunnel whose one end is a gateway and whose other end says what it
// likes. It speaks for one peer, in one role.
type hostile struct {
	s    *siege
	t    *testing.T
	peer int
	// gateway is at the other end, and on is its host.
	gateway *lab.Gateway
	on      *netlab.Host
	client  bool // it has opened the tunnel
	app     net.Conn

	raw     net.Conn
	conn    *tls.Conn
	secrets bytes.Buffer // key log
	out     *bufio.Writer
	framer  *http2.Framer // writes only
	enc     *hpack.Encoder
	block   bytes.Buffer
	stream  uint32 // the newest of its streams

	mu    sync.Mutex
	heard heard // guarded by mu
}

// heard is what the gateway has said.
type heard struct {
	frames  map[http2.FrameType]int
	answers map[uint32]string // statuses, by stream
	resets  map[uint32]http2.ErrCode
	pongs   int
	goaway  string // code and debug text of the last one that is a verdict
	end     error  // the connection's
}

// role is one of a hostile's two.
type role struct {
	name string
	open func(*siege) *hostile
}

// roles are hostile clients, which our listener has to bear, and hostile servers,
// which our pool has dialled.
var roles = []role{{"client", (*siege).client}, {"server", (*siege).server}}

// tlsClient opens a connection to east as the next peer, without a word of HTTP/2.
func (s *siege) tlsClient() *hostile {
	s.t.Helper()
	s.next++
	return s.tlsClientAs(s.next - 1)
}

func (s *siege) tlsClientAs(peer int) *hostile {
	s.t.Helper()
	h, err := s.knock(peer, eastTunnel)
	if err != nil {
		s.t.Fatal(err)
	}
	return h
}

// eastTunnel is where east takes tunnels from Mallory.
var eastTunnel = netip.AddrPortFrom(netlab.EastOuter4, 15008)

// knock is tlsClientAs where it may fail, and where somebody else may answer.
func (s *siege) knock(peer int, at netip.AddrPort) (*hostile, error) {
	h := &hostile{s: s, t: s.t, peer: peer, gateway: s.east, on: s.East, client: true}
	cfg := identity.Client(s.authority.Source(fmt.Sprintf("/gateway/m%d", h.peer)), func(spiffeid.ID) error { return nil })
	cfg.KeyLogWriter = &h.secrets
	if at != eastTunnel {
		cfg.VerifyConnection = nil
	}
	raw, err := tryDialFrom(s.t.Context(), s.mallory, source(peer), at)
	if err != nil {
		return nil, err
	}
	h.raw = raw
	if err := h.shake(tls.Client(raw, cfg)); err != nil {
		raw.Close()
		return nil, err
	}
	return h, nil
}

// client opens a tunnel to east, as the next peer.
func (s *siege) client() *hostile {
	s.t.Helper()
	s.next++
	return s.clientAs(s.next - 1)
}

func (s *siege) clientAs(peer int) *hostile {
	s.t.Helper()
	h := s.tlsClientAs(peer)
	h.begin()
	h.stream--
	return h
}

// tlsServer makes west dial a tunnel, for a client's connection that is left
// unanswered, without a word of HTTP/2.
func (s *siege) tlsServer() *hostile {
	s.t.Helper()
	h := &hostile{s: s, t: s.t, peer: s.next, gateway: s.west, on: s.West}
	s.next++
	ln := listen(s.t, s.mallory, netip.AddrPortFrom(toWest.Addr(), uint16(15100+h.peer)))
	defer ln.Close()
	h.app = dial(s.t, s.Client, h.network(80))
	h.raw = accept(s.t, ln)
	cfg := identity.Server(s.authority.Source(fmt.Sprintf("/gateway/m%d", h.peer)), func(spiffeid.ID) error { return nil })
	cfg.KeyLogWriter = &h.secrets
	h.check(h.shake(tls.Server(h.raw, cfg)))
	return h
}

// server makes west dial a tunnel and open stream 1 on it.
func (s *siege) server() *hostile {
	s.t.Helper()
	h := s.tlsServer()
	h.begin()
	h.stream = 1
	eventually(s.t, "west asks for a stream", func() bool { return h.state().frames[http2.FrameHeaders] > 0 })
	return h
}

// network is an address in the peer's own network.
func (h *hostile) network(port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(h.peer), 2}), port)
}

// shake does the handshake.
func (h *hostile) shake(c *tls.Conn) error {
	h.conn = c
	if err := c.HandshakeContext(h.t.Context()); err != nil {
		return err
	}
	h.t.Cleanup(func() { c.Close() })
	h.out = bufio.NewWriterSize(c, 16<<10)
	h.framer = http2.NewFramer(h.out, nil)
	h.framer.AllowIllegalWrites = true
	h.enc = hpack.NewEncoder(&h.block)
	return nil
}

// begin says what every HTTP/2 peer says first, and listens.
func (h *hostile) begin() {
	h.t.Helper()
	if h.client {
		h.write([]byte(http2.ClientPreface))
	}
	h.check(h.framer.WriteSettings())
	h.flush()
	go h.listen() // ends with the connection, which ends with the test
}

func (h *hostile) check(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// write and flush do not mind a connection that is over: what the gateway said
// about it is looked at elsewhere.
func (h *hostile) write(p []byte) { _, _ = h.out.Write(p) }

func (h *hostile) flush() { _ = h.out.Flush() }

// listen takes in what the gateway says.
func (h *hostile) listen() {
	h.mu.Lock()
	h.heard = heard{frames: map[http2.FrameType]int{}, answers: map[uint32]string{}, resets: map[uint32]http2.ErrCode{}}
	h.mu.Unlock()
	in := bufio.NewReaderSize(h.conn, 64<<10)
	if !h.client {
		if _, err := in.Discard(len(http2.ClientPreface)); err != nil {
			h.over(err)
			return
		}
	}
	fr := http2.NewFramer(io.Discard, in)
	fr.SetMaxReadFrameSize(1 << 20)
	dec := hpack.NewDecoder(4096, nil)
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			h.over(err)
			return
		}
		h.hear(f, dec)
	}
}

func (h *hostile) over(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.heard.end = err
}

func (h *hostile) hear(f http2.Frame, dec *hpack.Decoder) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.heard.frames[f.Header().Type]++
	switch f := f.(type) {
	case *http2.HeadersFrame:
		fields, err := dec.DecodeFull(f.HeaderBlockFragment())
		if err == nil && len(fields) > 0 && fields[0].Name == ":status" {
			h.heard.answers[f.StreamID] = fields[0].Value
		}
	case *http2.RSTStreamFrame:
		h.heard.resets[f.StreamID] = f.ErrCode
	case *http2.PingFrame:
		if f.IsAck() {
			h.heard.pongs++
		}
	case *http2.GoAwayFrame:
		if f.ErrCode != http2.ErrCodeNo { // else a pool that lets the tunnel go
			h.heard.goaway = fmt.Sprintf("%s %s", f.ErrCode, f.DebugData())
		}
	}
}

// state is what the gateway has said so far.
func (h *hostile) state() heard {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.heard
	s.frames, s.answers, s.resets = maps.Clone(s.frames), maps.Clone(s.answers), maps.Clone(s.resets)
	return s
}

// await waits for something that the gateway says.
func (h *hostile) await(what string, ok func(heard) bool) {
	h.t.Helper()
	eventually(h.t, what, func() bool { return ok(h.state()) })
}

// done reports whether the gateway has cut the tunnel.
func (h *hostile) done() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.heard.goaway != "" || h.heard.end != nil
}

// fields are a header block of names and values.
func (h *hostile) fields(pairs ...string) []byte {
	h.block.Reset()
	for i := 0; i < len(pairs); i += 2 {
		// The encoder writes to a buffer and cannot fail.
		_ = h.enc.WriteField(hpack.HeaderField{Name: pairs[i], Value: pairs[i+1]})
	}
	return slices.Clone(h.block.Bytes())
}

// headers writes a header block on a stream, as one frame.
func (h *hostile) headers(stream uint32, end bool, pairs ...string) {
	h.check(h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: h.fields(pairs...), EndHeaders: true, EndStream: end}))
}

// request asks for a target on a new stream, in the name of a client of its own.
func (h *hostile) request(target string) uint32 {
	h.stream += 2
	from := h.network(uint16(10000 + h.s.ports.Add(1)%50000))
	h.headers(h.stream, false, ":method", "CONNECT", ":authority", target, "forwarded", fmt.Sprintf(`for="%s"`, from))
	return h.stream
}

// open has one stream open: as a client to the server's web, as a server the one
// that west has asked for.
func (h *hostile) open() uint32 {
	h.t.Helper()
	if !h.client {
		h.headers(h.stream, false, ":status", "200")
		h.flush()
		return h.stream
	}
	id := h.request(web.String())
	h.flush()
	h.await("east answers", func(s heard) bool { return s.answers[id] == "200" })
	return id
}

// alive fails unless the gateway answers a PING.
func (h *hostile) alive(why string) {
	h.t.Helper()
	n := h.state().pongs
	h.check(h.framer.WritePing(false, [8]byte{1}))
	h.flush()
	h.await("a PING is answered: "+why, func(s heard) bool {
		if s.goaway != "" || s.end != nil {
			h.t.Fatalf("%s: the tunnel was cut: %s (%v)", why, s.goaway, s.end)
		}
		return s.pongs > n
	})
}

// cuts is how many tunnels the gateway has cut for a fault.
func (h *hostile) cuts(fault string) float64 {
	h.t.Helper()
	return scrape(h.t, h.on)[cutSeries(fault)]
}

func cutSeries(fault string) string {
	return fmt.Sprintf(`wishbone_tunnels_cut_total{reason="%s"}`, fault)
}

// peak is the most memory in bytes that a process has ever had (proc(5), VmHWM).
func peak(t *testing.T, g *lab.Gateway) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			kib, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kib << 10
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// bystanders are honest connections through the pair beside a flood: each sends a
// number, waits for it to come back, and goes on to the next.
type bystanders struct {
	t     *testing.T
	stop  chan struct{}
	conns []net.Conn
	wg    sync.WaitGroup
	mu    sync.Mutex
	took  []time.Duration // of the rounds; guarded by mu
	fault error           // guarded by mu
}

// newBystanders opens n connections.
func (s *siege) newBystanders(ln net.Listener, n int) *bystanders {
	s.t.Helper()
	b := &bystanders{t: s.t, stop: make(chan struct{})}
	for range n {
		c := s.open(ln)
		for _, end := range []*net.TCPConn{c.client, c.server} {
			if err := end.SetDeadline(time.Time{}); err != nil {
				s.t.Fatal(err)
			}
		}
		b.conns = append(b.conns, c.client)
		go io.Copy(c.server, c.server) // ends with the connection, which ends with the test
		b.wg.Go(func() { b.run(c.client) })
	}
	s.t.Cleanup(b.end)
	return b
}

func (b *bystanders) run(c net.Conn) {
	var sent, got [8]byte
	for n := uint64(0); ; n++ {
		select {
		case <-b.stop:
			return
		default:
		}
		sent = [8]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}
		began := time.Now()
		_, err := c.Write(sent[:])
		if err == nil {
			_, err = io.ReadFull(c, got[:])
		}
		if err == nil && got != sent {
			err = fmt.Errorf("got %x, want %x", got, sent)
		}
		b.note(time.Since(began), err)
		if err != nil {
			return
		}
	}
}

func (b *bystanders) note(took time.Duration, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.took = append(b.took, took)
	if err != nil && b.fault == nil {
		b.fault = err
	}
}

// rounds takes what the rounds since the last call took; it fails if there were
// none, or if a connection has come to harm.
func (b *bystanders) rounds(why string) []time.Duration {
	b.t.Helper()
	n := 0
	eventually(b.t, "an honest connection goes on beside "+why, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.fault != nil {
			b.t.Fatalf("beside %s: %v", why, b.fault)
		}
		n = len(b.took)
		return n > 0
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	took := b.took
	b.took = nil
	return took
}

// end stops them.
func (b *bystanders) end() {
	select {
	case <-b.stop:
	default:
		close(b.stop)
	}
	for _, c := range b.conns {
		// One that stands still is not waited for.
		_ = c.SetDeadline(time.Now().Add(patience))
	}
	b.wg.Wait()
}

// quantile is the q-th of some durations, which it sorts.
func quantile(d []time.Duration, q float64) time.Duration {
	slices.Sort(d)
	return d[int(q*float64(len(d)-1))]
}
