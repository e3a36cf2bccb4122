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

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"wishbone/cmd/wishbone/daemon"
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
		ln.Close()
	}
}

// letIn waits until the first machine lets the second in again.
func (o *overlay) letIn(t *testing.T, a, b *vm) {
	t.Helper()
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
			o.letIn(t, a, b)
		})
	}
}

// twoRoots is machines of which the second has its certificate from another root
// than the others. All trust both; the first has its own from an agent.
type twoRoots struct {
	*overlay
	other *identitytest.Authority
	both  *x509bundle.Bundle
	agent *workloadtest.Server
}

func newTwoRoots(t *testing.T) *twoRoots {
	t.Helper()
	o := &twoRoots{overlay: newMachines(t, 3), other: identitytest.New(domain)}
	o.both = o.authority.Bundle()
	for _, root := range o.other.Bundle().X509Authorities() {
		o.both.AddX509Authority(root)
	}
	socket := filepath.Join(o.dir, "agent.sock")
	var err error
	if o.agent, err = workloadtest.Start(socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.agent.Stop)
	a, b := o.vms[0], o.vms[1]
	o.agent.Give([]*x509svid.SVID{o.authority.Issue("/gateway/" + a.name)}, o.both)
	for _, m := range o.vms {
		s, by := o.site(m), o.authority
		if m == a {
			s.workloadAPI = "unix://" + socket
		}
		if m == b {
			by = o.other
		}
		o.issue(m, by)
		o.writeYAML(s, site{})
		m.gateway = o.startAs(m.host, m.name)
	}
	return o
}

// issue gives a machine a certificate by one of the roots.
func (o *twoRoots) issue(m *vm, by *identitytest.Authority) {
	o.t.Helper()
	_, _, bundle, err := by.WriteFiles(o.dir, m.name, "/gateway/"+m.name)
	if err != nil {
		o.t.Fatal(err)
	}
	roots, err := o.both.Marshal()
	if err != nil {
		o.t.Fatal(err)
	}
	if err := os.WriteFile(bundle, roots, 0o600); err != nil {
		o.t.Fatal(err)
	}
}

// TestRootWithdrawn: when a root goes, the tunnels whose peers have proved
// themselves by it take no new connections, whichever side has dialled, and what
// lives on them is cut off unless the peer proves itself anew; tunnels by another
// root of the same trust domain notice nothing.
func TestRootWithdrawn(t *testing.T) {
	o := newTwoRoots(t)
	a, b, c := o.vms[0], o.vms[1], o.vms[2]
	cut, stay := o.star(t)

	// A new leaf alone changes nothing.
	svids := []*x509svid.SVID{o.authority.Issue("/gateway/" + a.name)}
	o.agent.Give(svids, o.both)
	eventually(t, "there is a new leaf", func() bool { return updates(a.gateway) > 1 })
	mustLive(t, append(cut, stay...)...)

	o.agent.Give(svids, o.authority.Bundle())
	mustBreak(t, cut...)
	mustSayCut(t, a.gateway, "root_withdrawn", cut...)
	mustLive(t, stay...)
	mustRefuse(t, a, b)
	awaitLog(t, a.gateway, "tunnel refused", "reason=unknown_authority", "gateway/"+b.name)
	mustLive(t, stay...)
	o.carries(t, a, c, 0).end(t)
}

// TestRootExchanged: when a root goes, a peer that has a certificate by another one
// loses nothing, in either direction, though nobody asks for a tunnel meanwhile. It
// has shown the new one to those that it dials, and is dialled anew by the others.
func TestRootExchanged(t *testing.T) {
	o := newTwoRoots(t)
	a, b := o.vms[0], o.vms[1]
	concerned, others := o.star(t)
	all := append(concerned, others...)

	before := updates(b.gateway)
	accepted := peerStatus(t, a.gateway, b.name).Inbound
	o.issue(b, o.authority)
	eventually(t, "the peer has a certificate by the root that stays", func() bool { return updates(b.gateway) > before })
	eventually(t, "it has shown that", func() bool { return peerStatus(t, a.gateway, b.name).Inbound > accepted })

	o.agent.Give([]*x509svid.SVID{o.authority.Issue("/gateway/" + a.name)}, o.authority.Bundle())
	awaitLog(t, a.gateway, "must prove itself anew", "peer="+b.name, "reason=root_withdrawn")
	withdrawn := time.Now()
	passes(t, withdrawn.Add(suddenly))
	mustLive(t, all...)
	for _, m := range o.vms {
		if s := status(t, m.gateway); s.Closed["cut"]+s.Closed["peer_cut"]+s.Closed["tunnel_lost"] > 0 {
			t.Errorf("%s: ends %v", m.name, s.Closed)
		}
	}
	o.carries(t, a, b, 0).end(t)
	o.carries(t, b, a, 0).end(t)

	// What lives by the second proof ends with it.
	third := identitytest.New(domain)
	o.agent.Give([]*x509svid.SVID{third.Issue("/gateway/" + a.name)}, third.Bundle())
	mustBreak(t, concerned...)
	mustSayCut(t, a.gateway, "root_withdrawn", concerned...)
}

// peerStatus is how a gateway does with a peer.
func peerStatus(t *testing.T, g *lab.Gateway, peer string) daemon.PeerStatus {
	t.Helper()
	for _, p := range status(t, g).Peers {
		if p.Name == peer {
			return p
		}
	}
	t.Fatalf("%s has no peer %s", g.Name, peer)
	return daemon.PeerStatus{}
}
