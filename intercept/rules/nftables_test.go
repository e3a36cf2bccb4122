package rules

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"wishbone/e2e/netlab"
)

// TestText compares what nft makes of the text with what Apply installs.
func TestText(t *testing.T) {
	if !have(t, "nft") {
		return
	}
	for name, p := range plans() {
		t.Run(name, func(t *testing.T) {
			installed, loaded := newHost(t), newHost(t)
			apply(t, installed, p)
			output(t, loaded, Text(p), "nft", "-c", "-f", "-")
			output(t, loaded, Text(p), "nft", "-f", "-")
			want := list(t, loaded)
			if d := cmp.Diff(want, list(t, installed)); d != "" {
				t.Errorf("the rules are not what the text says (-text +installed):\n%s", d)
			}
			if !strings.Contains(want, "goto divert") {
				t.Errorf("nft lists no rules:\n%s", want)
			}
			// Each replaces the other.
			output(t, installed, Text(p), "nft", "-f", "-")
			apply(t, loaded, p)
			if d := cmp.Diff(want, list(t, installed)) + cmp.Diff(want, list(t, loaded)); d != "" {
				t.Errorf("replaced by the other form: (-text +now)\n%s", d)
			}
		})
	}
}

// list is what nft shows, with the bytecode of the rules.
func list(t *testing.T, h *netlab.Host) string {
	t.Helper()
	var lines []string
	for l := range strings.SplitSeq(output(t, h, "", "nft", "--debug=netlink", "-s", "-nn", "list", "ruleset"), "\n") {
		// The kernel is told of no "end" at address zero, nor of nft's own notes
		// on elements, and gives out handles as it likes. The text below has the
		// elements.
		if !strings.HasPrefix(l, "\telement ") && !strings.HasPrefix(l, "inet wishbone ") {
			lines = append(lines, l)
		}
	}
	return strings.Join(lines, "\n")
}

// TestTextRouting holds the printed commands to what Apply does.
func TestTextRouting(t *testing.T) {
	if !have(t, "ip") {
		return
	}
	for _, p := range []Plan{westPlan(), plans()["other numbers"]} {
		installed, commanded := newHost(t), newHost(t)
		apply(t, installed, p)
		for line := range strings.Lines(Text(p)) {
			if command, ok := strings.CutPrefix(line, "# ip "); ok {
				output(t, commanded, "", "ip", strings.Fields(command)...)
			}
		}
		output(t, commanded, Text(p), "nft", "-f", "-")
		if d := cmp.Diff(state(t, commanded), state(t, installed)); d != "" {
			t.Errorf("(-commands +installed)\n%s", d)
		}
	}
}

// foreign is other people's work, next to ours in every way.
const foreign = `
table inet wishbones {
	chain pre {
		type filter hook prerouting priority mangle
		tcp dport 1 counter drop
	}
}
table ip wishbone {
	set own4 {
		type ipv4_addr
		elements = { 10.1.0.1 }
	}
}
table ip6 filter {
	chain forward {
		type filter hook forward priority 0; policy drop
	}
}
`

// TestRemove looks at everything before and after.
func TestRemove(t *testing.T) {
	h := newHost(t)
	if have(t, "nft") {
		output(t, h, foreign, "nft", "-f", "-")
	}
	if have(t, "ip") {
		for _, f := range []string{"-4", "-6"} {
			for _, args := range []string{
				"rule add pref 1508 fwmark 0x1/0x1 lookup 15008",
				"rule add pref 1510 fwmark 0xc000000/0xc000000 lookup 15009",
				"rule add pref 1511 goto 32766",
				"route add blackhole default table 15009",
			} {
				output(t, h, "", "ip", append([]string{f}, strings.Fields(args)...)...)
			}
		}
	}
	before := state(t, h)
	for name, p := range plans() {
		if name == "other numbers" {
			continue
		}
		remove(t, h) // nothing
		apply(t, h, p)
		if have(t, "nft") && state(t, h) == before {
			t.Fatalf("%s: Apply changed nothing", name)
		}
		apply(t, h, p)
		remove(t, h)
		if d := cmp.Diff(before, state(t, h)); d != "" {
			t.Errorf("%s: not as before: (-before +after)\n%s", name, d)
		}
	}
}

