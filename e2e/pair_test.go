package e2e

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
	"wishbone/identity/identitytest"
)

// patience bounds what takes milliseconds when all is well.
const patience = 20 * time.Second

// domain is the trust domain of the tests.
const domain = "mesh.example"

// backends are the firewalls that every test of the kernel's part runs on.
var backends = []string{"nftables", "iptables"}

// site is what a test may vary of a gateway's configuration. The zero value of
// each field is that of an ordinary pair.
type site struct {
	name     string
	networks string // YAML list
	firewall string
	from     string // capture.from
	listen   string // more keys of listen
	capture  string // more keys of capture
	peers    string // all of peers, instead of the other gateway
	extra    string // more top level keys
	log      string // YAML mapping
	audit    string // YAML mapping

	peerSource      string // inbound.source of the other
	peerUnavailable string
	peerUncarried   string
	peerEndpoints   string // YAML list
	peerNetworks    string // YAML list
	peerIDs         string // YAML list
	id              string // path of our own SPIFFE ID
	workloadAPI     string // instead of files
	grace           string // identity.grace
	federation      string // identity.federation, a YAML list
	opts            identitytest.Options
	authority       *identitytest.Authority // instead of the pair's
}

// sites are the two of an ordinary pair.
func sites() (west, east site) {
	west = site{
		name: "west", networks: `[10.1.0.0/16, "fd00:1::/64", 192.0.2.10/32, "2001:db8::10/128"]`,
		peerEndpoints: `["192.0.2.20:15008"]`,
	}
	east = site{
		name: "east", networks: `[10.2.0.0/16, "fd00:2::/64", 192.0.2.20/32, "2001:db8::20/128"]`,
		peerEndpoints: `["192.0.2.10:15008"]`,
	}
	west.peerNetworks, east.peerNetworks = east.networks, west.networks
	return west, east
}

// yaml is the configuration of s, with other as its peer unless s says otherwise.
func (s site) yaml(dir string, other site) string {
	peers := s.peers
	if peers == "" {
		peers = fmt.Sprintf(`
  - name: %s
    ids: %s
    endpoints: %s
    networks: %s
    inbound: {source: %s}
    outbound: {unavailable: %s, uncarried: %s}`,
			other.name, cmp.Or(s.peerIDs, "[spiffe://"+domain+"/gateway/"+other.name+"]"), s.peerEndpoints, s.peerNetworks,
			cmp.Or(s.peerSource, "preserve"), cmp.Or(s.peerUnavailable, "reject"), cmp.Or(s.peerUncarried, "reject"))
	}
	identity := fmt.Sprintf("files: {cert: %[1]s.pem, key: %[1]s.key, bundle: %[1]s.bundle.pem}", s.name)
	if s.workloadAPI != "" {
		identity = "workloadAPI: " + s.workloadAPI
	}
	if s.grace != "" {
		identity += "\n  grace: " + s.grace
	}
	if s.federation != "" {
		identity += "\n  federation: " + s.federation
	}
	if s.audit != "" {
		s.extra += "\naudit: " + s.audit
	}
	return fmt.Sprintf(`version: 1
name: %[1]s
identity:
  %[10]s
networks: %[2]s
listen:
  admin: %[3]s/%[1]s.sock
%[4]s
peers:%[5]s
capture:
  firewall: %[6]s
  from: %[7]s
%[8]s
log: %[11]s
%[9]s
`, s.name, s.networks, dir, indent(s.listen), peers, cmp.Or(s.firewall, "nftables"), cmp.Or(s.from, "[forwarded, local]"), indent(s.capture), s.extra, identity, cmp.Or(s.log, "{level: debug}"))
}

// indent makes lines part of the mapping above them.
func indent(s string) string {
	if s == "" {
		return ""
	}
	return "  " + strings.ReplaceAll(s, "\n", "\n  ")
}

// pair is a world with a gateway on each router.
type pair struct {
	t *testing.T
	*netlab.World
	dir        string
	authority  *identitytest.Authority
	westSite   site
	eastSite   site
	west, east *lab.Gateway
	mode       string // of the gateways' processes; "" is all powers
}

// newPair starts an ordinary pair, bent by options, and waits until it is ready.
func newPair(t *testing.T, options ...func(west, east *site)) *pair {
	t.Helper()
	p := newWorld(t, options...)
	p.startWest()
	p.startEast()
	return p
}

// newWorld makes the network and the files of a pair, without starting it.
func newWorld(t *testing.T, options ...func(west, east *site)) *pair {
	t.Helper()
	world, err := netlab.NewWorld(netlab.WorldConfig{})
	if err != nil {
		t.Fatal(err)
	}
	p := newPairOn(t, world)
	p.westSite, p.eastSite = sites()
	for _, o := range options {
		o(&p.westSite, &p.eastSite)
	}
	return p
}

// newPairOn has gateways' files for a world, which goes with the test.
func newPairOn(t *testing.T, world *netlab.World) *pair {
	t.Cleanup(func() {
		if err := world.Close(); err != nil {
			t.Error(err)
		}
	})
	return &pair{t: t, World: world, dir: t.TempDir(), authority: identitytest.New(domain)}
}

// onFirewall makes both gateways use a backend.
func onFirewall(backend string) func(west, east *site) {
	return func(west, east *site) { west.firewall, east.firewall = backend, backend }
}

func (p *pair) startWest() {
	p.t.Helper()
	p.west = p.start(p.West, p.westSite, p.eastSite)
}

