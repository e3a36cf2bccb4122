package e2e

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestMended: rules that somebody takes away are missed within seconds, said to
// be missing, and put back; what is carried by then goes on.
func TestMended(t *testing.T) {
	for _, tt := range []struct{ backend, take, missing string }{
		{"nftables", "nft flush ruleset", "table inet wishbone"},
		{"nftables", "nft flush chain inet wishbone pre", "chain pre in table inet wishbone"},
		{"nftables", "ip rule del pref 1509", "IPv4 policy rule 1509"},
		{"nftables", "ip -6 route flush table 15008", "IPv6 route of table 15008"},
		{"iptables", "iptables -t mangle -F PREROUTING", "iptables rule PREROUTING"},
		{"iptables", "ip6tables -t mangle -F", "ip6tables rule PREROUTING"},
	} {
		t.Run(tt.take, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, onFirewall(tt.backend))
			ln := listen(t, p.Server, web)
			live := p.open(ln)
			f := strings.Fields(tt.take)
			output(t, p.West, f[0], f[1:]...)
			awaitLog(t, p.west, "rules were taken away", tt.missing)
			awaitLog(t, p.west, "rules are back")
			exchange(t, live.client, live.server)
			live.end(t)
			p.open(ln).end(t)
			if s := status(t, p.west); s.State != "ready" {
				t.Errorf("west is %q, want ready", s.State)
			}
			stop(t, p)
		})
	}
}

// TestRulesWithoutGateway: rules that a killed gateway left behind refuse
// everything, and whoever asks is told so; from under a living gateway nobody
// takes them.
func TestRulesWithoutGateway(t *testing.T) {
	p := newPair(t)
	config := filepath.Join(p.dir, "west.yaml")
	if code, out := runOn(t, p.West, "1", "rules", "remove", "-c", config); code != 1 || !strings.Contains(out, "gateway west is running") || !strings.Contains(out, "hint: stop it first") {
		t.Errorf("rules remove beside a gateway: exit code %d\n%s", code, out)
	}
	p.open(listen(t, p.Server, web)).end(t)
	if err := p.west.Kill(); err != nil {
		t.Fatal(err)
	}
	code, out := runOn(t, p.West, "1", "doctor", "-c", config)
	if code != 1 || !strings.Contains(out, "no gateway runs, but the rules of one stand") {
		t.Errorf("doctor: exit code %d\n%s", code, out)
	}
	if code, out := runOn(t, p.West, "1", "rules", "remove", "-c", config); code != 0 || !strings.Contains(out, "rules removed (nftables)") {
		t.Errorf("rules remove: exit code %d\n%s", code, out)
	}
}
