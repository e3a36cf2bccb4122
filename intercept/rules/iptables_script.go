package rules

import (
	"fmt"
	"strings"
)

// IPTablesText is a shell script that does what Apply of [IPTables] does on a
// host without rules of ours: ip, ipset, iptables-restore and ip6tables-restore
// read the same as the kernel gets from us. The switch for peers with
// PassUnavailable is off.
func IPTablesText(p Plan) string {
	var b strings.Builder
	b.WriteString("# policy routing\n")
	for _, command := range routingCommands(p.Routing) {
		fmt.Fprintln(&b, command)
	}
	for _, f := range families {
		fmt.Fprintf(&b, "\nipset restore <<'EOF'\n%s", emptied(liveSwitch(f)).text())
		for _, s := range planSets(p, f, generations[0]) {
			b.WriteString(s.text())
		}
		fmt.Fprintf(&b, "EOF\n\n%s-restore --noflush <<'EOF'\n%s", program(f), ipChains{p, f, generations[0]})
		b.WriteString(jumpsText())
		b.WriteString("EOF\n")
	}
	return b.String()
}

// emptied is the set without its members.
func emptied(s ipset) ipset {
	s.networks = nil
	return s
}

// jumpsText is what leads to our chains, as iptables-restore reads it.
func jumpsText() string {
	var b strings.Builder
	for _, table := range tables {
		fmt.Fprintf(&b, "*%s\n", table)
		for _, j := range jumps {
			if j.table == table {
				fmt.Fprintf(&b, "-I %s 1 %s\n", j.chain, j.rule)
			}
		}
		b.WriteString("COMMIT\n")
	}
	return b.String()
}
