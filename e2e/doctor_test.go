package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/doctor"
	"wishbone/e2e/netlab"
	"wishbone/identity/identitytest"
)

// diagnose asks the doctor about west.
func diagnose(t *testing.T, p *pair) (code int, findings []doctor.Finding) {
	t.Helper()
	return askDoctor(t, p, "1")
}

// askDoctor does so in a mode.
func askDoctor(t *testing.T, p *pair, mode string) (code int, findings []doctor.Finding) {
	t.Helper()
	code, out := runOn(t, p.West, mode, "doctor", "-o", "json", "-c", filepath.Join(p.dir, "west.yaml"))
	if err := json.Unmarshal([]byte(out), &findings); err != nil {
		t.Fatalf("doctor: exit code %d, %v\n%s", code, err, out)
	}
	return code, findings
}

// dropByDefault gives a host an input chain that drops what it does not list, as
// many have it.
func dropByDefault(t *testing.T, h *netlab.Host) {
	t.Helper()
	for _, c := range []string{
		"add table inet theirs",
		"add chain inet theirs incoming { type filter hook input priority 0 ; policy drop ; }",
		"add rule inet theirs incoming ct state established,related accept",
		"add rule inet theirs incoming tcp dport 15008 accept",
		"add rule inet theirs incoming meta l4proto ipv6-icmp accept",
	} {
		output(t, h, "nft", strings.Fields(c)...)
	}
}

