package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// equal compares values of other packages with ==.
var equal = cmpopts.EquateComparable(netip.Prefix{}, netip.AddrPort{}, spiffeid.ID{}, spiffeid.TrustDomain{})

func prefixes(text ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, s := range text {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func addrs(text ...string) []netip.AddrPort {
	var all []netip.AddrPort
	for _, s := range text {
		all = append(all, netip.MustParseAddrPort(s))
	}
	return all
}

// TestDefaults pins every default; the page is held against the same table that
// they come from.
func TestDefaults(t *testing.T) {
	got, err := parseHere(t, base)
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Path:     "west.yaml",
		Name:     "west",
		Identity: Identity{WorkloadAPI: "unix:///run/agent.sock", Grace: time.Hour},
		Networks: prefixes("10.1.0.0/16"),
		Listen: Listen{
			Tunnel:      addrs("[::]:15008"),
			Transparent: 15001,
			Metrics:     addrs("127.0.0.1:15020")[0],
			Ready:       addrs("127.0.0.1:15021")[0],
			Admin:       "/run/wishbone/admin.sock",
		},
		Peers: []Peer{{
			Name:      "east",
			IDs:       []spiffeid.ID{spiffeid.RequireFromString("spiffe://mesh.example/gateway/east")},
			Endpoints: []string{"192.0.2.20:15008"},
			Networks:  prefixes("10.2.0.0/16", "fd00:2::/64"),
			Inbound:   Inbound{Source: Preserve},
			Outbound:  Outbound{Unavailable: Reject, Uncarried: Reject},
		}},
		Capture:   Capture{Firewall: FirewallAuto, Forwarded: true, Local: true},
		Routing:   Routing{Mark: 0x08000000, Mask: 0x0c000000, Table: 15008, Priority: 1508},
		Timeouts:  Timeouts{Connect: 10 * time.Second, Handshake: 10 * time.Second, Request: 15 * time.Second},
		Keepalive: Keepalive{Idle: 180 * time.Second, Interval: 15 * time.Second, Count: 4},
		Drain:     Drain{Grace: 30 * time.Second},
		Limits:    Limits{Memory: 256 * mib, StreamsPerTunnel: 200, Handshakes: 4},
		TLS:       TLSDirect,
		Log:       Log{Level: "info", Format: "text"},
	}
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if notes := got.Notes(); len(notes) != 0 {
		t.Errorf("notes of a file without oddities: %q", notes)
	}
}

// TestEveryKey gives every key another value than its default.
func TestEveryKey(t *testing.T) {
	const text = `
version: 1
name: gw-1.example
identity: {files: {cert: west.pem, key: ./keys/west.key, bundle: /etc/bundle.pem}, federation: [{trustDomain: other.example, bundle: other.json}], grace: 10m}
networks: [10.1.0.0/16, "fd00:1::/64"]
listen: {tunnel: ["192.0.2.10:443", "[2001:db8::10]:443"], transparent: 7001, metrics: off, ready: off, admin: off}
peers:
  - name: east
    ids: [spiffe://mesh.example/gateway/east, spiffe://other.example/gateway/east]
    endpoints: ["192.0.2.20:15008", "[2001:db8::20]:443", "East_1.example.:15008"]
    networks: [10.2.0.0/16]
    inbound: {source: address}
    outbound: {unavailable: pass, uncarried: pass}
  - {name: hub, ids: [spiffe://mesh.example/hub], endpoints: ["hub:1"], networks: [0.0.0.0/0, "::/0", 10.1.9.0/24], inbound: {source: gateway}}
capture:
  firewall: none
  from: [forwarded]
  sources: [10.1.4.0/24, 10.1.0.0/16]
  exclude: {networks: [127.0.0.0/8], ports: [22, 8000-8100], uids: [0, 112], cgroups: [system.slice/ssh.service]}
  existing: reset
routing: {mark: 1, mask: 0x3, table: 1, priority: 1}
timeouts: {connect: 1s, handshake: 2s, request: 1m30s}
keepalive: {idle: 4m59s, interval: 1s, count: 1}
drain: {grace: 0s}
limits: {memory: 50%, streamsPerTunnel: 1, handshakes: 1}
tls: standard
log: {level: debug, format: json}
policy:
  - {name: db-from-web, action: allow, from: {ids: ["spiffe://mesh.example/gateway/*", "spiffe://mesh.example/**"], peers: [east], networks: [10.2.4.0/24]}, to: {networks: [10.1.8.0/25, "fd00:1::/64"], ports: [5432, 8000-8100]}}
  - name: no-telnet
    action: deny
    from: {}
    to: {ports: [23]}
    dryRun: true
revoked: {ids: [spiffe://mesh.example/gateway/old], serials: [0A1B], crls: [lists/mesh.crl, /etc/other.crl]}
audit: {file: audit.log}
`
	got, err := parse("/etc/wishbone/west.yaml", []byte(text), testHost(t))
	if err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromString
	want := &Config{
		Path:     "/etc/wishbone/west.yaml",
		Name:     "gw-1.example",
		Identity: Identity{Files: &Files{Cert: "/etc/wishbone/west.pem", Key: "/etc/wishbone/keys/west.key", Bundle: "/etc/bundle.pem"}, Federation: []Federated{{spiffeid.RequireTrustDomainFromString("other.example"), "/etc/wishbone/other.json"}}, Grace: 10 * time.Minute},
		Networks: prefixes("10.1.0.0/16", "fd00:1::/64"),
		Listen:   Listen{Tunnel: addrs("192.0.2.10:443", "[2001:db8::10]:443"), Transparent: 7001},
		Peers: []Peer{{
			Name:      "east",
			IDs:       []spiffeid.ID{id("spiffe://mesh.example/gateway/east"), id("spiffe://other.example/gateway/east")},
			Endpoints: []string{"192.0.2.20:15008", "[2001:db8::20]:443", "East_1.example.:15008"},
			Networks:  prefixes("10.2.0.0/16"),
			Inbound:   Inbound{Source: Address},
			Outbound:  Outbound{Unavailable: Pass, Uncarried: Pass},
		}, {
			Name:      "hub",
			IDs:       []spiffeid.ID{id("spiffe://mesh.example/hub")},
			Endpoints: []string{"hub:1"},
			Networks:  prefixes("0.0.0.0/0", "::/0", "10.1.9.0/24"),
			Inbound:   Inbound{Source: Gateway},
			Outbound:  Outbound{Unavailable: Reject, Uncarried: Reject},
		}},
		Capture: Capture{
			Firewall:  NoFirewall,
			Forwarded: true,
			Sources:   prefixes("10.1.4.0/24", "10.1.0.0/16"),
			Exclude: Exclude{
				Networks: prefixes("127.0.0.0/8"),
				Ports:    []PortRange{{22, 22}, {8000, 8100}},
				UIDs:     []uint32{0, 112},
				Cgroups:  []string{"system.slice/ssh.service"},
			},
			ResetExisting: true,
		},
		Routing:   Routing{Mark: 1, Mask: 3, Table: 1, Priority: 1},
		Timeouts:  Timeouts{Connect: time.Second, Handshake: 2 * time.Second, Request: 90 * time.Second},
		Keepalive: Keepalive{Idle: 299 * time.Second, Interval: time.Second, Count: 1},
		Limits:    Limits{Memory: 512 * mib, StreamsPerTunnel: 1, Handshakes: 1},
		TLS:       TLSStandard,
		Log:       Log{Level: "debug", Format: "json"},
		Policy: []Rule{{
			Name: "db-from-web", Action: Allow, Line: 29,
			From: From{IDs: []IDPattern{"spiffe://mesh.example/gateway/*", "spiffe://mesh.example/**"}, Peers: []string{"east"}, Networks: prefixes("10.2.4.0/24")},
			To:   To{Networks: prefixes("10.1.8.0/25", "fd00:1::/64"), Ports: []PortRange{{5432, 5432}, {8000, 8100}}},
		}, {
			Name: "no-telnet", Action: Deny, Line: 30, DryRun: true,
			To: To{Ports: []PortRange{{23, 23}}},
		}},
		Audit: Audit{File: "/etc/wishbone/audit.log"},
		Revoked: Revoked{IDs: []spiffeid.ID{id("spiffe://mesh.example/gateway/old")}, Serials: []string{"a1b"},
			CRLs: []string{"/etc/wishbone/lists/mesh.crl", "/etc/other.crl"}},
	}
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestLimitsAreInclusive has the last values that are right; those beyond are
// among the mistakes.
func TestLimitsAreInclusive(t *testing.T) {
	for _, line := range []string{
		"name: " + strings.Repeat("a", maxName),
		`listen: {tunnel: ["0.0.0.0:15008", "[2001:db8::10]:15008", "[2001:db8::10]:443"]}`,
		`listen: {metrics: "127.0.0.1:9000", ready: "[::1]:9000"}`,
		"listen: {transparent: 1}", "listen: {transparent: 65535}",
		"listen: {admin: /" + strings.Repeat("a", maxSocket-1) + "}",
		"capture: {exclude: {ports: [1, 65535, 1-65535]}}", "capture: {exclude: {uids: [0, 4294967294]}}",
		"routing: {mark: 0x80000000, mask: 0x80000001}", "routing: {mark: 134217728}", "routing: {mark: 0x04000000}",
		"routing: {table: 1}", "routing: {table: 252}", "routing: {table: 256}", "routing: {table: 2147483647}",
		"routing: {priority: 1}", "routing: {priority: 32762}",
		"timeouts: {connect: 100ms, handshake: 100ms, request: 100ms}", "timeouts: {connect: 2m, handshake: 1m, request: 5m}",
		"keepalive: {idle: 1s, interval: 1s, count: 1}", "keepalive: {idle: 299s, interval: 2m, count: 127}",
		"drain: {grace: 0s}", "drain: {grace: 24h}",
		"limits: {memory: 1MiB, streamsPerTunnel: 1, handshakes: 1}", "limits: {memory: 1TiB, streamsPerTunnel: 10000, handshakes: 1024}",
		"limits: {memory: 1024KiB}", "limits: {memory: 1GiB}", "limits: {memory: 1%}", "limits: {memory: 100%}",
	} {
		if _, err := parseHere(t, base+line+"\n"); err != nil {
			t.Errorf("%s: %v", line, err)
		}
	}
}

// TestNesting has networks within each other, under every pair of owners.
func TestNesting(t *testing.T) {
	text := strings.Replace(base+second, "[10.3.0.0/16]", "[10.1.7.0/24, 10.2.7.0/24, 10.0.0.0/8]", 1)
	if _, err := parseHere(t, text); err != nil {
		t.Error(err)
	}
}

func TestUnknownMemory(t *testing.T) {
	h := hostWith(t, nil)
	_, err := parse("west.yaml", []byte(base), h)
	want := "1:1: limits.memory: cannot tell what 25% of the memory is: open " + h.root + "/proc/meminfo: no such file or directory\nhint: write a size, as 256MiB\n"
	if got := shown(t, err); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if _, err := parse("west.yaml", []byte(base+"limits: {memory: 256MiB}\n"), h); err != nil {
		t.Errorf("with a size: %v", err)
	}
}

func TestHandshakesDefault(t *testing.T) {
	h := testHost(t)
	h.cores = 1
	if c, err := parse("west.yaml", []byte(base), h); err != nil || c.Limits.Handshakes != 1 {
		t.Errorf("%+v, %v on one core", c, err)
	}
}

func TestNotes(t *testing.T) {
	text := strings.Replace(base, "networks: [10.1.0.0/16]\n", "", 1) + "    outbound: {unavailable: pass}\ncapture: {from: []}\n"
	c, err := parseHere(t, text)
	if err != nil {
		t.Fatal(err)
	}
	notes := c.Notes()
	if len(notes) != 3 || !strings.HasPrefix(notes[0], "networks is empty") || !strings.HasPrefix(notes[1], "capture.from is empty") || !strings.Contains(notes[2], "peer east is pass") {
		t.Errorf("%q", notes)
	}
	c, err = parseHere(t, base+"policy: [{name: try, action: deny, dryRun: true}, {name: real, action: deny}]\n")
	if err != nil {
		t.Fatal(err)
	}
	if notes := c.Notes(); len(notes) != 1 || notes[0] != "policy rule try is in dry run: it decides nothing" {
		t.Errorf("%q", notes)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "west.yaml")
	if _, err := Load(path); err == nil || !strings.HasPrefix(err.Error(), "read configuration: open ") {
		t.Errorf("no file: %v", err)
	}
	if _, err := Load(dir); err == nil || !strings.HasPrefix(err.Error(), "read configuration: read ") {
		t.Errorf("a directory: %v", err)
	}
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(base)
	if c, err := Load(path); err != nil || c.Path != path || len(c.Peers) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	write(base + "#" + strings.Repeat("x", maxFile))
	if _, err := Load(path); err == nil || err.Error() != path+":1:1: the file is longer than 4MiB" {
		t.Errorf("a long file: %v", err)
	}
}
