package e2e

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/template"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
)

// envoyVar may name the Envoy to use; else the one in PATH is.
const envoyVar = "WISHBONE_ENVOY"

// envoy is a gateway of another make: an Envoy proxy on a host.
type envoy struct {
	host *netlab.Host
	envoyConfig
}

// envoyConfig is what the templates in testdata want to know.
type envoyConfig struct {
	Cert, Key, Bundle string
	AccessLog         string
	Peer              string // the SPIFFE ID that may come, or that must answer
	MaxStreams        int    // of a peer's connection
	Ways              []way  // that a client's connection may take
}

// way takes what connects to At on to To.
type way struct{ At, To netip.AddrPort }

// access is a line of Envoy's access log: a stream that has ended.
type access struct {
	Authority, Forwarded, Client, Peer string
	Code                               int
	Details, Flags                     string
	Received, Sent                     uint64
	Answer                             struct {
		Headers []struct{ Key, Value string }
	}
}

// answer is a field of the answer to a CONNECT.
func (a access) answer(name string) string {
	for _, h := range a.Answer.Headers {
		if h.Key == name {
			return h.Value
		}
	}
	return ""
}

// needsEnvoy sees that there is one.
func needsEnvoy(t *testing.T) string {
	t.Helper()
	path := cmp.Or(os.Getenv(envoyVar), "envoy")
	needs(t, path)
	return path
}

// startEnvoy starts Envoy on a host, as the gateway of that name, and waits until
// it serves.
func startEnvoy(t *testing.T, p *pair, h *netlab.Host, name string, cfg envoyConfig) *envoy {
	t.Helper()
	program := needsEnvoy(t)
	var err error
	if cfg.Cert, cfg.Key, cfg.Bundle, err = p.authority.WriteFiles(p.dir, name, "/gateway/"+name); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(p.dir, name+"-envoy")
	cfg.AccessLog = base + ".access"
	role := "server"
	if len(cfg.Ways) > 0 {
		role = "client"
	}
	writeTemplate(t, base+".yaml", "testdata/envoy-"+role+".yaml", cfg)
	log, err := os.Create(base + ".log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, "-c", base+".yaml", "--disable-hot-restart", "--concurrency", "1",
		"--log-level", "warning", "--file-flush-interval-msec", "10", "--drain-strategy", "immediate")
	cmd.Stdout, cmd.Stderr = log, log
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { // ends with the process
		// How it ended is in its log.
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // an error says that it has ended
		<-ended
		if t.Failed() {
			t.Logf("Envoy on %s:\n%s%s", h.Name(), contents(base+".log"), contents(cfg.AccessLog))
		}
	})
	e := &envoy{h, cfg}
	eventually(t, "Envoy serves, or has ended", func() bool {
		select {
		case <-ended:
			return true
		default:
			_, err := e.ask(t, http.MethodGet, "/ready")
			return err == nil
		}
	})
	if _, err := e.ask(t, http.MethodGet, "/ready"); err != nil {
		t.Fatalf("Envoy does not serve: %v", err)
	}
	return e
}

// contents is a file's, for errors.
func contents(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func writeTemplate(t *testing.T, path, from string, data any) {
	t.Helper()
	text, err := template.ParseFiles(from)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := text.Execute(&b, data); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ask speaks to Envoy's administration.
func (e *envoy) ask(t *testing.T, method, path string) (string, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return e.host.Dial(ctx, network, address)
		}}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://127.0.0.1:15000"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("Envoy says %s: %s", resp.Status, body)
	}
	return string(body), err
}

// tell has Envoy do something.
func (e *envoy) tell(t *testing.T, path string) {
	t.Helper()
	if _, err := e.ask(t, http.MethodPost, path); err != nil {
		t.Fatal(err)
	}
}

// counter is one of Envoy's counters.
func (e *envoy) counter(t *testing.T, name string) (n int) {
	t.Helper()
	line, err := e.ask(t, http.MethodGet, "/stats?filter=^"+name+"$")
	if err == nil {
		_, err = fmt.Sscanf(line, name+": %d", &n)
	}
	if err != nil {
		t.Fatalf("Envoy's counter %s: %v in %q", name, err, line)
	}
	return n
}

