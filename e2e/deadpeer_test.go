package e2e

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDeadPeer: a gateway whose peer does not answer any more ends when it is told
// to for the second time, or when its grace is over; it has nobody to wait for.
func TestDeadPeer(t *testing.T) {
	for _, tt := range []struct {
		name, grace string
		live        bool // a connection
		signals     int
		code        int
	}{
		{"second signal", "1m", true, 2, 1},
		{"second signal, nothing lives", "1m", false, 2, 0},
		{"end of the grace", "100ms", true, 1, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPair(t, func(west, _ *site) { west.extra = "drain: {grace: " + tt.grace + "}" })
			live := p.open(listen(t, p.Server, web)) // a tunnel
			if !tt.live {
				live.end(t)
				eventually(t, "the connection has ended", func() bool { return len(flows(t, p.west)) == 0 })
			}
			if err := p.east.Signal(unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			for n := range tt.signals {
				if err := p.west.Signal(unix.SIGTERM); err != nil {
					t.Fatal(err)
				}
				awaitLog(t, p.west, [...]string{"draining: the listeners are closed", "cutting what is left"}[n])
			}
			// A peer that may still live is given ten seconds.
			ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
			defer cancel()
			code, err := p.west.Wait(ctx)
			if err != nil || code != tt.code {
				t.Errorf("west ends with exit code %d (%v), want %d", code, err, tt.code)
			}
		})
	}
}
