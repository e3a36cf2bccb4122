package e2e

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
	"wishbone/identity/workload/workloadtest"
)

var web = netip.AddrPortFrom(netlab.Server4, 8080)

// end closes a connection in order.
func (c carried) end(t *testing.T) {
	t.Helper()
	for _, half := range []struct{ from, to *net.TCPConn }{{c.client, c.server}, {c.server, c.client}} {
		if err := half.from.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if err := readEnd(t, half.to); err != io.EOF {
			t.Errorf("at the end of a connection: %v, want EOF", err)
		}
	}
}

func exitCode(t *testing.T, g *lab.Gateway) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	code, err := g.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// ready is what the readiness endpoint says.
func ready(t *testing.T, h *netlab.Host) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return h.Dial(ctx, network, address)
		}}}
	resp, err := client.Get("http://127.0.0.1:15021/healthz/ready")
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.Status + " " + strings.TrimSpace(string(body))
}

// TestDrain: a gateway that is told to stop takes no new connections, is not
// ready any more, carries those that live until they end, and then ends itself.
func TestDrain(t *testing.T) {
	for _, side := range []string{"west", "east"} {
		t.Run(side, func(t *testing.T) {
			p := newPair(t)
			ln := listen(t, p.Server, web)
			live := p.open(ln)
			g, h := p.west, p.West
			if side == "east" {
				g, h = p.east, p.East
			}
			if got := ready(t, h); got != "200 OK ready" {
				t.Errorf("before: %s", got)
			}
			if err := g.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the gateway is not ready", func() bool { return ready(t, h) == "503 Service Unavailable draining" })
			awaitLog(t, g, "stopping", "signal=terminated")
			awaitLog(t, g, "draining: the listeners are closed")
			if side == "east" { // what was on its way to it is still taken
				awaitLog(t, p.west, "tunnel takes no new connections", "peer=east")
			}
			unreachable(t, p.Client, web)
			exchange(t, live.client, live.server)
			live.end(t)
			if code := exitCode(t, g); code != 0 {
				t.Errorf("exit code %d, want 0", code)
			}
		})
	}
}

// TestCut: what lives beyond the grace, or beyond a second signal, is cut with a
// reset, and the exit code says so.
func TestCut(t *testing.T) {
	for _, tt := range []struct {
		name, grace string
		signals     int
	}{{"grace", "300ms", 1}, {"second signal", "1m", 2}} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t, func(west, _ *site) { west.extra = "drain: {grace: " + tt.grace + "}" })
			live := p.open(listen(t, p.Server, web))
			if err := p.west.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			awaitLog(t, p.west, "stopping")
			exchange(t, live.client, live.server)
			if tt.signals == 2 {
				if err := p.west.Signal(unix.SIGTERM); err != nil {
					t.Fatal(err)
				}
			}
			for _, c := range []*net.TCPConn{live.client, live.server} {
				if err := readEnd(t, c); !isReset(err) {
					t.Errorf("the cut connection ends with %v, want a reset", err)
				}
			}
			if code := exitCode(t, p.west); code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			awaitLog(t, p.west, "wishbone: error: 1 connection cut")
			awaitLog(t, p.west, "connection closed", "why=cut")
		})
	}
}

// TestLogGone: a gateway goes on when whoever reads its log goes, and counts the lines
// that nobody has got.
func TestLogGone(t *testing.T) {
	p := newWorld(t)
	fifo := filepath.Join(p.dir, "west.log")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(fifo) }) // who shows the log of a test that failed would wait for a writer
	reader, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	p.startWest()
	p.startEast()
	ln := listen(t, p.Server, web)
	p.open(ln).end(t)
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "lines are missing", func() bool {
		p.open(ln).end(t) // which leaves one
		return scrape(t, p.West)["wishbone_log_dropped_total"] > 0
	})
	if err := p.west.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, p.west); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

// TestReload: SIGHUP takes what can change; a live connection that is not allowed
// any more is cut, another goes on; a mistake changes nothing.
func TestReload(t *testing.T) {
	p := newPair(t)
	first := p.open(listen(t, p.Server, web))
	other := netip.AddrPortFrom(netlab.Server6, 8080)
	ln6 := listen(t, p.Server, other)
	stays := p.open(ln6)

	p.eastSite.extra = "colour: red"
	p.writeYAML(p.eastSite, p.westSite)
	hangUp(t, p.east)
	awaitLog(t, p.east, "reload failed", "east.yaml:", "colour")
	p.eastSite.extra, p.eastSite.listen = "", `tunnel: ["[::]:16008"]`
	p.writeYAML(p.eastSite, p.westSite)
	hangUp(t, p.east)
	awaitLog(t, p.east, "reload failed", "listen cannot change while running")
	exchange(t, first.client, first.server)

	// East does not serve its IPv4 network any more.
	p.eastSite.listen, p.eastSite.networks = "", `["fd00:2::/64"]`
	p.writeYAML(p.eastSite, p.westSite)
	hangUp(t, p.east)
	awaitLog(t, p.east, "configuration reloaded")
	for _, c := range []*net.TCPConn{first.client, first.server} {
		if err := readEnd(t, c); !isReset(err) {
			t.Errorf("a connection that is not allowed any more ends with %v, want a reset", err)
		}
	}
	awaitLog(t, p.east, "why=cut", "target_not_served")
	exchange(t, stays.client, stays.server)
	unreachable(t, p.Client, web)
	awaitLog(t, p.east, "connection refused", "target="+web.String(), "reason=target_not_served", "spiffe://mesh.example/gateway/west")
}

