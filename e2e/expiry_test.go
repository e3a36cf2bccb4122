package e2e

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"wishbone/cmd/wishbone/lab"
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
	m.expires = time.Now().Add(shortLived).Truncate(time.Second)
	m.give(side, identitytest.Options{NotAfter: m.expires})
	p.startWest()
	p.startEast()
	m.own, m.other = p.west, p.east
	if side == "east" {
		m.own, m.other = p.east, p.west
	}
	return m
}

func (m *mortal) give(side string, o identitytest.Options) {
	m.agent.Give([]*x509svid.SVID{m.authority.Issue("/gateway/"+side, o)}, m.authority.Bundle())
}

// passes waits until it is so late.
func passes(t *testing.T, at time.Time) {
	t.Helper()
	eventually(t, "the time has come", func() bool { return time.Now().After(at) })
}

// TestLeafExpiry: a tunnel takes no new connections after either side's leaf has
// expired. What lives on it goes on as long as the SPIFFE ID is proved anew, with a
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
			eventually(t, "there is a new leaf", func() bool { return updates(m.own) > 1 })
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
			awaitLog(t, m.west, "connection refused", "reason=peer_down")
			mustLive(t, live)
			passes(t, m.expires.Add(grace))
			mustBreak(t, live)
			mustSayCut(t, m.other, "identity_expired", live)
			m.give(side, identitytest.Options{})
			eventually(t, "the new leaf is used", func() bool {
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
