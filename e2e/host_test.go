package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wishbone/e2e/netlab"
)

// needs sees that a program is there. Where it is not, the test fails in CI, and
// is left out elsewhere: the gateway itself needs none of them.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err == nil {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not installed", p)
		}
		t.Skipf("LEFT OUT: %s is not installed", p)
	}
}

// needsFirewall is needs for the programs of a backend.
func needsFirewall(t *testing.T, backend string) {
	t.Helper()
	if backend == "iptables" {
		needs(t, "iptables", "ip6tables")
	}
}

// output runs a program on a host and returns what it prints.
func output(t *testing.T, h *netlab.Host, name string, args ...string) string {
	t.Helper()
	needs(t, name)
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.Env = append(os.Environ(), "XTABLES_LOCKFILE="+t.TempDir()+"/xtables.lock")
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, errOut.String())
	}
	return out.String()
}

// hostState is everything that a gateway may change on a host, as text: policy
// rules and routes of all tables, and nftables (which iptables is part of) as far
// as netlink tells, and in full where the programs are there.
func hostState(t *testing.T, h *netlab.Host) string {
	t.Helper()
	var b strings.Builder
	err := h.Do(func() error {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			rules, err := netlink.RuleList(family)
			if err != nil {
				return err
			}
			for _, r := range rules {
				fmt.Fprintf(&b, "rule %d: %+v\n", family, r)
			}
			routes, err := netlink.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			for _, r := range routes {
				fmt.Fprintf(&b, "route %d: %s\n", family, r)
			}
		}
		return nftState(&b)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]string{
		{"nft", "-s", "list", "ruleset"}, {"iptables-save"}, {"ip6tables-save"}, {"ipset", "list"},
		{"ip", "-4", "rule"}, {"ip", "-6", "rule"}, {"ip", "-4", "route", "show", "table", "all"}, {"ip", "-6", "route", "show", "table", "all"},
	} {
		if _, err := exec.LookPath(c[0]); err == nil {
			fmt.Fprintf(&b, "# %s\n%s", strings.Join(c, " "), output(t, h, c[0], c[1:]...))
		}
	}
	return normal(b.String())
}

// nftState lists tables, chains and sets.
func nftState(b *strings.Builder) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return err
	}
	for _, table := range tables {
		fmt.Fprintf(b, "nft table %d %s\n", table.Family, table.Name)
	}
	return nil
}

var (
	comment  = regexp.MustCompile(`(?m)^#.*\n`)
	counters = regexp.MustCompile(`\[\d+:\d+\]`)
	// The sets of the iptables backend alternate between two names.
	generation = regexp.MustCompile(`(wb_[a-z0-9]+)_[ab]\b`)
	dynamic    = regexp.MustCompile(`(expires|used|age) \S+`)
	// A base chain of iptables-nft with nothing in it, which it leaves behind.
	emptyChain = regexp.MustCompile(`(?m)^\tchain [A-Z]+ \{\n\t\ttype [^\n]*\n\t\}\n+`)
	emptyTable = regexp.MustCompile(`(?m)^table ip6? [a-z]+ \{\n*\}\n`)
	emptySave  = regexp.MustCompile(`(?m)^\*[a-z]+\n(:[A-Z]+ [A-Z]+ \[0:0\]\n)+COMMIT\n`)
	tableLine  = regexp.MustCompile(`(?m)^nft table (2|10) (mangle|filter|raw|nat)\n`)
)

// normal takes out of a state what changes by itself, and the empty base chains
// that iptables-nft leaves behind, which count as nothing.
func normal(s string) string {
	s = comment.ReplaceAllString(s, "")
	s = generation.ReplaceAllString(s, "$1")
	s = counters.ReplaceAllString(s, "[0:0]")
	s = dynamic.ReplaceAllString(s, "")
	s = emptyChain.ReplaceAllString(s, "")
	s = emptyTable.ReplaceAllString(s, "")
	s = emptySave.ReplaceAllString(s, "")
	return tableLine.ReplaceAllString(s, "")
}

// difference lists the lines that only one of two states has.
func difference(before, after string) string {
	var b strings.Builder
	old, now := strings.Split(before, "\n"), strings.Split(after, "\n")
	for _, l := range old {
		if !slices.Contains(now, l) {
			fmt.Fprintf(&b, "- %s\n", l)
		}
	}
	for _, l := range now {
		if !slices.Contains(old, l) {
			fmt.Fprintf(&b, "+ %s\n", l)
		}
	}
	return b.String()
}