// awaitAccess waits for the line about a stream in Envoy's access log.
func (e *envoy) awaitAccess(t *testing.T, is func(access) bool) (found access) {
	t.Helper()
	eventually(t, "a line in Envoy's access log", func() bool {
		for line := range strings.Lines(contents(e.AccessLog)) {
			var a access
			if json.Unmarshal([]byte(line), &a) == nil && is(a) { // else it is not all there yet
				found = a
				return true
			}
		}
		return false
	})
	return found
}

// byForwarded tells the stream of a client whom wishbone names.
func byForwarded(client net.Addr) func(access) bool {
	return func(a access) bool { return a.Forwarded == fmt.Sprintf("for=%q", client) }
}

// byClient tells the stream of a client that has connected to Envoy.
func byClient(client net.Addr) func(access) bool {
	return func(a access) bool { return a.Client == client.String() }
}

// The SPIFFE IDs of the gateways.
const (
	westID = "spiffe://" + domain + "/gateway/west"
	eastID = "spiffe://" + domain + "/gateway/east"
)

// inner are east's addresses on the server's side, for each of families.
var inner = map[string]netip.Addr{"v4": netlab.EastInner4, "v6": netlab.EastInner6}

// through opens a connection and sees that wishbone's gateway carries it, and that
// it comes to the server from east itself: the routers, who know the way too, would
// show the client. Known says whether the gateway is told who the client is.
func through(t *testing.T, p *pair, g *lab.Gateway, to netip.AddrPort, ln net.Listener, family string, known bool) carried {
	t.Helper()
	c := carried{client: dial(t, p.Client, to)}
	c.server = accept(t, ln)
	exchange(t, c.client, c.server)
	if got := addr(c.server.RemoteAddr()).Addr(); got != inner[family] {
		t.Errorf("the server sees %s, want east's own address %s", got, inner[family])
	}
	var client netip.AddrPort
	if known {
		client = addr(c.client.LocalAddr())
	}
	all := flows(t, g)
	if !slices.ContainsFunc(all, func(f daemon.Flow) bool {
		return f.Client == client && f.Target == addr(ln.Addr()) && f.State == "open"
	}) {
		t.Errorf("gateway %s does not carry %s to %s, but %v", g.Name, client, ln.Addr(), all)
	}
	return c
}

// nobody fails if a connection has come.
func nobody(t *testing.T, ln net.Listener) {
	t.Helper()
	if err := ln.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if c, err := ln.Accept(); err == nil {
		c.Close()
		t.Errorf("the server was reached, from %s", c.RemoteAddr())
	}
}

// toEnvoy has west for a peer of an Envoy that stands where east would, and bears so many
// streams on a tunnel.
func toEnvoy(t *testing.T, maxStreams int) (*pair, *envoy) {
	t.Helper()
	needsEnvoy(t)
	p := newWorld(t)
	e := startEnvoy(t, p, p.East, "east", envoyConfig{Peer: westID, MaxStreams: maxStreams})
	p.startWest()
	return p, e
}