// TestRemoveIncomplete removes what is left when somebody has removed a part.
func TestRemoveIncomplete(t *testing.T) {
	h := newHost(t)
	before := state(t, h)
	for _, part := range []func() error{
		func() error { return removeRouting(DefaultRouting) },
		func() error {
			return transact(func(c *nftables.Conn) error { c.DelTable(table()); return nil })
		},
		func() error { return routedFamilies[0].remove(handle(t), DefaultRouting) },
		func() error { return handle(t).RuleDel(routedFamilies[1].rules(DefaultRouting)[0]) },
		func() error { return handle(t).RouteDel(routedFamilies[0].route(DefaultRouting)) },
	} {
		apply(t, h, westPlan())
		on(t, h, part)
		remove(t, h)
		if d := cmp.Diff(before, state(t, h)); d != "" {
			t.Errorf("not as before: (-before +after)\n%s", d)
		}
	}
}

// TestApplyRepairs brings back what somebody has removed.
func TestApplyRepairs(t *testing.T) {
	h := newHost(t)
	apply(t, h, westPlan())
	want := state(t, h)
	on(t, h, func() error { return removeRouting(DefaultRouting) })
	on(t, h, func() error {
		return transact(func(c *nftables.Conn) error { c.FlushTable(table()); return nil })
	})
	apply(t, h, westPlan())
	if d := cmp.Diff(want, state(t, h)); d != "" {
		t.Errorf("(-first +repaired)\n%s", d)
	}
}

// TestReplace puts every kind of plan in the place of another.
func TestReplace(t *testing.T) {
	if !have(t, "nft") {
		return
	}
	h := newHost(t)
	for range 2 {
		for name, p := range plans() { // in a different order every time
			alone := newHost(t)
			apply(t, alone, p)
			apply(t, h, p)
			if d := cmp.Diff(list(t, alone), list(t, h)); d != "" {
				t.Errorf("%s is not what it is alone: (-alone +after others)\n%s", name, d)
			}
		}
	}
}

// TestReplaceKeepsMemory: the 4-tuples of living connections and the counts
// outlast a replacement.
func TestReplaceKeepsMemory(t *testing.T) {
	h := newHost(t)
	p := plans()["full"]
	apply(t, h, p)
	flow := make([]byte, 16)
	on(t, h, func() error { return nft(t).Live(p) })
	on(t, h, func() error {
		return transact(func(c *nftables.Conn) error {
			return c.SetAddElements(&nftables.Set{Table: table(), Name: "flow4", HasTimeout: true},
				[]nftables.SetElement{{Key: flow, Timeout: time.Minute}})
		})
	})
	apply(t, h, westPlan())
	apply(t, h, p)
	for set, want := range map[string]int{"flow4": 1, "live": 1, "own4": 4, "xuid": 1} {
		if got := len(elements(t, h, set)); got != want {
			t.Errorf("set %s has %d elements, want %d", set, got, want)
		}
	}
}

// elements reads a set.
func elements(t *testing.T, h *netlab.Host, name string) (all []nftables.SetElement) {
	t.Helper()
	on(t, h, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		s, err := c.GetSetByName(table(), name)
		if err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
		all, err = c.GetSetElements(s)
		return err
	})
	return all
}

// TestLive starts the time anew.
func TestLive(t *testing.T) {
	h := newHost(t)
	p := plans()["full"]
	apply(t, h, p)
	if n := len(elements(t, h, "live")); n != 0 {
		t.Fatalf("alive before Live: %d elements", n)
	}
	live := func() { on(t, h, func() error { return nft(t).Live(p) }) }
	left := func() time.Duration {
		es := elements(t, h, "live")
		if len(es) != 1 || es[0].Timeout != LiveFor {
			t.Fatalf("elements %+v, want one for %v", es, LiveFor)
		}
		return es[0].Expires
	}
	live()
	const some = 100 * time.Millisecond
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(patience); left() > LiveFor-some; <-poll.C {
		if time.Now().After(deadline) {
			t.Fatal("time does not run")
		}
	}
	for range 3 {
		live()
	}
	if l := left(); l < LiveFor-some {
		t.Errorf("%v left after Live, want about %v", l, LiveFor)
	}
	remove(t, h)
	if err := h.Do(func() error { return nft(t).Live(p) }); !errors.Is(err, unix.ENOENT) {
		t.Errorf("Live without rules: %v, want ENOENT", err)
	}
	if err := h.Do(func() error { return nft(t).Live(westPlan()) }); err != nil {
		t.Errorf("Live that no peer depends on: %v", err)
	}
}

