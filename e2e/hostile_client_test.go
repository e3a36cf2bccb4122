package e2e

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"wishbone/e2e/netlab"
)

// connecting counts the connections that a host is about to make (proc_net_tcp:
// the state is the fourth field, 02 is SYN_SENT).
func connecting(t *testing.T, h *netlab.Host) (n int) {
	t.Helper()
	err := h.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/tcp")
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 3 && f[3] == "02" {
				n++
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestDials: requests cost sockets as long as they live and no longer, and a peer
// that has thousands of connections under way gets no more of them, however many
// tunnels it has. Another peer's are made all the same.
func TestDials(t *testing.T) {
	const streams, most = 200, 4096
	s := newSiege(t)
	deadEnds(t, s.pair)
	honest := listen(t, s.Server, netip.AddrPortFrom(netlab.Server4, 8081))
	var all []*hostile
	for n := 0; n <= most; n += streams {
		h := s.clientAs(0)
		for range streams {
			h.request(nowhere)
		}
		h.alive("it has asked for as much as it may")
		all = append(all, h)
	}
	if n := connecting(t, s.East); n != most {
		t.Errorf("east is about to make %d connections, want %d", n, most)
	}
	over := len(all)*streams - most
	if n := len(all[len(all)-1].state().answers); n != over {
		t.Errorf("%d requests were refused, want %d", n, over)
	}
	if n := scrape(t, s.East)[`wishbone_connections_refused_total{reason="overloaded"}`]; n != float64(over) {
		t.Errorf("%v are counted", n)
	}
	s.open(honest)
	for _, h := range all {
		for id := uint32(1); id <= h.stream; id += 2 {
			h.check(h.framer.WriteRSTStream(id, http2.ErrCodeCancel))
		}
		h.flush()
	}
	eventually(t, "nothing is being connected any more", func() bool { return connecting(t, s.East) == 0 })
	h := s.clientAs(0)
	listen(t, s.Server, web)
	h.open()
}

// TestEarlyData: DATA before the answer reaches nobody, whatever the answer would
// have been (CVE-2025-64763).
func TestEarlyData(t *testing.T) {
	s := newSiege(t)
	deadEnds(t, s.pair)
	ln := listen(t, s.Server, web)
	lan, err := s.East.Capture(netlab.Inner)
	if err != nil {
		t.Fatal(err)
	}
	const early, late = "before-the-answer", "after-the-answer"
	h := s.client()
	for _, target := range []string{web.String(), "10.2.0.2:9", nowhere} {
		id := h.request(target)
		h.check(h.framer.WriteData(id, false, []byte(early)))
		h.flush()
		h.await("the request for "+target+" is reset", func(s heard) bool { return s.resets[id] == http2.ErrCodeProtocol })
	}
	// The control: what is sent in time arrives, and is seen.
	id := h.open()
	h.check(h.framer.WriteData(id, true, []byte(late)))
	h.flush()
	for got := ""; got == ""; {
		c := accept(t, ln)
		b, err := io.ReadAll(c)
		if got = string(b); got != "" && (got != late || err != nil) {
			t.Errorf("the server has got %q (%v)", got, err)
		}
	}
	traffic, err := lan.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if traffic.Contains([]byte(early)) || !traffic.Contains([]byte(late)) {
		t.Error("before the server: want what was sent in time, and nothing else")
	}
}

// TestAfterTheEnd: what comes on a stream that is over, on either side's word,
// goes nowhere and harms nobody (CVE-2026-26311).
func TestAfterTheEnd(t *testing.T) {
	s := newSiege(t)
	ln := listen(t, s.Server, web)
	h := s.client()
	id := h.open()
	server := accept(t, ln)
	h.check(h.framer.WriteData(id, true, []byte("all")))
	h.check(h.framer.WriteData(id, false, []byte("more")))
	h.flush()
	h.await("DATA after END_STREAM is a stream error", func(s heard) bool { return s.resets[id] == http2.ErrCodeStreamClosed })
	if b, err := io.ReadAll(server); string(b) != "all" && !isReset(err) {
		t.Errorf("the server has got %q (%v)", b, err)
	}
	for _, kind := range []http2.FrameType{http2.FrameData, http2.FrameRSTStream, http2.FrameWindowUpdate, http2.FramePriority} {
		size := map[http2.FrameType]int{http2.FrameData: 100, http2.FramePriority: 5}[kind]
		if size == 0 {
			size = 4
		}
		h.frame(kind, 0, id, append(make([]byte, size-1), 1))
	}
	h.headers(id, true, "late", "trailer")
	h.alive("frames after the end are borne")
	id = h.open()
	second := accept(t, ln)
	h.check(h.framer.WriteRSTStream(id, http2.ErrCodeCancel))
	h.check(h.framer.WriteData(id, false, []byte("more")))
	h.flush()
	if b, err := io.ReadAll(second); len(b) > 0 || !isReset(err) {
		t.Errorf("the server has got %q (%v), want a reset", b, err)
	}
	h.alive("and so after a reset")
}

// TestBeyondTheWindow: DATA that nobody gave credit for resets its stream, and the
// gateway holds no more than the credit it gave.
func TestBeyondTheWindow(t *testing.T) {
	s := newSiege(t)
	ln := listen(t, s.Server, web)
	h := s.client()
	for n := range 5 { // the first ones cost what buffers cost
		before := peak(t, s.east)
		id := h.open()
		accept(t, ln) // and does not read
		piece := make([]byte, 16<<10)
		for sent := 0; h.state().resets[id] == 0; sent += len(piece) {
			if sent > 64<<20 {
				t.Fatal("it takes all there is")
			}
			h.check(h.framer.WriteData(id, false, piece))
			h.flush()
		}
		if code := h.state().resets[id]; code != http2.ErrCodeFlowControl {
			t.Errorf("reset with %s", code)
		}
		if more := peak(t, s.east) - before; n > 0 && more > mostMemory {
			t.Errorf("it has cost %d KiB, want %d at most", more>>10, mostMemory>>10)
		}
	}
	h.alive("a few are borne")
}

// asked is a request that was sent, and what it should be answered with: a status,
// or the code of a reset.
type asked struct{ request, want string }

// settle waits for the answers to what was asked, by stream.
func (h *hostile) settle(all map[uint32]asked) {
	h.t.Helper()
	h.flush()
	for id, q := range all {
		var got string
		h.await("an answer to "+q.request, func(s heard) bool {
			if code, ok := s.resets[id]; ok {
				got = code.String()
			}
			if status, ok := s.answers[id]; ok {
				got = status
			}
			if s.goaway != "" || s.end != nil {
				h.t.Fatalf("the tunnel was cut: %s (%v)", s.goaway, s.end)
			}
			return got != ""
		})
		if got != q.want {
			h.t.Errorf("%s: answer %s, want %s", q.request, got, q.want)
		}
	}
}

// TestForms: every request that is not as it must be is refused, and nothing is
// dialled for it.
func TestForms(t *testing.T) {
	s := newSiege(t)
	ln := listen(t, s.Server, web)
	lan, err := s.East.Capture(netlab.Inner)
	if err != nil {
		t.Fatal(err)
	}
	h := s.client()
	const good, owned = "10.2.0.2:8080", `for="10.9.0.2:1000"`
	connect := func(authority string, forwarded ...string) []string {
		pairs := []string{":method", "CONNECT", ":authority", authority}
		for _, f := range forwarded {
			pairs = append(pairs, "forwarded", f)
		}
		return pairs
	}
	all := map[uint32]asked{}
	want := func(answer string, pairs ...string) {
		h.stream += 2
		h.headers(h.stream, false, pairs...)
		all[h.stream] = asked{fmt.Sprintf("%.200q", pairs), answer}
	}
	for _, a := range []string{
		"", ":", "*", "/", "10.2.0.2", "10.2.0.2:", ":8080", "10.2.0.2:0", "10.2.0.2:65536", "10.2.0.2:99999999999999999999",
		"10.2.0.2:-1", "10.2.0.2:+80", "10.2.0.2:80:80", "10.2.0.2: 80", "10.2.0.2:http", "10.2.0.2:0x50", "10.2.0.2:8080/",
		"010.2.0.2:8080", "0x0a.2.0.2:8080", "167903234:8080", "10.2.2:8080", "10.2.0.2.:8080", "[10.2.0.2]:8080",
		"fd00:2::2", "fd00:2::2:8080", "[fd00:2::2]", "[fd00:2::2]:", "[fd00:2::2:8080", "[fd00:2::2]8080", "[[fd00:2::2]]:8080",
		"[fd00:2::2%eth0]:8080", "[fd00:2::2%25inner]:8080", "[::ffff:10.2.0.2%1]:8080", "[fe80::1%1]:8080", // CVE-2026-26310
		"user@10.2.0.2:8080", "user:word@10.2.0.2:8080", "10.2.0.2:8080@10.2.0.3:8080", "http://10.2.0.2:8080",
		"example.org:80", "localhost:8080", "xn--bcher-kva.example:80", "bücher.example:80", "１０.２.０.２:8080", "10。2。0。2:8080",
		"10.2.0.2:8080,10.2.0.3:8080", "10.2.0.2:8080 10.2.0.3:8080", strings.Repeat("a", 300) + ":8080", strings.Repeat("1", 70000/2),
	} {
		want("400", connect(a, owned)...)
	}
	for _, f := range []string{
		"", "for", "for=", `for=""`, `for="10.9.0.2"`, "for=10.9.0.2", `for="10.9.0.2:"`, `for="10.9.0.2:0"`, `for="10.9.0.2:65536"`,
		"for=unknown", `for="unknown"`, `for="unknown:1000"`, "for=_hidden", `for="_hidden:1000"`, `for="10.9.0.2:_port"`, // RFC 7239 §6
		`for="[fd00:9::2%eth0]:1000"`, `for="fd00:9::2:1000"`, `for="[10.9.0.2]:1000"`, `for="010.9.0.2:1000"`, `for="client.example:1000"`,
		owned + ", " + owned, owned + "," + owned, owned + ";" + owned, owned + `;For="10.9.0.3:1000"`, `For=unknown;` + owned,
		owned + ";", owned + ";;", ";" + owned, owned + "; by=x", `for = "10.9.0.2:1000"`, `for="10.9.0.2:1000`, `for="10.9.0.2\:1000"`,
		`by="10.9.0.2:1000"`, "proto=https", `"for"="10.9.0.2:1000"`, `for="10.9.0.2:1000"x`, owned + " " + owned, strings.Repeat("a", 30000),
	} {
		want("400", connect(good, f)...)
	}
	want("400", connect(good, owned, owned)...)
	want("400", connect(good, owned, `for="10.9.0.3:1000"`)...)
	want("400", append([]string{":scheme", "https"}, connect(good, owned)...)...)
	want("400", append([]string{":path", "/"}, connect(good, owned)...)...)
	want("400", ":method", "CONNECT", "forwarded", owned)
	// What is no HTTP/2 request at all is a stream error (RFC 9113 §8.1.1).
	const malformed = "PROTOCOL_ERROR"
	want(malformed, append([]string{":authority", good}, connect(good, owned)...)...)
	want(malformed, append([]string{":method", "CONNECT"}, connect(good, owned)...)...)
	want(malformed, append([]string{":colour", "red"}, connect(good, owned)...)...)
	want(malformed, append([]string{"forwarded", owned}, connect(good)...)...)
	want(malformed, append(connect(good, owned), "connection", "close")...)
	want(malformed, append(connect(good, owned), "transfer-encoding", "chunked")...)
	want(malformed, append(connect(good, owned), "Upper", "case")...)
	want(malformed, append(connect(good, owned), "a", "b\x00c")...)
	want("400", connect(good+"\x00", owned)...)
	want("400", connect(good+"\r\n", owned)...)
	want(malformed, connect(good, " "+owned)...)
	want(malformed, connect(good, owned+"\n")...)
	want("405", ":method", "GET", ":scheme", "https", ":path", "/", ":authority", good)
	want("405", append([]string{":protocol", "websocket", ":scheme", "https", ":path", "/"}, connect(good, owned)...)...)
	// Whom we do not believe: not who is nobody's, or another's, or ours, or no client.
	for _, source := range []string{
		"10.1.0.2", "10.9.1.2", "10.2.0.2", "10.2.0.9", "192.0.2.20", "10.2.0.1", "198.18.2.1", "198.18.2.2", "203.0.113.1",
		"127.0.0.1", "0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.1", "239.1.1.1", "255.255.255.255", "10.9.1.255",
		"::ffff:10.9.1.2", "::ffff:10.1.0.2", "::ffff:127.0.0.1",
	} {
		want("401", connect(good, fmt.Sprintf(`for="%s"`, net.JoinHostPort(source, "1000")))...)
	}
	for _, source := range []string{
		"::", "::1", "fd00:2::2", "fd00:1::2", "fe80::1", "ff02::1", "2001:db8::20", "::10.9.0.2", "64:ff9b::a09:2", "2002:a09:2::1",
	} {
		want("401", connect("[fd00:2::2]:8080", fmt.Sprintf(`for="%s"`, net.JoinHostPort(source, "1000")))...)
	}
	want("401", connect(good, `for="10.2.0.2:8080"`)...) // the target itself
	want("503", connect(good)...)
	want("503", append(connect(good), "x-forwarded-for", "10.9.0.2")...)
	// Where nobody is taken: not to what is not behind us, nor to ourselves.
	for target, status := range map[string]string{
		"127.0.0.1:15020": "401", "127.0.0.1:15001": "401", "[::1]:15020": "401", "[::ffff:127.0.0.1]:15020": "401", "0.0.0.0:80": "401",
		"[::]:80": "401", "169.254.169.254:80": "401", "169.254.1.1:80": "401", "[fe80::1]:80": "401", "[fd00:ec2::254]:80": "401",
		"224.0.0.5:80": "401", "[ff02::1]:80": "401", "255.255.255.255:80": "401", "10.1.0.2:80": "401", "10.9.0.2:80": "401",
		"198.18.2.2:80": "401", "198.18.2.1:22": "401", "[64:ff9b::a02:2]:8080": "401", "[::10.2.0.2]:8080": "401",
		"192.0.2.20:15008": "503", "10.2.0.1:15008": "503", "10.2.0.1:15001": "503", "10.2.0.1:15020": "503", "10.2.0.1:15021": "503",
		"[::ffff:10.2.0.1]:15008": "503",
	} {
		source := owned
		if netip.MustParseAddrPort(target).Addr().Unmap().Is6() {
			source = `for="[fd00:9::2]:1000"`
		}
		want(status, connect(target, source)...)
	}
	h.settle(all)
	traffic, err := lan.Stop()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range traffic.Flows() {
		t.Errorf("on the server's network: %v", f)
	}
	// The control: the good one is taken, and would have been seen.
	if lan, err = s.East.Capture(netlab.Inner); err != nil {
		t.Fatal(err)
	}
	all = map[uint32]asked{}
	want("200", connect(good, owned)...)
	h.settle(all)
	accept(t, ln)
	if traffic, err = lan.Stop(); err != nil {
		t.Fatal(err)
	}
	if len(traffic.Flows()) == 0 {
		t.Error("nothing is seen of a good request either")
	}
}

// TestLoops: a connection that comes back to where it was is refused at the second
// hop at the latest, and takes nothing with it.
func TestLoops(t *testing.T) {
	within := func(t *testing.T, p *pair, target netip.AddrPort) {
		t.Helper()
		began := time.Now()
		c, err := tryDial(t, p.Client, target)
		if err == nil {
			err = readEnd(t, c)
		}
		if err == nil || err == io.EOF {
			t.Errorf("the client is told %v", err)
		}
		t.Logf("%v after %v", err, time.Since(began))
		west, east := status(t, p.west).Connections, status(t, p.east).Connections
		for name, n := range map[string]uint64{
			"west has sent": west["outbound"].Opened, "west was sent": west["inbound"].Opened,
			"east has sent": east["outbound"].Opened, "east was sent": east["inbound"].Opened,
		} {
			if n > 2 {
				t.Errorf("%s %d connections", name, n)
			}
		}
		eventually(t, "nothing is left of it", func() bool {
			return len(flows(t, p.west))+len(flows(t, p.east)) == 0
		})
	}
	t.Run("each takes the other for the owner", func(t *testing.T) {
		p := newPair(t, func(west, east *site) {
			west.peerNetworks = strings.Replace(west.peerNetworks, "[", "[10.8.0.0/16, ", 1)
			east.peerNetworks = strings.Replace(east.peerNetworks, "[", "[10.8.0.0/16, ", 1)
		})
		within(t, p, netip.MustParseAddrPort("10.8.0.1:80"))
		awaitLog(t, p.west, "connection refused", "target=10.8.0.1:80", "direction=outbound")
		awaitLog(t, p.east, "connection refused", "target=10.8.0.1:80", "direction=inbound", "reason=target_not_served")
	})
	t.Run("the way to the server leads back", func(t *testing.T) {
		p := newPair(t, func(west, east *site) { west.extra, east.extra = "timeouts: {connect: 1s}", "timeouts: {connect: 1s}" })
		if err := p.East.Route(netip.MustParsePrefix("10.2.50.0/24"), netlab.WestOuter4); err != nil {
			t.Fatal(err)
		}
		within(t, p, netip.MustParseAddrPort("10.2.50.1:80"))
		awaitLog(t, p.west, "connection refused", "target=10.2.50.1:80", "direction=outbound")
	})
	t.Run("each leads to the other", func(t *testing.T) {
		p := newPair(t, func(west, east *site) { west.extra, east.extra = "timeouts: {connect: 1s}", "timeouts: {connect: 1s}" })
		at := netip.MustParsePrefix("10.2.50.0/24")
		if err := p.East.Route(at, netlab.Server4); err != nil {
			t.Fatal(err)
		}
		if err := p.Server.Forward(); err != nil {
			t.Fatal(err)
		}
		within(t, p, netip.MustParseAddrPort("10.2.50.1:80"))
		awaitLog(t, p.west, "connection refused", "target=10.2.50.1:80", "direction=outbound")
	})
}