// TestToEnvoy: Envoy stands where east would, and ends wishbone's streams.
func TestToEnvoy(t *testing.T) {
	const maxStreams = 4
	p, e := toEnvoy(t, maxStreams)
	there, here := split(text(20, cargo), 1), split(text(21, cargo), 1)
	for _, f := range families {
		at := netip.AddrPortFrom(f.server, 8080)
		ln := listen(t, p.Server, at)
		connect := func(t *testing.T) carried { return through(t, p, p.west, at, ln, f.name, true) }

		t.Run("cargo/"+f.name, func(t *testing.T) {
			before := status(t, p.west).Connections["outbound"]
			c := connect(t)
			swap(t, c, there, here)
			a := e.awaitAccess(t, byForwarded(c.client.LocalAddr()))
			if a.Authority != at.String() || a.Peer != westID || a.Code != 200 || a.Received != cargo+lineSize || a.Sent != cargo+lineSize {
				t.Errorf("Envoy has logged %+v", a)
			}
			after := status(t, p.west).Connections["outbound"]
			if after.Sent-before.Sent != cargo+lineSize || after.Received-before.Received != cargo+lineSize {
				t.Errorf("west has counted %+v, then %+v", before, after)
			}
		})
		t.Run("client closes first/"+f.name, func(t *testing.T) {
			c := connect(t)
			ship(t, split(text(22, 1<<20), 1), conns(c.client), conns(c.server))
			ship(t, split(text(23, 1<<20), 1), conns(c.server), conns(c.client))
			awaitLog(t, p.west, "connection closed", c.client.LocalAddr().String(), "why=closed")
		})
		// To Envoy a server's half-close is its close: it sends RST_STREAM(NO_ERROR)
		// behind END_STREAM. What the server has said arrives, and its end (Envoy
		// throws away what does not fit into the window that it has just then).
		t.Run("server closes first/"+f.name, func(t *testing.T) {
			c := connect(t)
			ship(t, split(text(24, 100_000), 1), conns(c.server), conns(c.client))
			awaitLog(t, p.west, "connection closed", c.client.LocalAddr().String(), "why=closed")
			awaitReset(t, c.client)
		})
		t.Run("client resets/"+f.name, func(t *testing.T) {
			c := connect(t)
			if err := resetBy(c.client); err != nil {
				t.Fatal(err)
			}
			// Envoy makes an ordinary end of a reset.
			if err := readEnd(t, c.server); err != io.EOF && !isReset(err) {
				t.Errorf("the server reads %v", err)
			}
			awaitLog(t, p.west, "connection closed", c.client.LocalAddr().String(), "why=client_reset")
			if a := e.awaitAccess(t, byForwarded(c.client.LocalAddr())); a.Details != "http2.remote_reset" {
				t.Errorf("Envoy has logged %+v", a)
			}
		})
		t.Run("server resets/"+f.name, func(t *testing.T) {
			c := connect(t)
			if err := resetBy(c.server); err != nil {
				t.Fatal(err)
			}
			if err := readEnd(t, c.client); !isReset(err) {
				t.Errorf("the client reads %v, want a reset", err)
			}
			awaitLog(t, p.west, "connection closed", c.client.LocalAddr().String(), "why=server_reset", "CONNECT_ERROR")
		})
		t.Run("refused/"+f.name, func(t *testing.T) {
			closed := netip.AddrPortFrom(f.server, 9)
			refused(t, p.Client, closed)
			awaitLog(t, p.west, "connection refused", "target="+closed.String(), "reason=unknown", "status 503", eastID)
			a := e.awaitAccess(t, func(a access) bool { return a.Authority == closed.String() })
			if a.Code != 503 || a.Flags != "UF" {
				t.Errorf("Envoy has logged %+v", a)
			}
		})
		t.Run("more streams than fit/"+f.name, func(t *testing.T) {
			// Each of west's loops, one a processor, has tunnels of its own.
			loops := runtime.NumCPU()
			var all []carried
			for range maxStreams*loops + 1 {
				all = append(all, connect(t))
			}
			if n := status(t, p.west).Peers[0].Tunnels; n <= loops {
				t.Errorf("%d connections are carried by %d tunnels, want %d or more", len(all), n, loops+1)
			}
			for _, c := range all {
				c.end(t)
			}
		})
	}
	t.Run("stalled reader", func(t *testing.T) {
		ln := listen(t, p.Server, netip.AddrPortFrom(netlab.Server4, 8082))
		besideStalled(t, p.west, there, func() carried { return through(t, p, p.west, addr(ln.Addr()), ln, "v4", true) })
	})
	t.Run("denied", func(t *testing.T) {
		ln := listen(t, p.Server, netip.AddrPortFrom(netlab.Server4, 8081))
		if err := p.west.Kill(); err != nil {
			t.Fatal(err)
		}
		p.westSite.id = "/gateway/mallory"
		p.startWest()
		refused(t, p.Client, addr(ln.Addr()))
		awaitLog(t, p.west, "connection refused", "target="+ln.Addr().String(), "reason=denied", "status 403")
		a := e.awaitAccess(t, func(a access) bool { return a.Authority == ln.Addr().String() })
		if a.Code != 403 || !strings.HasPrefix(a.Details, "rbac_access_denied") || !strings.HasSuffix(a.Peer, "/gateway/mallory") {
			t.Errorf("Envoy has logged %+v", a)
		}
		nobody(t, ln)
	})
}

