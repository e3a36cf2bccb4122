package e2e

import (
	"cmp"
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wishbone/e2e/netlab"
	"wishbone/identity/identitytest"
)

// TestStartFails: what keeps a gateway from starting has its own error, with
// what to do about it; and then nothing is left behind.
func TestStartFails(t *testing.T) {
	for _, tt := range []struct {
		name  string
		bend  func(*site)
		spoil func(*testing.T, *pair) // before the start
		env   string
		code  int
		want  []string
	}{
		{
			name: "a mistake in the configuration", code: 2,
			bend: func(s *site) { s.extra = "colour: red" },
			want: []string{"wishbone: error: ", "west.yaml:", "colour"},
		}, {
			name: "no capabilities", code: 1, env: with("1"),
			want: []string{"missing capability CAP_NET_ADMIN", "hint: run as root"},
		}, {
			name: "tunnel port in use", code: 1,
			spoil: func(t *testing.T, p *pair) { listen(t, p.West, netip.MustParseAddrPort("[::]:15008")) },
			want:  []string{"listen for peers", "15008", "address already in use", "hint: another process listens there: ss -ltnp 'sport = :15008'"},
		}, {
			name: "transparent port in use", code: 1,
			spoil: func(t *testing.T, p *pair) { listen(t, p.West, netip.MustParseAddrPort("127.0.0.1:15001")) },
			want:  []string{"open transparent listener 127.0.0.1:15001", "address already in use", "sport = :15001"},
		}, {
			name: "metrics port in use", code: 1,
			spoil: func(t *testing.T, p *pair) { listen(t, p.West, netip.MustParseAddrPort("127.0.0.1:15020")) },
			want:  []string{"serve metrics", "address already in use", "sport = :15020"},
		}, {
			name: "ready port in use", code: 1,
			spoil: func(t *testing.T, p *pair) { listen(t, p.West, netip.MustParseAddrPort("127.0.0.1:15021")) },
			want:  []string{"serve readiness", "address already in use", "sport = :15021"},
		}, {
			name: "an address that is not there", code: 1,
			bend: func(s *site) { s.listen = `tunnel: ["198.51.100.1:15008"]` },
			want: []string{"listen for peers", "198.51.100.1:15008", "cannot assign requested address", "hint: no interface of this host"},
		}, {
			name: "own certificate has expired", code: 1,
			bend: func(s *site) { s.opts = identitytest.Expired() },
			want: []string{"own_expired", "spiffe://mesh.example/gateway/west", "hint: issue a new certificate"},
		}, {
			name: "own certificate is not valid yet", code: 1,
			bend: func(s *site) { s.opts = identitytest.NotYetValid() },
			want: []string{"own_not_yet_valid", "hint: compare this host's clock"},
		}, {
			name: "no key", code: 1,
			spoil: func(t *testing.T, p *pair) {
				if err := os.Remove(filepath.Join(p.dir, "west.key")); err != nil {
					t.Fatal(err)
				}
			},
			want: []string{"west.key", "no such file", "hint: the paths are relative"},
		}, {
			name: "somebody's file where the admin socket goes", code: 1,
			spoil: func(t *testing.T, p *pair) {
				if err := os.WriteFile(filepath.Join(p.dir, "west.sock"), []byte("mine"), 0o600); err != nil {
					t.Fatal(err)
				}
			},
			want: []string{"something else is there"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newWorld(t, func(west, _ *site) {
				if tt.bend != nil {
					tt.bend(west)
				}
			})
			p.write(p.westSite, p.eastSite)
			if tt.spoil != nil {
				tt.spoil(t, p)
			}
			before := hostState(t, p.West)
			code, out := runOn(t, p.West, cmp.Or(tt.env, "1"), "run", "-c", filepath.Join(p.dir, "west.yaml"))
			if code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			for _, w := range tt.want {
				if !strings.Contains(out, w) {
					t.Errorf("output lacks %q", w)
				}
			}
			if strings.Contains(out, "goroutine ") {
				t.Error("output has a stack trace")
			}
			if d := difference(before, hostState(t, p.West)); d != "" {
				t.Errorf("left behind:\n%s", d)
			}
			if t.Failed() {
				t.Logf("output:\n%s", out)
			}
		})
	}
}

