package rules

import (
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"golang.org/x/sys/unix"
)

// iptablesBackend is the Backend for hosts that run iptables. Whether that is
// the older one or the one on nf_tables is for the programs of this name to know.
type iptablesBackend struct {
	tools []tool // one a family
	// before is what rules that were replaced have counted, last what Counters
	// said before.
	before, last map[string]uint64
}

// tool is one family's programs.
type tool struct {
	family
	*iptables.IPTables
	restore string // path of iptables-restore
}

// program is what a family's iptables is called.
func program(f family) string { return f.word + "tables" }

// lockWait is how long to wait for another program that changes rules, seconds.
const lockWait = 10

// IPTables is the Backend that runs iptables, ip6tables and their -restore
// programs, and keeps networks in ipsets. The error says which program is
// missing.
//
// It differs from nftables in what a client sees of a gateway that is not there:
// TPROXY without a listener drops, so that a connection attempt times out.
func IPTables() (Backend, error) {
	b := &iptablesBackend{before: map[string]uint64{}, last: map[string]uint64{}}
	for _, f := range families {
		if f == ipv6 && !hostHasIPv6() {
			continue
		}
		t, err := findTool(f)
		if err != nil {
			return nil, fmt.Errorf("find %s: %w (install iptables, or choose nftables, which needs no program)", program(f), err)
		}
		b.tools = append(b.tools, t)
	}
	return b, nil
}

// hostHasIPv6 says whether the kernel knows IPv6 at all.
func hostHasIPv6() bool {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
	}
	return !errors.Is(err, unix.EAFNOSUPPORT)
}

// findTool finds a family's programs. iptables-restore is taken from where
// iptables is: two variants of both may be installed.
func findTool(f family) (tool, error) {
	protocol := iptables.ProtocolIPv4
	if f == ipv6 {
		protocol = iptables.ProtocolIPv6
	}
	path, err := exec.LookPath(program(f))
	if err != nil {
		return tool{}, err
	}
	restore, err := exec.LookPath(filepath.Join(filepath.Dir(path), program(f)+"-restore"))
	if err != nil {
		return tool{}, err
	}
	ipt, err := iptables.New(iptables.IPFamily(protocol), iptables.Path(path), iptables.Timeout(lockWait))
	if err != nil {
		return tool{}, err
	}
	return tool{f, ipt, restore}, nil
}

func (b *iptablesBackend) Name() string { return "iptables" }

// Apply fills sets of a new generation first, and then lets the chains refer to
// them, each table at once: no packet meets a part of a plan.
func (b *iptablesBackend) Apply(p Plan) error {
	if _, err := findCgroups(p.Exclude.Cgroups); err != nil {
		return err
	}
	if err := addRouting(p.Routing); err != nil {
		return err
	}
	counted, err := b.Counters()
	if err != nil {
		return err
	}
	for _, t := range b.tools {
		if err := t.apply(p); err != nil {
			return fmt.Errorf("install rules of %s: %w", program(t.family), err)
		}
	}
	b.before = counted // rules count from zero again
	return nil
}

func (t tool) apply(p Plan) error {
	g, err := freeGeneration(t.family)
	if err != nil {
		return err
	}
	if err := t.switchTo(p, g); err != nil {
		// What rules already use stays: errSetBusy is no news beside err.
		return errors.Join(err, ignoreBusy(destroyGeneration(t.family, g)))
	}
	for _, j := range jumps {
		if err := t.InsertUnique(j.table, j.chain, 1, strings.Fields(j.rule)...); err != nil {
			return err
		}
	}
	return t.destroyOthers(g)
}

// switchTo makes a generation's sets and lets the chains refer to them.
func (t tool) switchTo(p Plan, g generation) error {
	if err := liveSwitch(t.family).create(); err != nil {
		return err
	}
	for _, s := range planSets(p, t.family, g) {
		if err := errors.Join(s.create(), s.fill()); err != nil {
			return err
		}
	}
	return t.load(ipChains{p, t.family, g}.String())
}

// destroyOthers takes the sets of other generations away. Those that rules use
// in spite of all are left to the next Apply or Remove.
func (t tool) destroyOthers(keep generation) error {
	for _, g := range generations {
		if g == keep {
			continue
		}
		if err := released(func() error { return destroyGeneration(t.family, g) }); ignoreBusy(err) != nil {
			return err
		}
	}
	return nil
}

func ignoreBusy(err error) error {
	if errors.Is(err, errSetBusy) {
		return nil
	}
	return err
}

// load gives iptables-restore a text. A table's part happens at its COMMIT, or
// not at all.
func (t tool) load(text string) error {
	cmd := exec.Command(t.restore, "--noflush", "--wait", strconv.Itoa(lockWait))
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(t.restore), err, blame(text, string(out)))
	}
	return nil
}

// blamedLine is how iptables-restore names a line, in either variant.
var blamedLine = regexp.MustCompile(`line:? (\d+)`)

// blame puts what iptables-restore says on one line, and the rule that it says
// it about behind it.
func blame(text, said string) string {
	said = strings.Join(strings.Fields(said), " ")
	m := blamedLine.FindStringSubmatch(said)
	if m == nil {
		return said
	}
	n, err := strconv.Atoi(m[1])
	lines := strings.Split(text, "\n")
	if err != nil || n < 1 || n > len(lines) {
		return said
	}
	return fmt.Sprintf("%s (%s)", said, lines[n-1])
}

