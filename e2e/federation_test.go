package e2e

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"wishbone/cmd/wishbone/doctor"
	"wishbone/cmd/wishbone/lab"
	"wishbone/identity"
	"wishbone/identity/identitytest"
	"wishbone/identity/workload/workloadtest"
)

// partner is the other trust domain: east's.
const partner = "partner.example"

// federate makes east the partner's, and has both gateways name each other so.
func federate(by *identitytest.Authority) func(west, east *site) {
	return func(west, east *site) {
		east.authority = by
		west.peerIDs = "[spiffe://" + partner + "/gateway/east]"
		west.federation = "[{trustDomain: " + partner + ", bundle: " + partner + ".pem}]"
		east.federation = "[{trustDomain: " + domain + ", bundle: " + domain + ".json}]"
	}
}

// share writes each domain's bundle for the other: in PEM for west, and as a
// SPIFFE bundle document for east.
func (p *pair) share(by *identitytest.Authority) {
	p.t.Helper()
	p.replace(partner+".pem", pemOf(p.t, by.Bundle()))
	document, err := spiffebundle.FromX509Bundle(p.authority.Bundle()).Marshal()
	if err != nil {
		p.t.Fatal(err)
	}
	p.replace(domain+".json", document)
}

func pemOf(t *testing.T, b *x509bundle.Bundle) []byte {
	t.Helper()
	data, err := b.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// replace puts a file in place of the one before.
func (p *pair) replace(name string, data []byte) {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		p.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		p.t.Fatal(err)
	}
}

// again waits until a connection is carried, which then lives. A gateway rests for
// a while after a dial that failed, each of its loops by itself, and refuses
// meanwhile.
func (p *pair) again(ln net.Listener) (c carried) {
	p.t.Helper()
	eventually(p.t, "a connection is carried again", func() bool {
		var err error
		if c.client, err = tryDial(p.t, p.Client, addr(ln.Addr())); err != nil {
			return false
		}
		if c.server = acceptFrom(p.t, ln, c.client); c.server == nil {
			c.client.Close()
		}
		return c.server != nil
	})
	exchange(p.t, c.client, c.server)
	p.mustCarry(addr(c.client.LocalAddr()), addr(ln.Addr()))
	return c
}

// acceptFrom takes a client's connection off a listener, and those before it that
// came too late for theirs. It gives nil if there is none for a while.
func acceptFrom(t *testing.T, ln net.Listener, client *net.TCPConn) *net.TCPConn {
	t.Helper()
	if err := ln.(*net.TCPListener).SetDeadline(time.Now().Add(briefly)); err != nil {
		t.Fatal(err)
	}
	for {
		server, err := ln.Accept()
		if err != nil {
			return nil
		}
		t.Cleanup(func() { server.Close() })
		if err := server.SetDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if server.RemoteAddr().String() == client.LocalAddr().String() {
			return server.(*net.TCPConn)
		}
	}
}

// introduce shows an SVID to east, from west's host, and says how that ends: nil
// is that east has spoken to whoever it is.
func introduce(p *pair, svid *x509svid.SVID, east *identitytest.Authority) error {
	cfg := identity.Client(identitytest.NewSource(svid, east), func(spiffeid.ID) error { return nil })
	conn := tls.Client(dial(p.t, p.West, netip.MustParseAddrPort("192.0.2.20:15008")), cfg)
	if err := conn.HandshakeContext(p.t.Context()); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 1))
	return err
}