// runOn runs the command line on a host until it ends, and returns its exit code
// and everything it printed.
func runOn(t *testing.T, h *netlab.Host, mode string, args ...string) (code int, out string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var b strings.Builder
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Args[0] = "wishbone"
	cmd.Env = append(os.Environ(), runVar+"="+mode)
	cmd.Stdout, cmd.Stderr = &b, &b
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	// The exit code says it.
	_ = cmd.Wait()
	return cmd.ProcessState.ExitCode(), b.String()
}

// TestPeerTroubles: what keeps a tunnel from coming about has its own words in
// the log, the client gets a reset, and nothing goes in the clear.
func TestPeerTroubles(t *testing.T) {
	for _, tt := range []struct {
		name  string
		bend  func(west, east *site)
		start func(*pair) // east's side; nil: an ordinary gateway
		west  []string    // in west's log
		east  []string    // in east's
		flow  string      // in west's line about the connection
	}{
		{
			name: "peer is down", start: func(*pair) {},
			west: []string{"tunnel not established", "peer=east", "connection refused"},
		}, {
			name: "peer has the wrong id",
			bend: func(_, east *site) { east.id = "/gateway/mallory" },
			west: []string{"tunnel not established", "wrong_id", "spiffe://mesh.example/gateway/mallory", "want [spiffe://mesh.example/gateway/east]"},
		}, {
			name: "we have the wrong id",
			bend: func(west, _ *site) { west.id = "/gateway/mallory" },
			// The client's side of TLS 1.3 is done before the server has judged.
			west: []string{"tunnel down", "peer=east", "bad certificate"}, flow: "why=tunnel_lost",
			east: []string{"tunnel refused", "reason=wrong_id", "spiffe://mesh.example/gateway/mallory"},
		}, {
			name: "no route to the peer",
			bend: func(west, _ *site) { west.peerEndpoints = `["203.0.113.1:15008"]` },
			start: func(p *pair) {
				output(p.t, p.West, "ip", "route", "add", "unreachable", "203.0.113.0/24")
			},
			west: []string{"tunnel not established", "203.0.113.1:15008", "no route to host"},
		}, {
			name: "nobody answers at the peer's address",
			bend: func(west, _ *site) {
				west.peerEndpoints = `["203.0.113.1:15008"]`
				west.extra = "timeouts: {handshake: 1s}"
			},
			start: func(p *pair) { p.blackhole("203.0.113.1/32") },
			west:  []string{"tunnel not established", "203.0.113.1:15008", "timeout"},
		}, {
			name:  "something else answers",
			start: func(p *pair) { p.answer("SSH-2.0-OpenSSH_9.2\r\n") },
			west:  []string{"tunnel not established", "tls"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var options []func(west, east *site)
			if tt.bend != nil {
				options = append(options, tt.bend)
			}
			p := newWorld(t, options...)
			p.startWest()
			if tt.start != nil {
				tt.start(p)
			} else {
				p.startEast()
			}
			wire, err := p.West.Capture(netlab.Outer)
			if err != nil {
				t.Fatal(err)
			}
			listen(t, p.Server, netip.AddrPortFrom(netlab.Server4, 8080))
			client, err := tryDial(t, p.Client, netip.AddrPortFrom(netlab.Server4, 8080))
			if err == nil {
				err = readEnd(t, client)
			}
			if !isReset(err) {
				t.Errorf("the client gets %v, want a reset", err)
			}
			if tt.west != nil {
				awaitLog(t, p.west, tt.west...)
			}
			if tt.east != nil {
				awaitLog(t, p.east, tt.east...)
			}
			awaitLog(t, p.west, "direction=outbound", "client=10.1.0.2:", "peer=east", cmp.Or(tt.flow, "reason=peer_down"))
			traffic, err := wire.Stop()
			if err != nil {
				t.Fatal(err)
			}
			if found := clear(traffic); len(found) > 0 {
				t.Errorf("crossed the underlay in the clear:\n%s", strings.Join(found, "\n"))
			}
		})
	}
}

