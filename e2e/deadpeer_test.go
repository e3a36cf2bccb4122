package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/lab"
)

// suspend stops a gateway's process, and returns when each of its threads has heard
// of it.
func suspend(t *testing.T, g *lab.Gateway) {
	t.Helper()
	if err := g.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it stands still", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", g.PID()))
		if err != nil {
			t.Fatal(err)
		}
		for _, stat := range threads {
			b, err := os.ReadFile(stat)
			// The state is behind the name in brackets (proc_pid_stat(5)).
			if _, state, _ := strings.Cut(string(b), ") "); err != nil || !strings.HasPrefix(state, "T") {
				return false
			}
		}
		return true
	})
}

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
			suspend(t, p.east)
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
