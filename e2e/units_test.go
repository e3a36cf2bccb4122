package e2e

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/e2e/netlab"
)

// capabilitiesIn are those that a unit of deploy gives, as with takes them.
func capabilitiesIn(t *testing.T, unit, key string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "deploy", "systemd", unit))
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^` + key + `=(.*)$`).FindStringSubmatch(string(text))
	if line == nil {
		t.Fatalf("%s has no %s", unit, key)
	}
	return strings.Fields(strings.ToLower(strings.ReplaceAll(line[1], "CAP_", "")))
}

// TestUnits: with what its units give, and no more, rules are installed and a
// gateway runs; it tells the service manager of its life.
func TestUnits(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			needsFirewall(t, backend)
			p := newWorld(t, onFirewall(backend))
			p.write(p.westSite, p.eastSite)
			p.write(p.eastSite, p.westSite)
			asRules := with("1", capabilitiesIn(t, "wishbone-rules.service", "CapabilityBoundingSet")...)
			rules := func(h *netlab.Host, name, action string) {
				t.Helper()
				if code, out := runOn(t, h, asRules, "rules", action, "-c", filepath.Join(p.dir, name+".yaml")); code != 0 {
					t.Fatalf("rules %s: exit code %d\n%s", action, code, out)
				}
			}
			rules(p.West, "west", "apply")
			rules(p.East, "east", "apply")
			given := capabilitiesIn(t, "wishbone.service", "AmbientCapabilities")
			if otherUsers(t) {
				given = append(given, "nobody")
				p.giveAway(nobodyID)
			}
			p.mode = with("1", given...)
			p.east = p.startAs(p.East, "east")
			manager := listenAsManager(t, p.dir)
			p.west = p.startAs(p.West, "west")
			hears(t, manager, `^READY=1\n`)
			onlyHas(t, p.west, 1<<unix.CAP_NET_RAW|1<<unix.CAP_NET_BIND_SERVICE)
			carryFrom(t, p, 700) // what CAP_NET_BIND_SERVICE is for
			hangUp(t, p.west)
			hears(t, manager, `^RELOADING=1\nMONOTONIC_USEC=\d+\n`)
			hears(t, manager, `^READY=1\n`)
			if err := p.west.Signal(unix.SIGTERM); err != nil {
				t.Fatal(err)
			}
			hears(t, manager, `^STOPPING=1\n.*\nEXTEND_TIMEOUT_USEC=\d+$`)
			if code := exitCode(t, p.west); code != 0 {
				t.Errorf("exit code %d\n%s", code, p.west.Log())
			}
			unreachable(t, p.Client, web)
			rules(p.West, "west", "remove")
		})
	}
}

// listenAsManager is a service manager's socket, for what is started from now on.
func listenAsManager(t *testing.T, dir string) *net.UnixConn {
	t.Helper()
	path := filepath.Join(dir, "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := os.Chmod(path, 0o666); err != nil { // as that of systemd
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	return c
}

// hears fails unless the next message to a service manager is so.
func hears(t *testing.T, manager *net.UnixConn, pattern string) {
	t.Helper()
	if err := manager.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	message := make([]byte, 1024)
	n, err := manager.Read(message)
	if err != nil || !regexp.MustCompile(pattern).Match(message[:n]) {
		t.Fatalf("the service manager hears %q, %v, want %s", message[:n], err, pattern)
	}
}

// carryFrom has connections from a client's port carried, and seen from there.
func carryFrom(t *testing.T, p *pair, port uint16) {
	t.Helper()
	for _, f := range families {
		to := netip.AddrPortFrom(f.server, 8080)
		ln := listen(t, p.Server, to)
		client := mustDialFrom(t, p.Client, netip.AddrPortFrom(f.client, port), to)
		server := accept(t, ln)
		if from := addr(server.RemoteAddr()); from != netip.AddrPortFrom(f.client, port) {
			t.Errorf("the server sees %s", from)
		}
		exchange(t, client, server)
		if err := errors.Join(client.Close(), server.Close()); err != nil {
			t.Error(err)
		}
	}
	mustMatch(t, wishbone(t, p.west, p.West, "status"), `^outbound +\d live, 2 in all`)
}