// answer has east's tunnel port answer with a line, whoever comes.
func (p *pair) answer(line string) {
	ln := listen(p.t, p.East, netip.MustParseAddrPort("192.0.2.20:15008"))
	go func() { // ends with the listener
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			// The other side's word counts, not ours.
			_, _ = c.Write([]byte(line))
			c.Close()
		}
	}()
}

// TestCleanStop: a gateway that is told to stop leaves the host as it was, with
// the rules of others in place.
func TestCleanStop(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newWorld(t, onFirewall(backend))
			p.foreignRules()
			before := hostState(t, p.West)
			p.startWest()
			if difference(before, hostState(t, p.West)) == "" {
				t.Fatal("a running gateway has changed nothing on the host: the comparison sees nothing")
			}
			stop(t, p)
			if d := difference(before, hostState(t, p.West)); d != "" {
				t.Errorf("the host is not as it was:\n%s", d)
			}
		})
	}
}

// stop ends west in order.
func stop(t *testing.T, p *pair) {
	t.Helper()
	if err := p.west.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	code, err := p.west.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if code != 0 {
		t.Errorf("west has ended with exit code %d:\n%s", code, p.west.Log())
	}
}

// foreignRules puts rules of somebody else's on west.
func (p *pair) foreignRules() {
	p.t.Helper()
	needs(p.t, "nft", "iptables", "ip6tables", "ip")
	for _, c := range []string{
		"nft add table inet foreign",
		"nft add chain inet foreign input { type filter hook input priority 0 ; policy accept ; }",
		"nft add rule inet foreign input tcp dport 22 counter accept",
		"iptables -t mangle -A PREROUTING -p tcp --dport 2222 -j MARK --set-mark 7",
		"iptables -N OTHERS", "iptables -A INPUT -j OTHERS",
		"ip6tables -A FORWARD -p tcp --dport 2222 -j ACCEPT",
		"ip rule add pref 900 fwmark 7 lookup 77", "ip route add 198.51.100.0/24 dev inner table 77",
		"ip -6 rule add pref 900 fwmark 7 lookup 77",
	} {
		f := strings.Fields(c)
		output(p.t, p.West, f[0], f[1:]...)
	}
}

// TestRulesStay: rules that were applied on purpose stay, whatever the gateway
// does, until they are removed.
func TestRulesStay(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newWorld(t, onFirewall(backend))
			p.write(p.westSite, p.eastSite)
			config := filepath.Join(p.dir, "west.yaml")
			before := hostState(t, p.West)
			if code, out := runOn(t, p.West, "1", "rules", "apply", "-c", config); code != 0 {
				t.Fatalf("rules apply: exit code %d\n%s", code, out)
			}
			applied := hostState(t, p.West)
			if difference(before, applied) == "" {
				t.Fatal("rules apply has changed nothing")
			}
			unreachable(t, p.Client, netip.AddrPortFrom(netlab.Server4, 8080))
			p.startWest()
			stop(t, p)
			if d := difference(applied, hostState(t, p.West)); d != "" {
				t.Errorf("the gateway has changed rules that are not its own:\n%s", d)
			}
			if code, out := runOn(t, p.West, "1", "rules", "remove", "-c", config); code != 0 {
				t.Fatalf("rules remove: exit code %d\n%s", code, out)
			}
			if d := difference(before, hostState(t, p.West)); d != "" {
				t.Errorf("the host is not as it was:\n%s", d)
			}
		})
	}
}
