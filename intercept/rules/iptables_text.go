package rules

import (
	"fmt"
	"strings"
	"text/template"
)

// chainPrefix begins the names of all chains of ours.
const chainPrefix = "WISHBONE_"

// tables are those with chains of ours.
var tables = []string{"mangle", "filter"}

// jump is a rule of a built-in chain that leads to one of ours.
type jump struct {
	table, chain, rule string
	watched            bool // by Missing: a flush of either table shows, and of filter's chains each
}

// jumps stand first in their chains, since other software may accept early. The
// order is that of installing them: OUTPUT last, as it sends packets to the rest.
var jumps = []jump{
	{"mangle", "PREROUTING", "-p tcp -j WISHBONE_PRE", true},
	{"mangle", "PREROUTING", "! -p tcp -j WISHBONE_OTHER", false},
	{"mangle", "INPUT", "-p tcp --tcp-flags SYN,ACK SYN -j WISHBONE_IN", false},
	{"mangle", "POSTROUTING", "-j WISHBONE_POST", false},
	{"filter", "INPUT", "-i lo -p tcp -j WISHBONE_BACK", true},
	{"filter", "FORWARD", "-j WISHBONE_FWD", true},
	{"filter", "OUTPUT", "-j WISHBONE_LOCAL", true},
	{"mangle", "OUTPUT", "-p tcp -j WISHBONE_OUT", true},
}