// TestDrainToEnvoy: what lives on a tunnel goes on when west drains and says so by
// GOAWAY; a number in it that Envoy does not know for its own would end everything.
func TestDrainToEnvoy(t *testing.T) {
	p, e := toEnvoy(t, 100)
	ln := listen(t, p.Server, web)
	live := through(t, p, p.west, web, ln, "v4", true)
	if err := p.west.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	awaitLog(t, p.west, "draining: the listeners are closed") // the GOAWAY is the next thing that it does
	g := split(text(26, 1<<20), 1)
	swap(t, live, g, g)
	if a := e.awaitAccess(t, byForwarded(live.client.LocalAddr())); a.Code != 200 || a.Details != "via_upstream" || a.Received < 1<<20 || a.Sent < 1<<20 {
		t.Errorf("Envoy has logged %+v", a)
	}
	if code := exitCode(t, p.west); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// TestEnvoyDrains: what lives on a tunnel whose Envoy drains goes on and loses
// nothing, new connections take a new tunnel, and once there is none to be had
// they are refused.
func TestEnvoyDrains(t *testing.T) {
	p, e := toEnvoy(t, 100)
	ln := listen(t, p.Server, web)
	connect := func() carried { return through(t, p, p.west, web, ln, "v4", true) }
	live := []carried{connect()}
	e.tell(t, "/drain_listeners?graceful")
	// Envoy says GOAWAY on a tunnel after its next answer there, and which loop of
	// west's takes a connection, with a tunnel of its own, is open.
	told := 0
	for e.counter(t, "http.tunnel.downstream_cx_total") > told {
		live = append(live, connect())
		told++
		eventually(t, "Envoy has sent the last GOAWAY", func() bool { return e.counter(t, "http2.goaway_sent") == told })
	}
	live = append(live, connect())
	// One for each that has been told, and a new one.
	eventually(t, fmt.Sprintf("west has had %d tunnels", told+1), func() bool { return strings.Count(p.west.Log(), "tunnel up") == told+1 })
	e.tell(t, "/drain_listeners")
	refused(t, p.Client, web)
	awaitLog(t, p.west, "connection refused", "target="+web.String(), "reason=peer_down")
	g := split(text(25, 1<<20), 1)
	for _, c := range live {
		swap(t, c, g, g)
		awaitLog(t, p.west, "connection closed", c.client.LocalAddr().String(), "why=closed")
	}
	eventually(t, "west has no tunnel", func() bool { return status(t, p.west).Peers[0].Tunnels == 0 })
	if strings.Contains(p.west.Log(), `level=WARN msg="tunnel down"`) {
		t.Error("the end of a drained tunnel is a failure to west")
	}
}

// TestFromEnvoy: Envoy stands where west would, and opens streams to wishbone
// without saying for whom.
func TestFromEnvoy(t *testing.T) {
	needsEnvoy(t)
	const maxStreams = 3
	p := newWorld(t, func(_, east *site) {
		east.peerSource, east.extra = "gateway", fmt.Sprintf("limits: {streamsPerTunnel: %d}", maxStreams)
	})
	at := map[string]netip.AddrPort{"v4": netip.AddrPortFrom(netlab.WestInner4, 8080), "v6": netip.AddrPortFrom(netlab.WestInner6, 8080)}
	closed := way{netip.AddrPortFrom(netlab.WestInner4, 9), netip.AddrPortFrom(netlab.Server4, 9)}
	e := startEnvoy(t, p, p.West, "west", envoyConfig{Peer: eastID, Ways: []way{
		{at["v4"], netip.AddrPortFrom(netlab.Server4, 8080)}, {at["v6"], netip.AddrPortFrom(netlab.Server6, 8080)}, closed,
	}})
	p.startEast()
	there, here := split(text(26, cargo), 1), split(text(27, cargo), 1)
	listeners := map[string]net.Listener{}
	for _, f := range families {
		ln := listen(t, p.Server, netip.AddrPortFrom(f.server, 8080))
		listeners[f.name] = ln
		connect := func(t *testing.T) carried { return through(t, p, p.east, at[f.name], ln, f.name, false) }

		t.Run("cargo/"+f.name, func(t *testing.T) {
			before := status(t, p.east).Connections["inbound"]
			c := connect(t)
			swap(t, c, there, here)
			a := e.awaitAccess(t, byClient(c.client.LocalAddr()))
			if a.Authority != ln.Addr().String() || a.Peer != eastID || a.answer(":status") != "200" ||
				a.Received != cargo+lineSize || a.Sent != cargo+lineSize {
				t.Errorf("Envoy has logged %+v", a)
			}
			after := status(t, p.east).Connections["inbound"]
			if after.Sent-before.Sent != cargo+lineSize || after.Received-before.Received != cargo+lineSize {
				t.Errorf("east has counted %+v, then %+v", before, after)
			}
		})
		t.Run("half-close/"+f.name, func(t *testing.T) {
			g := split(text(28, 1<<20), 1)
			for _, first := range actors {
				c := connect(t)
				from, to := c.client, c.server
				if first == "server" {
					from, to = to, from
				}
				ship(t, g, conns(from), conns(to))
				ship(t, g, conns(to), conns(from))
			}
		})
		t.Run("client resets/"+f.name, func(t *testing.T) {
			c := connect(t)
			if err := resetBy(c.client); err != nil {
				t.Fatal(err)
			}
			if err := readEnd(t, c.server); !isReset(err) {
				t.Errorf("the server reads %v, want a reset", err)
			}
			awaitLog(t, p.east, "connection closed", "client=unknown", "target="+ln.Addr().String(), "why=peer_cut", "INTERNAL_ERROR")
		})
		t.Run("server resets/"+f.name, func(t *testing.T) {
			c := connect(t)
			if err := resetBy(c.server); err != nil {
				t.Fatal(err)
			}
			// Envoy makes an ordinary end of a reset.
			if err := readEnd(t, c.client); err != io.EOF && !isReset(err) {
				t.Errorf("the client reads %v", err)
			}
			awaitLog(t, p.east, "connection closed", "target="+ln.Addr().String(), "why=server_reset")
		})
		t.Run("more streams than fit/"+f.name, func(t *testing.T) {
			var all []carried
			for range maxStreams + 1 {
				all = append(all, connect(t))
			}
			if n := status(t, p.east).Peers[0].Inbound; n < 2 {
				t.Errorf("%d connections are carried by %d tunnels, want 2 or more", len(all), n)
			}
			for _, c := range all {
				c.end(t)
			}
		})
	}
	t.Run("stalled reader", func(t *testing.T) {
		besideStalled(t, p.east, there, func() carried {
			return through(t, p, p.east, at["v4"], listeners["v4"], "v4", false)
		})
	})
	// What the client sees of a refusal is Envoy's doing; it hears why.
	t.Run("refused", func(t *testing.T) {
		client := dial(t, p.Client, closed.At)
		// An end or a reset: nothing must have come before it.
		if n, err := client.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("the client reads %d bytes, %v", n, err)
		}
		a := e.awaitAccess(t, byClient(client.LocalAddr()))
		if a.answer(":status") != "503" || a.answer("wishbone-reason") != "refused" {
			t.Errorf("Envoy has logged %+v", a)
		}
		awaitLog(t, p.east, "connection refused", "client=unknown", "target="+closed.To.String(), "reason=refused", westID)
	})
	ln := listeners["v4"]
	t.Run("east keeps sources", func(t *testing.T) {
		live := through(t, p, p.east, at["v4"], ln, "v4", false)
		reload := func(source string) {
			n := strings.Count(p.east.Log(), "configuration reloaded")
			p.eastSite.peerSource = source
			p.writeYAML(p.eastSite, p.westSite)
			hangUp(t, p.east)
			eventually(t, "east has reloaded", func() bool { return strings.Count(p.east.Log(), "configuration reloaded") > n })
		}
		reload("preserve")
		// What lives would not be allowed any more.
		if err := readEnd(t, live.server); !isReset(err) {
			t.Errorf("a connection without a source ends with %v, want a reset", err)
		}
		client := dial(t, p.Client, at["v4"])
		if n, err := client.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("the client reads %d bytes, %v", n, err)
		}
		a := e.awaitAccess(t, byClient(client.LocalAddr()))
		if a.answer(":status") != "503" || a.answer("wishbone-reason") != "no_source" {
			t.Errorf("Envoy has logged %+v", a)
		}
		awaitLog(t, p.east, "connection refused", "target="+ln.Addr().String(), "reason=no_source", westID)
		nobody(t, ln)
		reload("gateway")
	})
	t.Run("east drains", func(t *testing.T) {
		live := through(t, p, p.east, at["v4"], ln, "v4", false)
		if err := p.east.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		eventually(t, "Envoy has heard the GOAWAY", func() bool { return e.counter(t, "cluster.peer.upstream_cx_close_notify") > 0 })
		client := dial(t, p.Client, at["v4"])
		if n, err := client.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("while east drains a new client reads %d bytes, %v", n, err)
		}
		exchange(t, live.client, live.server)
		live.end(t)
		if code := exitCode(t, p.east); code != 0 {
			t.Errorf("exit code %d, want 0", code)
		}
	})
}