// TestFederation: gateways of two trust domains carry connections, each way and
// over both families, with each other's bundle from a file. A domain is believed
// by its own bundle alone, and an ID counts in its own domain alone.
func TestFederation(t *testing.T) {
	other, third := identitytest.New(partner), identitytest.New("third.example")
	p := newWorld(t, federate(other))
	p.share(other)
	// Not among the other files: a gateway must be let in there (landlock(7)).
	elsewhere := filepath.Join(t.TempDir(), "bundle.pem")
	if err := os.Rename(filepath.Join(p.dir, partner+".pem"), elsewhere); err != nil {
		t.Fatal(err)
	}
	p.westSite.federation = "[{trustDomain: " + partner + ", bundle: " + elsewhere + "}]"
	p.startWest()
	p.startEast()
	for _, f := range families {
		ln := listen(t, p.Server, netip.AddrPortFrom(f.server, 8080))
		p.connect(t, p.Client, ln).end(t)
		back := listen(t, p.Client, netip.AddrPortFrom(f.client, 8080))
		p.connect(t, p.Server, back).end(t)
	}
	mustMatch(t, wishbone(t, p.west, p.West, "status"), `^roots +mesh\.example 1, partner\.example 1$`)

	claims := identitytest.Options{URIs: []string{p.authority.ID("/gateway/west").String()}}
	for _, tt := range []struct {
		name   string
		svid   *x509svid.SVID
		reason identity.Reason
		says   string
	}{
		{"the peer itself", p.authority.Issue("/gateway/west"), "", ""},
		{"the right path in our own domain", other.Issue("/gateway/west"), identity.WrongID, "spiffe://" + partner + "/gateway/west"},
		{"the right path in a domain without a bundle", third.Issue("/gateway/west"), identity.WrongDomain, "spiffe://third.example/gateway/west"},
		{"the peer's ID, by our own root", other.Issue("/gateway/west", claims), identity.UnknownAuthority, "spiffe://" + domain + "/gateway/west"},
		{"the peer's ID, by a stranger", third.Issue("/gateway/west", claims), identity.UnknownAuthority, "spiffe://" + domain + "/gateway/west"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			count := func() float64 {
				return scrape(t, p.East)[`wishbone_handshakes_refused_total{reason="`+string(tt.reason)+`"}`]
			}
			before := count()
			err := introduce(p, tt.svid, other)
			if tt.reason == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil {
				t.Error("east takes it")
			}
			awaitLog(t, p.east, "tunnel refused", "reason="+string(tt.reason), tt.says+":")
			eventually(t, "it is counted", func() bool { return count() == before+1 })
		})
	}
}

// TestFederationOfStrangers: east is of a domain that west has no bundle of, with
// the right path; it could carry, and gets nothing.
func TestFederationOfStrangers(t *testing.T) {
	t.Parallel() // most of it is waiting
	other, third := identitytest.New(partner), identitytest.New("third.example")
	p := newWorld(t, federate(other), func(_, east *site) { east.authority = third })
	p.share(other)
	p.startWest()
	p.startEast()
	ln := listen(t, p.Server, web)
	refused(t, p.Client, web)
	awaitLog(t, p.west, "tunnel not established", "wrong_domain", "spiffe://third.example/gateway/east")
	nobody(t, ln)
	// With the partner's certificate it is the peer.
	east := p.eastSite
	east.authority = other
	p.write(east, p.westSite)
	awaitLog(t, p.east, "identity updated", "spiffe://"+partner+"/gateway/east")
	p.again(ln).end(t)
}

// TestFederationFollowsFiles: what a partner's file says counts without a restart.
// A file with a mistake changes nothing; other roots end what was proved by those
// before.
func TestFederationFollowsFiles(t *testing.T) {
	t.Parallel() // most of it is waiting
	other, next := identitytest.New(partner), identitytest.New(partner)
	p := newWorld(t, federate(other))
	p.share(other)
	p.startWest()
	p.startEast()
	ln := listen(t, p.Server, web)
	live := p.open(ln)

	good := pemOf(t, other.Bundle())
	p.replace(partner+".pem", good[:len(good)/2])
	awaitLog(t, p.west, "bundle not taken", "trustDomain="+partner, "reason=malformed")
	if n := scrape(t, p.West)[`wishbone_identity_files_refused_total{reason="malformed"}`]; n != 1 {
		t.Errorf("counted %v times", n)
	}
	mustLive(t, live)
	p.open(ln).end(t)

	p.replace(partner+".pem", pemOf(t, next.Bundle()))
	mustSayCut(t, p.west, "root_withdrawn", live)
	mustBreak(t, live)
	refused(t, p.Client, web)
	awaitLog(t, p.west, "tunnel not established", "unknown_authority", "spiffe://"+partner+"/gateway/east")
	nobody(t, ln)

	east := p.eastSite
	east.authority = next
	p.write(east, p.westSite)
	p.again(ln).end(t)
}