// chainsText is what iptables-restore --noflush reads: all our chains, complete,
// each table in one step. New connections meet mangle, what cannot be captured
// filter, the only table that may answer with a refusal.
//
// The mark and the connection's mark (connmark) have the same two bits. captured
// in the connmark says that a transparent socket of ours holds an end of it.
// New is what has SYN and not ACK, whatever connection tracking thinks.
const chainsText = `*mangle
:WISHBONE_PRE - [0:0]
:WISHBONE_OTHER - [0:0]
:WISHBONE_NEW - [0:0]
:WISHBONE_GUARD - [0:0]
:WISHBONE_PLAIN - [0:0]
:WISHBONE_TAKE - [0:0]
:WISHBONE_MINE - [0:0]
:WISHBONE_IN - [0:0]
:WISHBONE_OUT - [0:0]
:WISHBONE_OUTNEW - [0:0]
:WISHBONE_OUTTAKE - [0:0]
:WISHBONE_POST - [0:0]
-A WISHBONE_PRE -p tcp --tcp-flags SYN,ACK SYN -g WISHBONE_NEW
# from our sockets to clients and servers on this host: the search for one of ours is spared
-A WISHBONE_PRE -i lo -m mark --mark {{.OwnMark}} -j RETURN
# a packet of one of our connections; this match passes wildcard listeners over
-A WISHBONE_PRE -p tcp -m socket --transparent -g WISHBONE_MINE
# errors about our connections belong to our sockets, the guard lets others live
{{- range .Errors}}
-A WISHBONE_OTHER -p {{$.ICMP}} {{$.Type}} {{.}} -m socket --transparent -g WISHBONE_MINE
{{- end}}
{{- range .Quiet}}
-A WISHBONE_OTHER -p {{$.ICMP}} {{$.Type}} {{.}} -j RETURN
{{- end}}
-A WISHBONE_OTHER -i lo -j RETURN
{{- range .DHCP}}
-A WISHBONE_OTHER -p udp --sport {{.}} --dport {{.}} -m addrtype --dst-type LOCAL -j RETURN
{{- end}}
-A WISHBONE_OTHER -m set --match-set {{.Set "xnet"}} src -j RETURN
-A WISHBONE_OTHER -m set --match-set {{.Set "xnet"}} dst -j RETURN
-A WISHBONE_OTHER -m set --match-set {{.Set "pass"}} src -j RETURN
-A WISHBONE_OTHER -m set --match-set {{.Set "peer"}} src -m set --match-set {{.Set "own"}} dst -g WISHBONE_GUARD
-A WISHBONE_OTHER -m set --match-set {{.Set "peer"}} src -m addrtype --dst-type LOCAL -g WISHBONE_GUARD
# sent here by OUTPUT: local capture; else our deliveries and ordinary traffic of this host
-A WISHBONE_NEW -i lo -m mark --mark {{.RerouteMark}} -g WISHBONE_TAKE
-A WISHBONE_NEW -i lo -j RETURN
# tunnels and exclusions precede the guard: a peer's networks may hold its endpoint, and excluded is plain both ways
{{- range .TunnelPorts}}
-A WISHBONE_NEW -p tcp -m multiport --dports {{.}} -m addrtype --dst-type LOCAL -g WISHBONE_PLAIN
{{- end}}
{{- range .ExcludedPorts}}
-A WISHBONE_NEW -p tcp -m multiport --dports {{.}} -g WISHBONE_PLAIN
{{- end}}
-A WISHBONE_NEW -m set --match-set {{.Set "xnet"}} src -g WISHBONE_PLAIN
-A WISHBONE_NEW -m set --match-set {{.Set "xnet"}} dst -g WISHBONE_PLAIN
# the guard: claims a peer's address, came by wire
-A WISHBONE_NEW -m set --match-set {{.Set "peer"}} src -m set --match-set {{.Set "own"}} dst -g WISHBONE_GUARD
-A WISHBONE_NEW -m set --match-set {{.Set "peer"}} src -m addrtype --dst-type LOCAL -g WISHBONE_GUARD
{{- if .Forwarded}}
# forwarded capture
-A WISHBONE_NEW -m addrtype --dst-type LOCAL -g WISHBONE_PLAIN
-A WISHBONE_NEW -m set ! --match-set {{.Set "src"}} src -g WISHBONE_PLAIN
-A WISHBONE_NEW -m set --match-set {{.Set "ep"}} dst,dst -g WISHBONE_PLAIN
-A WISHBONE_NEW -m set --match-set {{.Set "peer"}} dst -g WISHBONE_TAKE
-A WISHBONE_NEW -m set --match-set {{.Set "open"}} dst -m set --match-set {{.Live}} dst -g WISHBONE_TAKE
{{- end}}
-A WISHBONE_NEW -g WISHBONE_PLAIN
-A WISHBONE_GUARD -j DROP
# plain, and no longer ours if a connection with the same ends has been
-A WISHBONE_PLAIN -j CONNMARK --set-xmark {{.NoMark}}
# TPROXY ends the way through the rules. Without a listener it drops: nothing goes plain, the client waits
-A WISHBONE_TAKE -j CONNMARK --set-xmark {{.CapturedMark}}
-A WISHBONE_TAKE -p tcp -j TPROXY --on-ip {{.Loopback}} --on-port {{.Transparent}} --tproxy-mark {{.CapturedMark}}
-A WISHBONE_MINE -j MARK --set-xmark {{.CapturedMark}}
-A WISHBONE_MINE -j ACCEPT
# counts what TPROXY has found a listener for
-A WISHBONE_IN -m mark --mark {{.CapturedMark}} -j RETURN
# our own sockets: a delivery (a SYN with a foreign source) is remembered, then they are left alone
-A WISHBONE_OUT -m mark --mark {{.OwnMark}} -p tcp --tcp-flags SYN,ACK SYN -m addrtype ! --src-type LOCAL -j CONNMARK --set-xmark {{.CapturedMark}}
-A WISHBONE_OUT -m mark --mark {{.OwnMark}} -j RETURN
-A WISHBONE_OUT -p tcp --tcp-flags SYN,ACK SYN -g WISHBONE_OUTNEW
# captured local clients, and local servers that answer a delivery. Our own transparent sockets have no local source
-A WISHBONE_OUT -m connmark --mark {{.CapturedMark}} -m addrtype --src-type LOCAL -j MARK --set-xmark {{.RerouteMark}}
-A WISHBONE_OUTNEW -m addrtype --dst-type LOCAL -j RETURN
{{- if .Local}}
# local capture
{{- range .UIDs}}
-A WISHBONE_OUTNEW -m owner --uid-owner {{.}} -g WISHBONE_PLAIN
{{- end}}
{{- range .Cgroups}}
-A WISHBONE_OUTNEW -m cgroup --path {{.}} -g WISHBONE_PLAIN
{{- end}}
{{- range .ExcludedPorts}}
-A WISHBONE_OUTNEW -p tcp -m multiport --dports {{.}} -g WISHBONE_PLAIN
{{- end}}
-A WISHBONE_OUTNEW -m set --match-set {{.Set "xnet"}} dst -g WISHBONE_PLAIN
-A WISHBONE_OUTNEW -m set --match-set {{.Set "ep"}} dst,dst -g WISHBONE_PLAIN
-A WISHBONE_OUTNEW -m set --match-set {{.Set "peer"}} dst -g WISHBONE_OUTTAKE
-A WISHBONE_OUTNEW -m set --match-set {{.Set "open"}} dst -m set --match-set {{.Live}} dst -g WISHBONE_OUTTAKE
{{- end}}
-A WISHBONE_OUTNEW -g WISHBONE_PLAIN
-A WISHBONE_OUTTAKE -j CONNMARK --set-xmark {{.CapturedMark}}
-A WISHBONE_OUTTAKE -j MARK --set-xmark {{.RerouteMark}}
# what is bound for this host must not leave it: the policy rules are gone, or a socket is tied to a device
-A WISHBONE_POST ! -o lo -m mark --mark {{.BoundMark}} -j DROP
# nor must what filter should have refused, where another tool has emptied it
-A WISHBONE_POST ! -o lo -p tcp ! --tcp-flags RST RST -m connmark --mark {{.CapturedMark}} -m mark ! --mark {{.OwnMark}} -m owner ! --socket-exists -j DROP
COMMIT
*filter
:WISHBONE_BACK - [0:0]
:WISHBONE_FWD - [0:0]
:WISHBONE_LOCAL - [0:0]
:WISHBONE_STRAY - [0:0]
:WISHBONE_OLD - [0:0]
:WISHBONE_UNCARRIED - [0:0]
# ours, but the socket is gone: with one it would have the captured mark by now, or not be forwarded
-A WISHBONE_BACK -m mark --mark {{.RerouteMark}} -g WISHBONE_STRAY
-A WISHBONE_FWD -p tcp -m connmark --mark {{.CapturedMark}} -g WISHBONE_STRAY
{{- if .Forwarded}}
-A WISHBONE_FWD -m set ! --match-set {{.Set "src"}} src -j RETURN
{{- if .ResetExisting}}
-A WISHBONE_FWD -p tcp ! --tcp-flags SYN,ACK SYN -g WISHBONE_OLD
{{- end}}
-A WISHBONE_FWD ! -p tcp -g WISHBONE_UNCARRIED
{{- end}}
# ours, or on its way to us
-A WISHBONE_LOCAL -m mark ! --mark {{.NoMark}} -j RETURN
{{- if .Local}}
-A WISHBONE_LOCAL -m addrtype --dst-type LOCAL -j RETURN
{{- range .UIDs}}
-A WISHBONE_LOCAL -m owner --uid-owner {{.}} -j RETURN
{{- end}}
{{- range .Cgroups}}
-A WISHBONE_LOCAL -m cgroup --path {{.}} -j RETURN
{{- end}}
{{- if .ResetExisting}}
-A WISHBONE_LOCAL -p tcp ! --tcp-flags SYN,ACK SYN -g WISHBONE_OLD
{{- end}}
{{- range .DHCP}}
-A WISHBONE_LOCAL -p udp --sport {{.}} --dport {{.}} -j RETURN
{{- end}}
-A WISHBONE_LOCAL ! -p tcp -g WISHBONE_UNCARRIED
{{- end}}
-A WISHBONE_STRAY -p tcp -j REJECT --reject-with tcp-reset
# older than the rules, and of no socket of ours. A reset ends a connection already
-A WISHBONE_OLD -p tcp --tcp-flags RST RST -j RETURN
{{- range .ExcludedPorts}}
-A WISHBONE_OLD -p tcp -m multiport --ports {{.}} -j RETURN
{{- end}}
-A WISHBONE_OLD -m set --match-set {{.Set "xnet"}} src -j RETURN
-A WISHBONE_OLD -m set --match-set {{.Set "xnet"}} dst -j RETURN
-A WISHBONE_OLD -m set --match-set {{.Set "ep"}} dst,dst -j RETURN
-A WISHBONE_OLD -p tcp -m set --match-set {{.Set "peer"}} dst -j REJECT --reject-with tcp-reset
# a tunnel carries TCP only
{{- range .Quiet}}
-A WISHBONE_UNCARRIED -p {{$.ICMP}} {{$.Type}} {{.}} -j RETURN
{{- end}}
-A WISHBONE_UNCARRIED -m set --match-set {{.Set "xnet"}} src -j RETURN
-A WISHBONE_UNCARRIED -m set --match-set {{.Set "xnet"}} dst -j RETURN
-A WISHBONE_UNCARRIED -m set --match-set {{.Set "pass"}} dst -j RETURN
-A WISHBONE_UNCARRIED -m set --match-set {{.Set "peer"}} dst -j REJECT --reject-with {{.Prohibited}}
-A WISHBONE_UNCARRIED -m set --match-set {{.Set "open"}} dst -j REJECT --reject-with {{.Prohibited}}
COMMIT
`