func conns(c *net.TCPConn) []*net.TCPConn { return []*net.TCPConn{c} }

// swap sends goods both ways at once. The server's end waits for the client's,
// since Envoy takes nothing more for a server that has said its last word.
func swap(t *testing.T, c carried, there, here goods) {
	t.Helper()
	var all sync.WaitGroup
	arrived := make(chan struct{})
	all.Go(func() {
		defer close(arrived)
		ship(t, there, conns(c.client), conns(c.server))
	})
	all.Go(func() {
		_, err := c.server.Write(here.pieces[0])
		<-arrived
		if err := errors.Join(err, c.server.CloseWrite()); err != nil {
			t.Error(err)
		}
	})
	arrives(t, c.client, here)
	all.Wait()
}

// besideStalled fails if a connection whose server does not read holds up
// another, or loses anything of g. Nothing else goes through the gateway.
func besideStalled(t *testing.T, gateway *lab.Gateway, g goods, connect func() carried) {
	t.Helper()
	stuck := connect()
	smallBuffer(t, stuck.server)
	done := make(chan error, 1)
	go func() { // ends when its server has read
		_, err := stuck.client.Write(g.pieces[0])
		done <- errors.Join(err, stuck.client.CloseWrite())
	}()
	last := 2 * lineSize // of connect
	eventually(t, "the stalled stream is full", func() bool {
		now := uint64(0)
		for _, f := range flows(t, gateway) {
			now += f.Sent + f.Received
		}
		same := now == last && now > 2*lineSize
		last = now
		return same
	})
	small := split(text(29, 1<<20), 1)
	swap(t, connect(), small, small)
	select {
	case err := <-done:
		t.Fatalf("the stalled stream was not stalled (%v)", err)
	default:
	}
	arrives(t, stuck.server, g)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// arrives fails unless exactly g comes out of a connection, and then the end.
func arrives(t *testing.T, c *net.TCPConn, g goods) {
	h := sha256.New()
	n, err := io.Copy(h, onlyReader{c})
	if err != nil || int(n) != len(g.pieces[0]) || [sha256.Size]byte(h.Sum(nil)) != g.sums[0] {
		t.Errorf("at %s %d bytes arrive, or others than were sent (%v), want %d", c.LocalAddr(), n, err, len(g.pieces[0]))
	}
}

// awaitReset writes until the other end answers with a reset.
func awaitReset(t *testing.T, c *net.TCPConn) {
	t.Helper()
	eventually(t, "what is sent to an end that has closed is answered by a reset", func() bool {
		_, err := c.Write([]byte("x"))
		return errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
	})
}