func hangUp(t *testing.T, g *lab.Gateway) {
	t.Helper()
	if err := g.Signal(unix.SIGHUP); err != nil {
		t.Fatal(err)
	}
}

// TestRotation: new identity files are taken while streams live on, and the next
// tunnel shows them.
func TestRotation(t *testing.T) {
	p := newPair(t)
	ln := listen(t, p.Server, web)
	live := p.open(ln)
	p.write(p.westSite, p.eastSite)
	p.write(p.eastSite, p.westSite)
	for _, g := range []*lab.Gateway{p.west, p.east} {
		awaitLog(t, g, "identity updated", "gateway/"+g.Name)
	}
	exchange(t, live.client, live.server)
	p.open(ln).end(t)
	live.end(t)
}

// TestRestart: a gateway that was killed finds what it left behind and puts its
// own in place; what it stops with afterwards is a host as it was.
func TestRestart(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newWorld(t, onFirewall(backend))
			before := hostState(t, p.West)
			p.startEast()
			p.startWest()
			if err := p.west.Kill(); err != nil {
				t.Fatal(err)
			}
			if difference(before, hostState(t, p.West)) == "" {
				t.Fatal("a killed gateway leaves nothing behind: the test sees nothing")
			}
			// Another configuration, so that leftovers would show.
			p.westSite.capture = "exclude: {ports: [8081]}"
			p.startWest()
			p.open(listen(t, p.Server, web)).end(t)
			stop(t, p)
			if d := difference(before, hostState(t, p.West)); d != "" {
				t.Errorf("the host is not as it was:\n%s", d)
			}
		})
	}
}

// TestWorkloadAPI: a gateway whose agent is not there yet lets nothing pass:
// connections wait, and are reset if that takes too long. It serves as soon as there
// is an identity, takes each new one, and an agent that goes away takes nothing with
// it.
func TestWorkloadAPI(t *testing.T) {
	p := newWorld(t)
	p.westSite.extra = "timeouts: {handshake: 1s}" // connections wait for two of them
	socket := filepath.Join(p.dir, "agent.sock")
	p.westSite.workloadAPI = "unix://" + socket
	p.startEast()
	p.west = p.launch(p.West, p.westSite, p.eastSite)
	awaitLog(t, p.west, "gateway is up")
	wire, err := p.West.Capture(netlab.Outer)
	if err != nil {
		t.Fatal(err)
	}
	ln := listen(t, p.Server, web)
	refused(t, p.Client, web)
	nobody(t, ln)
	awaitLog(t, p.west, "connection refused", "no tunnel in time", "no identity has come")
	if got := ready(t, p.West); !strings.HasPrefix(got, "503 ") || !strings.Contains(got, "no identity") {
		t.Errorf("without an identity readiness says %q", got)
	}
	agent, err := workloadtest.Start(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(agent.Stop)
	waiting := dial(t, p.Client, web)
	eventually(t, "it waits", func() bool { return peerStatus(t, p.west, "east").Waiting == 1 })
	agent.Give(p.svids(), p.authority.Bundle())
	exchange(t, waiting, accept(t, ln))
	eventually(t, "west is ready", func() bool { return ready(t, p.West) == "200 OK ready" })
	live := p.open(ln)
	agent.Give(p.svids(), p.authority.Bundle())
	awaitLog(t, p.west, "identity updated")
	agent.NoIdentity() // as for a moment while entries are changed
	awaitLog(t, p.west, "keeping the last identity", "no identity issued")
	p.open(ln).end(t)
	agent.Give(p.svids(), p.authority.Bundle())
	awaitLog(t, p.west, "workload API answers again")
	agent.Crash()
	p.open(ln).end(t)
	live.end(t)
	traffic, err := wire.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if found := clear(traffic); len(found) > 0 {
		t.Errorf("crossed the underlay in the clear:\n%s", strings.Join(found, "\n"))
	}
}

// svids are what an agent gives to west.
func (p *pair) svids() []*x509svid.SVID {
	return []*x509svid.SVID{p.authority.Issue("/gateway/west")}
}
