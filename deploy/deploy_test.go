package deploy

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wishbone/cmd/wishbone/cli"
	"wishbone/cmd/wishbone/daemon"
	"wishbone/config"
)

// program is where units look for it.
const program = "/usr/bin/wishbone"

// units are those there are.
var units = []string{"wishbone.service", "wishbone-rules.service"}

// unit is what a unit says: the values of each key, as "Service.User".
type unit map[string][]string

// readUnit reads a unit as systemd.syntax(7) has it, without its rarer parts.
func readUnit(t *testing.T, name string) unit {
	t.Helper()
	u, section := unit{}, ""
	for line := range strings.Lines(unitText(t, name)) {
		line = strings.TrimSpace(line)
		key, value, assigns := strings.Cut(line, "=")
		switch {
		case line == "", line[0] == '#':
		case line[0] == '[':
			section = strings.Trim(line, "[]")
		case assigns:
			u[section+"."+key] = append(u[section+"."+key], value)
		default:
			t.Errorf("%s: what is %q?", name, line)
		}
	}
	return u
}

func unitText(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("systemd", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// one is the only value of a key.
func (u unit) one(t *testing.T, key string) string {
	t.Helper()
	if len(u[key]) != 1 {
		t.Fatalf("%s is %q, want one value", key, u[key])
	}
	return u[key][0]
}

// words are those of all values of a key.
func (u unit) words(key string) []string { return strings.Fields(strings.Join(u[key], " ")) }

// needs is for programs that a gateway itself can do without.
func needs(t *testing.T, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", name)
	}
	t.Skipf("LEFT OUT: %s is not installed", name)
}

// TestVerify has systemd itself read the units, and judge how far they are closed.
func TestVerify(t *testing.T) {
	needs(t, "systemd-analyze")
	dir := t.TempDir()
	var paths []string
	for _, name := range units {
		// The program is not installed here.
		text := strings.ReplaceAll(unitText(t, name), program, "/bin/true")
		paths = append(paths, filepath.Join(dir, name))
		if err := os.WriteFile(paths[len(paths)-1], []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	analyze := func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), "systemd-analyze", args...).CombinedOutput()
		return string(out), err
	}
	if out, err := analyze(append([]string{"verify", "--man=no"}, paths...)...); err != nil || out != "" {
		t.Errorf("verify: %v\n%s", err, out)
	}
	for i, exposure := range []string{"25", "55"} { // tenths; 100 is a service without any restriction
		if out, err := analyze("security", "--offline=true", "--no-pager", "--threshold="+exposure, paths[i]); err != nil {
			t.Errorf("%s is more exposed than %s tenths: %v\n%s", units[i], exposure, err, out)
		}
	}
	if err := os.WriteFile(paths[0], []byte("[Service]\nTyp=notify\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := analyze("verify", "--man=no", paths[0]); err == nil && out == "" {
		t.Error("systemd-analyze finds no mistake in anything")
	}
}

// TestUser: the user and group that the gateway runs as are made, and its group is
// the one that the admin socket is given to.
func TestUser(t *testing.T) {
	u := readUnit(t, "wishbone.service")
	user, group := u.one(t, "Service.User"), u.one(t, "Service.Group")
	text, err := os.ReadFile("sysusers.d/wishbone.conf")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "\nu "+user+" ") || group != user || user != "wishbone" {
		t.Errorf("user %s, group %s, made by\n%s", user, group, text)
	}
	needs(t, "systemd-sysusers")
	path, err := filepath.Abs("sysusers.d/wishbone.conf")
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "root")
	if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "systemd-sysusers", "--dry-run", "--root="+root, path).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("Creating user 'wishbone'")) || !bytes.Contains(out, []byte("Creating group 'wishbone'")) {
		t.Errorf("systemd-sysusers: %v\n%s", err, out)
	}
}

