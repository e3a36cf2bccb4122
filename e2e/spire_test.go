package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
)

// spireVar names the directory with spire-server and spire-agent.
const spireVar = "WISHBONE_SPIRE"

// spire is a SPIRE server with an agent for each gateway, on a host of their own.
// The agents' Workload API is a path, and so reaches gateways on every host.
type spire struct {
	t      *testing.T
	host   *netlab.Host
	bin    string
	dir    string
	domain string
}

// startSPIRE starts the server of a trust domain, whose X509-SVIDs live for ttl.
func startSPIRE(t *testing.T, p *pair, domain string, ttl time.Duration) *spire {
	t.Helper()
	bin := os.Getenv(spireVar)
	if bin == "" {
		needs(t, "spire-server", "spire-agent")
	}
	host, err := p.World.Host("spire-" + strings.TrimSuffix(domain, ".example"))
	if err != nil {
		t.Fatal(err)
	}
	s := &spire{t: t, host: host, bin: bin, dir: t.TempDir(), domain: domain}
	s.write("server.conf", fmt.Sprintf(`server {
  bind_address = "127.0.0.1"
  bind_port = "8081"
  socket_path = "%[1]s/server.sock"
  trust_domain = "%[2]s"
  data_dir = "%[1]s"
  ca_ttl = "1h"
  default_x509_svid_ttl = "%[3]s"
  agent_ttl = "30m" # a token attests an agent once: it must outlive its absence
}
plugins {
  DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "%[1]s/db" } }
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "memory" { plugin_data {} }
}
`, s.dir, domain, ttl))
	s.start("spire-server", "run", "-config", s.dir+"/server.conf")
	s.eventually("the SPIRE server is healthy", "spire-server", "healthcheck", "-socketPath", s.dir+"/server.sock")
	s.write("bootstrap.pem", s.server("bundle", "show"))
	return s
}

func (s *spire) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *spire) command(name string, args ...string) *exec.Cmd {
	if s.bin != "" {
		name = filepath.Join(s.bin, name)
	}
	return exec.Command(name, args...)
}

// start starts a program that goes with the test.
func (s *spire) start(name string, args ...string) *exec.Cmd {
	s.t.Helper()
	cmd := s.command(name, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := s.host.Start(cmd); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		// It may have ended, and how it ends is of no interest.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if s.t.Failed() {
			s.t.Logf("%s:\n%s", name, out.String())
		}
	})
	return cmd
}

// try runs a program on SPIRE's host and returns what it prints.
func (s *spire) try(name string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := s.command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := s.host.Start(cmd); err != nil {
		return "", err
	}
	err := cmd.Wait()
	return out.String(), err
}

func (s *spire) eventually(what, name string, args ...string) {
	s.t.Helper()
	eventually(s.t, what, func() bool {
		_, err := s.try(name, args...)
		return err == nil
	})
}

