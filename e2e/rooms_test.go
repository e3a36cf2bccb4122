package e2e

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rooms is the house: which room may use which of ours, and of others what is
// kept to few rooms. An arrow that is not here is a wall; move one on purpose.
var rooms = map[string][]string{
	"cmd/wishbone":        {"cmd/wishbone/cli"},
	"cmd/wishbone/cli":    {"cmd/wishbone/daemon", "cmd/wishbone/doctor", "cmd/wishbone/lab", "config", "e2e/netlab", "identity/ca", "intercept/rules"},
	"cmd/wishbone/daemon": {"audit", "config", "identity", "identity/authz", "identity/workload", "intercept", "intercept/rules", "tunnel", "tunnel/engine", "tunnel/hbone", "tunnel/record", "tunnel/route"},
	"cmd/wishbone/doctor": {"cmd/wishbone/daemon", "config", "identity", "identity/workload", "intercept", "intercept/rules"},
	"cmd/wishbone/lab":    {"cmd/wishbone/daemon", "e2e/netlab", "identity/identitytest"},
	"cmd/wishbone-bench":  {"cmd/wishbone/cli", "cmd/wishbone/lab", "e2e/netlab", "identity/identitytest"},
	"audit":               {},
	"config":              {},

	"tunnel":        {"identity/authz", "intercept", "tunnel/engine", "tunnel/hbone", "tunnel/pool", "tunnel/record", "tunnel/route"},
	"tunnel/engine": {"tunnel/hbone", "tunnel/record"},
	"tunnel/hbone":  {},
	"tunnel/record": {"tunnel/record/gcm"},
	"tunnel/pool":   {"tunnel/route"},
	"tunnel/route":  {},

	"tunnel/record/gcm": {},

	"intercept":       {},
	"intercept/rules": {},

	"identity":              {},
	"identity/authz":        {},
	"identity/ca":           {},
	"identity/identitytest": {},
	"identity/workload":     {"identity"},

	"identity/workload/workloadtest": {},

	"deploy": {},

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
	{"net/http", []string{"cmd/wishbone/daemon", "cmd/wishbone/lab"}, "HTTP for people is the command's affair, HTTP for tunnels hbone's"},
	{"github.com/google/nftables", []string{"intercept/rules", "cmd/wishbone/doctor"}, "rules are written in one room; the doctor reads them"},
	{"github.com/coreos/go-iptables", []string{"intercept/rules"}, "rules are written in one room"},
	{"github.com/landlock-lsm/go-landlock", []string{"cmd/wishbone/daemon"}, "the gateway closes the file system to itself"},
	{"github.com/goccy/go-yaml", []string{"config"}, "files are read in one room"},
	{"github.com/spf13/cobra", []string{"cmd/wishbone/cli"}, "commands are the command line's"},
	{"github.com/prometheus/client_golang", []string{"cmd/wishbone/daemon"}, "rooms count; one place shows"},
	{"testing", nil, "no test helper in the program"},
}

const module = "wishbone/"

// TestRooms holds the house together. It reads the sources itself: the go command
// might want the network, which is not here.
func TestRooms(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		case path != ".." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata"):
			return fs.SkipDir
		}
		doc, imports, err := readRoom(path)
		if imports == nil || err != nil {
			return err
		}
		room := strings.TrimPrefix(filepath.ToSlash(path), "../")
		seen[room] = true
		checkRoom(t, room, doc, imports)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for room := range rooms {
		if !seen[room] {
			t.Errorf("%s is in the plan of the house, but is not there", room)
		}
	}
}

// readRoom reads what the package in a directory says of itself, and what it
// imports, tests apart; nil where there is no package.
func readRoom(dir string) (doc string, imports []string, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return "", nil, err
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return "", nil, err
		}
		doc += f.Doc.Text()
		imports = append(imports, "") // a package, though it may import nothing
		for _, i := range f.Imports {
			imports = append(imports, strings.Trim(i.Path.Value, `"`))
		}
	}
	return doc, imports, nil
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