// noDefaultRoute takes a host's default routes.
func noDefaultRoute(t *testing.T, h *netlab.Host) {
	t.Helper()
	err := h.Do(func() error {
		for _, everywhere := range []string{"0.0.0.0/0", "::/0"} {
			_, dst, err := net.ParseCIDR(everywhere)
			if err != nil {
				return err
			}
			if err := netlink.RouteDel(&netlink.Route{Dst: dst}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// usesOurMark adds a policy rule of somebody else's who uses one of our bits.
func usesOurMark(t *testing.T, h *netlab.Host) {
	t.Helper()
	rule := netlink.NewRule()
	mask := uint32(0x08000000)
	rule.Family, rule.Priority, rule.Mark, rule.Mask, rule.Table = unix.AF_INET, 900, mask, &mask, 77
	if err := h.Do(func() error { return netlink.RuleAdd(rule) }); err != nil {
		t.Fatal(err)
	}
}

// longLived gives west an identity whose end is not near.
func longLived(west, _ *site) { west.opts.NotAfter = time.Now().AddDate(0, 1, 0) }

// sysctl sets one for the time to come.
func sysctl(t *testing.T, h *netlab.Host, name, value string) {
	t.Helper()
	if err := h.Sysctl(name, value); err != nil {
		t.Fatal(err)
	}
}

func chmod(t *testing.T, p *pair, name string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(filepath.Join(p.dir, name), mode); err != nil {
		t.Fatal(err)
	}
}

// TestDoctor: each thing that is wrong with a host, its configuration or its
// peers is named, with what to do about it; and nothing else is.
func TestDoctor(t *testing.T) {
	for _, tt := range []struct {
		name         string
		bend         func(west, east *site)
		plant        func(*testing.T, *pair)
		alone        bool // no gateway on east
		level        doctor.Level
		check        string
		what, remedy string
	}{
		{
			name: "no forwarding", plant: func(t *testing.T, p *pair) { sysctl(t, p.West, "net.ipv4.ip_forward", "0") },
			level: doctor.Warn, check: "forwarding", what: "net.ipv4.ip_forward is 0", remedy: "sysctl -w net.ipv4.ip_forward=1",
		}, {
			name: "no forwarding of IPv6", plant: func(t *testing.T, p *pair) { sysctl(t, p.West, "net.ipv6.conf.all.forwarding", "0") },
			level: doctor.Warn, check: "forwarding", what: "net.ipv6.conf.all.forwarding is 0", remedy: "sysctl -w net.ipv6.conf.all.forwarding=1",
		}, {
			name: "strict reverse path filter", plant: func(t *testing.T, p *pair) { sysctl(t, p.West, "net.ipv4.conf.outer.rp_filter", "1") },
			level: doctor.Warn, check: "reverse path", what: "strict (1) on outer", remedy: "rp_filter=2",
		}, {
			name: "a firewall that drops", plant: func(t *testing.T, p *pair) { dropByDefault(t, p.West) },
			level: doctor.Warn, check: "other firewalls", what: "chain incoming of table theirs", remedy: "nft insert rule inet theirs incoming meta mark and 0xc000000 == 0x8000000 accept",
		}, {
			name: "no route", plant: func(t *testing.T, p *pair) { noDefaultRoute(t, p.West) },
			level: doctor.Fail, check: "routes", what: "no route to 10.2.0.0/16 of peer east", remedy: "ip route add 10.2.0.0/16 via GATEWAY",
		}, {
			name: "somebody else's mark", plant: func(t *testing.T, p *pair) { usesOurMark(t, p.West) },
			level: doctor.Warn, check: "marks", what: "policy rule 900 also looks at bits 0x8000000", remedy: "set routing.mark and routing.mask",
		}, {
			name: "a port in use", plant: func(t *testing.T, p *pair) {
				listen(t, p.West, addr(&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 15001}))
			},
			level: doctor.Fail, check: "ports", what: "127.0.0.1:15001", remedy: "ss -ltnp 'sport = :15001'",
		}, {
			name: "a peer that is down", alone: true,
			level: doctor.Fail, check: "peer east", what: "dial 192.0.2.20:15008: dial tcp 192.0.2.20:15008: connect: connection refused", remedy: "is the gateway up there",
		}, {
			name: "a peer that nobody knows the way to", bend: func(west, _ *site) {
				west.peerEndpoints = `["203.0.113.1:15008"]`
				west.extra = "timeouts: {handshake: 200ms}"
			}, plant: func(_ *testing.T, p *pair) { p.blackhole("203.0.113.1/32") },
			level: doctor.Fail, check: "peer east", what: "203.0.113.1:15008", remedy: "nothing answers",
		}, {
			name: "a peer with another id", bend: func(_, east *site) { east.id = "/gateway/mallory" },
			level: doctor.Fail, check: "peer east", what: "spiffe://mesh.example/gateway/mallory", remedy: "compare the peer's ids",
		}, {
			name: "a peer that does not know us", bend: func(west, _ *site) { west.id = "/gateway/mallory" },
			level: doctor.Fail, check: "peer east", what: "does not accept us", remedy: "our SPIFFE ID must be among the ids",
		}, {
			name: "own certificate has expired", bend: func(west, _ *site) { west.opts = identitytest.Expired() },
			level: doctor.Fail, check: "identity", what: "own_expired", remedy: "issue a new certificate",
		}, {
			name: "a local address that peers do not believe", bend: func(west, _ *site) { west.networks = `[10.1.0.0/16, "fd00:1::/64"]` },
			level: doctor.Warn, check: "local clients", what: "come from 192.0.2.10", remedy: "add 192.0.2.10/32 to networks",
		}, {
			name: "rules that are nobody's", bend: onFirewall("none"),
			level: doctor.Warn, check: "firewall", what: "the rules are yours", remedy: "wishbone rules prints",
		}, {
			name: "a key that everybody may read", plant: func(t *testing.T, p *pair) { chmod(t, p, "west.key", 0o644) },
			level: doctor.Warn, check: "file modes", what: "may read the private key", remedy: "chmod o= ",
		}, {
			name: "roots that everybody may write", plant: func(t *testing.T, p *pair) { chmod(t, p, "west.bundle.pem", 0o666) },
			level: doctor.Warn, check: "file modes", what: "may write", remedy: "chmod o-w ",
		}, {
			name: "a revocation list past its time", bend: func(west, _ *site) { west.extra = "revoked: {crls: [mesh.crl]}" },
			plant: func(t *testing.T, p *pair) { p.list(t, filepath.Join(p.dir, "mesh.crl"), time.Now().Add(-time.Hour)) },
			level: doctor.Warn, check: "revoked", what: "mesh.crl was to be replaced by 2", remedy: "get a newer one",
		}, {
			name: "a revocation list that is not there", bend: func(west, _ *site) { west.extra = "revoked: {crls: [mesh.crl]}" },
			level: doctor.Fail, check: "revoked", what: "mesh.crl", remedy: "relative to the configuration file",
		}, {
			name: "a peer that is on a revocation list", bend: func(west, _ *site) { west.extra = "revoked: {crls: [mesh.crl]}" },
			plant: func(t *testing.T, p *pair) {
				p.list(t, filepath.Join(p.dir, "mesh.crl"), time.Now().Add(time.Hour), p.leaf("east"))
			},
			level: doctor.Fail, check: "peer east", what: "revoked", remedy: "take it out of peers",
		}, {
			name: "an unsafe setting", bend: func(west, _ *site) { west.peerUnavailable = "pass" },
			level: doctor.Warn, check: "configuration", what: "its addresses prove nothing",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var options []func(west, east *site)
			if tt.bend != nil {
				options = append(options, tt.bend)
			}
			p := newWorld(t, append([]func(west, east *site){longLived}, options...)...)
			p.write(p.westSite, p.eastSite)
			if !tt.alone {
				p.startEast()
			}
			if tt.plant != nil {
				tt.plant(t, p)
			}
			before := hostState(t, p.West)
			code, findings := diagnose(t, p)
			if want := map[bool]int{true: 1, false: 0}[tt.level == doctor.Fail]; code != want {
				t.Errorf("exit code %d, want %d", code, want)
			}
			if !slices.ContainsFunc(findings, func(f doctor.Finding) bool {
				return f.Level == tt.level && f.Check == tt.check && strings.Contains(f.What, tt.what) && strings.Contains(f.Remedy, tt.remedy)
			}) {
				t.Errorf("it is not named: %s, %s, %q, %q", tt.level, tt.check, tt.what, tt.remedy)
			}
			for _, f := range findings {
				if f.Level != doctor.OK && f.Check != tt.check || f.Level == doctor.Fail && tt.level != doctor.Fail {
					t.Errorf("there is something else: %+v", f)
				}
			}
			if d := difference(before, hostState(t, p.West)); d != "" {
				t.Errorf("it has changed the host:\n%s", d)
			}
			if t.Failed() {
				t.Logf("findings:\n%s", indented(findings))
			}
		})
	}
}

// indented are findings to read.
func indented(findings []doctor.Finding) string {
	var b strings.Builder
	for _, f := range findings {
		fmt.Fprintf(&b, "%+v\n", f)
	}
	return b.String()
}

// TestDoctorOnHealthyHost: with nothing wrong everything is well, before the
// gateway runs, and while it does.
func TestDoctorOnHealthyHost(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newWorld(t, onFirewall(backend), longLived)
			p.write(p.westSite, p.eastSite)
			p.startEast()
			for _, when := range []string{"before", "running"} {
				if when == "running" {
					p.startWest()
				}
				code, findings := diagnose(t, p)
				if code != 0 || len(findings) < 12 || slices.ContainsFunc(findings, func(f doctor.Finding) bool { return f.Level != doctor.OK || f.Remedy != "" }) {
					t.Errorf("%s: exit code %d\n%s", when, code, indented(findings))
				}
				code, out := runOn(t, p.West, "1", "doctor", "-c", filepath.Join(p.dir, "west.yaml"))
				if code != 0 {
					t.Errorf("%s: exit code %d", when, code)
				}
				mustMatch(t, out, `^ok +capabilities +`, `^ok +peer east +192\.0\.2\.20:15008 has proved that it is one of `, `^ok +firewall +`+backend)
			}
		})
	}
}

