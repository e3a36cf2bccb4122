package e2e

import (
	"testing"
	"time"

	"wishbone/cmd/wishbone/daemon"
)

// TestRefusedReload: as long as the file is not what runs, status and the metrics say
// so, since when, why, and what to do about it.
func TestRefusedReload(t *testing.T) {
	p := newPair(t)
	failed := func() float64 { return scrape(t, p.East)["wishbone_reload_failed"] }
	again := func(extra, listen, line string) {
		t.Helper()
		p.eastSite.extra, p.eastSite.listen = extra, listen
		p.writeYAML(p.eastSite, p.westSite)
		hangUp(t, p.east)
		awaitLog(t, p.east, line)
	}
	refused := func() *daemon.ReloadStatus {
		return wishboneJSON[daemon.Status](t, p.east, p.East, "status").RefusedReload
	}
	if r := refused(); r != nil || failed() != 0 {
		t.Fatalf("before any reload: %+v, %v", r, failed())
	}

	began := time.Now()
	again("colour: red\ncolor: blue", "", `hint="the keys here are `)
	eventually(t, "a metric says so", func() bool { return failed() == 1 })
	first := refused()
	if first == nil || first.Since.Before(began.Truncate(time.Second)) || first.Since.After(time.Now()) {
		t.Fatalf("refused: %+v", first)
	}
	mustMatch(t, wishbone(t, p.east, p.East, "status"),
		`^configuration +not that of the file since 20\S+Z?\S*: \S*east.yaml:\d+:\d+: colour: .*; \S*east.yaml:\d+:\d+: color: .* \(.*the keys here are .*\)$`)

	again("", `tunnel: ["[::]:16008"]`, "listen cannot change while running")
	eventually(t, "the last reason is told", func() bool { return refused().Hint == "restart the gateway" })
	if r := refused(); !r.Since.Equal(first.Since) || failed() != 1 {
		t.Errorf("refused once more: %+v, %v; first %+v", r, failed(), first)
	}

	again("", "", "configuration reloaded")
	eventually(t, "nothing says so any more", func() bool { return failed() == 0 && refused() == nil })
}