// TestManyNetworks loads more than a message, and more than an ordinary user's
// socket may hold.
func TestManyNetworks(t *testing.T) {
	const n = 12000
	p := westPlan()
	p.Peers = []Peer{{Name: "many"}}
	for i := range n {
		p.Peers[0].Networks = append(p.Peers[0].Networks,
			netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i >> 8), byte(i), 0}), 25),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 9, 0, 0, 0, 0, byte(i >> 8), byte(i)}), 65))
	}
	h := newHost(t)
	err := h.Do(func() error { return nft(t).Apply(p) })
	if errors.Is(err, unix.EMSGSIZE) && strings.Contains(err.Error(), "net.core.wmem_max") && !mayForce(t, h) {
		t.Logf("refused, as it should be for an ordinary user here: %v", err)
		p.Peers[0].Networks = p.Peers[0].Networks[:2000]
		err = h.Do(func() error { return nft(t).Apply(p) })
	}
	if err != nil {
		t.Fatal(err)
	}
	want := len(p.Peers[0].Networks) / 2
	for _, set := range []string{"peer4", "peer6"} {
		starts := 0
		for _, e := range elements(t, h, set) {
			if !e.IntervalEnd {
				starts++
			}
		}
		if starts != want {
			t.Errorf("%s has %d networks, want %d", set, starts, want)
		}
	}
	apply(t, h, p) // in place
	apply(t, h, westPlan())
	if got := len(elements(t, h, "peer4")); got != 2 {
		t.Errorf("peer4 has %d elements after a small plan, want 2", got)
	}
}

// mayForce says whether sockets may have any buffer.
func mayForce(t *testing.T, h *netlab.Host) (may bool) {
	on(t, h, func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		may = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1<<20) == nil
		return unix.Close(fd)
	})
	return may
}

// TestAtomic fails in the middle.
func TestAtomic(t *testing.T) {
	h := newHost(t)
	apply(t, h, westPlan())
	before := state(t, h)
	rs := build(plans()["full"], nil)
	post := rs.chains[len(rs.chains)-1]
	post.rules = append(post.rules, rule{text: "goto nowhere", exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: "nowhere"}}})
	err := h.Do(func() error { return install(rs) })
	if !errors.Is(err, unix.ENOENT) {
		t.Fatalf("goto a chain that does not exist: %v, want ENOENT", err)
	}
	for _, want := range []string{`"goto nowhere"`, "add rule in chain post"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %s", err, want)
		}
	}
	if d := cmp.Diff(before, state(t, h)); d != "" {
		t.Errorf("a failed transaction changed something: (-before +after)\n%s", d)
	}
}

// TestMissingModule names what the kernel lacks.
func TestMissingModule(t *testing.T) {
	rs := build(westPlan(), nil)
	batch, err := compose(rs.fill)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ text, module string }{
		{"tproxy ip6 to", "nft_tproxy"}, {"socket wildcard", "nft_socket"}, {"fib saddr", "nft_fib_inet"},
	} {
		n := slices.IndexFunc(rs.rules(), func(r rule) bool { return strings.Contains(r.text, tc.text) })
		index := slices.IndexFunc(batch, isNewRule) + n
		err := rs.nameRule(batch, &batchError{index: index, what: describe(batch[index]), errno: unix.ENOENT})
		if !strings.Contains(err.Error(), tc.text) || !strings.Contains(err.Error(), "modprobe "+tc.module) {
			t.Errorf("error %q does not name rule %q and module %s", err, tc.text, tc.module)
		}
	}
}

// TestDescribe names the object of every message.
func TestDescribe(t *testing.T) {
	batch, err := compose(build(plans()["full"], nil).fill)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, m := range batch[1 : len(batch)-1] {
		seen[describe(m)] = true
	}
	for _, want := range []string{
		"add table wishbone", "add counter guard", "add set peer4", "flush table wishbone", "delete elements of set peer4",
		"add elements to set peer4", "add chain pre_new", "add rule in chain pre_new",
	} {
		if !seen[want] {
			t.Errorf("no message is described as %q, only %q", want, slices.Sorted(maps.Keys(seen)))
		}
	}
}

