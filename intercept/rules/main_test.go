package rules

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"wishbone/e2e/netlab"
)

func TestMain(m *testing.M) {
	if err := netlab.Enter(); err != nil {
		fmt.Fprintf(os.Stderr, "these tests need network namespaces: %v\n", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// patience bounds the wait for what must happen.
const patience = 5 * time.Second

// until waits for a condition that nothing signals.
func until(met func() (bool, error)) error {
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-poll.C {
		if ok, err := met(); ok || err != nil {
			return err
		}
	}
	return errors.New("waited in vain")
}

// newHost is a host by itself.
func newHost(t *testing.T) *netlab.Host {
	t.Helper()
	lab := netlab.New()
	h, err := lab.Host("host")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// on runs f on a host.
func on(t *testing.T, h *netlab.Host, f func() error) {
	t.Helper()
	if err := h.Do(f); err != nil {
		t.Fatal(err)
	}
}

// have says whether a program is there. Where the tests must be complete its
// absence is a failure.
func have(t *testing.T, program string) bool {
	t.Helper()
	if _, err := exec.LookPath(program); err == nil {
		return true
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed", program)
	}
	t.Logf("WARNING: %s is not installed: NOT compared with what it shows", program)
	return false
}

// output runs a program on a host and gives what it prints.
func output(t *testing.T, h *netlab.Host, stdin, program string, args ...string) string {
	t.Helper()
	var out, errOut strings.Builder
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, errOut.String())
	}
	return out.String()
}

// state is everything of a host that rules could have changed.
func state(t *testing.T, h *netlab.Host) string {
	t.Helper()
	var all strings.Builder
	if have(t, "nft") {
		all.WriteString(output(t, h, "", "nft", "-s", "list", "ruleset"))
	}
	if have(t, "ip") {
		for _, f := range []string{"-4", "-6"} {
			all.WriteString(output(t, h, "", "ip", f, "rule"))
			all.WriteString(output(t, h, "", "ip", f, "route", "show", "table", "all"))
		}
	}
	return all.String()
}

// nft is the backend under test.
func nft(t *testing.T) Backend {
	t.Helper()
	b, err := NFTables()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// open opens the backend under test, in the namespace of its caller: nftables, but
// in eachBackend.
var open = nft

// eachBackend runs a test with nftables, and with the newer variant of iptables:
// what the older one does differently, tests of its own look at.
func eachBackend(t *testing.T, f func(t *testing.T)) {
	t.Run("nftables", f)
	t.Run("iptables", func(t *testing.T) {
		if !useIPTables(t, "nft") {
			return
		}
		open = func(t *testing.T) Backend { return newIPTables(t) }
		defer func() { open = nft }()
		f(t)
	})
}

// apply applies a plan on a host.
func apply(t *testing.T, h *netlab.Host, p Plan) {
	t.Helper()
	on(t, h, func() error { return open(t).Apply(p) })
}

// remove removes everything of ours from a host.
func remove(t *testing.T, h *netlab.Host) {
	t.Helper()
	on(t, h, func() error { return open(t).Remove(DefaultRouting) })
}

// counters reads a host's counters.
func counters(t *testing.T, h *netlab.Host) (c map[string]uint64) {
	t.Helper()
	on(t, h, func() (err error) {
		c, err = open(t).Counters()
		return err
	})
	return c
}

// westPlan is the plan of the gateway west in a netlab.World, with both ways of
// capture.
func westPlan() Plan {
	return Plan{
		Own: prefixes("10.1.0.0/16", "fd00:1::/64", "192.0.2.10/32", "2001:db8::10/128"),
		Peers: []Peer{{
			Name:      "east",
			Networks:  prefixes("10.2.0.0/16", "fd00:2::/64"),
			Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.20:15008"), netip.MustParseAddrPort("[2001:db8::20]:15008")},
		}},
		Forwarded: true, Local: true,
		Transparent: 15001, Tunnel: []uint16{15008},
		Routing: DefaultRouting,
	}
}

// plans are plans of all kinds.
func plans() map[string]Plan {
	full := westPlan()
	full.Peers = append(full.Peers,
		Peer{Name: "open", Networks: prefixes("10.3.0.0/16", "10.4.0.0/15", "fd00:3::/64"), PassUnavailable: true},
		Peer{Name: "pass", Networks: prefixes("10.9.0.0/16", "fd00:9::/64"), PassUncarried: true},
	)
	full.Sources = prefixes("10.1.0.0/24", "10.1.2.0/24", "fd00:1::/80")
	full.Exclude = Exclude{
		Networks: prefixes("10.2.9.0/24", "fd00:2::9:0/112"),
		Ports:    []PortRange{{22, 22}, {8000, 8100}, {65535, 65535}},
		UIDs:     []uint32{0},
	}
	full.Tunnel = []uint16{15008, 443}
	full.ResetExisting = true

	forwarded, local, other, hub := westPlan(), westPlan(), westPlan(), westPlan()
	forwarded.Local, local.Forwarded = false, false
	other.Routing = Routing{Captured: 0x100, Own: 0x200, Mask: 0x300, Table: 77, Priority: 99}
	hub.Peers = append(hub.Peers, Peer{Name: "hub", Networks: prefixes("0.0.0.0/0", "::/0")})
	hub.Exclude.Networks = prefixes("0.0.0.0/0", "::/0")
	return map[string]Plan{
		"empty": {Routing: DefaultRouting}, "west": westPlan(), "full": full,
		"forwarded": forwarded, "local": local, "other numbers": other, "hub": hub,
	}
}