// Remove takes rules away first, then what they stand on.
func (b *iptablesBackend) Remove(r Routing) error {
	var errs []error
	for _, t := range b.tools {
		if err := t.remove(); err != nil {
			errs = append(errs, fmt.Errorf("remove rules of %s: %w", program(t.family), err))
		}
	}
	clear(b.before)
	clear(b.last)
	return errors.Join(append(errs, removeRouting(r))...)
}

func (t tool) remove() error {
	for _, table := range tables {
		text, err := t.removal(table)
		if err != nil {
			return err
		}
		if text == "" {
			continue
		}
		if err := t.load(text); err != nil {
			return err
		}
	}
	destroy := func() error {
		errs := []error{destroySet(liveSetName(t.family))}
		for _, g := range generations {
			errs = append(errs, destroyGeneration(t.family, g))
		}
		return errors.Join(errs...)
	}
	return released(destroy)
}

// removal is the text that takes out of a table whatever is ours, "" for
// nothing: every jump to a chain of ours, however it came there, and the chains.
func (t tool) removal(table string) (string, error) {
	all, err := t.ListChains(table)
	if err != nil {
		return "", err
	}
	var jumps, flushes, deletes []string
	for _, chain := range all {
		if strings.HasPrefix(chain, chainPrefix) {
			flushes = append(flushes, "-F "+chain)
			deletes = append(deletes, "-X "+chain)
			continue
		}
		found, err := t.jumpsFrom(table, chain)
		if err != nil {
			return "", err
		}
		jumps = append(jumps, found...)
	}
	if len(deletes) == 0 { // then nothing can lead to them either
		return "", nil
	}
	lines := append([]string{"*" + table}, jumps...)
	lines = append(append(lines, flushes...), deletes...)
	return strings.Join(append(lines, "COMMIT", ""), "\n"), nil
}

// jumpsFrom lists how to delete the rules of somebody's chain that lead to one
// of ours.
func (t tool) jumpsFrom(table, chain string) ([]string, error) {
	rules, err := t.List(table, chain)
	if err != nil {
		return nil, err
	}
	var deletes []string
	for _, rule := range rules {
		// A target without options stands at the end.
		words := strings.Fields(rule)
		n := len(words)
		if n > 3 && words[0] == "-A" && (words[n-2] == "-j" || words[n-2] == "-g") && strings.HasPrefix(words[n-1], chainPrefix) {
			deletes = append(deletes, "-D"+strings.TrimPrefix(rule, "-A"))
		}
	}
	return deletes, nil
}

// Live turns the switch on, or keeps it on.
func (b *iptablesBackend) Live(p Plan) error {
	for _, t := range b.tools {
		for _, peer := range p.Peers {
			if !peer.PassUnavailable {
				continue
			}
			if err := liveSwitch(t.family).fill(); err != nil {
				return err
			}
			break
		}
	}
	return nil
}

// countedChain is where the packets of a name are counted: by the rules of a
// chain, or by those of them that have a target.
type countedChain struct{ name, table, chain, target string }

var countedChains = []countedChain{
	{countGuard, "mangle", "WISHBONE_GUARD", ""},
	{countLeak, "mangle", "WISHBONE_POST", ""},
	{countStray, "filter", "WISHBONE_STRAY", ""},
	{countStray, "filter", "WISHBONE_OLD", "REJECT"},
	{countUncarried, "filter", "WISHBONE_UNCARRIED", "REJECT"},
	{"taken", "mangle", "WISHBONE_TAKE", "TPROXY"},
	{"arrived", "mangle", "WISHBONE_IN", ""},
}

// Counters adds both families, and what replaced rules have counted. No rule
// can tell that TPROXY has found no listener: "refused" is how many packets it
// was given less how many came through.
func (b *iptablesBackend) Counters() (map[string]uint64, error) {
	now := map[string]uint64{}
	for _, c := range countedChains {
		for _, t := range b.tools {
			n, err := t.count(c)
			if err != nil {
				return nil, fmt.Errorf("read counters of %s, chain %s: %w", program(t.family), c.chain, err)
			}
			now[c.name] += n
		}
	}
	now[countRefused] = now["taken"] - min(now["taken"], now["arrived"])
	delete(now, "taken")
	delete(now, "arrived")
	for name := range now {
		// What is on its way from one chain to the next is refused for a moment.
		now[name] = max(b.last[name], b.before[name]+now[name])
	}
	b.last = now
	return maps.Clone(now), nil
}

// rulePackets is the packet count in a rule as go-iptables lists it.
var rulePackets = regexp.MustCompile(` -c (\d+) \d+`)

// count adds up the packets of a chain. One that is not there has none.
func (t tool) count(c countedChain) (uint64, error) {
	rules, err := t.ListWithCounters(c.table, c.chain)
	if failed, ok := errors.AsType[*iptables.Error](err); ok && failed.ExitStatus() == noChain {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var sum uint64
	for _, rule := range rules {
		m := rulePackets.FindStringSubmatch(rule)
		if m == nil || c.target != "" && !strings.Contains(rule, " -j "+c.target) {
			continue
		}
		n, err := strconv.ParseUint(m[1], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%q: %w", rule, err)
		}
		sum += n
	}
	return sum, nil
}

// noChain is the exit status of iptables for a chain that does not exist.
const noChain = 1
