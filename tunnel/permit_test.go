package tunnel

import (
	"sync/atomic"
	"testing"

	"wishbone/identity/authz"
)

// TestPermitIsJudgedAgain: what was permitted when the delivery began, and is not any
// more when the server has answered, is refused and not accepted: the server's
// connection ends before anything has gone through it.
func TestPermitIsJudgedAgain(t *testing.T) {
	for _, tt := range []struct {
		then       string // who owns the clients by then
		west, east string
	}{{"west", "", ""}, {"south", "denied", "unknown_peer"}} {
		t.Run(tt.then, func(t *testing.T) {
			seen := serve(t)
			p := newPair(t, Config{}, Config{})
			first, then := owns(t, "west"), owns(t, tt.then)
			var asked atomic.Int64
			p.east.cfg.Policy = func() *authz.Policy {
				if asked.Add(1) == 1 {
					return first
				}
				return then
			}
			clients := newSide(t, p.west)
			if tt.east == "" {
				exchange(t, clients.dial(0), "permitted twice")
			} else {
				clients.wantReset(0)
			}
			for name, n := range map[string]uint64{tt.west: p.west.Stats().Refused[tt.west], tt.east: p.east.Stats().Refused[tt.east]} {
				if name != "" && n != 1 {
					t.Errorf("%d refused as %s, want 1", n, name)
				}
			}
			eventually(t, "the server has seen a connection", func() bool { return len(seen()) == 1 })
			if n := asked.Load(); n != 2 {
				t.Errorf("the policy was asked %d times, want twice", n)
			}
		})
	}
}
