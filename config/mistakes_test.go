package config

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// base is a file without a mistake, and with little in it. What a test adds
// begins on line 9.
const base = `version: 1
identity: {workloadAPI: unix:///run/agent.sock}
networks: [10.1.0.0/16]
peers:
  - name: east
    ids: [spiffe://mesh.example/gateway/east]
    endpoints: ["192.0.2.20:15008"]
    networks: [10.2.0.0/16, "fd00:2::/64"]
`

// second is another peer, from line 9 on.
const second = `  - name: south
    ids: [spiffe://mesh.example/gateway/south]
    endpoints: ["192.0.2.30:15008"]
    networks: [10.3.0.0/16]
`

// parseHere parses on a host that does not depend on ours.
func parseHere(t *testing.T, text string) (*Config, error) {
	t.Helper()
	return parse("west.yaml", []byte(text), testHost(t))
}

// shown is what a user sees of err: each mistake, then its hint.
func shown(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		return "no mistake"
	}
	es, ok := errors.AsType[Errors](err)
	if !ok || len(es) == 0 {
		t.Fatalf("error is a %T: %v", err, err)
	}
	var b strings.Builder
	for _, e := range es {
		b.WriteString(strings.TrimPrefix(e.Error(), "west.yaml:") + "\n")
		if e.Hint != "" {
			b.WriteString("hint: " + e.Hint + "\n")
		}
	}
	return b.String()
}

func TestBaseHasNoMistake(t *testing.T) {
	for _, text := range []string{base, base + second} {
		if _, err := parseHere(t, text); err != nil {
			t.Error(err)
		}
	}
}

// edit is a mistake made in base (or in base+second, if what it replaces is only
// there): one text replaced by another, or more added at the end.
type edit struct{ old, new, want string }

// edits reads testdata/mistakes.txt: what is replaced after "-", by what after
// "+", and what a user sees after ">", with an empty line between edits.
func edits(t testing.TB) []edit {
	t.Helper()
	data, err := os.ReadFile("testdata/mistakes.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []edit
	for block := range strings.SplitSeq(string(data), "\n\n") {
		parts := make(map[byte]string)
		for line := range strings.SplitSeq(strings.TrimSpace(block), "\n") {
			parts[line[0]] += strings.TrimPrefix(line[1:], " ") + "\n"
		}
		if parts['#'] == "" {
			all = append(all, edit{parts['-'], parts['+'], parts['>']})
		}
	}
	if len(all) < 200 {
		t.Fatalf("%d mistakes only", len(all))
	}
	return all
}

// text is the file with the mistake in it.
func (e edit) text(t testing.TB) string {
	t.Helper()
	old, text := strings.TrimSuffix(e.old, "\n"), base
	if old == "" {
		return text + e.new
	}
	if !strings.Contains(text, old) {
		text += second
	}
	if strings.Count(text, old) != 1 {
		t.Fatalf("%q is not there once", old)
	}
	return strings.Replace(text, old, strings.TrimSuffix(e.new, "\n"), 1)
}

func TestMistakes(t *testing.T) {
	for _, e := range edits(t) {
		_, err := parseHere(t, e.text(t))
		if diff := cmp.Diff(e.want, shown(t, err)); diff != "" {
			t.Errorf("%q in place of %q (-want +got):\n%s", e.new, e.old, diff)
		}
	}
}

// TestUnreadable has the mistakes that are no text.
func TestUnreadable(t *testing.T) {
	for text, want := range map[string]string{
		"":            "1:1: the file is empty\nhint: it begins with version: 1\n",
		"# nothing\n": "1:1: the file is empty\nhint: it begins with version: 1\n",
		"---\n":       "1:1: the file is empty\nhint: it begins with version: 1\n",
		"version: 1\nidentity: {workloadAPI: unix:///run/a.sock}\npeers: {east: 1}\n": "3:8: peers: is a mapping where a list is expected\nhint: write peers: [{name: east, …}]\n",
		"version: 1\nidentity: {workloadAPI: unix:///run/a.sock}\npeers: []\n":        "3:8: peers: is an empty list\nhint: write peers: [{name: east, …}]\n",
		"version: 1\nidentity: {workloadAPI: unix:///run/a.sock}\npeers: [east]\n":    "3:9: peers[0]: is a single value where a mapping is expected\nhint: the keys here are name, ids, endpoints, networks, inbound, outbound\n",
		"- version: 1\n":                                                            "1:1: is a list where a mapping is expected\nhint: the keys here are version, name, identity, networks, listen, peers, capture, routing, timeouts, keepalive, drain, limits, earlyData, tls, log, audit, policy, revoked\n",
		base + "name: \xff\n":                                                       "9:7: byte 0xff is not UTF-8\nhint: save the file as UTF-8\n",
		base + "name: \"ü\x00\"\n":                                                  "9:9: the file has a NUL byte\n",
		base + "name: \"we\\u0007st\"\n":                                            "9:7: name: \"we\\ast\" has a control character\n",
		base + "# " + strings.Repeat("x", maxFile-len(base)-1):                      "1:1: the file is longer than 4MiB\n",
		base + "name: [" + strings.Repeat(",", maxSigns) + "]\n":                    "9:1048549: the file has more than 1048576 signs\n",
		base + "name: " + strings.Repeat("[", maxFlow+1):                            "9:23: nested too deeply\n",
		base + "name: " + strings.Repeat("{a: ", maxFlow+1):                         "9:71: nested too deeply\n",
		base + "name: [\n- a]\n":                                                    "9:7: the bracket is still open at the list item (-) on line 10\nhint: close it, and write commas between items in it\n",
		base + strings.Repeat("a:\n", maxPairs):                                     "517:2: a mapping has more than 512 keys\n",
		base + "name: {" + strings.Repeat("a: 1, ", maxPairs+1):                     "9:3081: a mapping has more than 512 keys\n",
		base + "log:\n" + strings.Repeat("  a: {b: 1}\n", maxPairs+1):               "522:4: a mapping has more than 512 keys\n",
		base + "name:\n" + strings.Repeat("- ", maxIndent) + "a\n":                  "10:101: nested too deeply\n",
		base + "name:\n" + strings.Repeat(" ", maxIndent) + "a:\n":                  "10:102: nested too deeply\n",
		strings.Replace(base, "version: 1", "version: 1 # \u00fc", 1) + "name: @\n": "9:7: '@' is a reserved character\n",
	} {
		_, err := parseHere(t, text)
		if diff := cmp.Diff(want, shown(t, err)); diff != "" {
			t.Errorf("%.80q (-want +got):\n%s", text, diff)
		}
	}
}

// TestManyListeners: they are held against each other, one by one.
func TestManyListeners(t *testing.T) {
	for n, want := range map[int]string{
		maxListeners:     "no mistake",
		maxListeners + 1: "9:10: listen.tunnel: has more than 64 addresses\nhint: [::] stands for all addresses\n",
	} {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf("%q", fmt.Sprintf("192.0.2.%d:15008", i)))
		}
		_, err := parseHere(t, base+"listen: {tunnel: ["+strings.Join(all, ", ")+"]}\n")
		if got := shown(t, err); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}

