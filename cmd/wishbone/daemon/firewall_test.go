package daemon

import (
	"errors"
	"log/slog"
	"testing"

	"wishbone/intercept/rules"
)

// hidden are rules that cannot be looked at.
type hidden struct {
	rules.Backend
	live int // how often they were told
}

func (h *hidden) Missing(rules.Routing) (string, error) {
	return "", errors.New("somebody holds the lock")
}

func (h *hidden) Live(rules.Plan) error { h.live++; return nil }

// TestMendHidden: rules that cannot be looked at hear all the same that the gateway
// is there.
func TestMendHidden(t *testing.T) {
	h := new(hidden)
	f := &firewall{log: slog.New(slog.DiscardHandler), backend: h}
	f.mend()
	if h.live != 1 {
		t.Errorf("they are told %d times", h.live)
	}
}