// TestOlderTable: a table of our name is ours, whatever is in it.
func TestOlderTable(t *testing.T) {
	if !have(t, "nft") {
		return
	}
	fresh, h := newHost(t), newHost(t)
	apply(t, fresh, westPlan())
	for _, older := range []string{
		"add table inet wishbone\nadd set inet wishbone own4 { type ipv6_addr; }",
		"add table inet wishbone\nadd chain inet wishbone pre { type filter hook input priority 0; policy drop; }",
		"add table inet wishbone\nadd quota inet wishbone guard { 25 mbytes }\nadd chain inet wishbone post",
	} {
		output(t, h, older, "nft", "-f", "-")
		apply(t, h, westPlan())
		if d := cmp.Diff(list(t, fresh), list(t, h)); d != "" {
			t.Errorf("after %q: (-fresh +installed)\n%s", older, d)
		}
		remove(t, h)
	}
}

// TestForbidden says which capability is missing.
func TestForbidden(t *testing.T) {
	err := powerless(t, func() error {
		_, err := NFTables()
		return errors.Join(err, (&nftBackend{}).Apply(westPlan()))
	})
	if !errors.Is(err, unix.EPERM) || strings.Count(err.Error(), "missing CAP_NET_ADMIN") != 2 {
		t.Errorf("without capabilities: %v, want EPERM and the capability's name, twice", err)
	}
}

// TestTooLarge says what an ordinary user can do.
func TestTooLarge(t *testing.T) {
	err := powerless(t, func() error {
		fd, err := openNetfilter(1 << 29)
		if err == nil {
			unix.Close(fd)
		}
		return err
	})
	if !errors.Is(err, unix.EMSGSIZE) || !strings.Contains(err.Error(), "net.core.wmem_max") {
		t.Errorf("half a GiB of rules: %v, want EMSGSIZE and the setting's name", err)
	}
	if err := send([]netlink.Message{{}, {Data: make([]byte, 1<<16)}, {}}); err == nil {
		t.Error("a message of 64 KiB was sent")
	}
}

// powerless runs f on a new host, on a thread without capabilities.
func powerless(t *testing.T, f func() error) error {
	h := newHost(t)
	result := make(chan error, 1)
	go h.Do(func() error { // cannot return from the host, and ends with its thread
		runtime.LockOSThread()
		var none [2]unix.CapUserData
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			t.Error(err)
		}
		result <- f()
		return nil
	})
	return <-result
}

// TestCgroupMissing names the group.
func TestCgroupMissing(t *testing.T) {
	h := newHost(t)
	before := state(t, h)
	for _, name := range []string{"/system.slice/no-such.service", "no/such", "/", ""} {
		p := westPlan()
		p.Exclude.Cgroups = []string{name}
		err := h.Do(func() error { return nft(t).Apply(p) })
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) {
			t.Errorf("cgroup %q: %v", name, err)
		}
	}
	if d := cmp.Diff(before, state(t, h)); d != "" {
		t.Errorf("a plan that was refused changed something:\n%s", d)
	}
}

// TestCgroupText has the path and the level as nft wants them.
func TestCgroupText(t *testing.T) {
	p := westPlan()
	p.Exclude.Cgroups = []string{"/system.slice/backup.service"}
	want := `socket cgroupv2 level 2 "system.slice/backup.service" accept`
	if n := strings.Count(Text(p), want); n != 2 {
		t.Errorf("%d times %s in\n%s", n, want, Text(p))
	}
}

// TestCounters are there from the beginning, and gone with the table.
func TestCounters(t *testing.T) {
	h := newHost(t)
	if err := h.Do(func() error { _, err := nft(t).Counters(); return err }); !errors.Is(err, unix.ENOENT) {
		t.Errorf("without rules: %v, want ENOENT", err)
	}
	apply(t, h, westPlan())
	want := map[string]uint64{"guard": 0, "uncarried": 0, "refused": 0, "stray": 0, "leak": 0}
	if d := cmp.Diff(want, counters(t, h)); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}
