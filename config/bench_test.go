package config

import (
	"fmt"
	"strings"
	"testing"
)

// manyRules is a file with n rules of policy, as people write them: in blocks, or
// each on a line.
func manyRules(n int, block bool) string {
	text := "  - {name: rule-%d, action: allow, from: {peers: [east], networks: [10.2.%d.%d/32]}, to: {networks: [10.1.%d.%d/32], ports: [%d]}}\n"
	if block {
		text = `
  - name: rule-%d
    action: allow
    from:
      peers: [east]
      networks:
        - 10.2.%d.%d/32
    to:
      networks:
        - 10.1.%d.%d/32
      ports: [%d]
`
	}
	var b strings.Builder
	b.WriteString(base + "policy:\n")
	for i := range n {
		fmt.Fprintf(&b, text, i, i>>8, i&255, i>>8, i&255, 1+i)
	}
	return b.String()
}

// manyNetworks is a file with a peer that owns n networks.
func manyNetworks(n int) string {
	var b strings.Builder
	b.WriteString(strings.Replace(base, `[10.2.0.0/16, "fd00:2::/64"]`, "", 1))
	for i := range n {
		fmt.Fprintf(&b, "      - 11.%d.%d.%d/32\n", i>>16, i>>8&255, i&255)
	}
	return b.String()
}

// TestLargestFiles: what a large site has fits. Not all of it is parsed, for the
// sake of time.
func TestLargestFiles(t *testing.T) {
	for what, text := range map[string]string{
		"rules": manyRules(20000, false), "rules in blocks": manyRules(20000, true), "networks": manyNetworks(130000),
	} {
		if s := checkBytes([]byte(text)); s != nil {
			t.Errorf("%s: %s", what, s.msg)
		}
	}
	c, err := parseHere(t, manyRules(2000, true))
	if err != nil || len(c.Policy) != 2000 || c.Policy[1999].Name != "rule-1999" {
		t.Error(err)
	}
}

func BenchmarkParse(b *testing.B) {
	h := testHost(b)
	for _, f := range []struct{ name, text string }{
		{"rules=100", manyRules(100, true)},
		{"rules=1000", manyRules(1000, true)},
		{"rules=10000", manyRules(10000, true)},
		{"rules=10000/flow", manyRules(10000, false)},
		{"rules=20000", manyRules(20000, true)},
		{"networks=130000", manyNetworks(130000)},
	} {
		b.Run(f.name, func(b *testing.B) {
			b.SetBytes(int64(len(f.text)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := parse("west.yaml", []byte(f.text), h); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
