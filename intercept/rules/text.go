package rules

import (
	"fmt"
	"strings"
)

// Text is what Apply of the nftables backend installs, for people and for
// "nft -f": the table as nft reads it, with the commands of the policy routing,
// which go first, as comments. Loading it replaces an installed table in place,
// and is replaced by Apply, whichever was first. Cgroups are by name here.
func Text(p Plan) string {
	var groups []cgroup
	for _, name := range p.Exclude.Cgroups {
		groups = append(groups, namedCgroup(name))
	}
	var b strings.Builder
	for _, command := range routingCommands(p.Routing) {
		fmt.Fprintf(&b, "# %s\n", command)
	}
	build(p, groups).write(&b)
	return b.String()
}

// routingCommands are addRouting for the ip program.
func routingCommands(r Routing) []string {
	var commands []string
	for _, f := range []struct{ digit, everything string }{{"4", "0.0.0.0/0"}, {"6", "::/0"}} {
		captured := fmt.Sprintf("fwmark 0x%08x/0x%08x", r.Captured, r.Mask)
		rerouted := fmt.Sprintf("fwmark 0x%08x/0x%08x", r.Mask, r.Mask)
		for _, c := range []string{
			fmt.Sprintf("route add local %s dev lo table %d", f.everything, r.Table),
			fmt.Sprintf("rule add pref %d nop", r.Priority+3),
			fmt.Sprintf("rule add pref %d iif lo %s goto %d", r.Priority, captured, r.Priority+3),
			fmt.Sprintf("rule add pref %d %s lookup %d", r.Priority+1, captured, r.Table),
			fmt.Sprintf("rule add pref %d %s lookup %d", r.Priority+2, rerouted, r.Table),
		} {
			commands = append(commands, "ip -"+f.digit+" "+c)
		}
	}
	return commands
}

// write gives the ruleset as one transaction of nft: first whatever makes sure
// of the parts and empties them, then the table.
func (rs ruleset) write(b *strings.Builder) {
	fmt.Fprintf(b, "\nadd table inet %s\n", tableName)
	for _, name := range rs.counters {
		fmt.Fprintf(b, "add counter inet %s %s\n", tableName, name)
	}
	for _, s := range rs.sets {
		fmt.Fprintf(b, "add set inet %s %s { %s }\n", tableName, s.name, s.definition())
	}
	fmt.Fprintf(b, "flush table inet %s\n", tableName)
	for _, s := range rs.sets {
		if !s.memory {
			fmt.Fprintf(b, "flush set inet %s %s\n", tableName, s.name)
		}
	}
	fmt.Fprintf(b, "\ntable inet %s {\n", tableName)
	for _, s := range rs.sets {
		s.write(b)
	}
	for _, c := range rs.chains {
		c.write(b)
	}
	b.WriteString("}\n")
}

func (s *set) definition() string {
	d := fmt.Sprintf("type %s;", s.typ)
	switch {
	case s.ranges:
		d += " flags interval;"
	case s.dynamic:
		d += fmt.Sprintf(" size %d; flags dynamic,timeout; timeout %ds;", s.size, int(s.timeout.Seconds()))
	case s.memory:
		d += " flags timeout;"
	}
	return d
}

func (s *set) write(b *strings.Builder) {
	fmt.Fprintf(b, "\tset %s {\n\t\t%s\n", s.name, s.definition())
	for i, e := range s.elements {
		lead, tail := "\t\t             ", ","
		if i == 0 {
			lead = "\t\telements = { "
		}
		if i == len(s.elements)-1 {
			tail = " }"
		}
		fmt.Fprintf(b, "%s%s%s\n", lead, e.text, tail)
	}
	b.WriteString("\t}\n")
}

func (c *chain) write(b *strings.Builder) {
	fmt.Fprintf(b, "\tchain %s {\n", c.name)
	if c.base != nil {
		fmt.Fprintf(b, "\t\ttype %s hook %s priority mangle; policy accept;\n", c.base.kind, c.base.name)
	}
	for _, r := range c.rules {
		if r.note != "" {
			fmt.Fprintf(b, "\t\t# %s\n", r.note)
		}
		fmt.Fprintf(b, "\t\t%s\n", r.text)
	}
	b.WriteString("\t}\n")
}
