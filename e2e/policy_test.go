package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/e2e/netlab"
)

// withPolicy gives east rules.
func withPolicy(rules ...string) func(west, east *site) {
	return func(_, east *site) { east.extra = policyOf(rules...) }
}

func policyOf(rules ...string) string {
	return "policy:\n  - " + strings.Join(rules, "\n  - ")
}

// reloadPolicy puts other rules in force at east.
func (p *pair) reloadPolicy(rules ...string) {
	p.t.Helper()
	p.eastSite.extra = policyOf(rules...)
	p.writeYAML(p.eastSite, p.westSite)
	n := strings.Count(p.east.Log(), "configuration reloaded")
	hangUp(p.t, p.east)
	eventually(p.t, "east has the new rules", func() bool { return strings.Count(p.east.Log(), "configuration reloaded") > n })
}

// listenAll listens on ports of the server, in its address of one family.
func listenAll(t *testing.T, p *pair, server netip.Addr, ports ...uint16) map[uint16]net.Listener {
	t.Helper()
	all := make(map[uint16]net.Listener)
	for _, port := range ports {
		all[port] = listen(t, p.Server, netip.AddrPortFrom(server, port))
	}
	return all
}

// mustBeDenied fails unless a connection is refused by a rule: the client gets a
// reset, the server gets nothing, east says which rule and who it was, and west no
// more than that it was denied.
func (p *pair) mustBeDenied(t *testing.T, from *netlab.Host, ln net.Listener, reason, rule string) {
	t.Helper()
	refused(t, from, addr(ln.Addr()))
	target := "target=" + ln.Addr().String()
	awaitLog(t, p.east, "connection refused", target, "direction=inbound", "reason="+reason, "by rule "+rule, "id=spiffe://mesh.example/gateway/west")
	if line := awaitLog(t, p.west, "connection refused", target, "direction=outbound", "reason=denied"); strings.Contains(line, rule) {
		t.Errorf("west is told the rule: %s", line)
	}
	nobody(t, ln)
}

// TestPolicy: rules at east decide about what west brings: one that denies, one
// that allows, and that one's destination denied to all others. A destination that
// no allow rule names stays open.
func TestPolicy(t *testing.T) {
	const allow, deny = "web-from-client", "no-telnet"
	p := newPair(t, withPolicy(
		`{name: `+allow+`, action: allow, from: {ids: ["spiffe://mesh.example/gateway/*"], peers: [west], networks: [10.1.0.2/32, "fd00:1::2/128"]}, to: {networks: [10.2.0.2/32, "fd00:2::2/128"], ports: [8080, "8090-8099"]}}`,
		`{name: `+deny+`, action: deny, to: {ports: [23]}}`,
	))
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			ln := listenAll(t, p, f.server, 23, 8080, 8081, 8095)
			for _, port := range []uint16{8080, 8081, 8095} {
				p.connect(t, p.Client, ln[port]).end(t)
			}
			p.connect(t, p.West, ln[8081]).end(t) // with an address of its own
			p.mustBeDenied(t, p.Client, ln[23], "policy_deny", deny)
			p.mustBeDenied(t, p.West, ln[8080], "policy_default_deny", allow)
			p.mustBeDenied(t, p.West, ln[8095], "policy_default_deny", allow)
		})
	}
	s := status(t, p.east)
	if s.Refused["policy_deny"] != 2 || s.Refused["policy_default_deny"] != 4 || s.Connections["inbound"].Opened != 14 {
		t.Errorf("refused %v of %d", s.Refused, s.Connections["inbound"].Opened)
	}
	for _, tt := range []struct{ source, target, verdict, rule, step string }{
		{"10.1.0.2", "10.2.0.2:8080", "delivered to 10.2.0.2:8080", allow, "rule web-from-client (%s) allows it"},
		{"192.0.2.10", "10.2.0.2:8080", "refused", allow, "rule web-from-client (%s) names 10.2.0.2:8080"},
		{"fd00:1::2", "[fd00:2::2]:23", "refused", deny, "rule no-telnet (%s) denies it"},
		{"10.1.0.2", "10.2.0.2:8081", "delivered to 10.2.0.2:8081", "", "no allow rule names 10.2.0.2:8081"},
	} {
		e := wishboneJSON[daemon.Explanation](t, p.east, p.East, "explain", tt.source, tt.target, "--as", "spiffe://mesh.example/gateway/west")
		step := strings.Replace(tt.step, "%s", e.RuleAt, 1)
		if e.Verdict != tt.verdict || e.Rule != tt.rule || !strings.Contains(strings.Join(e.Steps, "\n"), step) || (tt.rule != "") != strings.Contains(e.RuleAt, "east.yaml:") {
			t.Errorf("explain %s %s: %+v, want %s, because %s", tt.source, tt.target, e, tt.verdict, step)
		}
	}
}

// TestPolicyNeverWidens: what ownership refuses stays refused, though a rule
// allows everything.
func TestPolicyNeverWidens(t *testing.T) {
	p := newWorld(t, withPolicy("{name: everything, action: allow}"))
	p.startEast()
	listen(t, p.Server, web)
	r := newRogue(p, "/gateway/west")
	for _, tt := range []struct{ source, target, status, reason string }{
		{"10.1.0.2:40000", web.String(), "200", ""},
		{"10.2.0.9:40000", web.String(), "401", "source_not_owned"},
		{"10.1.0.2:40000", "10.1.0.9:80", "401", "target_not_served"},
		{"10.1.0.2:40000", "169.254.169.254:80", "401", "bad_target"},
	} {
		if status, reason := r.connect(tt.target, `for="`+tt.source+`"`); status != tt.status || status != "200" && reason != "denied" {
			t.Errorf("%s as %s: answer %s %q, want %s", tt.target, tt.source, status, reason, tt.status)
		}
		if tt.reason != "" {
			awaitLog(t, p.east, "connection refused", "target="+tt.target, "reason="+tt.reason)
		}
	}
}