// TestUnusual has what is odd, and yet right.
func TestUnusual(t *testing.T) {
	for _, text := range []string{
		"\ufeff" + base,
		"---\n" + base + "...\n# the end\n",
		strings.ReplaceAll(base, "\n", "\r\n"),
		strings.Replace(base, "version: 1", `"version": "1"`, 1),
		base + "# " + strings.Repeat("x", maxFile-len(base)-2),
	} {
		if _, err := parseHere(t, text); err != nil {
			t.Errorf("%.80q: %v", text, err)
		}
	}
}

func TestSurvive(t *testing.T) {
	n, s := survive(func() (*node, *syntax) { panic("oh") })
	if n != nil || s == nil || s.in("west.yaml").Error() != "west.yaml:1:1: the YAML parser failed: oh" {
		t.Errorf("%v, %v", n, s)
	}
}

func TestManyMistakes(t *testing.T) {
	var b strings.Builder
	for i := range 3 * maxErrors {
		fmt.Fprintf(&b, "unknown%d: 1\n", i)
	}
	_, err := parseHere(t, base+b.String())
	es, _ := errors.AsType[Errors](err)
	if len(es) != maxErrors+1 || es[maxErrors].Msg != "more than 100 mistakes; the rest is left out" {
		t.Errorf("%d mistakes, the last %v", len(es), es[len(es)-1])
	}
	if first, ok := errors.AsType[*Error](err); !ok || first.Line != 9 || first != es[0] {
		t.Errorf("errors.As finds %v", first)
	}
}

// TestHostile has files that other readers of YAML take minutes for, or die of.
func TestHostile(t *testing.T) {
	for _, s := range []string{"[", "{", "- ", "? ", "a: ", "a:\n", "-\n", "{a: ", "[a: ", "a: |\n b\n", "'", "\"", "&a ", "*a ", "!!a ", "]", "}", ",", "#", "\t", "\r", ": ", "x: [1]\n", "[],", "é", "\\"} {
		for _, before := range []string{"", "a: ", "a: [", "a: {"} {
			if _, err := parseHere(t, before+strings.Repeat(s, 4096)); err == nil {
				t.Errorf("%q and many %q: no mistake", before, s)
			}
		}
	}
}
