package daemon

import (
	"slices"
	"testing"

	"wishbone/audit"
	"wishbone/tunnel"
)

// TestVerdictsAreEvents: what the tunnels decide has its event.
func TestVerdictsAreEvents(t *testing.T) {
	for _, v := range tunnel.Verdicts() {
		if !slices.Contains(audit.Events(), audit.Event(v)) {
			t.Errorf("%s is no event", v)
		}
	}
}
