package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
)

// routingComment is a command of the policy routing in the text for nft.
var routingComment = regexp.MustCompile(`(?m)^# (ip -[46] .*)$`)

// byHand does what a person does with the printed rules of a backend.
func byHand(t *testing.T, h *netlab.Host, backend, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if backend == "iptables" {
		needs(t, "iptables-restore", "ip6tables-restore", "ipset", "ip")
		output(t, h, "sh", "-e", file)
		return
	}
	commands := routingComment.FindAllStringSubmatch(text, -1)
	if len(commands) == 0 {
		t.Error("the text for nft does not say what to do about routing")
	}
	for _, c := range commands {
		words := strings.Fields(c[1])
		output(t, h, words[0], words[1:]...)
	}
	output(t, h, "nft", "-f", file)
}

// TestByHand: with firewall: none the gateway installs nothing, says so, and
// says where to find what has to be there. The rules that are printed, for
// either firewall, do what those do that the gateway installs itself.
func TestByHand(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newWorld(t, onFirewall("none"))
			before := hostState(t, p.West)
			p.startWest()
			p.startEast()
			for _, g := range []*lab.Gateway{p.west, p.east} {
				awaitLog(t, g, "level=WARN", "firewall: none", "wishbone rules prints what has to be there")
			}
			if d := difference(before, hostState(t, p.West)); d != "" {
				t.Errorf("it has changed the host all the same:\n%s", d)
			}
			p.goes(t, p.Client, netlab.Client4, p.Server, web, inTheClear)
			if status(t, p.west).Firewall != "none" {
				t.Errorf("status says firewall %q", status(t, p.west).Firewall)
			}

			for _, side := range []struct {
				host *netlab.Host
				s, o site
			}{{p.West, p.westSite, p.eastSite}, {p.East, p.eastSite, p.westSite}} {
				byHand(t, side.host, backend, p.print(t, side.s, side.o, backend))
			}
			p.each(t, []connection{
				{atClient, atServer, 8080, throughTunnel},
				{atWest, atEast, 8080, throughTunnel},
				{atServer, atClient, 8080, throughTunnel},
			})
			installed := hostState(t, p.West)
			stop(t, p)
			if d := difference(installed, hostState(t, p.West)); d != "" {
				t.Errorf("it has taken away what is not its own:\n%s", d)
			}
			unreachable(t, p.Client, web)
		})
	}
}

// print is what wishbone rules prints for one kind of firewall.
func (p *pair) print(t *testing.T, s, other site, backend string) string {
	t.Helper()
	s.name, s.firewall = s.name+"-printed", backend
	p.writeYAML(s, other)
	code, out := runOn(t, p.West, "1", "rules", "-c", filepath.Join(p.dir, s.name+".yaml"))
	if code != 0 || out == "" {
		t.Fatalf("wishbone rules: exit code %d\n%s", code, out)
	}
	return out
}

// TestRulesOfNobody: there is nothing to apply or remove where the rules are the
// operator's own; what is printed then are the texts for both firewalls.
func TestRulesOfNobody(t *testing.T) {
	p := newWorld(t, onFirewall("none"))
	p.writeYAML(p.westSite, p.eastSite)
	config := filepath.Join(p.dir, "west.yaml")
	for _, action := range []string{"apply", "remove"} {
		code, out := runOn(t, p.West, "1", "rules", action, "-c", config)
		if code != 2 || !strings.Contains(out, "the rules are yours") || !strings.Contains(out, "hint: wishbone rules prints") {
			t.Errorf("rules %s: exit code %d\n%s", action, code, out)
		}
	}
	code, out := runOn(t, p.West, "1", "rules", "-c", config)
	for _, want := range []string{"table inet wishbone {", "ip -6 route add local ::/0 dev lo table 15008", "ipset restore", "ip6tables-restore --noflush"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("rules: exit code %d, and %q is not in\n%s", code, want, out)
		}
	}
}
