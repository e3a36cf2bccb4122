package e2e

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// rooms is the house: which room may use which of ours, and of others what is
// kept to few rooms. An arrow that is not here is a wall; move one on purpose.
var rooms = map[string][]string{
	"cmd/wishbone":        {"cmd/wishbone/cli"},
	"cmd/wishbone/cli":    {"cmd/wishbone/daemon", "cmd/wishbone/doctor", "cmd/wishbone/lab", "config", "e2e/netlab", "identity/ca", "intercept/rules"},
	"cmd/wishbone/daemon": {"config", "identity", "identity/authz", "identity/workload", "intercept", "intercept/rules", "tunnel", "tunnel/engine", "tunnel/hbone", "tunnel/record", "tunnel/route"},
	"cmd/wishbone/doctor": {"cmd/wishbone/daemon", "config", "identity", "identity/workload", "intercept", "intercept/rules"},
	"cmd/wishbone/lab":    {"cmd/wishbone/daemon", "e2e/netlab", "identity/identitytest"},
	"config":              {},

	"tunnel":        {"identity/authz", "intercept", "tunnel/engine", "tunnel/hbone", "tunnel/pool", "tunnel/record", "tunnel/route"},
	"tunnel/engine": {"tunnel/hbone", "tunnel/record"},
	"tunnel/hbone":  {},
	"tunnel/record": {},
	"tunnel/pool":   {"tunnel/route"},
	"tunnel/route":  {},

	"intercept":       {},
	"intercept/rules": {},

	"identity":              {},
	"identity/authz":        {},
	"identity/ca":           {},
	"identity/identitytest": {},
	"identity/workload":     {"identity"},

	"identity/workload/workloadtest": {},

	"e2e":        {},
	"e2e/netlab": {},
}

// kept are packages of others that only some rooms may use, and why.
var kept = []struct {
	pkg   string
	rooms []string
	why   string
}{
	{"google.golang.org/grpc", []string{"identity/workload", "identity/workload/workloadtest"}, "all of gRPC is in the Workload API's room"},
	{"github.com/spiffe/go-spiffe/v2/workloadapi", []string{"identity/workload"}, "all of gRPC is in the Workload API's room"},
	{"crypto/tls", []string{"identity", "tunnel/record", "cmd/wishbone/daemon", "cmd/wishbone/doctor"}, "what a session is decided by is in identity, what it does in record"},
	{"golang.org/x/net/http2", []string{"tunnel/hbone", "tunnel/engine"}, "frames are hbone's affair; engine names two error codes"},
	{"net/http", []string{"cmd/wishbone/cli", "cmd/wishbone/daemon", "cmd/wishbone/lab"}, "HTTP for people is the command's affair, HTTP for tunnels hbone's"},
	{"github.com/google/nftables", []string{"intercept/rules", "cmd/wishbone/doctor"}, "rules are written in one room; the doctor reads them"},
	{"github.com/coreos/go-iptables", []string{"intercept/rules"}, "rules are written in one room"},
	{"github.com/goccy/go-yaml", []string{"config"}, "files are read in one room"},
	{"github.com/spf13/cobra", []string{"cmd/wishbone/cli"}, "commands are the command line's"},
	{"github.com/prometheus/client_golang", []string{"cmd/wishbone/daemon"}, "rooms count; one place shows"},
	{"testing", nil, "no test helper in the program"},
}

const module = "wishbone/"

// TestRooms holds the house together. What go list says is not in the cache key
// of a test, so it counts only with -count=1.
func TestRooms(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}|{{.Doc}}|{{join .Imports " "}}`, module+"...").CombinedOutput()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, out)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		parts := strings.SplitN(strings.TrimSpace(line), "|", 3)
		if len(parts) != 3 {
			t.Fatalf("go list said %q", line)
		}
		room := strings.TrimPrefix(parts[0], module)
		seen[room] = true
		checkRoom(t, room, parts[1], strings.Fields(parts[2]))
	}
	for room := range rooms {
		if !seen[room] {
			t.Errorf("%s is in the plan of the house, but is not there", room)
		}
	}
}

func checkRoom(t *testing.T, room, doc string, imports []string) {
	allowed, planned := rooms[room]
	if !planned {
		t.Errorf("%s is not in the plan of the house: which room does it belong to?", room)
	}
	if doc == "" {
		t.Errorf("%s does not say what it is for (doc.go)", room)
	}
	for _, p := range imports {
		if ours, ok := strings.CutPrefix(p, module); ok && !slices.Contains(allowed, ours) {
			t.Errorf("%s may not import %s", room, ours)
		}
		for _, k := range kept {
			if (p == k.pkg || strings.HasPrefix(p, k.pkg+"/")) && !slices.Contains(k.rooms, room) {
				t.Errorf("%s may not import %s: %s", room, p, k.why)
			}
		}
	}
}
