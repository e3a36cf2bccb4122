package e2e

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/http2"

	"wishbone/e2e/netlab"
	"wishbone/identity"
	"wishbone/identity/identitytest"
)

// refusedSeries counts handshakes that east has refused.
func refusedSeries(reason string) string {
	return fmt.Sprintf(`wishbone_handshakes_refused_total{reason="%s"}`, reason)
}

// refusals is how many handshakes east has refused, for any reason.
func (s *siege) refusals() (n float64) {
	s.t.Helper()
	for series, v := range scrape(s.t, s.East) {
		if strings.HasPrefix(series, "wishbone_handshakes_refused_total{") {
			n += v
		}
	}
	return n
}

// stranger connects to east's tunnel port from an address of Mallory's.
func (s *siege) stranger(from netip.Addr) net.Conn {
	s.t.Helper()
	c, err := tryDialFrom(s.t.Context(), s.mallory, from, eastTunnel)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// own gives a host every address of a network.
func own(t *testing.T, h *netlab.Host, network netip.Prefix) {
	t.Helper()
	output(t, h, "ip", "route", "add", "local", network.String(), "dev", "lo")
}

// TestHalfOpen: however many handshakes strangers have begun, from however many
// addresses, one source has an eighth of the places, all of them no more than there
// are, and a peer gets in at once.
func TestHalfOpen(t *testing.T) {
	const places, share, sources = 1024, 128, 10
	s := newSiege(t, func(_, east *site) { east.extra = "timeouts: {handshake: 1m}" })
	web, other := listen(t, s.Server, web), listen(t, s.Server, netip.AddrPortFrom(netlab.Server4, 8081))
	honest := s.newBystanders(other, 2)
	from := []netip.Addr{toEast.Addr()}
	for range sources {
		next := from[len(from)-1].Next()
		output(t, s.mallory, "ip", "address", "add", next.String()+"/24", "dev", "east")
		from = append(from, next)
	}
	counters := func(oneSource, overloaded float64) {
		t.Helper()
		eventually(t, fmt.Sprintf("%v are too many of a source, %v of all", oneSource, overloaded), func() bool {
			m := scrape(t, s.East)
			return m[refusedSeries("one_source")] == oneSource && m[refusedSeries("overloaded")] == overloaded
		})
	}
	before := inUse(t, s.East)
	for range 2 * share {
		s.stranger(from[0])
	}
	counters(share, 0)
	hello := helloOf(t)
	for _, a := range from[1:] {
		for n := range share {
			c := s.stranger(a)
			if n%2 == 0 { // and half a handshake, or none
				if _, err := c.Write(hello); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	counters(share, (sources+1)*share-places)
	// West's tunnels are up; these are new ones.
	for range 3 {
		h := s.client()
		h.open()
		accept(t, web)
	}
	s.open(other)
	honest.rounds("strangers")
	more := (inUse(t, s.East) - before) / places
	t.Logf("a handshake costs %d KiB", more>>10)
	if more > 64<<10 {
		t.Errorf("want 64 KiB at most")
	}
}

// inUse is what a gateway has of heap and stacks, bytes.
func inUse(t *testing.T, h *netlab.Host) int {
	m := scrape(t, h)
	return int(m["go_memstats_heap_inuse_bytes"] + m["go_memstats_stack_inuse_bytes"])
}

// helloOf is a ClientHello.
func helloOf(t *testing.T) []byte {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	go func() { // ends with the pipe
		// It gets no answer.
		_ = tls.Client(far, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}).Handshake()
	}()
	b := make([]byte, 16<<10)
	n, err := near.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// TestStrangers: whoever is no peer and says something else, too little or too
// slowly is gone when the time for the handshake is over, is counted, and learns
// nothing; honest connections go on, and a peer gets in meanwhile.
func TestStrangers(t *testing.T) {
	s := newSiege(t)
	ln := listen(t, s.Server, web)
	honest := s.newBystanders(listen(t, s.Server, netip.AddrPortFrom(netlab.Server4, 8081)), 2)
	hello := helloOf(t)
	record := func(typ byte, p string) string {
		return string([]byte{typ, 3, 1, byte(len(p) >> 8), byte(len(p))}) + p
	}
	says := map[string]string{
		"nothing":                   "",
		"HTTP/1.1":                  "CONNECT 10.2.0.2:8080 HTTP/1.1\r\nHost: 10.2.0.2:8080\r\n\r\n",
		"HTTP/2 in the clear":       http2.ClientPreface + "\x00\x00\x00\x04\x00\x00\x00\x00\x00", // CVE-2022-41721
		"an upgrade":                "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
		"SSH":                       "SSH-2.0-OpenSSH_9.2\r\n",
		"PROXY":                     "PROXY TCP4 10.1.0.2 10.2.0.2 1000 8080\r\n",
		"zeros":                     strings.Repeat("\x00", 100<<10),
		"a byte":                    "\x16",
		"a record without an end":   "\x16\x03\x01\x40\x00",
		"a record that is too long": "\x16\x03\x01\xff\xff" + strings.Repeat("a", 1<<16),
		"an empty record":           record(22, ""),
		"empty records":             strings.Repeat(record(22, ""), 1000),
		"a message of 16 MB":        record(22, "\x01\xff\xff\xff"+strings.Repeat("\x00", 1000)),
		"data":                      record(23, "data"),
		"an alert":                  record(21, "\x02\x28"),
		"alerts":                    strings.Repeat(record(21, "\x01\x5a"), 1000),
		"half a hello":              string(hello[:len(hello)/2]),
		"a hello and nothing more":  string(hello),
		"a hello twice":             string(hello) + string(hello),
		"a hello and change cipher": string(hello) + strings.Repeat(record(20, "\x01"), 1000),
	}
	was, before := s.refusals(), peak(t, s.east)
	heard := make(map[string]string)
	var mu sync.Mutex
	var all sync.WaitGroup
	for name, what := range says {
		c := s.stranger(toEast.Addr())
		all.Go(func() {
			// It may be over before all is said.
			_, _ = io.WriteString(c, what)
			got, _ := io.ReadAll(c)
			mu.Lock()
			defer mu.Unlock()
			heard[name] = string(got)
		})
	}
	slow := s.stranger(toEast.Addr())
	all.Go(func() { // a byte at a time, and never enough
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i = (i + 1) % len(hello) {
			if _, err := slow.Write(hello[i : i+1]); err != nil {
				return
			}
			<-tick.C
		}
	})
	s.client().open()
	accept(t, ln)
	done := make(chan struct{})
	go func() { // ends with the connections
		all.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("not all of them are gone")
	}
	for name, got := range heard {
		if got != "" && got[0] != 21 && !strings.Contains(name, "hello") {
			t.Errorf("%s is answered with %.100q", name, got)
		}
	}
	want := was + float64(len(says)+1)
	eventually(t, fmt.Sprintf("%v handshakes are refused", want), func() bool { return s.refusals() == want })
	if more := peak(t, s.east) - before; more > mostMemory {
		t.Errorf("they have cost %d KiB, want %d at most", more>>10, mostMemory>>10)
	}
	honest.rounds("strangers")
}

// TestSilentPeers: a peer that has proved who it is and then says nothing, or not
// enough, is cut when its time is over, in both roles.
func TestSilentPeers(t *testing.T) {
	s := newSiege(t)
	t.Cleanup(func() { // when all are done
		west, east := scrape(t, s.West)[cutSeries("no_settings")], scrape(t, s.East)[cutSeries("no_settings")]
		if west != 2 || east != 3 {
			t.Errorf("%v of servers and %v of clients are counted, want 2 and 3", west, east)
		}
	})
	for _, tt := range []struct {
		name string
		open func(*siege) *hostile
		says string
	}{
		{"a client that says nothing", (*siege).tlsClient, ""},
		{"a client that says half the preface", (*siege).tlsClient, http2.ClientPreface[:10]},
		{"a client without SETTINGS", (*siege).tlsClient, http2.ClientPreface},
		{"a server that says nothing", (*siege).tlsServer, ""},
		{"a server that says half a frame", (*siege).tlsServer, "\x00\x00\x00\x04"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := tt.open(s.during(t))
			t.Parallel() // each waits for its time
			h.write([]byte(tt.says))
			h.flush()
			go h.listen()
			h.await("the verdict", func(s heard) bool { return strings.HasPrefix(s.goaway, "SETTINGS_TIMEOUT no_settings: ") })
		})
	}
	t.Run("a client that says something else", func(t *testing.T) {
		h := s.during(t).tlsClient()
		h.write([]byte("GET / HTTP/1.1\r\n\r\n"))
		h.flush()
		go h.listen()
		h.await("the verdict", func(s heard) bool { return strings.HasPrefix(s.goaway, "PROTOCOL_ERROR protocol: ") })
	})
}

// TestHostileChains: what a stranger shows before anybody knows him costs little,
// and is refused by name.
func TestHostileChains(t *testing.T) {
	s := newSiege(t)
	honest := s.newBystanders(listen(t, s.Server, netip.AddrPortFrom(netlab.Server4, 8081)), 2)
	chain := func(by *identitytest.Authority, o identitytest.Options) *tls.Certificate {
		svid := by.Issue("/gateway/m0", o)
		c := &tls.Certificate{PrivateKey: svid.PrivateKey}
		for _, cert := range svid.Certificates {
			c.Certificate = append(c.Certificate, cert.Raw)
		}
		return c
	}
	own, other := s.authority, identitytest.New(domain)
	stranger := other.Issue("/gateway/m0")
	for _, tt := range []struct {
		name   string
		cert   *tls.Certificate
		reason string
	}{
		{"more than 40 KiB", chain(own, identitytest.Options{Padding: 40 << 10}), "too_large"},
		{"as many certificates as fit", chain(other, identitytest.Options{Intermediates: 90}), "unknown_authority"},
		{"a hundred certificates and more", chain(own, identitytest.Options{Intermediates: 130}), "too_large"},
		{"more than the handshake may have", chain(own, identitytest.Options{Padding: 100 << 10}), "handshake"},
		{"more than crypto/tls reads", chain(own, identitytest.Options{Padding: 300 << 10}), "handshake"},
		{"an RSA key of 16384 bits", largeKey(t), "handshake"},
		{"another authority", chain(other, identitytest.Options{}), "unknown_authority"},
		{"not a certificate", &tls.Certificate{PrivateKey: stranger.PrivateKey, Certificate: [][]byte{bytes.Repeat([]byte{0x30}, 1000)}}, "handshake"},
		{"none", &tls.Certificate{}, "no_certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const times = 10 // of nine kinds: more would have their source rest
			was, before := scrape(t, s.East)[refusedSeries(tt.reason)], peak(t, s.east)
			spent := processorTime(t, s.east.PID())
			for range times {
				cfg := identity.Client(s.authority.Source("/gateway/m0"), func(spiffeid.ID) error { return nil })
				cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return tt.cert, nil }
				c := tls.Client(dial(t, s.mallory, netip.MustParseAddrPort("192.0.2.20:15008")), cfg)
				if c.HandshakeContext(t.Context()) == nil { // ours is done before the server has judged
					_, _ = io.Copy(io.Discard, c) // ends when it has
				}
				c.Close()
			}
			eventually(t, "each is counted", func() bool { return scrape(t, s.East)[refusedSeries(tt.reason)] == was+times })
			if more := peak(t, s.east) - before; more > mostMemory {
				t.Errorf("they have cost %d KiB, want %d at most", more>>10, mostMemory>>10)
			}
			t.Logf("%v of a processor each", (processorTime(t, s.east.PID())-spent)/times)
			honest.rounds(tt.name)
		})
	}
}

// largeKey is a certificate with a key that is a burden to verify with; nobody has
// its other half.
func largeKey(t *testing.T) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n := new(big.Int).Lsh(big.NewInt(1), 16383)
	large := &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, large, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: pretender{large}}
}

// pretender signs with anything.
type pretender struct{ key *rsa.PublicKey }

func (p pretender) Public() crypto.PublicKey { return p.key }

func (p pretender) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return make([]byte, p.key.Size()), nil
}

// processorTime is what a process has used (proc_pid_stat(5), utime and stime, in
// hundredths of a second).
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	var user, system int64
	if _, err := fmt.Sscan(f[11]+" "+f[12], &user, &system); !ok || err != nil {
		t.Fatal(errors.Join(err, fmt.Errorf("stat: %q", b)))
	}
	return time.Duration(user+system) * 10 * time.Millisecond
}