var chainsTemplate = template.Must(template.New("chains").Parse(chainsText))

// ipChains is what chainsText is filled in with.
type ipChains struct {
	Plan
	family     family
	generation generation
}

// String is the text for iptables-restore.
func (c ipChains) String() string {
	var b strings.Builder
	if err := chainsTemplate.Execute(&b, c); err != nil {
		panic(err) // the template names something that is not there
	}
	return b.String()
}

// Set names a set of this generation.
func (c ipChains) Set(base string) string { return setName(base, c.family, c.generation) }

// Live names the switch.
func (c ipChains) Live() string { return liveSetName(c.family) }

// The marks, as value/mask.

func (c ipChains) CapturedMark() string { return c.mark(c.Routing.Captured) }
func (c ipChains) OwnMark() string      { return c.mark(c.Routing.Own) }
func (c ipChains) RerouteMark() string  { return c.mark(c.Routing.Mask) }
func (c ipChains) NoMark() string       { return c.mark(0) }

// BoundMark matches what captured and re-routed packets have in common.
func (c ipChains) BoundMark() string {
	return fmt.Sprintf("%#x/%#x", c.Routing.Captured, c.Routing.Captured)
}

func (c ipChains) mark(value uint32) string { return fmt.Sprintf("%#x/%#x", value, c.Routing.Mask) }

