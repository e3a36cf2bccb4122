package rules

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wishbone/e2e/netlab"
)

// eachIPTables runs a test with each variant of iptables that this machine has.
func eachIPTables(t *testing.T, f func(t *testing.T, b *iptablesBackend)) {
	for _, variant := range []string{"nft", "legacy"} {
		t.Run(variant, func(t *testing.T) {
			if useIPTables(t, variant) {
				f(t, newIPTables(t))
			}
		})
	}
}

// useIPTables makes a variant the one that is called iptables: both may be
// installed. It says false where the variant, or what shows its work, is missing.
func useIPTables(t *testing.T, variant string) bool {
	t.Helper()
	dir := t.TempDir()
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, what := range []string{"", "-restore", "-save"} {
			name := family + "-" + variant + what
			if !have(t, name) {
				return false
			}
			path, err := exec.LookPath(name)
			if err == nil {
				err = os.Symlink(path, filepath.Join(dir, family+what))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	// The older variant's lock is a file that an ordinary user may not open.
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(dir, "lock"))
	return have(t, "ipset") && have(t, "ip")
}

func newIPTables(t *testing.T) *iptablesBackend {
	t.Helper()
	b, err := IPTables()
	if err != nil {
		t.Fatal(err)
	}
	return b.(*iptablesBackend)
}

// applyWith applies a plan on a host.
func applyWith(t *testing.T, h *netlab.Host, b Backend, p Plan) {
	t.Helper()
	on(t, h, func() error { return b.Apply(p) })
}

// script runs a shell script on a host.
func script(t *testing.T, h *netlab.Host, text string) {
	t.Helper()
	output(t, h, text, "sh", "-e", "-s")
}

// waitCount waits until a counter has come to n.
func waitCount(t *testing.T, h *netlab.Host, b Backend, name string, n uint64) {
	t.Helper()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	var counts map[string]uint64
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-poll.C {
		on(t, h, func() (err error) {
			counts, err = b.Counters()
			return err
		})
		if counts[name] >= n {
			return
		}
	}
	t.Errorf("counters on %s: %v, want %s to be %d or more", h.Name(), counts, name, n)
}

// watch looks at an interface. What it returns fails the test if anything of port
// 7000 has crossed it since.
func watch(t *testing.T, h *netlab.Host, ifname string) (requireSilence func()) {
	t.Helper()
	c, err := h.Capture(ifname)
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		seen, err := c.Stop()
		if err != nil {
			t.Fatal(err)
		}
		if packets, _ := seen.Count(0, 7000); packets != 0 {
			t.Errorf("went plain:\n%v", seen)
		}
	}
}

// eastPlan is westPlan for the gateway east.
func eastPlan() Plan {
	p := westPlan()
	p.Own = prefixes("10.2.0.0/16", "fd00:2::/64") // not its outer address: that is guarded as this host's
	p.Peers = []Peer{{Name: "west", Networks: prefixes("10.1.0.0/16", "fd00:1::/64")}}
	return p
}

// iptablesState is what rules of any kind a host has, without counters and what
// the newer iptables makes by looking: empty tables and built-in chains. Sets
// count as the same whatever their generation.
func iptablesState(t *testing.T, h *netlab.Host) string {
	t.Helper()
	var state []string
	for _, command := range []string{
		"iptables-save", "ip6tables-save", "ipset save", "ip -4 rule", "ip -6 rule",
		"ip -4 route show table all", "ip -6 route show table all",
	} {
		words := strings.Fields(command)
		lines := strings.Split(strings.TrimSpace(output(t, h, "", words[0], words[1:]...)), "\n")
		if words[0] == "ipset" {
			slices.Sort(lines) // members are in no order
		}
		table := command
		for _, line := range lines {
			if strings.HasPrefix(line, "*") {
				table = command + line
				continue
			}
			line, _, _ = strings.Cut(line, " [") // counters of a chain
			line, _, _ = strings.Cut(line, " hashsize")
			if line == "" || line == "COMMIT" || line[0] == '#' || line[0] == ':' && !strings.HasSuffix(line, " -") {
				continue
			}
			state = append(state, table+": "+line)
		}
	}
	return strings.NewReplacer("_b", "_a", "_c", "_a").Replace(strings.Join(state, "\n"))
}
