package daemon

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"wishbone/config"
	"wishbone/intercept/rules"
)

// text is a configuration that has a bit of everything.
const text = `version: 1
name: west
identity: {workloadAPI: unix:///run/agent.sock}
networks: [10.1.0.0/16, 192.0.2.10/32]
listen: {tunnel: ["[::]:15008", "192.0.2.10:443"], transparent: 15001}
peers:
  - name: east
    ids: [spiffe://mesh.example/gateway/east]
    endpoints: ["192.0.2.20:15008", "[2001:db8::20]:15008"]
    networks: [10.2.0.0/16]
  - name: open
    ids: [spiffe://mesh.example/gateway/open]
    endpoints: ["192.0.2.30:15008"]
    networks: [10.3.0.0/16]
    inbound: {source: gateway}
    outbound: {unavailable: pass, uncarried: pass}
capture:
  sources: [10.1.8.0/24]
  exclude: {networks: [10.2.9.0/24], ports: [22, 8000-8100], uids: [7]}
routing: {mark: 0x100, mask: 0x300, table: 77, priority: 900}
`

func parse(t testing.TB, text string) *config.Config {
	t.Helper()
	cfg, err := config.Parse("west.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// ownAddrs are those of the host in these tests.
func ownAddrs(a netip.Addr) bool {
	return a.IsLoopback() || a == netip.MustParseAddr("192.0.2.10") || a == netip.MustParseAddr("198.51.100.1")
}

func TestPlan(t *testing.T) {
	got := Plan(t.Context(), parse(t, text))
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	want := rules.Plan{
		Own: prefixes("10.1.0.0/16", "192.0.2.10/32"),
		Peers: []rules.Peer{
			{Name: "east", Networks: prefixes("10.2.0.0/16"), Endpoints: []netip.AddrPort{
				netip.MustParseAddrPort("192.0.2.20:15008"), netip.MustParseAddrPort("[2001:db8::20]:15008")}},
			{Name: "open", Networks: prefixes("10.3.0.0/16"), Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.30:15008")},
				PassUnavailable: true, PassUncarried: true},
		},
		Forwarded: true, Local: true,
		Sources: prefixes("10.1.8.0/24"),
		Exclude: rules.Exclude{
			Networks: prefixes("10.2.9.0/24"), Ports: []rules.PortRange{{First: 22, Last: 22}, {First: 8000, Last: 8100}}, UIDs: []uint32{7},
		},
		Transparent: 15001, Tunnel: []uint16{15008, 443},
		Routing: rules.Routing{Captured: 0x100, Own: 0x200, Mask: 0x300, Table: 77, Priority: 900},
	}
	got.Exclude.Cgroups = nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("plan\n got %+v\nwant %+v", got, want)
	}
}

func TestLoops(t *testing.T) {
	s, err := newSnapshot(parse(t, text), ownAddrs)
	if err != nil {
		t.Fatal(err)
	}
	for target, want := range map[string]bool{
		"10.2.0.2:80":          false,
		"192.0.2.20:15008":     true, // a peer's endpoint
		"192.0.2.20:80":        false,
		"192.0.2.10:15008":     true, // our own listeners
		"192.0.2.10:15001":     true,
		"192.0.2.10:80":        false, // ours, and among our networks
		"198.51.100.1:80":      true,  // ours, outside them
		"127.0.0.1:15001":      true,
		"[2001:db8::20]:15008": true,
	} {
		if got := s.loops(netip.MustParseAddrPort(target), ownAddrs); got != want {
			t.Errorf("%s loops: %t, want %t", target, got, want)
		}
	}
}

func TestExplain(t *testing.T) {
	s, err := newSnapshot(parse(t, text), ownAddrs)
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{addrs: new(hostAddrs)}
	d.addrs.set.Store(&map[netip.Addr]struct{}{netip.MustParseAddr("192.0.2.10"): {}, netip.MustParseAddr("198.51.100.1"): {}})
	d.current.Store(s)
	for _, tt := range []struct{ source, target, verdict, because string }{
		{"10.1.8.2", "10.2.0.2:80", "carried to east", "captured"},
		{"10.1.0.2", "10.2.0.2:80", "left alone", "not in capture.sources"},
		{"192.0.2.10", "10.2.0.2:80", "carried to east", "captured"},
		{"198.51.100.1", "10.2.0.2:80", "captured, and refused by the peer", "not in our networks"},
		{"10.1.8.2", "10.2.9.9:80", "left alone", "capture.exclude.networks"},
		{"10.1.8.2", "10.2.0.2:22", "left alone", "port 22"},
		{"10.2.0.2", "10.1.0.2:22", "left alone", "both gateways exclude it"},
		{"10.1.8.2", "10.2.0.2:8050", "left alone", "port 8050"},
		{"10.1.8.2", "203.0.113.1:80", "left alone", "no peer owns"},
		{"10.1.8.2", "192.0.2.20:15008", "left alone", "endpoint"},
		{"10.2.0.2", "10.1.0.2:80", "delivered to 10.1.0.2:80", "source: preserve"},
		{"10.3.0.2", "10.1.0.2:80", "delivered to 10.1.0.2:80", "prove nothing"},
		{"10.2.0.2", "192.0.2.10:15008", "closed as a loop", "this gateway itself"},
		{"203.0.113.1", "10.1.0.2:80", "left alone", "belongs to no peer"},
	} {
		source, err := ParseSource(tt.source)
		if err != nil {
			t.Fatal(err)
		}
		e := d.Explain(source, netip.MustParseAddrPort(tt.target))
		if e.Verdict != tt.verdict || !strings.Contains(strings.Join(e.Steps, "; "), tt.because) {
			t.Errorf("%s to %s: %s, because %q; want %s because of %q", tt.source, tt.target, e.Verdict, e.Steps, tt.verdict, tt.because)
		}
	}
}

// TestReloadable: every part of a configuration can either be reloaded or is
// named as what cannot.
func TestReloadable(t *testing.T) {
	old := parse(t, text)
	for _, tt := range []struct{ from, to, refused string }{
		{"10.2.0.0/16]", "10.2.0.0/16, 10.4.0.0/16]", ""},
		{"ports: [22, ", "ports: [23, ", ""},
		{"uids: [7]", "uids: [8]", ""},
		{"name: west", "name: other", "name"},
		{"agent.sock", "other.sock", "identity"},
		{"transparent: 15001", "transparent: 15002", "listen"},
		{"192.0.2.10:443", "192.0.2.10:444", "listen"},
		{"table: 77", "table: 78", "routing"},
		{"capture:", "timeouts: {connect: 3s}\ncapture:", "timeouts"},
		{"capture:", "keepalive: {count: 7}\ncapture:", "keepalive"},
		{"capture:", "limits: {streamsPerTunnel: 7}\ncapture:", "limits"},
		{"capture:", "log: {level: debug}\ncapture:", "log"},
		{"capture:", "capture:\n  firewall: iptables", "capture.firewall"},
		{"capture:", "drain: {grace: 3s}\ncapture:", ""},
		{"capture:", "policy: [{name: no-telnet, action: deny, to: {ports: [23]}}]\ncapture:", ""},
	} {
		changed := strings.Replace(text, tt.from, tt.to, 1)
		if changed == text {
			t.Fatalf("%q is not in the configuration", tt.from)
		}
		err := reloadable(old, parse(t, changed))
		switch {
		case tt.refused == "" && err != nil:
			t.Errorf("%q: %v", tt.to, err)
		case tt.refused != "" && (err == nil || !strings.Contains(err.Error(), "reload: "+tt.refused+" cannot change")):
			t.Errorf("%q: %v, want that %s cannot change", tt.to, err, tt.refused)
		}
	}
}

func TestAdminSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "admin.sock")
	if err := removeStale(path); err != nil {
		t.Errorf("nothing is there: %v", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := removeStale(path); err == nil {
		t.Error("a living gateway's socket was taken away")
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	if err := removeStale(path); err != nil {
		t.Errorf("a dead gateway's socket stays: %v", err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Error("a dead gateway's socket is still there")
	}
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removeStale(path); err == nil {
		t.Error("somebody's file was taken for a socket")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "mine" {
		t.Error("somebody's file is gone")
	}
}

// TestLiteralEndpoints: names are left to be looked up, addresses are unmapped.
func TestLiteralEndpoints(t *testing.T) {
	got := literal([]string{"192.0.2.1:1", "[::ffff:192.0.2.2]:2", "gw.example:3", "[2001:db8::1]:4"})
	want := []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.2:2"), netip.MustParseAddrPort("[2001:db8::1]:4")}
	if !slices.Equal(got, want) {
		t.Errorf("literal endpoints %v, want %v", got, want)
	}
}
