package hbone

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestPage: docs/limits.md has every fault, and the limits as they are.
func TestPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	limits := map[Fault]string{
		faultHeaders: fmt.Sprintf("%d KiB; %d", maxFieldBytes>>10, maxFragments),
		faultUnread:  fmt.Sprintf("%d KiB", maxControlQueue>>10),
	}
	for _, a := range allowances {
		limits[a.fault] = fmt.Sprintf("%v, then %v a second", a.burst, a.perSecond)
	}
	limits[faultRapidReset] += fmt.Sprintf(", and one for each %d requests that were answered", answersEach)
	limits[faultSettings] += fmt.Sprintf("; %d", maxParameters)
	for _, f := range Faults() {
		found := false
		for line := range strings.Lines(string(b)) {
			cells := strings.Split(line, " | ")
			if cells[0] == "| `"+string(f)+"`" {
				found = true
				if want := limits[f]; want != "" && cells[2] != want {
					t.Errorf("%s: the page says %q, want %q", f, cells[2], want)
				}
			}
		}
		if !found {
			t.Errorf("%s is not on the page", f)
		}
	}
}