func (p *pair) startEast() {
	p.t.Helper()
	p.east = p.start(p.East, p.eastSite, p.westSite)
}

// write writes the files of a gateway.
func (p *pair) write(s, other site) {
	p.t.Helper()
	id := cmp.Or(s.id, "/gateway/"+s.name)
	if _, _, _, err := cmp.Or(s.authority, p.authority).WriteFiles(p.dir, s.name, id, s.opts); err != nil {
		p.t.Fatal(err)
	}
	p.writeYAML(s, other)
}

func (p *pair) writeYAML(s, other site) {
	p.t.Helper()
	needsFirewall(p.t, s.firewall)
	if err := os.WriteFile(filepath.Join(p.dir, s.name+".yaml"), []byte(s.yaml(p.dir, other)), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// launch starts a gateway and does not wait for anything.
func (p *pair) launch(h *netlab.Host, s, other site) *lab.Gateway {
	p.t.Helper()
	p.write(s, other)
	return p.launchAs(h, s.name)
}

// launchAs starts the gateway whose files are there already.
func (p *pair) launchAs(h *netlab.Host, name string) *lab.Gateway {
	p.t.Helper()
	g, err := lab.StartGateway(h, lab.GatewayConfig{
		Name: name, Dir: p.dir, Env: []string{runVar + "=" + cmp.Or(p.mode, "1"), "XTABLES_LOCKFILE=" + filepath.Join(p.dir, "xtables.lock")},
	})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if err := g.Kill(); err != nil {
			p.t.Error(err)
		}
		if p.t.Failed() {
			p.t.Logf("log of %s:\n%s", name, g.Log())
		}
	})
	return g
}

func (p *pair) start(h *netlab.Host, s, other site) *lab.Gateway {
	p.t.Helper()
	p.write(s, other)
	return p.startAs(h, s.name)
}

// startAs starts the gateway whose files are there already, and waits for it.
func (p *pair) startAs(h *netlab.Host, name string) *lab.Gateway {
	p.t.Helper()
	g := p.launchAs(h, name)
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	if err := g.AwaitReady(ctx); err != nil {
		p.t.Fatal(err)
	}
	return g
}

// blackhole makes west send what is bound for a network into an interface that
// nobody reads.
func (p *pair) blackhole(network string) {
	p.t.Helper()
	hole, err := p.World.Host("hole")
	if err != nil {
		p.t.Fatal(err)
	}
	near, far := netip.MustParsePrefix("198.51.100.1/30"), netip.MustParsePrefix("198.51.100.2/30")
	if err := p.Link(p.West, "hole", []netip.Prefix{near}, hole, "hole", []netip.Prefix{far}); err != nil {
		p.t.Fatal(err)
	}
	if err := p.West.Route(netip.MustParsePrefix(network), far.Addr()); err != nil {
		p.t.Fatal(err)
	}
}

// listen opens a TCP listener on a host that goes with the test.
func listen(t *testing.T, h *netlab.Host, address netip.AddrPort) net.Listener {
	t.Helper()
	ln, err := h.Listen("tcp", address.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// dial connects from a host; the connection goes with the test.
func dial(t *testing.T, h *netlab.Host, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := tryDial(t, h, to)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// tryDial is dial where it may fail.
func tryDial(t *testing.T, h *netlab.Host, to netip.AddrPort) (*net.TCPConn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := h.Dial(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn), nil
}

// accept takes one connection off a listener.
func accept(t *testing.T, ln net.Listener) *net.TCPConn {
	t.Helper()
	if err := ln.(*net.TCPListener).SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// addr is an address and port as a netip value.
func addr(a net.Addr) netip.AddrPort { return netip.MustParseAddrPort(a.String()) }

// flows are the live connections of a gateway.
func flows(t *testing.T, g *lab.Gateway) []daemon.Flow {
	t.Helper()
	var all []daemon.Flow
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := g.Ask(ctx, "/flows", &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// status is how a gateway does.
func status(t *testing.T, g *lab.Gateway) daemon.Status {
	t.Helper()
	var s daemon.Status
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := g.Ask(ctx, "/status", &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// mustCarry fails unless both gateways say that they carry the connection.
func (p *pair) mustCarry(client, target netip.AddrPort) {
	p.t.Helper()
	for _, g := range []*lab.Gateway{p.west, p.east} {
		if !slices.ContainsFunc(flows(p.t, g), func(f daemon.Flow) bool { return f.Client == client && f.Target == target }) {
			p.t.Errorf("gateway %s does not carry %s to %s", g.Name, client, target)
		}
	}
}

// eventually waits for a condition that nothing tells of.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("it did not come to pass: %s", what)
}

// awaitLog waits until a gateway has logged a line with all of parts in it, and
// returns it.
func awaitLog(t *testing.T, g *lab.Gateway, parts ...string) string {
	t.Helper()
	var found string
	eventually(t, fmt.Sprintf("a line with %q in the log of %s", parts, g.Name), func() bool {
		for line := range strings.Lines(g.Log()) {
			if !slices.ContainsFunc(parts, func(s string) bool { return !strings.Contains(line, s) }) {
				found = line
				return true
			}
		}
		return false
	})
	return found
}

// families are the two, each with an address of the client and of the server.
var families = []struct {
	name           string
	client, server netip.Addr
}{
	{"v4", netlab.Client4, netlab.Server4},
	{"v6", netlab.Client6, netlab.Server6},
}
