package e2e

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wishbone/cmd/wishbone/doctor"
)

// diagnoseAs is what the doctor finds in a mode.
func diagnoseAs(t *testing.T, p *pair, mode string) (findings []doctor.Finding) {
	t.Helper()
	_, findings = askDoctor(t, p, mode)
	return findings
}

// mustFind fails unless there is a finding like want, whose texts are parts, and
// nothing that fails but it.
func mustFind(t *testing.T, findings []doctor.Finding, want doctor.Finding) {
	t.Helper()
	like := func(f doctor.Finding) bool {
		return f.Level == want.Level && f.Check == want.Check && strings.Contains(f.What, want.What) && strings.Contains(f.Remedy, want.Remedy)
	}
	if !slices.ContainsFunc(findings, like) ||
		slices.ContainsFunc(findings, func(f doctor.Finding) bool { return f.Level == doctor.Fail && !like(f) }) {
		t.Errorf("want %+v, and no other failure:\n%s", want, indented(findings))
	}
}

// TestDoctorWithoutNetAdmin: as the gateway's user, who may not look at rules, the
// doctor says so, and raises no alarm.
func TestDoctorWithoutNetAdmin(t *testing.T) {
	for _, firewall := range append([]string{"auto"}, backends...) {
		t.Run(firewall, func(t *testing.T) {
			p := newWorld(t, onFirewall(firewall), longLived)
			p.applyRules()
			p.mode = with("1", "net_raw")
			p.west, p.east = p.startAs(p.West, "west"), p.startAs(p.East, "east")
			mustFind(t, diagnoseAs(t, p, p.mode), doctor.Finding{
				Level: doctor.Warn, Check: "rules", What: "cannot be looked at", Remedy: "run doctor as root",
			})
			// The control: root sees that they stand.
			mustFind(t, diagnoseAs(t, p, "1"), doctor.Finding{Level: doctor.OK, Check: "rules", What: "they stand"})
		})
	}
}

// TestDoctorOnSingleAddresses: the way to a network that is one address is looked
// for too.
func TestDoctorOnSingleAddresses(t *testing.T) {
	for network, remedy := range map[string]string{
		"10.2.0.7/32":     "ip route add 10.2.0.7/32 via GATEWAY",
		`"fd00:2::7/128"`: "ip route add fd00:2::7/128 via GATEWAY",
	} {
		t.Run(network, func(t *testing.T) {
			p := newWorld(t, longLived, func(west, _ *site) { west.peerNetworks = "[" + network + "]" })
			p.write(p.westSite, p.eastSite)
			p.startEast()
			mustFind(t, diagnoseAs(t, p, "1"), doctor.Finding{Level: doctor.OK, Check: "routes"})
			noDefaultRoute(t, p.West)
			mustFind(t, diagnoseAs(t, p, "1"), doctor.Finding{Level: doctor.Fail, Check: "routes", What: "no route to", Remedy: remedy})
		})
	}
}

// TestDoctorOnRulesOfAnother: rules that stand are compared with the configuration,
// as a gateway does that may not change them.
func TestDoctorOnRulesOfAnother(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newWorld(t, onFirewall(backend), longLived)
			p.applyRules()
			p.startEast()
			mustFind(t, diagnoseAs(t, p, "1"), doctor.Finding{Level: doctor.Warn, Check: "rules", What: "no gateway runs", Remedy: "wishbone run"})
			p.westSite.peerNetworks = `[10.2.0.0/16, "fd00:2::/64", 10.9.0.0/16]`
			p.writeYAML(p.westSite, p.eastSite)
			config := filepath.Join(p.dir, "west.yaml")
			mustFind(t, diagnoseAs(t, p, "1"), doctor.Finding{
				Level: doctor.Fail, Check: "rules", What: "another configuration's", Remedy: "wishbone rules apply -c " + config,
			})
			p.applyRulesOn(p.West, "west")
			mustFind(t, diagnoseAs(t, p, "1"), doctor.Finding{Level: doctor.Warn, Check: "rules", What: "no gateway runs"})
		})
	}
}