// server asks the SPIRE server to do something.
func (s *spire) server(args ...string) string {
	s.t.Helper()
	out, err := s.try("spire-server", append(args, "-socketPath", s.dir+"/server.sock")...)
	if err != nil {
		s.t.Fatalf("spire-server %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// socket is the Workload API of a gateway's agent.
func (s *spire) socket(gateway string) string { return filepath.Join(s.dir, gateway+"-agent.sock") }

// agent starts a gateway's agent, and does not wait for anything; token is empty
// where it has been attested.
func (s *spire) agent(gateway, token string) *exec.Cmd {
	s.t.Helper()
	dir := filepath.Join(s.dir, gateway)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	s.write(gateway+".conf", fmt.Sprintf(`agent {
  server_address = "127.0.0.1"
  server_port = "8081"
  socket_path = "%[1]s"
  trust_domain = "%[2]s"
  trust_bundle_path = "%[3]s/bootstrap.pem"
  data_dir = "%[4]s"
  experimental { sync_interval = "%[5]s" }
}
plugins {
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "disk" { plugin_data { directory = "%[4]s" } }
  WorkloadAttestor "unix" { plugin_data {} }
}
`, s.socket(gateway), s.domain, s.dir, dir, syncInterval))
	args := []string{"run", "-config", filepath.Join(s.dir, gateway+".conf")}
	if token != "" {
		args = append(args, "-joinToken", token)
	}
	return s.start("spire-agent", args...)
}

// enrol lets a gateway have the identity /gateway/NAME through an agent of its own;
// entry are more arguments of its entry.
func (s *spire) enrol(gateway string, entry ...string) *exec.Cmd {
	s.t.Helper()
	node := "spiffe://" + s.domain + "/node/" + gateway
	out := s.server("token", "generate", "-spiffeID", node)
	cmd := s.agent(gateway, strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(out), "Token:")))
	s.eventually("the agent of "+gateway+" is healthy", "spire-agent", "healthcheck", "-socketPath", s.socket(gateway))
	s.server(append([]string{"entry", "create", "-parentID", node, "-spiffeID", "spiffe://" + s.domain + "/gateway/" + gateway, "-selector", "unix:uid:0"}, entry...)...)
	return cmd
}

// authorities are the server's X.509 authorities, by their state.
func (s *spire) authority(state string) string {
	s.t.Helper()
	var all map[string]struct {
		ID string `json:"authority_id"`
	}
	out := s.server("localauthority", "x509", "show", "-output", "json")
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	return all[state].ID
}

// kill kills an agent.
func kill(t *testing.T, agent *exec.Cmd) {
	t.Helper()
	if err := agent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := agent.Wait(); err == nil {
		t.Fatal("the agent has ended in order")
	}
}

// mint has the server sign a certificate for a gateway's ID.
func (s *spire) mint(gateway string) tls.Certificate {
	s.t.Helper()
	dir := filepath.Join(s.dir, "minted")
	if err := os.Mkdir(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	s.server("x509", "mint", "-spiffeID", "spiffe://"+domain+"/gateway/"+gateway, "-ttl", "10m", "-write", dir)
	c, err := tls.LoadX509KeyPair(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// admitted says whether east lets somebody in who comes from west with a
// certificate. In TLS 1.3 a server refuses a client after the client's handshake.
func (p *pair) admitted(t *testing.T, cert tls.Certificate) bool {
	t.Helper()
	nc := dial(t, p.West, netip.MustParseAddrPort("192.0.2.20:15008"))
	defer nc.Close()
	c := tls.Client(nc, &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, // who the server is is another test's affair
	})
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Read(make([]byte, 1)) // of the server's SETTINGS
	if err == io.EOF {
		return true // and withdrawn before it was used: the next one is refused
	}
	if _, refused := errors.AsType[*net.OpError](err); err != nil && !refused {
		t.Fatalf("neither let in nor refused: %v", err)
	}
	return err == nil
}

// updates is how many identities a gateway has had.
func updates(g *lab.Gateway) int { return strings.Count(g.Log(), "identity updated") }

// event is a line of a log about a certificate.
type event struct {
	at     time.Time
	serial string
}

// events are the lines of a log that have all of parts in them.
func events(t *testing.T, g *lab.Gateway, parts ...string) (list []event) {
	t.Helper()
	for line := range strings.Lines(g.Log()) {
		if slices.ContainsFunc(parts, func(s string) bool { return !strings.Contains(line, s) }) {
			continue
		}
		var e event
		for word := range strings.FieldsSeq(line) {
			switch key, value, _ := strings.Cut(word, "="); key {
			case "time":
				at, err := time.Parse(time.RFC3339Nano, value)
				if err != nil {
					t.Fatal(err)
				}
				e.at = at
			case "serial":
				e.serial = value
			}
		}
		list = append(list, e)
	}
	return list
}

// newLeaf is how soon a gateway must show a new leaf.
const newLeaf = time.Second

// mustShow fails unless the peer has seen each leaf of a gateway, on a new tunnel,
// soon after the gateway got it, and no tunnel came with an older one later. That it
// sees each at once takes live streams from the gateway to the peer.
func mustShow(t *testing.T, g, peer *lab.Gateway, direction string, each bool) {
	t.Helper()
	leaves := events(t, g, "identity updated")
	seen := events(t, peer, "tunnel up", "direction="+direction, "peer="+g.Name+" ")
	for i, l := range leaves[1:] {
		soon := func(e event) bool { return e.serial == l.serial && e.at.Before(l.at.Add(newLeaf)) }
		same := l.serial == leaves[i].serial // only roots have changed
		if each && !same && !slices.ContainsFunc(seen, soon) {
			t.Errorf("%s has a new leaf %s since %s, and %s has not seen it in %s", g.Name, l.serial, l.at, peer.Name, newLeaf)
		}
		for _, e := range seen {
			if e.at.After(l.at.Add(newLeaf)) && slices.ContainsFunc(leaves[:i+1], func(old event) bool { return old.serial == e.serial && !same }) {
				t.Errorf("%s has a new leaf since %s, and shows the old one at %s", g.Name, l.at, e.at)
			}
		}
	}
}

// TestSPIRE: both gateways have their identities from a real SPIRE. Streams that
// are checked byte for byte live through rotations, through the exchange of the
// authority (prepare, activate, taint, revoke), and through the death of an agent,
// also past the end of the leaf; new tunnels show the new leaf, one by the revoked
// root is let in no more, and with a leaf that has expired there are none.
func TestSPIRE(t *testing.T) {
	p := newWorld(t)
	ttl := 15 * time.Second
	if *long {
		ttl = time.Minute
	}
	s := startSPIRE(t, p, domain, ttl)
	for _, site := range []*site{&p.westSite, &p.eastSite} {
		site.workloadAPI = "unix://" + s.socket(site.name)
	}
	westAgent, eastAgent := s.enrol("west"), s.enrol("east")
	// The agents hear of new entries when they ask the next time.
	p.west = p.launch(p.West, p.westSite, p.eastSite)
	p.east = p.launch(p.East, p.eastSite, p.westSite)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, g := range []*lab.Gateway{p.west, p.east} {
		if err := g.AwaitReady(ctx); err != nil {
			t.Fatal(err)
		}
	}

	at := netip.AddrPortFrom(netlab.Server4, 8080)
	ln := listen(t, p.Server, at)
	pumps := startPumps(t, p, ln, 200)
	lost := func(t *testing.T) {
		t.Helper()
		pumps.check(t)
		for _, g := range []*lab.Gateway{p.west, p.east} {
			if s := status(t, g); s.State != "ready" || s.Closed["tunnel_lost"]+s.Closed["cut"]+s.Closed["peer_cut"] > 0 {
				t.Fatalf("%s is %s, and has lost streams: %v", g.Name, s.State, s.Closed)
			}
		}
	}

	t.Run("rotation", func(t *testing.T) {
		end := time.Now()
		if *long {
			end = end.Add(3 * time.Minute)
		}
		for again := true; again; again = time.Now().Before(end) {
			before := updates(p.west)
			within(t, time.Minute, "west has a new leaf", func() bool { return updates(p.west) > before })
			p.connect(t, p.Client, ln).end(t)
			lost(t)
		}
	})
	t.Run("new authority", func(t *testing.T) {
		old := s.authority("active")
		stolen := s.mint("west")
		if !p.admitted(t, stolen) {
			t.Fatal("east does not let in a leaf that is good")
		}
		s.server("localauthority", "x509", "prepare")
		next := s.authority("prepared")
		roots := func(n int) func() bool {
			return func() bool {
				return strings.Contains(lastUpdate(p.west), fmt.Sprintf("%s:%d]", domain, n)) && strings.Contains(lastUpdate(p.east), fmt.Sprintf("%s:%d]", domain, n))
			}
		}
		within(t, time.Minute, "both gateways know two roots", roots(2))
		s.server("localauthority", "x509", "activate", "-authorityID", next)
		activated := time.Now()
		s.server("localauthority", "x509", "taint", "-authorityID", old)
		tainted := time.Now()
		within(t, time.Minute, "both gateways have leaves of the new root", func() bool {
			signed := activated.Add(ttl)
			return status(t, p.west).Identity.Expires.After(signed) && status(t, p.east).Identity.Expires.After(signed)
		})
		passes(t, tainted.Add(ownInterval))
		lost(t)
		s.server("localauthority", "x509", "revoke", "-authorityID", old)
		within(t, revocation, "a leaf of the old root is refused", func() bool { return !p.admitted(t, stolen) })
		awaitLog(t, p.east, "tunnel refused", "reason=unknown_authority", "gateway/west")
		within(t, time.Minute, "both gateways know one root", roots(1))
		for _, g := range []*lab.Gateway{p.west, p.east} {
			awaitLog(t, g, "must prove itself anew", "reason=root_withdrawn")
		}
		passes(t, time.Now().Add(suddenly))
		lost(t)
		p.connect(t, p.Client, ln).end(t)
	})
	t.Run("agent killed", func(t *testing.T) {
		age := func() float64 { return scrape(t, p.East)["wishbone_identity_age_seconds"] }
		kill(t, eastAgent)
		awaitLog(t, p.east, "keeping the last identity")
		before, killed := updates(p.east), age()
		within(t, time.Minute, "the identity gets older than it may be between two looks at the server", func() bool {
			return age() > killed+outage.Seconds()
		})
		if updates(p.east) > before {
			t.Error("there is a new identity without an agent")
		}
		p.connect(t, p.Client, ln).end(t)
		lost(t)
		s.agent("east", "")
		within(t, time.Minute, "east has a new leaf", func() bool { return updates(p.east) > before })
		p.connect(t, p.Client, ln).end(t)
		lost(t)
		if now := age(); now > killed+outage.Seconds() {
			t.Errorf("the new identity is %v s old", now)
		}
	})
	t.Run("agent killed past expiry", func(t *testing.T) {
		kill(t, westAgent)
		awaitLog(t, p.west, "keeping the last identity")
		before, expires := updates(p.west), status(t, p.west).Identity.Expires
		within(t, 2*ttl, "the leaf has expired", func() bool { return time.Now().After(expires) })
		const n = 3
		asked := time.Now()
		for range n {
			refused(t, p.Client, at)
		}
		if took := time.Since(asked); took > suddenly {
			t.Errorf("%d connections were refused in %s", n, took)
		}
		eventually(t, "each is logged", func() bool {
			return len(events(t, p.west, "connection refused", "reason=identity_expired")) == n
		})
		eventually(t, "each is counted", func() bool {
			return scrape(t, p.West)[`wishbone_connections_refused_total{reason="identity_expired"}`] == n
		})
		nobody(t, ln)
		pumps.check(t)
		if s := status(t, p.west); !strings.Contains(s.State, "own_expired") {
			t.Errorf("west is %s", s.State)
		}
		if updates(p.west) > before {
			t.Error("there is a new identity without an agent")
		}
		s.agent("west", "")
		within(t, time.Minute, "west has a new leaf", func() bool { return updates(p.west) > before })
		c := p.connect(t, p.Client, ln)
		if took := time.Since(events(t, p.west, "identity updated")[before].at); took > recovery {
			t.Errorf("the first connection with the new leaf has taken %s", took)
		}
		c.end(t)
		lost(t)
	})
	pumps.stop(t)
	mustShow(t, p.west, p.east, "inbound", true)
	mustShow(t, p.east, p.west, "outbound", false)
}

const (
	// syncInterval is how often an agent asks the server for news, give or take a
	// tenth, and outage longer than that.
	syncInterval = time.Second
	outage       = 2 * syncInterval
	// revocation is how soon a gateway must know that a root is revoked.
	revocation = 5 * time.Second
	// ownInterval is longer than a server and its agents take to see that their own
	// certificates are tainted, which they ask every 5 s. Those who meet with an old
	// one later give up.
	ownInterval = 7 * time.Second
)

// lastUpdate is the last line of a log about a new identity.
func lastUpdate(g *lab.Gateway) string {
	var last string
	for line := range strings.Lines(g.Log()) {
		if strings.Contains(line, "identity updated") {
			last = line
		}
	}
	return last
}

// within waits for what others do in their own time.
func within(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("it did not come to pass in %s: %s", limit, what)
}
