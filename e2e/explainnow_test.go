package e2e

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/identity/identitytest"
)

// TestExplainNow: an explanation says what keeps a connection from being carried now,
// by the reason that the connection is then refused for; the verdict stays readable
// beside it.
func TestExplainNow(t *testing.T) {
	// told compares what explain says with what becomes of a connection.
	told := func(t *testing.T, p *pair, reason, why string) {
		t.Helper()
		ask := []string{"explain", "10.1.0.2", web.String()}
		e := wishboneJSON[daemon.Explanation](t, p.west, p.West, ask...)
		if e.Verdict != "carried to east" || e.Reason != "" || e.RefusedNow != reason || !strings.Contains(strings.Join(e.Steps, "\n"), why) {
			t.Errorf("explained as %+v; want it carried, but refused now for %s: %s", e, reason, why)
		}
		mustMatch(t, wishbone(t, p.west, p.West, ask...),
			"^"+regexp.QuoteMeta("10.1.0.2 to "+web.String()+": carried to east, but refused now ("+reason+")")+"$", "^- .*"+regexp.QuoteMeta(why))
		refused(t, p.Client, web)
		awaitLog(t, p.west, "connection refused", "reason="+reason)
	}
	// well fails if anything stands in the way.
	well := func(t *testing.T, p *pair) {
		t.Helper()
		if e := wishboneJSON[daemon.Explanation](t, p.west, p.West, "explain", "10.1.0.2", web.String()); e.RefusedNow != "" || e.Verdict != "carried to east" {
			t.Errorf("explained as %+v", e)
		}
	}
	t.Run("peer down", func(t *testing.T) {
		t.Parallel()
		p := newPair(t)
		ln := listen(t, p.Server, web)
		p.open(ln).end(t)
		well(t, p)
		if err := p.east.Kill(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "west knows", func() bool {
			refused(t, p.Client, web)
			return strings.Contains(peerStatus(t, p.west, "east").Error, "connection refused")
		})
		told(t, p, "peer_down", "east could not be reached when it was last dialled: dial 192.0.2.20:15008: ")
		p.startEast()
		eventually(t, "east is found again", func() bool {
			c, err := tryDial(t, p.Client, web)
			if err == nil {
				defer c.Close()
			}
			return peerStatus(t, p.west, "east").Tunnels > 0
		})
		well(t, p)
	})
	t.Run("own identity expired", func(t *testing.T) {
		t.Parallel() // this waits for clocks
		m := newMortal(t, "west", "1s")
		ln := listen(t, m.Server, web)
		m.open(ln).end(t)
		well(t, m.pair)
		passes(t, m.expires.Add(time.Second/10))
		told(t, m.pair, "identity_expired", "own_expired")
		m.give("west", identitytest.Options{})
		eventually(t, "west has a new leaf", func() bool { return updates(m.west) > 2 })
		m.open(ln).end(t)
		well(t, m.pair)
	})
	t.Run("own identity missing", func(t *testing.T) {
		t.Parallel() // this waits for a timeout
		p := newWorld(t)
		p.westSite.extra = "timeouts: {handshake: 1s}"
		p.westSite.workloadAPI = "unix://" + filepath.Join(p.dir, "agent.sock")
		p.startEast()
		p.west = p.launch(p.West, p.westSite, p.eastSite)
		awaitLog(t, p.west, "gateway is up")
		told(t, p, "peer_down", "it waits for our own identity, for 2s at most: no identity has come from the Workload API yet")
	})
}