// TestDoctorOnHalfOfTheRules: what is left of rules is told from none.
func TestDoctorOnHalfOfTheRules(t *testing.T) {
	for _, tt := range []struct {
		backend, take string
		applied       bool // by wishbone rules apply, not by a gateway that was killed
		want          doctor.Finding
	}{
		{"nftables", "ip rule del pref 1509", true, doctor.Finding{What: "has taken away IPv4 policy rule 1509", Remedy: "wishbone rules apply -c "}},
		{"nftables", "nft flush ruleset", true, doctor.Finding{What: "has taken away table inet wishbone", Remedy: "wishbone rules apply -c "}},
		{"nftables", "ip rule del pref 1509", false, doctor.Finding{What: "table inet wishbone stands, without IPv4 policy rule 1509", Remedy: "wishbone rules remove"}},
		{"nftables", "nft flush ruleset", false, doctor.Finding{What: "IPv4 policy rule 1511 stands, without table inet wishbone", Remedy: "wishbone rules remove"}},
		{"iptables", "ip rule del pref 1509", true, doctor.Finding{What: "has taken away IPv4 policy rule 1509", Remedy: "wishbone rules apply -c "}},
		{"iptables", "iptables -t mangle -F PREROUTING", false, doctor.Finding{What: "chain WISHBONE_", Remedy: "wishbone rules remove"}},
	} {
		t.Run(tt.backend+" "+tt.take, func(t *testing.T) {
			p := newWorld(t, onFirewall(tt.backend), longLived)
			p.startEast()
			if p.write(p.westSite, p.eastSite); tt.applied {
				p.applyRulesOn(p.West, "west")
			} else {
				p.startWest()
				if err := p.west.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			f := strings.Fields(tt.take)
			output(t, p.West, f[0], f[1:]...)
			tt.want.Level, tt.want.Check = doctor.Fail, "rules"
			mustFind(t, diagnoseAs(t, p, "1"), tt.want)
			if code, out := runOn(t, p.West, "1", "rules", "remove", "-c", filepath.Join(p.dir, "west.yaml")); code != 0 {
				t.Fatalf("rules remove: exit code %d\n%s", code, out)
			}
			mustFind(t, diagnoseAs(t, p, "1"), doctor.Finding{Level: doctor.OK, Check: "rules", What: "none stand"})
		})
	}
}

// TestDoctorReadsAsTheGateway: root's gateway may not read whatever file it likes,
// and neither may root's doctor.
func TestDoctorReadsAsTheGateway(t *testing.T) {
	for _, tt := range []struct{ file, check string }{
		{"west.key", "identity"}, {"west.bundle.pem", "identity"}, {"west.yaml", "configuration"}, {"mesh.crl", "revoked"},
	} {
		t.Run(tt.file, func(t *testing.T) {
			p := newWorld(t, longLived, func(west, _ *site) {
				if tt.file == "mesh.crl" {
					west.extra = "revoked: {crls: [mesh.crl]}"
				}
			})
			p.write(p.westSite, p.eastSite)
			p.startEast()
			path := filepath.Join(p.dir, tt.file)
			if tt.file == "mesh.crl" {
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			chmod(t, p, tt.file, 0)
			code, out := runOn(t, p.West, "1", "run", "-c", filepath.Join(p.dir, "west.yaml"))
			if code == 0 || !strings.Contains(out, "open "+path+": permission denied") {
				t.Errorf("run: exit code %d\n%s", code, out)
			}
			mustFind(t, diagnoseAs(t, p, "1"), doctor.Finding{
				Level: doctor.Fail, Check: tt.check, What: "open " + path + ": permission denied", Remedy: "chown",
			})
		})
	}
}

// TestDoctorReadsAsTheRunningGateway: while one runs, its user's rights count, and
// not those of root, who asks.
func TestDoctorReadsAsTheRunningGateway(t *testing.T) {
	if !otherUsers(t) { // then there is nobody else to ask for
		return
	}
	p := newWorld(t, longLived, func(west, _ *site) { west.audit = "{file: audit.jsonl}" })
	p.applyRules()
	p.mode = with("1", "nobody", "net_raw")
	p.giveAway(nobodyID)
	p.west, p.east = p.startAs(p.West, "west"), p.startAs(p.East, "east")
	for _, name := range []string{"west.key", "west.yaml", "audit.jsonl"} {
		chmod(t, p, name, 0o600)
	}
	findings := diagnoseAs(t, p, "1")
	mustFind(t, findings, doctor.Finding{Level: doctor.OK, Check: "identity"})
	mustFind(t, findings, doctor.Finding{Level: doctor.OK, Check: "audit", What: "can be written"})
	mustFind(t, findings, doctor.Finding{Level: doctor.OK, Check: "rules", What: "they stand"})
	// What the gateway's user may not read is root's alone.
	if err := os.Chown(filepath.Join(p.dir, "west.key"), 0, 0); err != nil {
		t.Fatal(err)
	}
	mustFind(t, diagnoseAs(t, p, "1"), doctor.Finding{Level: doctor.Fail, Check: "identity", What: "permission denied", Remedy: "chown it to the gateway's user"})
}

// TestDoctorAsksTheAgentAsTheGateway: nor may root's gateway connect to whatever
// socket it likes.
func TestDoctorAsksTheAgentAsTheGateway(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent.sock")
	agent, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	if err := os.Chmod(socket, 0); err != nil {
		t.Fatal(err)
	}
	p := newWorld(t, func(west, _ *site) { west.workloadAPI = "unix://" + socket })
	p.write(p.westSite, p.eastSite)
	mustFind(t, diagnoseAs(t, p, "1"), doctor.Finding{
		Level: doctor.Fail, Check: "identity", What: "connect to " + socket + ": permission denied", Remedy: "run doctor as that user",
	})
}

// TestDoctorMeetsItself: a peer that is this very gateway, as in a configuration
// copied from the other side, is said to be, and nothing is built on it.
func TestDoctorMeetsItself(t *testing.T) {
	copied := func(west, _ *site) {
		west.networks = `[10.1.0.0/16, "fd00:1::/64"]`
		west.peerNetworks = `[10.2.0.0/16, "fd00:2::/64", 192.0.2.10/32, "2001:db8::10/128"]`
		west.peerIDs, west.peerEndpoints = "[spiffe://"+domain+"/gateway/west]", `["192.0.2.10:15008"]`
	}
	for _, tt := range []struct {
		name string
		bend func(west, east *site)
		want doctor.Finding
	}{
		{"in everything", copied, doctor.Finding{Level: doctor.Fail, What: "is this gateway itself: " +
			"192.0.2.10:15008 is where it listens, 192.0.2.10/32 is its address, 2001:db8::10/128 is its address, spiffe://mesh.example/gateway/west is its id"}},
		{"in an endpoint", func(west, _ *site) { west.peerEndpoints = `["[2001:db8::10]:15008", "192.0.2.20:15008"]` },
			doctor.Finding{Level: doctor.Fail, What: "is this gateway itself: [2001:db8::10]:15008 is where it listens"}},
		// Two gateways may well share one identity.
		{"in its id", func(west, east *site) {
			west.peerIDs, east.id = "[spiffe://"+domain+"/gateway/west]", "/gateway/west"
		}, doctor.Finding{Level: doctor.Warn, What: "has our own id spiffe://mesh.example/gateway/west"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newWorld(t, longLived, tt.bend)
			p.write(p.westSite, p.eastSite)
			east := p.eastSite
			east.peerIDs = "[spiffe://" + domain + "/gateway/west]"
			p.start(p.East, east, p.westSite)
			findings := diagnoseAs(t, p, "1")
			tt.want.Check, tt.want.Remedy = "peer east", "the other side"
			mustFind(t, findings, tt.want)
			if slices.ContainsFunc(findings, func(f doctor.Finding) bool { return f.Check == "local clients" && f.Level != doctor.OK }) {
				t.Errorf("there is advice on local clients:\n%s", indented(findings))
			}
		})
	}
}

// TestDoctorAdvises: what looks alike has its own remedy.
func TestDoctorAdvises(t *testing.T) {
	for _, tt := range []struct {
		name  string
		bend  func(west, east *site)
		mode  string
		want  doctor.Finding
		apply bool
	}{
		{
			name: "an address of nobody", mode: "1", bend: func(west, _ *site) { west.listen = `tunnel: ["192.0.2.99:15008"]` },
			want: doctor.Finding{Check: "ports", What: "cannot assign requested address", Remedy: "ip addr"},
		}, {
			name: "a port below 1024", mode: with("1", "net_raw"), apply: true, bend: func(west, _ *site) { west.listen = `tunnel: ["[::]:443"]` },
			want: doctor.Finding{Check: "ports", What: "permission denied", Remedy: "CAP_NET_BIND_SERVICE"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newWorld(t, longLived, tt.bend)
			p.write(p.westSite, p.eastSite)
			p.startEast()
			if tt.apply {
				p.applyRulesOn(p.West, "west")
			}
			tt.want.Level = doctor.Fail
			mustFind(t, diagnoseAs(t, p, tt.mode), tt.want)
		})
	}
}

// TestDoctorOnNames: a name that cannot be looked up is no peer that is down.
func TestDoctorOnNames(t *testing.T) {
	p := newWorld(t, longLived, func(west, _ *site) { west.peerEndpoints = `["east.invalid:15008"]` }) // RFC 6761
	p.write(p.westSite, p.eastSite)
	noDefaultRoute(t, p.West) // to a resolver, which is then not waited for
	for network, via := range map[string]string{"10.2.0.0/16": "192.0.2.20", "fd00:2::/64": "2001:db8::20"} {
		if err := p.West.Route(netip.MustParsePrefix(network), netip.MustParseAddr(via)); err != nil {
			t.Fatal(err)
		}
	}
	mustFind(t, diagnoseAs(t, p, "1"), doctor.Finding{
		Level: doctor.Fail, Check: "peer east", What: "lookup east.invalid", Remedy: "getent hosts east.invalid",
	})
}

// TestDoctorSaysWhatAFileIs: a list that is not there is no certificate that was
// not verified.
func TestDoctorSaysWhatAFileIs(t *testing.T) {
	p := newWorld(t, longLived, func(west, _ *site) { west.extra = "revoked: {crls: [mesh.crl]}" })
	p.write(p.westSite, p.eastSite)
	p.startEast()
	findings := diagnoseAs(t, p, "1")
	path := filepath.Join(p.dir, "mesh.crl")
	want := doctor.Finding{Level: doctor.Fail, Check: "revoked", What: "open " + path + ": no such file or directory", Remedy: "relative to the configuration file"}
	mustFind(t, findings, want)
	for _, f := range findings {
		if f.Check == "revoked" && f.What != want.What {
			t.Errorf("%q, want %q", f.What, want.What)
		}
	}
}
