package e2e

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
)

// TestReadme does what README says about two VMs, word for word, and finds a
// connection carried. Only the path of the admin socket is added, since the VMs
// of the lab share a file system.
func TestReadme(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	p := newWorld(t)
	for _, line := range regexp.MustCompile(`(?m)^wishbone ca .*$`).FindAllString(string(readme), -1) {
		command, _, _ := strings.Cut(line, "#")
		args := strings.Fields(command)[1:]
		cwd := append([]string{args[0], args[1], "--dir", filepath.Join(p.dir, "ca")}, args[2:]...)
		if args[1] == "issue" {
			cwd = append(cwd, "--out", filepath.Join(p.dir, filepath.Base(args[2])))
		}
		if code, out := runOn(t, p.West, "1", cwd...); code != 0 {
			t.Fatalf("%s: exit code %d\n%s", line, code, out)
		}
	}
	block := regexp.MustCompile("(?s)```yaml\n# a.yaml\n(.*?)```").FindSubmatch(readme)
	if block == nil {
		t.Fatal("README has no configuration for VM a")
	}
	a := string(block[1])
	if n := strings.Count(a, "\n"); n > 15 {
		t.Errorf("the configuration has %d lines, want 15 at most", n)
	}
	// "On VM b the same with the names and addresses exchanged."
	b := strings.NewReplacer("192.0.2.10", "192.0.2.20", "192.0.2.20", "192.0.2.10",
		"name: a", "name: b", "name: b", "name: a", "a.pem", "b.pem", "a.key", "b.key", "gateway/b", "gateway/a").Replace(a)
	start := func(h *netlab.Host, name, text string) *lab.Gateway {
		text += "listen: {admin: " + filepath.Join(p.dir, name+".sock") + "}\n"
		if err := os.WriteFile(filepath.Join(p.dir, name+".yaml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return p.startAs(h, name)
	}
	p.west, p.east = start(p.West, "a", a), start(p.East, "b", b)
	if code, out := runOn(t, p.West, "1", "doctor", "-c", filepath.Join(p.dir, "a.yaml")); code != 0 || strings.Contains(out, "fail ") {
		t.Errorf("doctor: exit code %d\n%s", code, out)
	}
	at := netip.AddrPortFrom(netlab.EastOuter4, 8080)
	p.connect(t, p.West, listen(t, p.East, at))
}
