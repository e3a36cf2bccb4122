package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
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
	t    *testing.T
	host *netlab.Host
	bin  string
	dir  string
}

// startSPIRE starts the server, whose X509-SVIDs live for ttl.
func startSPIRE(t *testing.T, p *pair, ttl time.Duration) *spire {
	t.Helper()
	bin := os.Getenv(spireVar)
	if bin == "" {
		needs(t, "spire-server", "spire-agent")
	}
	host, err := p.World.Host("spire")
	if err != nil {
		t.Fatal(err)
	}
	s := &spire{t: t, host: host, bin: bin, dir: t.TempDir()}
	s.write("server.conf", fmt.Sprintf(`server {
  bind_address = "127.0.0.1"
  bind_port = "8081"
  socket_path = "%[1]s/server.sock"
  trust_domain = "%[2]s"
  data_dir = "%[1]s"
  ca_ttl = "1h"
  default_x509_svid_ttl = "%[3]s"
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

// agent starts a gateway's agent; token is empty where it has been attested.
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
}
plugins {
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "disk" { plugin_data { directory = "%[4]s" } }
  WorkloadAttestor "unix" { plugin_data {} }
}
`, s.socket(gateway), domain, s.dir, dir))
	args := []string{"run", "-config", filepath.Join(s.dir, gateway+".conf")}
	if token != "" {
		args = append(args, "-joinToken", token)
	}
	cmd := s.start("spire-agent", args...)
	s.eventually("the agent of "+gateway+" is healthy", "spire-agent", "healthcheck", "-socketPath", s.socket(gateway))
	return cmd
}

// enrol lets a gateway have the identity /gateway/NAME through an agent of its own.
func (s *spire) enrol(gateway string) *exec.Cmd {
	s.t.Helper()
	node := "spiffe://" + domain + "/node/" + gateway
	out := s.server("token", "generate", "-spiffeID", node)
	cmd := s.agent(gateway, strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(out), "Token:")))
	s.server("entry", "create", "-parentID", node, "-spiffeID", "spiffe://"+domain+"/gateway/"+gateway, "-selector", "unix:uid:0")
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

// serial is the number of the certificate that a gateway shows, from its log.
func updates(g *lab.Gateway) int { return strings.Count(g.Log(), "identity updated") }

// TestSPIRE: both gateways have their identities from a real SPIRE. Streams that
// are checked byte for byte live through rotations, through the exchange of the
// authority (prepare, activate, taint) until the old one is revoked, and through the
// death of an agent; new tunnels show the new leaf. What was proved by the revoked
// root is cut, and is so at once.
func TestSPIRE(t *testing.T) {
	p := newWorld(t)
	s := startSPIRE(t, p, time.Minute)
	for _, site := range []*site{&p.westSite, &p.eastSite} {
		site.workloadAPI = "unix://" + s.socket(site.name)
	}
	s.enrol("west")
	eastAgent := s.enrol("east")
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
	const streams = 200
	pumps := startPumps(t, p, ln, streams)

	t.Run("rotation", func(t *testing.T) {
		before := updates(p.west)
		within(t, time.Minute, "west has a new leaf", func() bool { return updates(p.west) > before })
		p.connect(t, p.Client, ln).end(t)
		pumps.check(t)
	})
	t.Run("new authority", func(t *testing.T) {
		old := s.authority("active")
		s.server("localauthority", "x509", "prepare")
		next := s.authority("prepared")
		roots := func(n int) func() bool {
			return func() bool {
				return strings.Contains(lastUpdate(p.west), fmt.Sprintf("%s:%d]", domain, n)) && strings.Contains(lastUpdate(p.east), fmt.Sprintf("%s:%d]", domain, n))
			}
		}
		within(t, time.Minute, "both gateways know two roots", roots(2))
		s.server("localauthority", "x509", "activate", "-authorityID", next)
		before := []int{updates(p.west), updates(p.east)}
		s.server("localauthority", "x509", "taint", "-authorityID", old)
		within(t, time.Minute, "both gateways have leaves of the new root", func() bool {
			return updates(p.west) > before[0] && updates(p.east) > before[1]
		})
		pumps.check(t)
		s.server("localauthority", "x509", "revoke", "-authorityID", old)
		within(t, time.Minute, "both gateways know one root", roots(1))
		pumps.broken(t)
		for _, g := range []*lab.Gateway{p.west, p.east} {
			if s := status(t, g); s.Closed["cut"]+s.Closed["peer_cut"] != streams {
				t.Errorf("%s: ends %v, want %d of them cut", g.Name, s.Closed, streams)
			}
		}
	})
	pumps = startPumps(t, p, ln, streams)
	cut := status(t, p.west).Closed["cut"] // on purpose
	t.Run("agent killed", func(t *testing.T) {
		if err := eastAgent.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := eastAgent.Wait(); err == nil {
			t.Fatal("the agent has ended in order")
		}
		p.connect(t, p.Client, ln).end(t)
		before := updates(p.east)
		s.agent("east", "")
		within(t, time.Minute, "east has a new leaf", func() bool { return updates(p.east) > before })
		p.connect(t, p.Client, ln).end(t)
		pumps.check(t)
	})
	pumps.stop(t)
	if s := status(t, p.west); s.State != "ready" || s.Closed["tunnel_lost"] > 0 || s.Closed["cut"] > cut {
		t.Errorf("west is %s, and has lost streams: %v", s.State, s.Closed)
	}
}

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
