package e2e

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"wishbone/cmd/wishbone/lab"
	"wishbone/identity/identitytest"
	"wishbone/identity/workload/workloadtest"
)

// suddenly is how soon a withdrawal must be felt.
const suddenly = 2 * time.Second

// mustBreak fails unless both ends of each connection are reset in time.
func mustBreak(t *testing.T, all ...carried) {
	t.Helper()
	for _, c := range all {
		for _, end := range []*net.TCPConn{c.client, c.server} {
			if err := end.SetReadDeadline(time.Now().Add(suddenly)); err != nil {
				t.Fatal(err)
			}
			if err := readEnd(t, end); !isReset(err) {
				t.Errorf("%s to %s ends with %v, want a reset", c.client.LocalAddr(), c.client.RemoteAddr(), err)
			}
		}
	}
}

// mustLive fails unless both ends can talk.
func mustLive(t *testing.T, all ...carried) {
	t.Helper()
	for _, c := range all {
		exchange(t, c.client, c.server)
	}
}

// mustSayCut fails unless a gateway has logged that it cut the connections, and why.
func mustSayCut(t *testing.T, g *lab.Gateway, reason string, all ...carried) {
	t.Helper()
	for _, c := range all {
		awaitLog(t, g, "connection closed", "client="+c.client.LocalAddr().String(), "why=cut", "reason="+reason)
	}
}

// leaf is the certificate that a gateway shows.
func (p *pair) leaf(name string) *x509.Certificate {
	p.t.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, name+".pem"))
	if err != nil {
		p.t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		p.t.Fatal(err)
	}
	return c
}

// site is a machine's configuration.
func (o *overlay) site(m *vm) site {
	return site{name: m.name, networks: m.networks(), firewall: "nftables", peers: o.peersOf(m, 0, "reject")}
}

// star has a connection from the first machine to each other one, and back.
func (o *overlay) star(t *testing.T) (second, third []carried) {
	t.Helper()
	a, b, c := o.vms[0], o.vms[1], o.vms[2]
	second = []carried{o.carries(t, a, b, 0), o.carries(t, b, a, 0), o.carries(t, b, a, 1)}
	third = []carried{o.carries(t, a, c, 0), o.carries(t, c, a, 0), o.carries(t, b, c, 0)}
	return second, third
}

// mustRefuse fails unless neither machine reaches the other any more.
func mustRefuse(t *testing.T, a, b *vm) {
	t.Helper()
	for _, way := range [][2]*vm{{a, b}, {b, a}} {
		ln := listen(t, way[1].host, netip.AddrPortFrom(way[1].addr[0], 9090))
		refused(t, way[0].host, addr(ln.Addr()))
		nobody(t, ln)
	}
}

// TestRevoked: a peer that is revoked by a reload, by its SPIFFE ID or its
// certificate's serial number, is cut off at once, whichever side has dialled the
// tunnel, and gets no other; other peers notice nothing. What is not revoked any
// more is let in again.
func TestRevoked(t *testing.T) {
	for _, by := range []string{"id", "serial"} {
		t.Run(by, func(t *testing.T) {
			o := newOverlay(t, 3, 0, "nftables", "reject")
			a, b := o.vms[0], o.vms[1]
			cut, stay := o.star(t)

			revoked := o.site(a)
			revoked.extra = "revoked: {ids: [spiffe://" + domain + "/gateway/" + b.name + "]}"
			if by == "serial" {
				revoked.extra = fmt.Sprintf("revoked: {serials: [FF, %02X]}", o.leaf(b.name).SerialNumber)
			}
			o.writeYAML(revoked, site{})
			hangUp(t, a.gateway)
			mustBreak(t, cut...)
			mustSayCut(t, a.gateway, "revoked", cut...)
			mustLive(t, stay...)
			if s := status(t, a.gateway); s.Closed["cut"] != uint64(len(cut)) {
				t.Errorf("ends: %v, want %d cut", s.Closed, len(cut))
			}

			// Neither side gets a tunnel any more.
			mustRefuse(t, a, b)
			awaitLog(t, a.gateway, "tunnel not established", "peer="+b.name, "revoked")
			awaitLog(t, a.gateway, "tunnel refused", "reason=revoked", "gateway/"+b.name)
			if n := scrape(t, a.host)[`wishbone_tunnels_withdrawn_total{reason="revoked"}`]; n < 2 {
				t.Errorf("%v tunnels were withdrawn, want one each way at least", n)
			}
			mustLive(t, stay...)

			o.writeYAML(o.site(a), site{})
			hangUp(t, a.gateway)
			eventually(t, "the peer is let in again", func() bool {
				ln := listen(t, a.host, netip.AddrPortFrom(a.addr[0], 9091))
				defer ln.Close()
				c, err := tryDial(t, b.host, addr(ln.Addr()))
				if err != nil {
					return false
				}
				defer c.Close()
				if err := ln.(*net.TCPListener).SetDeadline(time.Now().Add(briefly)); err != nil {
					t.Fatal(err)
				}
				server, err := ln.Accept()
				if err != nil {
					return false
				}
				return server.Close() == nil
			})
			o.carries(t, a, b, 0).end(t)
		})
	}
}

// TestRootWithdrawn: when a root goes, the tunnels whose peers have proved
// themselves by it are cut off at once, whichever side has dialled, and get no
// others; those by another root of the same trust domain notice nothing.
func TestRootWithdrawn(t *testing.T) {
	o := newMachines(t, 3)
	a, b, c := o.vms[0], o.vms[1], o.vms[2]
	other := identitytest.New(domain)
	both := o.authority.Bundle()
	for _, root := range other.Bundle().X509Authorities() {
		both.AddX509Authority(root)
	}
	socket := filepath.Join(o.dir, "agent.sock")
	agent, err := workloadtest.Start(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(agent.Stop)
	svids := []*x509svid.SVID{o.authority.Issue("/gateway/" + a.name)}
	agent.Give(svids, both)
	for m, by := range map[*vm]*identitytest.Authority{a: o.authority, b: other, c: o.authority} {
		s := o.site(m)
		if m == a {
			s.workloadAPI = "unix://" + socket
		}
		_, _, bundle, err := by.WriteFiles(o.dir, m.name, "/gateway/"+m.name)
		if err != nil {
			t.Fatal(err)
		}
		roots, err := both.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(bundle, roots, 0o600); err != nil {
			t.Fatal(err)
		}
		o.writeYAML(s, site{})
		m.gateway = o.startAs(m.host, m.name)
	}
	cut, stay := o.star(t)

	// A new leaf alone changes nothing.
	svids = []*x509svid.SVID{o.authority.Issue("/gateway/" + a.name)}
	agent.Give(svids, both)
	eventually(t, "there is a new leaf", func() bool { return updates(a.gateway) > 1 })
	mustLive(t, append(cut, stay...)...)

	agent.Give(svids, o.authority.Bundle())
	mustBreak(t, cut...)
	mustSayCut(t, a.gateway, "root_withdrawn", cut...)
	mustLive(t, stay...)
	mustRefuse(t, a, b)
	awaitLog(t, a.gateway, "tunnel refused", "reason=unknown_authority", "gateway/"+b.name)
	mustLive(t, stay...)
	o.carries(t, a, c, 0).end(t)
}