// TestFederationReload: a partner comes with a reload, and goes with another.
func TestFederationReload(t *testing.T) {
	t.Parallel() // most of it is waiting
	other := identitytest.New(partner)
	p := newWorld(t, federate(other))
	p.share(other)
	p.startWest()
	p.startEast()
	ln := listen(t, p.Server, web)
	live := p.open(ln)
	// Without the bundle the peer is a mistake, and nothing changes.
	without := p.westSite
	without.federation = ""
	p.writeYAML(without, p.eastSite)
	hangUp(t, p.west)
	awaitLog(t, p.west, "reload failed", "there is no bundle of "+partner)
	mustLive(t, live)
	// Without the peer it is none.
	without.peerIDs = ""
	p.writeYAML(without, p.eastSite)
	hangUp(t, p.west)
	awaitLog(t, p.west, "configuration reloaded")
	mustBreak(t, live)
	refused(t, p.Client, web)
	awaitLog(t, p.west, "tunnel not established", "wrong_domain")
	nobody(t, ln)

	p.writeYAML(p.westSite, p.eastSite)
	hangUp(t, p.west)
	p.again(ln).end(t)
}

// TestFederationMistakes: what cannot be right is told before anything runs, by
// each command that looks, with what to do about it.
func TestFederationMistakes(t *testing.T) {
	other := identitytest.New(partner)
	p := newWorld(t, federate(other), longLived)
	p.share(other)
	for _, tt := range []struct {
		name, federation string
		want, remedy     string
	}{
		{"no bundle", "", "there is no bundle of partner.example", "federation: [{trustDomain: partner.example, bundle: partner.example.pem}]"},
		{"our own", "[{trustDomain: partner.example, bundle: partner.example.pem}, {trustDomain: mesh.example, bundle: west.bundle.pem}]", "our own trust domain", "remove it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			west := p.westSite
			west.federation = tt.federation
			p.write(west, p.eastSite)
			file := filepath.Join(p.dir, "west.yaml")
			for command, want := range map[string]int{"check": 2, "run": 1} {
				code, out := runOn(t, p.West, "1", command, "-c", file)
				if code != want || !strings.Contains(out, tt.want) || !strings.Contains(out, "hint: ") || !strings.Contains(out, tt.remedy) {
					t.Errorf("%s: exit code %d\n%s", command, code, out)
				}
			}
			_, findings := diagnose(t, p)
			found := false
			for _, f := range findings {
				found = found || f.Level == doctor.Fail && f.Check == "federation" && strings.Contains(f.What, tt.want) && strings.Contains(f.Remedy, tt.remedy)
			}
			if !found {
				t.Errorf("the doctor says\n%s", indented(findings))
			}
		})
	}
	p.write(p.westSite, p.eastSite)
	if code, out := runOn(t, p.West, "1", "check", "-c", filepath.Join(p.dir, "west.yaml")); code != 0 {
		t.Errorf("a good one: exit code %d\n%s", code, out)
	}
	_, findings := diagnose(t, p)
	for _, f := range findings {
		if f.Check == "federation" && f.Level != doctor.OK {
			t.Errorf("of a good one the doctor says %+v", f)
		}
	}
}