// Loopback is where the transparent listener is.
func (c ipChains) Loopback() string { return c.family.loopback.String() }

// ICMP is the family's protocol for errors.
func (c ipChains) ICMP() string {
	if c.family == ipv6 {
		return "icmpv6"
	}
	return "icmp"
}

// Type is the option for its message types.
func (c ipChains) Type() string { return "--" + c.ICMP() + "-type" }

// Errors are the numbers of its types that are errors.
func (c ipChains) Errors() []byte {
	if c.family == ipv6 {
		return numbers(errors6)
	}
	return numbers(errors4)
}

// Quiet are those that are nobody's data: errors, and what finds neighbours.
func (c ipChains) Quiet() []byte {
	if c.family == ipv6 {
		return append(c.Errors(), numbers(neighbours6)...)
	}
	return c.Errors()
}

func numbers(types []named) []byte {
	var ns []byte
	for _, t := range types {
		ns = append(ns, t.number)
	}
	return ns
}

// DHCP are the ports of the family's DHCP.
func (c ipChains) DHCP() []string {
	if c.family == ipv6 {
		return portLists(dhcpPorts[1:])
	}
	return portLists(dhcpPorts[:1])
}

// Prohibited is the refusal of what is not TCP.
func (c ipChains) Prohibited() string {
	if c.family == ipv6 {
		return "icmp6-adm-prohibited"
	}
	return "icmp-admin-prohibited"
}

// UIDs are the users whose connections are not captured.
func (c ipChains) UIDs() []uint32 { return c.Exclude.UIDs }

// Cgroups are the cgroups whose connections are not captured, quoted as
// iptables-restore reads it.
func (c ipChains) Cgroups() []string {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", "") // a line is a rule
	var quoted []string
	for _, name := range c.Exclude.Cgroups {
		quoted = append(quoted, `"/`+escape.Replace(namedCgroup(name).path)+`"`)
	}
	return quoted
}

// ExcludedPorts are the lists for multiport.
func (c ipChains) ExcludedPorts() []string { return portLists(joinPorts(c.Exclude.Ports)) }

// TunnelPorts likewise.
func (c ipChains) TunnelPorts() []string { return portLists(joinPorts(singlePorts(c.Tunnel))) }

// multiportRoom is how many ports one multiport match takes. A range counts two
// (iptables-extensions(8)).
const multiportRoom = 15

// portLists writes ports as few lists for multiport.
func portLists(ports []PortRange) []string {
	var lists []string
	room := 0
	for _, p := range ports {
		text, need := fmt.Sprint(p.First), 1
		if p.Last != p.First {
			text, need = fmt.Sprintf("%d:%d", p.First, p.Last), 2
		}
		if need > room {
			lists, room = append(lists, text), multiportRoom-need
			continue
		}
		lists[len(lists)-1] += "," + text
		room -= need
	}
	return lists
}