// TestCapabilities: the gateway gets no capability but those that it can use, and
// not the one that the other unit has instead.
func TestCapabilities(t *testing.T) {
	u := readUnit(t, "wishbone.service")
	ambient, bounding := u.words("Service.AmbientCapabilities"), u.words("Service.CapabilityBoundingSet")
	if want := strings.Fields((daemon.NetRaw | daemon.NetBindService).String()); !slices.Equal(ambient, want) || !slices.Equal(bounding, want) {
		t.Errorf("ambient %q, bounding %q, want %q", ambient, bounding, want)
	}
	rules := readUnit(t, "wishbone-rules.service").words("Service.CapabilityBoundingSet")
	if !slices.Contains(rules, daemon.NetAdmin.String()) {
		t.Errorf("rules with %q", rules)
	}
	// SystemCallErrorNumber makes the gateway take the lack of these for a kernel without Landlock.
	for _, call := range []string{"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"} {
		if !slices.Contains(u.words("Service.SystemCallFilter"), call) {
			t.Errorf("%s is filtered", call)
		}
	}
}

// TestCommands: what the units start are commands that there are.
func TestCommands(t *testing.T) {
	for _, name := range units {
		u := readUnit(t, name)
		for _, key := range []string{"ExecStart", "ExecReload", "ExecStop"} {
			for _, line := range u["Service."+key] {
				words := strings.Fields(line)
				if words[0] != program {
					continue
				}
				// The right command misses its configuration, any other is a mistake before that.
				missing := filepath.Join(t.TempDir(), "missing.yaml")
				var out bytes.Buffer
				code := cli.Main(strings.Fields(strings.ReplaceAll(strings.Join(words[1:], " "), "/etc/wishbone/wishbone.yaml", missing)), nil, &out, &out)
				if code != 2 || !strings.Contains(out.String(), "read configuration: open "+missing) {
					t.Errorf("%s: %s: exit code %d\n%s", name, line, code, out.String())
				}
			}
		}
	}
}

// TestPaths: the directories that the units make are those of the defaults.
func TestPaths(t *testing.T) {
	cfg, err := config.Parse("wishbone.yaml", []byte(`version: 1
name: west
identity: {workloadAPI: unix:///run/agent.sock}
networks: [10.1.0.0/16]
limits: {memory: 64MiB}
peers: [{name: east, ids: [spiffe://mesh.example/gateway/east], endpoints: ["192.0.2.20:15008"], networks: [10.2.0.0/16]}]
`))
	if err != nil {
		t.Fatal(err)
	}
	u := readUnit(t, "wishbone.service")
	if want := "/run/" + u.one(t, "Service.RuntimeDirectory"); filepath.Dir(cfg.Listen.Admin) != want {
		t.Errorf("the admin socket is %s, and %s is made", cfg.Listen.Admin, want)
	}
	if want := fmt.Sprintf("-c /etc/%s/wishbone.yaml", u.one(t, "Service.ConfigurationDirectory")); !strings.HasSuffix(u.one(t, "Service.ExecStart"), want) {
		t.Errorf("%s, want %s", u.one(t, "Service.ExecStart"), want)
	}
	// Until the gateway has asked for more.
	stop, err := time.ParseDuration(u.one(t, "Service.TimeoutStopSec") + "s")
	if err != nil || stop < cfg.Drain.Grace {
		t.Errorf("killed %s after it was told to stop (%v), and drain.grace is %s", stop, err, cfg.Drain.Grace)
	}
}

// TestOrder: the gateway starts after its rules, and stops before they go.
func TestOrder(t *testing.T) {
	gateway, rules := readUnit(t, "wishbone.service"), readUnit(t, "wishbone-rules.service")
	if !slices.Contains(gateway.words("Unit.After"), "wishbone-rules.service") || !slices.Contains(rules.words("Install.RequiredBy"), "wishbone.service") {
		t.Errorf("gateway after %q, rules required by %q", gateway["Unit.After"], rules["Install.RequiredBy"])
	}
	if !slices.Contains(rules.words("Unit.Before"), "network-pre.target") {
		t.Errorf("rules before %q", rules["Unit.Before"])
	}
}
