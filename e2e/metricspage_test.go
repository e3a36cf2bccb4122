package e2e

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestMetricsPageRules: docs/metrics.md says what each rule is whose packets are counted.
func TestMetricsPageRules(t *testing.T) {
	b, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	_, page, _ := strings.Cut(string(b), "\n## Rules\n")
	p := newPair(t)
	n := 0
	for series := range scrape(t, p.West) {
		if m := regexp.MustCompile(`^wishbone_rules_packets_total{rule="(\w+)"}$`).FindStringSubmatch(series); m != nil {
			n++
			if !strings.Contains(page, "| `"+m[1]+"` | ") {
				t.Errorf("the page does not say what the rule %s is", m[1])
			}
		}
	}
	if n == 0 || n != strings.Count(page, "\n| `") {
		t.Errorf("the page has %d rules, the gateway %d", strings.Count(page, "\n| `"), n)
	}
}