// TestRemedyForFirewall: a firewall that drops what it does not list keeps
// captured connections from the gateway, and what the doctor advises helps.
func TestRemedyForFirewall(t *testing.T) {
	p := newPair(t, longLived)
	dropByDefault(t, p.West)
	for _, f := range families {
		unreachable(t, p.Client, netip.AddrPortFrom(f.server, 8080))
	}
	_, findings := diagnose(t, p)
	i := slices.IndexFunc(findings, func(f doctor.Finding) bool { return f.Check == "other firewalls" })
	if i < 0 {
		t.Fatalf("it is not named:\n%s", indented(findings))
	}
	command, _, _ := strings.Cut(findings[i].Remedy, " (iptables")
	words := strings.Fields(command)
	output(t, p.West, words[0], words[1:]...)
	p.each(t, []connection{{atClient, atServer, 8080, throughTunnel}, {atWest, atServer, 8080, throughTunnel}})
}

// TestDoctorInWords: what is wrong stands in words too, with an arrow before
// what to do; and mistakes of the user come first.
func TestDoctorInWords(t *testing.T) {
	p := newWorld(t)
	p.write(p.westSite, p.eastSite)
	config := filepath.Join(p.dir, "west.yaml")
	code, out := runOn(t, p.West, "1", "doctor", "-c", config)
	if code != 1 {
		t.Errorf("with a peer that is down: exit code %d", code)
	}
	mustMatch(t, out, `^warn +identity +spiffe://mesh.example/gateway/west ends at 20`, `^fail +peer east +dial 192\.0\.2\.20:15008`, `^ +→ is the gateway up there`)
	if err := os.WriteFile(config, []byte("version: 1\ncolour: red\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, out := runOn(t, p.West, "1", "doctor", "-c", config); code != 2 || !strings.Contains(out, "west.yaml:2:1: colour:") {
		t.Errorf("with a mistake in the configuration: exit code %d\n%s", code, out)
	}
}

// TestNobodyAnswers: what asks a gateway says what may be wrong when none is
// there; what is not understood says how it is used, and does nothing.
func TestNobodyAnswers(t *testing.T) {
	p := newWorld(t)
	socket := filepath.Join(p.dir, "nobody.sock")
	for _, tt := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"status", "--admin", socket}, 1, []string{"wishbone: error: no gateway answers at " + socket, "\nhint: is it running"}},
		{[]string{"flows", "--admin", socket}, 1, []string{"wishbone: error: no gateway answers at " + socket, "\nhint: is it running"}},
		{[]string{"explain", "10.1.0.2", "10.2.0.2:80", "--admin", socket}, 1, []string{"wishbone: error: no gateway answers at " + socket, "\nhint: is it running"}},
		{[]string{"status", "-o", "json", "--admin", socket}, 1, []string{"wishbone: error: no gateway answers"}},
		{[]string{"status", "-o", "yaml", "--admin", socket}, 2, []string{`"yaml"`, "text or json", "\nhint: wishbone status --help"}},
		{[]string{"status", "extra"}, 2, []string{"extra", "\nhint: wishbone status --help"}},
		{[]string{"flows", "--colour"}, 2, []string{"unknown flag: --colour", "\nhint: wishbone flows --help"}},
		{[]string{"explain", "10.1.0.2"}, 2, []string{"takes SRC DST:PORT, and got 1 argument", "\nhint: wishbone explain --help"}},
		{[]string{"explain", "somebody", "10.2.0.2:80"}, 2, []string{`"somebody" is neither an address nor address:port`, "\nhint: an example"}},
		{[]string{"explain", "10.1.0.2", "10.2.0.2"}, 2, []string{`"10.2.0.2" is not address:port`, "\nhint: an example"}},
		{[]string{"run", "-c", socket}, 2, []string{"read configuration: open " + socket + ": no such file", "\nhint: -c FILE"}},
		{[]string{"doctor", "-c", socket}, 2, []string{"read configuration", "\nhint: -c FILE"}},
		{[]string{"rules", "apply", "-c", socket}, 2, []string{"read configuration", "\nhint: -c FILE"}},
		{[]string{"dance"}, 2, []string{`unknown command "dance"`, "\nhint: wishbone --help"}},
	} {
		t.Run(strings.ReplaceAll(strings.Join(tt.args, " "), socket, "SOCKET"), func(t *testing.T) {
			code, out := runOn(t, p.West, "1", tt.args...)
			if code != tt.code || !strings.HasPrefix(out, "wishbone: error: ") {
				t.Errorf("exit code %d, want %d\n%s", code, tt.code, out)
			}
			for _, w := range tt.want {
				if !strings.Contains(out, w) {
					t.Errorf("%q is not in\n%s", w, out)
				}
			}
		})
	}
}
