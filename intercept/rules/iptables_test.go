package rules

import (
	"errors"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// foreignIPTables is what somebody else has set up, some of it much like ours.
const foreignIPTables = `
for ipt in iptables ip6tables; do
	$ipt -t mangle -N OTHER
	$ipt -t mangle -A OTHER -m mark --mark 0x1/0xff -j RETURN
	$ipt -t mangle -A PREROUTING -p tcp --dport 99 -j OTHER
	$ipt -t filter -A FORWARD -p tcp --dport 99 -m comment --comment "not -j WISHBONE_FWD really" -j DROP
	$ipt -t nat -A POSTROUTING -p tcp --dport 99 -j RETURN
done
ipset create other hash:net family inet
ipset add other 10.9.0.0/16
iptables -t mangle -A OUTPUT -m set --match-set other dst -j OTHER
ip rule add pref 1508 fwmark 0x1/0xff lookup 77
ip route add 10.77.0.0/16 dev lo table 77
`

// TestIPTablesRemove looks at everything before and after.
func TestIPTablesRemove(t *testing.T) {
	eachIPTables(t, func(t *testing.T, b *iptablesBackend) {
		h := newHost(t)
		script(t, h, foreignIPTables)
		before := iptablesState(t, h)
		remove := func(what string) {
			t.Helper()
			on(t, h, func() error { return b.Remove(DefaultRouting) })
			if d := cmp.Diff(before, iptablesState(t, h)); d != "" {
				t.Fatalf("%s: not as before: (-before +after)\n%s", what, d)
			}
		}
		remove("nothing to remove")
		for name, p := range plans() {
			if name == "other numbers" {
				continue
			}
			applyWith(t, h, b, p)
			if iptablesState(t, h) == before {
				t.Fatalf("%s: Apply changed nothing", name)
			}
			remove(name)
		}
		for _, damage := range []string{
			"iptables -t mangle -D PREROUTING -p tcp -j WISHBONE_PRE",
			"iptables -t filter -I INPUT -j WISHBONE_STRAY; iptables -t mangle -A OUTPUT -p tcp -j WISHBONE_OUT",
			"ip6tables -t mangle -F WISHBONE_NEW; ip6tables -t mangle -N WISHBONE_OLDER",
			"ip rule del pref 1509; ip -6 route flush table 15008",
			"ipset create wb_own4_b hash:net family inet; ipset create wb_peer6_c hash:net family inet6",
		} {
			applyWith(t, h, b, westPlan())
			script(t, h, damage)
			remove(damage)
		}
	})
}

// TestIPTablesReplace puts one plan in the place of another.
func TestIPTablesReplace(t *testing.T) {
	eachIPTables(t, func(t *testing.T, b *iptablesBackend) {
		all := plans()
		h := newHost(t)
		for _, name := range []string{"west", "full", "hub", "empty"} {
			alone := newHost(t)
			applyWith(t, alone, b, all[name])
			applyWith(t, h, b, all[name])
			if d := cmp.Diff(iptablesState(t, alone), iptablesState(t, h)); d != "" {
				t.Errorf("%s is not what it is alone: (-alone +after another)\n%s", name, d)
			}
		}
	})
}

// TestIPTablesRepairs begins where a process was killed between the two tables,
// after somebody had removed a jump.
func TestIPTablesRepairs(t *testing.T) {
	eachIPTables(t, func(t *testing.T, b *iptablesBackend) {
		h := newHost(t)
		p := westPlan()
		applyWith(t, h, b, p)
		want := iptablesState(t, h)
		for _, tool := range b.tools {
			on(t, h, func() error {
				g, err := freeGeneration(tool.family)
				for _, s := range planSets(p, tool.family, g) {
					err = errors.Join(err, s.create(), s.fill())
				}
				mangle, _, _ := strings.Cut(ipChains{p, tool.family, g}.String(), "*filter")
				return errors.Join(err, tool.load(mangle))
			})
		}
		script(t, h, "ip6tables -t mangle -D OUTPUT -p tcp -j WISHBONE_OUT; ip rule del pref 1508")
		applyWith(t, h, b, p)
		if d := cmp.Diff(want, iptablesState(t, h)); d != "" {
			t.Errorf("(-first +repaired)\n%s", d)
		}
	})
}

// TestIPTablesText: what is printed for people is what Apply installs.
func TestIPTablesText(t *testing.T) {
	eachIPTables(t, func(t *testing.T, b *iptablesBackend) {
		for _, name := range []string{"full", "hub", "other numbers"} {
			p := plans()[name]
			for i := range uint16(20) {
				p.Exclude.Ports = append(p.Exclude.Ports, PortRange{1000 * i, 1000*i + i})
			}
			h := newHost(t)
			applyWith(t, h, b, p)
			applied := iptablesState(t, h)
			h = newHost(t)
			script(t, h, IPTablesText(p))
			if d := cmp.Diff(applied, iptablesState(t, h)); d != "" {
				t.Errorf("%s: (-applied +printed)\n%s", name, d)
			}
		}
	})
}

func TestIPTablesTextQuotesCgroups(t *testing.T) {
	p := westPlan()
	p.Exclude.Cgroups = []string{"system.slice/a b.service", `/x\x2d"y`, "z\n-A FORWARD -j ACCEPT"}
	for _, want := range []string{`--path "/system.slice/a b.service" -g`, `--path "/x\\x2d\"y" -g`, `--path "/z-A FORWARD -j ACCEPT" -j RETURN`} {
		if text := IPTablesText(p); !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}

func TestPortLists(t *testing.T) {
	var many []PortRange
	for i := range uint16(17) {
		many = append(many, PortRange{i * 10, i * 10})
	}
	for _, tc := range []struct {
		ports []PortRange
		want  []string
	}{
		{nil, nil},
		{[]PortRange{{0, 65535}}, []string{"0:65535"}},
		{[]PortRange{{22, 22}, {80, 90}}, []string{"22,80:90"}},
		{many, []string{"0,10,20,30,40,50,60,70,80,90,100,110,120,130,140", "150,160"}},
		{append([]PortRange{{1, 2}}, many[:14]...), []string{"1:2,0,10,20,30,40,50,60,70,80,90,100,110,120", "130"}},
	} {
		if got := portLists(tc.ports); !slices.Equal(got, tc.want) {
			t.Errorf("portLists(%v) = %q, want %q", tc.ports, got, tc.want)
		}
	}
}

func TestIPTablesMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := IPTables()
	if !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "install iptables") {
		t.Errorf("%v", err)
	}
}