// TestFederationByAgent: the bundle of a partner comes from the Workload API, and
// goes with it. One from a file stands in its place, not beside it.
func TestFederationByAgent(t *testing.T) {
	t.Parallel() // most of it is waiting
	other := identitytest.New(partner)
	socket := filepath.Join(t.TempDir(), "agent.sock")
	agent, err := workloadtest.Start(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Stop()
	p := newWorld(t, federate(other), func(west, _ *site) {
		west.workloadAPI = "unix://" + socket
		// This is a mistake that can be told only when the agent has spoken.
		west.federation = "[{trustDomain: " + domain + ", bundle: " + domain + ".json}]"
	})
	p.share(other)
	svids := p.svids()
	agent.Give(svids, p.authority.Bundle(), other.Bundle())
	p.startWest()
	p.startEast()
	awaitLog(t, p.west, "the agent's bundle counts", domain+", our own trust domain")
	ln := listen(t, p.Server, web)
	live := p.open(ln)

	agent.Give(svids, p.authority.Bundle())
	mustSayCut(t, p.west, "root_withdrawn", live)
	mustBreak(t, live)
	refused(t, p.Client, web)
	awaitLog(t, p.west, "tunnel not established", "wrong_domain", "spiffe://"+partner+"/gateway/east")
	nobody(t, ln)

	agent.Give(svids, p.authority.Bundle(), other.Bundle())
	live = p.again(ln)

	west := p.westSite
	west.federation = p.federationOf(identitytest.New(partner))
	p.writeYAML(west, p.eastSite)
	hangUp(t, p.west)
	mustSayCut(t, p.west, "root_withdrawn", live)
	mustBreak(t, live)
	refused(t, p.Client, web)
	awaitLog(t, p.west, "tunnel not established", "unknown_authority", "spiffe://"+partner+"/gateway/east")
	nobody(t, ln)
}

// federationOf writes another bundle for the partner, and names it.
func (p *pair) federationOf(by *identitytest.Authority) string {
	p.t.Helper()
	p.replace("filed.pem", pemOf(p.t, by.Bundle()))
	return "[{trustDomain: " + partner + ", bundle: filed.pem}]"
}

// TestFederationSPIRE: two real SPIRE servers of two trust domains that know each
// other's bundle, and a gateway of each. When one takes the partner's bundle away,
// there are no tunnels any more, until it is back.
func TestFederationSPIRE(t *testing.T) {
	t.Parallel() // most of it is waiting
	p := newWorld(t, func(west, _ *site) { west.peerIDs = "[spiffe://" + partner + "/gateway/east]" })
	mesh, other := startSPIRE(t, p, domain, time.Minute), startSPIRE(t, p, partner, time.Minute)
	for _, s := range []struct{ to, from *spire }{{mesh, other}, {other, mesh}} {
		s.to.federate(s.from)
	}
	p.westSite.workloadAPI, p.eastSite.workloadAPI = "unix://"+mesh.socket("west"), "unix://"+other.socket("east")
	mesh.enrol("west", "-federatesWith", other.id())
	other.enrol("east", "-federatesWith", mesh.id())
	p.west = p.launch(p.West, p.westSite, p.eastSite)
	p.east = p.launch(p.East, p.eastSite, p.westSite)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, g := range []*lab.Gateway{p.west, p.east} {
		if err := g.AwaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}
	ln := listen(t, p.Server, web)
	live := p.open(ln)

	// Its entries lose the federation with it: dissociate.
	mesh.server("bundle", "delete", "-id", other.id(), "-mode", "dissociate")
	within(t, time.Minute, "west has no bundle of the partner", func() bool { return status(t, p.west).Identity.Roots[partner] == 0 })
	mustSayCut(t, p.west, "root_withdrawn", live)
	mustBreak(t, live)
	refused(t, p.Client, web)
	awaitLog(t, p.west, "tunnel not established", "wrong_domain", "spiffe://"+partner+"/gateway/east")
	nobody(t, ln)

	mesh.federate(other)
	mesh.server("entry", "update", "-entryID", mesh.entry("west"), "-parentID", mesh.id()+"/node/west", "-spiffeID", mesh.id()+"/gateway/west",
		"-selector", "unix:uid:0", "-federatesWith", other.id())
	within(t, time.Minute, "west has the bundle of the partner again", func() bool { return status(t, p.west).Identity.Roots[partner] == 1 })
	p.again(ln).end(t)
}

// id is the SPIFFE ID of the server's trust domain.
func (s *spire) id() string { return "spiffe://" + s.domain }

// federate gives the server another's bundle.
func (s *spire) federate(with *spire) {
	s.t.Helper()
	name := with.domain + ".json"
	s.write(name, with.server("bundle", "show", "-format", "spiffe"))
	s.server("bundle", "set", "-id", with.id(), "-format", "spiffe", "-path", filepath.Join(s.dir, name))
}

// entry is the number of a gateway's registration.
func (s *spire) entry(gateway string) string {
	s.t.Helper()
	for line := range strings.Lines(s.server("entry", "show", "-spiffeID", s.id()+"/gateway/"+gateway)) {
		if key, id, found := strings.Cut(line, ":"); found && strings.TrimSpace(key) == "Entry ID" {
			return strings.TrimSpace(id)
		}
	}
	s.t.Fatalf("no entry for %s", gateway)
	return ""
}
