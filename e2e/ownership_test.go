package e2e

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"wishbone/e2e/netlab"
	"wishbone/identity"
)

// rogue is a peer that has a good certificate and says what it likes.
type rogue struct {
	t      *testing.T
	conn   *tls.Conn
	framer *http2.Framer
	enc    *hpack.Encoder
	buf    bytes.Buffer
	next   uint32
}

// newRogue opens a tunnel to east, from west's host, with the identity at path.
func newRogue(p *pair, path string) *rogue {
	p.t.Helper()
	r := &rogue{t: p.t, next: 1}
	cfg := identity.Client(p.authority.Source(path), func(spiffeid.ID) error { return nil })
	r.conn = tls.Client(dial(p.t, p.West, netip.MustParseAddrPort("192.0.2.20:15008")), cfg)
	r.framer = http2.NewFramer(r.conn, r.conn)
	r.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	r.enc = hpack.NewEncoder(&r.buf)
	r.must(r.conn.SetDeadline(time.Now().Add(patience)))
	_, err := io.WriteString(r.conn, http2.ClientPreface)
	r.must(err)
	r.must(r.framer.WriteSettings())
	return r
}

func (r *rogue) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// connect asks for a target with each of forwarded as a field, and returns the
// status and the reason.
func (r *rogue) connect(target string, forwarded ...string) (status, reason string) {
	r.t.Helper()
	r.buf.Reset()
	fields := []hpack.HeaderField{{Name: ":method", Value: "CONNECT"}, {Name: ":authority", Value: target}}
	for _, f := range forwarded {
		fields = append(fields, hpack.HeaderField{Name: "forwarded", Value: f})
	}
	for _, f := range fields {
		r.must(r.enc.WriteField(f))
	}
	id := r.next
	r.next += 2
	r.must(r.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.buf.Bytes(), EndHeaders: true}))
	for {
		f, err := r.framer.ReadFrame()
		r.must(err)
		switch f := f.(type) {
		case *http2.MetaHeadersFrame:
			if f.StreamID == id {
				status = f.PseudoValue("status")
				for _, h := range f.RegularFields() {
					if h.Name == "wishbone-reason" {
						reason = h.Value
					}
				}
				return status, reason
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				r.must(r.framer.WritePing(true, f.Data))
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return "", "reset " + f.ErrCode.String()
			}
		}
	}
}