// TestIPTablesBlames: an error is one line, and has the rule that it is about.
func TestIPTablesBlames(t *testing.T) {
	eachIPTables(t, func(t *testing.T, b *iptablesBackend) {
		err := newHost(t).Do(func() error {
			return b.tools[0].load("*mangle\n:WISHBONE_X - [0:0]\n-A WISHBONE_X -j NOWHERE\nCOMMIT\n")
		})
		if err == nil || !strings.Contains(err.Error(), "NOWHERE") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v", err)
		}
	})
}

// TestIPTablesLive: telling the rules again starts their time anew. The kernel
// counts seconds.
func TestIPTablesLive(t *testing.T) {
	if !useIPTables(t, "nft") {
		return
	}
	h, b, p := newHost(t), newIPTables(t), westPlan()
	p.Peers[0].PassUnavailable = true
	applyWith(t, h, b, p)
	live := func() { on(t, h, func() error { return b.Live(p) }) }
	left := func() int {
		t.Helper()
		_, after, _ := strings.Cut(output(t, h, "", "ipset", "save", "wb_live6"), " 8000::/1 timeout ")
		text, _, _ := strings.Cut(after, "\n")
		seconds, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		return seconds
	}
	live()
	poll := time.NewTicker(20 * time.Millisecond)
	defer poll.Stop()
	full := int(LiveFor / time.Second)
	for deadline := time.Now().Add(patience); left() >= full-1; <-poll.C {
		if time.Now().After(deadline) {
			t.Fatal("the time does not run")
		}
	}
	live()
	if got := left(); got < full-1 {
		t.Errorf("%d s are left after Live, want %d", got, full)
	}
}
