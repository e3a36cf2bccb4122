package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
	"wishbone/identity/identitytest"
	"wishbone/identity/workload/workloadtest"
)

// shortLived is how long the leaves of these tests are good: two seconds at least,
// since certificates count whole ones.
const shortLived = 3 * time.Second

// mortal is a pair of which one gateway has a leaf that expires soon.
type mortal struct {
	*pair
	agent   *workloadtest.Server
	expires time.Time
	own     *lab.Gateway // whose leaf it is
	other   *lab.Gateway
}

func newMortal(t *testing.T, side, grace string) *mortal {
	t.Helper()
	p := newWorld(t)
	m := &mortal{pair: p}
	socket := filepath.Join(p.dir, "agent.sock")
	var err error
	if m.agent, err = workloadtest.Start(socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.agent.Stop)
	p.westSite.grace, p.eastSite.grace = grace, grace
	short := &p.westSite
	if side == "east" {
		short = &p.eastSite
	}
	short.workloadAPI = "unix://" + socket
	m.give(side, identitytest.Options{}) // a gateway starts in its own time
	p.startWest()
	p.startEast()
	m.own, m.other = p.west, p.east
	if side == "east" {
		m.own, m.other = p.east, p.west
	}
	m.expires = time.Now().Add(shortLived).Truncate(time.Second)
	m.give(side, identitytest.Options{NotAfter: m.expires})
	eventually(t, "there is a short-lived leaf", func() bool { return updates(m.own) == 2 })
	return m
}

func (m *mortal) give(side string, o identitytest.Options) {
	m.agent.Give([]*x509svid.SVID{m.authority.Issue("/gateway/"+side, o)}, m.authority.Bundle())
}

// recovery is how soon an identity that is back must serve.
const recovery = 2 * time.Second

// late fails unless the gateway whose leaf has expired says that it was not renewed.
func (m *mortal) late(t *testing.T) {
	t.Helper()
	awaitLog(t, m.own, "level=WARN", "identity is not renewed", "agent.sock")
	if s := status(t, m.own).Identity; !s.Overdue || s.Updated.After(m.expires) || !strings.Contains(s.Error, "own_expired") {
		t.Errorf("%s says of its identity: %+v", m.own.Name, s)
	}
	if s := status(t, m.other).Identity; s.Overdue || s.Error != "" {
		t.Errorf("%s says of its identity: %+v", m.other.Name, s)
	}
	host := map[string]*netlab.Host{"west": m.West, "east": m.East}[m.own.Name]
	metrics := scrape(t, host)
	if age := metrics["wishbone_identity_age_seconds"]; metrics["wishbone_identity_overdue"] != 1 || age < 1 || age > patience.Seconds() {
		t.Errorf("the metrics say that it is overdue: %v, and %v s old", metrics["wishbone_identity_overdue"], age)
	}
}

// passes waits until it is so late.
func passes(t *testing.T, at time.Time) {
	t.Helper()
	eventually(t, "the time has come", func() bool { return time.Now().After(at) })
}

// TestLeafExpiry: a tunnel takes no new connections after either side's leaf has
// expired, which its GOAWAY says, and another is dialled. What lives on it goes on as long as the SPIFFE ID is proved anew, with a
// new leaf on a new tunnel; else for the grace, and is then reset. An identity that
// is back is served at once.
func TestLeafExpiry(t *testing.T) {
	for _, side := range []string{"west", "east"} {
		t.Run(side+" renewed", func(t *testing.T) {
			t.Parallel() // this waits for clocks
			const grace = time.Second
			m := newMortal(t, side, grace.String())
			ln := listen(t, m.Server, web)
			live := m.open(ln)
			m.give(side, identitytest.Options{})
			eventually(t, "there is a new leaf", func() bool { return updates(m.own) > 2 })
			passes(t, m.expires)
			awaitLog(t, m.west, "tunnel takes no new connections", "peer=east")
			all := []carried{live, m.open(ln), m.open(ln)}
			passes(t, m.expires.Add(grace+2*time.Second))
			mustLive(t, all...)
			for _, g := range []*lab.Gateway{m.west, m.east} {
				if s := status(t, g); s.Closed["cut"]+s.Closed["peer_cut"]+s.Closed["refused"] > 0 {
					t.Errorf("%s: ends %v", g.Name, s.Closed)
				}
			}
		})
		t.Run(side+" not renewed", func(t *testing.T) {
			t.Parallel()
			const grace = 2 * time.Second
			m := newMortal(t, side, grace.String())
			ln := listen(t, m.Server, web)
			live := m.open(ln)
			passes(t, m.expires.Add(time.Second/10))
			refused(t, m.Client, web)
			awaitLog(t, m.west, "tunnel not established", "peer=east")
			reason := "peer_down" // the other side is told no more
			if side == "west" {
				reason = "identity_expired"
			}
			awaitLog(t, m.west, "connection refused", "reason="+reason)
			if n := scrape(t, m.West)[`wishbone_connections_refused_total{reason="`+reason+`"}`]; n != 1 {
				t.Errorf("%v connections are counted as refused for %s, want 1", n, reason)
			}
			m.late(t)
			mustLive(t, live)
			passes(t, m.expires.Add(grace))
			mustBreak(t, live)
			mustSayCut(t, m.other, "identity_expired", live)
			m.give(side, identitytest.Options{})
			within(t, recovery, "the new leaf is used", func() bool {
				c, err := tryDial(t, m.Client, web)
				if err != nil {
					return false
				}
				defer c.Close()
				_, err = c.Write([]byte("x"))
				return err == nil && len(flows(t, m.east)) > 0
			})
		})
	}
}