// TestOwnership: a peer with a good certificate is believed for the sources that
// it owns, and for no others; it reaches what we serve, and nothing else. Each
// refusal is in the log with its reason and the peer's SPIFFE ID, and nothing
// arrives anywhere.
func TestOwnership(t *testing.T) {
	p := newWorld(t, func(_, east *site) {
		// A hub that owns everything; within it a branch; within that, another
		// peer's host; and our own networks within the hub's.
		east.peers = `
  - {name: hub, ids: ["spiffe://mesh.example/gateway/hub"], endpoints: ["192.0.2.30:15008"], networks: [0.0.0.0/0, "::/0"]}
  - {name: west, ids: ["spiffe://mesh.example/gateway/west"], endpoints: ["192.0.2.10:15008"], networks: [10.0.0.0/8, "fd00:1::/48", 192.0.2.10/32, "2001:db8::10/128"]}
  - {name: branch, ids: ["spiffe://mesh.example/gateway/branch"], endpoints: ["192.0.2.40:15008"], networks: [10.1.7.0/24, "fd00:1:0:7::/64"]}`
	})
	p.startEast()
	listen(t, p.Server, web)
	listen(t, p.Server, netip.AddrPortFrom(netlab.Server6, 8080))
	const v4, v6 = "10.2.0.2:8080", "[fd00:2::2]:8080"
	for _, tt := range []struct {
		who, source, target string
		status, reason, log string
	}{
		{"west", "10.1.0.2:40000", v4, "200", "", ""},
		{"west", "[fd00:1::2]:40000", v6, "200", "", ""},
		{"west", "[::ffff:10.1.0.2]:40001", v4, "200", "", ""},
		{"west", "10.1.0.2:40002", "[::ffff:10.2.0.2]:8080", "200", "", ""},
		{"branch", "10.1.7.9:40000", v4, "200", "", ""},
		{"hub", "198.51.100.7:40000", v4, "200", "", ""},

		{"west", "10.1.7.9:40000", v4, "401", "denied", "source_not_owned"}, // nested: the branch's
		{"west", "[::ffff:10.1.7.9]:40000", v4, "401", "denied", "source_not_owned"},
		{"west", "[fd00:1:0:7::9]:40000", v6, "401", "denied", "source_not_owned"},
		{"branch", "10.1.0.2:40000", v4, "401", "denied", "source_not_owned"},
		{"hub", "10.1.0.2:40000", v4, "401", "denied", "source_not_owned"},
		{"hub", "10.2.0.9:40000", v4, "401", "denied", "source_not_owned"}, // ours
		{"west", "10.2.0.9:40000", v4, "401", "denied", "source_not_owned"},
		{"west", "198.51.100.7:40000", v4, "401", "denied", "source_not_owned"},
		{"west", "127.0.0.1:40000", v4, "401", "denied", "bad_source"},
		{"hub", "169.254.1.1:40000", v4, "401", "denied", "bad_source"},
		{"hub", "224.0.0.1:40000", v4, "401", "denied", "bad_source"},
		{"hub", "0.0.0.0:40000", v4, "401", "denied", "bad_source"},
		{"hub", "255.255.255.255:40000", v4, "401", "denied", "bad_source"},
		{"hub", "192.0.2.20:40000", v4, "401", "denied", "bad_source"}, // this host's own
		{"hub", "[fe80::1]:40000", v6, "401", "denied", "bad_source"},
		{"west", "10.1.0.2:40000", v6, "401", "denied", "family_mismatch"},

		{"west", "10.1.0.2:40000", "10.1.0.9:80", "401", "denied", "target_not_served"},
		{"west", "10.1.0.2:40000", "198.51.100.1:80", "401", "denied", "target_not_served"},
		{"west", "10.1.0.2:40000", "127.0.0.1:15020", "401", "denied", "bad_target"},
		{"west", "10.1.0.2:40000", "[::ffff:127.0.0.1]:15020", "401", "denied", "bad_target"},
		{"west", "10.1.0.2:40000", "169.254.169.254:80", "401", "denied", "bad_target"},
		{"west", "[fd00:1::2]:40000", "[fd00:ec2::254]:80", "401", "denied", "bad_target"},
		{"west", "10.1.0.2:40000", "0.0.0.0:80", "401", "denied", "bad_target"},
		{"west", "10.1.0.2:40000", "224.0.0.5:80", "401", "denied", "bad_target"},
		{"west", "10.1.0.2:40000", "192.0.2.20:15008", "503", "loop", "loop"},
		{"west", "10.1.0.2:40000", "10.2.0.1:15001", "503", "loop", "loop"},

		{"west", "", v4, "503", "no_source", "no_source"},
	} {
		t.Run(fmt.Sprintf("%s as %s to %s", tt.who, cmp.Or(tt.source, "nobody"), tt.target), func(t *testing.T) {
			r := newRogue(p, "/gateway/"+tt.who)
			r.t = t
			var forwarded []string
			if tt.source != "" {
				forwarded = []string{`for="` + tt.source + `"`}
			}
			status, reason := r.connect(tt.target, forwarded...)
			if status != tt.status || reason != tt.reason {
				t.Errorf("answer %s %q, want %s %q", status, reason, tt.status, tt.reason)
			}
			if tt.log != "" {
				awaitLog(t, p.east, "connection refused", "peer="+tt.who, "id=spiffe://mesh.example/gateway/"+tt.who, "reason="+tt.log)
			}
		})
	}
	t.Run("malformed", func(t *testing.T) {
		r := newRogue(p, "/gateway/west")
		r.t = t
		for _, tt := range []struct {
			target    string
			forwarded []string
		}{
			{"example.org:80", []string{`for="10.1.0.2:1"`}},
			{"10.2.0.2", []string{`for="10.1.0.2:1"`}},
			{"10.2.0.2:0", []string{`for="10.1.0.2:1"`}},
			{"10.2.0.2:65536", []string{`for="10.1.0.2:1"`}},
			{"[fe80::1%eth0]:80", []string{`for="[fd00:1::2]:1"`}},
			{"user@10.2.0.2:80", []string{`for="10.1.0.2:1"`}},
			{"", []string{`for="10.1.0.2:1"`}},
			{v4, []string{`for="10.1.0.2:1"`, `for="10.1.0.3:1"`}},
			{v4, []string{`for="10.1.0.2:1", for="10.1.0.3:1"`}},
			{v4, []string{`for="10.1.0.2"`}},
			{v4, []string{`for=unknown`}},
			{v4, []string{`for="10.1.0.2:0"`}},
			{v4, []string{`nothing`}},
		} {
			if status, reason := r.connect(tt.target, tt.forwarded...); status != "400" || reason != "malformed" {
				t.Errorf("%q as %q: answer %s %q, want 400 malformed", tt.target, tt.forwarded, status, reason)
			}
		}
		awaitLog(t, p.east, "request refused", "reason=malformed", "id=spiffe://mesh.example/gateway/west")
	})
	if n := status(t, p.east).Connections["inbound"].Active; n != 6 {
		t.Errorf("%d connections live, want the 6 that were permitted", n)
	}
}