// TestPolicyReload: other rules cut the live connections that they forbid, within
// two seconds, and no others; and what they permit again is carried again.
func TestPolicyReload(t *testing.T) {
	const open = "{name: no-telnet, action: deny, to: {ports: [23]}}"
	for _, tt := range []struct{ rule, reason string }{
		{`{name: closed, action: deny, from: {networks: [10.1.0.2/32, "fd00:1::2/128"]}, to: {ports: [8081]}}`, "policy_deny"},
		{`{name: closed, action: allow, from: {networks: [192.0.2.10/32, "2001:db8::10/128"]}, to: {ports: [8081]}}`, "policy_default_deny"},
	} {
		t.Run(tt.reason, func(t *testing.T) {
			p := newPair(t, withPolicy(open))
			var stay, gone []carried
			var again []net.Listener
			for _, f := range families {
				ln := listenAll(t, p, f.server, 8080, 8081)
				stay = append(stay, p.connect(t, p.Client, ln[8080]), p.connect(t, p.West, ln[8081]))
				gone = append(gone, p.connect(t, p.Client, ln[8081]))
				again = append(again, ln[8081])
			}
			for _, c := range gone {
				for _, end := range []*net.TCPConn{c.client, c.server} {
					if err := end.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
						t.Fatal(err)
					}
				}
			}
			p.reloadPolicy(open, tt.rule)
			for _, c := range gone {
				for _, end := range []*net.TCPConn{c.client, c.server} {
					if err := readEnd(t, end); !isReset(err) {
						t.Errorf("a connection that is forbidden now ends with %v, want a reset", err)
					}
				}
				awaitLog(t, p.east, "connection closed", "why=cut", "client="+c.client.LocalAddr().String(), tt.reason+" by rule closed", "id=spiffe://mesh.example/gateway/west")
			}
			for _, c := range stay {
				exchange(t, c.client, c.server)
			}
			if n := len(flows(t, p.east)); n != len(stay) {
				t.Errorf("%d connections live, want the %d that are permitted", n, len(stay))
			}
			for _, ln := range again {
				p.mustBeDenied(t, p.Client, ln, tt.reason, "closed")
			}
			p.reloadPolicy(open)
			for _, ln := range again {
				p.connect(t, p.Client, ln).end(t)
			}
			for _, c := range stay {
				c.end(t)
			}
		})
	}
}

// TestPolicyDryRun: a rule in dry run lets pass what it would refuse, and says so
// in the log and in the counters; in force it refuses, and cuts.
func TestPolicyDryRun(t *testing.T) {
	rules := func(dry bool) []string {
		return []string{
			fmt.Sprintf(`{name: no-web, action: deny, to: {ports: [8080]}, dryRun: %t}`, dry),
			fmt.Sprintf(`{name: db-only-from-west, action: allow, from: {networks: [192.0.2.10/32]}, to: {ports: [5432]}, dryRun: %t}`, dry),
		}
	}
	p := newPair(t, withPolicy(rules(true)...))
	ln := listenAll(t, p, netlab.Server4, 8080, 8081, 5432)
	for _, tt := range []struct {
		from *netlab.Host
		port uint16
		rule string
	}{
		{p.Client, 8080, "no-web"}, {p.Client, 5432, "db-only-from-west"}, {p.West, 5432, ""}, {p.Client, 8081, ""},
	} {
		c := p.connect(t, tt.from, ln[tt.port])
		client := c.client.LocalAddr().String()
		c.end(t)
		e := wishboneJSON[daemon.Explanation](t, p.east, p.East, "explain", client, ln[tt.port].Addr().String())
		if e.DryRun != tt.rule || !strings.HasPrefix(e.Verdict, "delivered to ") {
			t.Errorf("explained as %+v, want %q in dry run", e, tt.rule)
		}
		line := awaitLog(t, p.east, "connection closed", "client="+client, "why=closed", "id=spiffe://mesh.example/gateway/west")
		if strings.Contains(line, "dryRun=") != (tt.rule != "") || !strings.Contains(line, "dryRun="+tt.rule) && tt.rule != "" {
			t.Errorf("of rules in dry run, want %q in: %s", tt.rule, line)
		}
	}
	if s := status(t, p.east); s.DryRun["no-web"] != 1 || s.DryRun["db-only-from-west"] != 1 || len(s.Refused) != 0 {
		t.Errorf("dry run %v, refused %v", s.DryRun, s.Refused)
	}
	series := scrape(t, p.East)
	for _, rule := range []string{"no-web", "db-only-from-west"} {
		if got := series[`wishbone_policy_dry_run_total{rule="`+rule+`"}`]; got != 1 {
			t.Errorf("the metric of %s is %v", rule, got)
		}
	}
	mustMatch(t, wishbone(t, p.east, p.East, "status"), `^dry run +db-only-from-west 1, no-web 1$`)

	live := p.connect(t, p.Client, ln[8080])
	p.reloadPolicy(rules(false)...)
	for _, end := range []*net.TCPConn{live.client, live.server} {
		if err := readEnd(t, end); !isReset(err) {
			t.Errorf("a connection that is forbidden now ends with %v, want a reset", err)
		}
	}
	p.mustBeDenied(t, p.Client, ln[8080], "policy_deny", "no-web")
	p.mustBeDenied(t, p.Client, ln[5432], "policy_default_deny", "db-only-from-west")
	p.connect(t, p.West, ln[5432]).end(t)
}
