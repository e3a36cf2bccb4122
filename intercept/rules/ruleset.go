package rules

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
)

// How long a 4-tuple is remembered: after the first packet, so that a flood of
// them cannot fill the set for long; and after any later one. Legs have a
// keepalive well below that.
const (
	firstFor = 60 * time.Second
	flowFor  = 5 * time.Minute
	flowSize = 1 << 20 // entries of about 150 bytes
)

// Names of the counters, as Backend.Counters gives them.
const (
	countGuard     = "guard"
	countUncarried = "uncarried"
	countRefused   = "refused"
	countStray     = "stray"
	countLeak      = "leak"
)

var counterNames = []string{countGuard, countUncarried, countRefused, countStray, countLeak}

// build turns a plan into a ruleset. The chains are in the order in which
// packets meet them.
func build(p Plan, groups []cgroup) ruleset {
	b := builder{Plan: p, groups: groups}
	return ruleset{
		counters: counterNames,
		sets:     b.sets(),
		chains: []*chain{
			b.divert(), b.mine(), b.stray(), b.strayOld(), b.take(), b.takeOpen(),
			b.preNew(), b.preOther(), b.pre(),
			b.forward(),
			b.outDeliver(), b.outOwn(), b.outNew(), b.outOld(), b.outOther(), b.out(),
			b.post(),
		},
	}
}

// builder makes the parts of a ruleset from a plan.
type builder struct {
	Plan
	groups []cgroup
}

// reroute marks packets that output sends back to this host: both bits.
func (b builder) reroute() part { return setMark(b.Routing.Mask, b.Routing.Mask) }

func (b builder) own() part { return marked(b.Routing.Own, b.Routing.Mask) }

func (b builder) sets() []*set {
	o := flatten(b.Plan)
	ep4, ep6 := endpoints(b.Peers)
	var sets []*set
	for _, s := range []struct {
		name   string
		v4, v6 []netip.Prefix
	}{
		{"own", o.own4, o.own6},
		{"src", o.sources4, o.sources6},
		{"peer", o.reject4, o.reject6},
		{"open", o.open4, o.open6},
		{"pass", o.pass4, o.pass6},
		{"xnet", o.exclude4, o.exclude6},
	} {
		sets = append(sets, networkSet(s.name+"4", nftables.TypeIPAddr, s.v4), networkSet(s.name+"6", nftables.TypeIP6Addr, s.v6))
	}
	return append(sets,
		endpointSet("ep4", nftables.TypeIPAddr, ep4), endpointSet("ep6", nftables.TypeIP6Addr, ep6),
		portSet("tunnel", singlePorts(b.Tunnel)), portSet("xport", b.Exclude.Ports), userSet("xuid", b.Exclude.UIDs),
		typeSet("error4", "icmp_type", nftables.TypeICMPType, errors4),
		typeSet("error6", "icmpv6_type", nftables.TypeICMP6Type, errors6),
		typeSet("neigh6", "icmpv6_type", nftables.TypeICMP6Type, neighbours6),
		portSet("dhcp", dhcpPorts),
		&set{name: "live", typ: "inet_proto", key: nftables.TypeInetProto, memory: true},
		flowSet("flow4", nftables.TypeIPAddr), flowSet("flow6", nftables.TypeIP6Addr),
	)
}

// divert takes a packet to this host, whatever its destination.
func (b builder) divert() *chain {
	c := &chain{name: "divert"}
	c.add(setMark(b.Routing.Captured, b.Routing.Mask), accept())
	return c
}

// mine is for packets that came in and have found a transparent socket. The
// search falls back to listeners, and a foreign one on a wildcard address is
// not ours. (To ask for `wildcard 0` instead would end the rule at the request
// sockets of handshakes.)
func (b builder) mine() *chain {
	c := &chain{name: "mine"}
	c.add(wildcard(), follow("stray"))
	for _, f := range families {
		c.add(f.forth().remember("flow"+f.digit, 0))
	}
	c.add(follow("divert"))
	return c
}

// stray is for packets of established connections that no socket of ours waits
// for.
func (b builder) stray() *chain {
	c := &chain{name: "stray"}
	c.about("We carried this one, but its socket is gone (a crash): its payload must not go on in the clear.")
	for _, f := range families {
		c.add(f.forth().in("flow"+f.digit), counted(countStray), reset())
	}
	if b.Forwarded && b.ResetExisting {
		c.add(follow("stray_old"))
	}
	return c
}

// strayOld resets forwarded connections to peers that we never carried. A reset
// of theirs may pass: it ends them as well. Connections to peers with
// PassUnavailable may be plain ones at any time, so they are not touched.
func (b builder) strayOld() *chain {
	c := &chain{name: "stray_old"}
	if !b.Forwarded || !b.ResetExisting {
		return c
	}
	c.add(fromLoopback(), accept())
	c.add(toUs(), accept())
	c.add(resets(), accept())
	c.about("What is excluded, and its answers.")
	c.add(port("tcp", "dport", "xport"), accept())
	c.add(port("tcp", "sport", "xport"), accept())
	c.addEach(func(f family) []part { return []part{f.from("xnet"), accept()} })
	c.addEach(func(f family) []part { return []part{f.to("xnet"), accept()} })
	c.addEach(func(f family) []part { return []part{f.notFrom("src"), accept()} })
	c.addEach(func(f family) []part { return []part{f.target().in("ep" + f.digit), accept()} })
	c.addEach(func(f family) []part { return []part{isTCP(), f.to("peer"), counted(countStray), reset()} })
	return c
}

// take hands a new connection to the listener. With no listener, or the set
// full, its rule ends early and the last line answers: closed, and at once.
func (b builder) take() *chain {
	c := &chain{name: "take"}
	for _, f := range families {
		c.add(f.is(), isTCP(), f.tproxy(b.Transparent), f.forth().remember("flow"+f.digit, firstFor), follow("divert"))
	}
	c.add(isTCP(), counted(countRefused), reset())
	return c
}

// takeOpen does the same for peers with PassUnavailable, while the gateway is
// alive. Else the connection goes plain, and is not ours any more if its tuple
// was.
func (b builder) takeOpen() *chain {
	c := &chain{name: "take_open"}
	for _, f := range families {
		c.add(alive(), f.is(), isTCP(), f.tproxy(b.Transparent), f.forth().remember("flow"+f.digit, firstFor), follow("divert"))
	}
	c.addEach(func(f family) []part { return []part{f.forth().forget("flow" + f.digit)} })
	return c
}

// pre sees whatever comes in, before it is routed.
func (b builder) pre() *chain {
	c := &chain{name: "pre", base: &base{nftables.ChainTypeFilter, nftables.ChainHookPrerouting, "prerouting"}}
	c.add(notTCP(), follow("pre_other"))
	c.about("Before the search for a socket, where a foreign listener could swallow new connections.")
	c.add(opens(), follow("pre_new"))
	c.about("From our sockets to clients and servers on this host: the search for one of ours is spared.")
	c.add(fromLoopback(), b.own(), accept())
	c.add(transparent(), follow("mine"))
	c.add(follow("stray"))
	return c
}

// preNew is for the first packets of connections: guard, exclusions, capture.
func (b builder) preNew() *chain {
	c := &chain{name: "pre_new"}
	c.about("Local capture: our output chain sent it here.")
	c.add(fromLoopback(), marked(b.Routing.Mask, b.Routing.Mask), follow("take"))
	c.add(fromLoopback(), accept())
	c.about("Before the guard: a peer's networks may contain its endpoint.")
	c.add(toUs(), port("tcp", "dport", "tunnel"), accept())
	c.about("Excluded is plain in both directions, so it is not guarded.")
	c.add(port("tcp", "dport", "xport"), accept())
	c.addEach(func(f family) []part { return []part{f.from("xnet"), accept()} })
	c.addEach(func(f family) []part { return []part{f.to("xnet"), accept()} })
	c.about("The guard: came by wire, and claims an address whose owner speaks through its tunnel.")
	c.addGuard()
	c.about("A plain connection from an open peer: an old delivery with its tuple is over.")
	c.addEach(func(f family) []part { return []part{f.from("open"), f.back().forget("flow" + f.digit)} })
	c.add(toUs(), accept())
	if !b.Forwarded {
		return c
	}
	c.about("Forwarded capture: of our hosts, except what speaks to a peer's tunnel port itself.")
	c.addEach(func(f family) []part { return []part{f.notFrom("src"), accept()} })
	c.addEach(func(f family) []part { return []part{f.target().in("ep" + f.digit), accept()} })
	c.addEach(func(f family) []part { return []part{f.to("peer"), follow("take")} })
	c.addEach(func(f family) []part { return []part{f.to("open"), follow("take_open")} })
	return c
}

// preOther takes the errors that are for our sockets, and guards what is not
// TCP. A peer with PassUncarried sends it plain.
func (b builder) preOther() *chain {
	c := &chain{name: "pre_other"}
	c.about("Errors about our legs carry the other side's address; the search uses the packet that they quote.")
	c.add(icmp(ipv4, "error4"), transparent(), follow("divert"))
	c.add(icmp(ipv6, "error6"), transparent(), follow("divert"))
	c.add(fromLoopback(), accept())
	c.about("Anybody on the way may send errors, a neighbour asks with its own address.")
	c.addErrors()
	c.add(icmp(ipv6, "neigh6"), accept())
	c.add(toUs(), port("udp", "sport", "dhcp"), port("udp", "dport", "dhcp"), accept())
	c.addEach(func(f family) []part { return []part{f.from("xnet"), accept()} })
	c.addEach(func(f family) []part { return []part{f.to("xnet"), accept()} })
	c.addEach(func(f family) []part { return []part{f.from("pass"), accept()} })
	c.addGuard()
	return c
}

// addGuard drops what claims a peer's address, to our networks and to this host.
func (c *chain) addGuard() {
	for _, f := range families {
		c.add(f.from("peer"), f.to("own"), counted(countGuard), drop())
		c.add(f.from("peer"), toUs(), counted(countGuard), drop())
	}
}

// addErrors lets ICMP's errors through: to drop them is to break others'
// connections, and they prove no address.
func (c *chain) addErrors() {
	c.add(icmp(ipv4, "error4"), accept())
	c.add(icmp(ipv6, "error6"), accept())
}

// forward refuses what is not TCP from our hosts to peers. It stands behind
// DNAT, where the destination is what it will be.
func (b builder) forward() *chain {
	c := &chain{name: "forward", base: &base{nftables.ChainTypeFilter, nftables.ChainHookForward, "forward"}}
	if !b.Forwarded {
		return c
	}
	c.add(isTCP(), accept())
	c.add(b.own(), accept())
	c.addErrors()
	c.addEach(func(f family) []part { return []part{f.from("xnet"), accept()} })
	c.addEach(func(f family) []part { return []part{f.notFrom("src"), accept()} })
	c.addUncarried()
	return c
}

// addUncarried refuses what is bound for a peer, but for those with
// PassUncarried and for excluded networks.
func (c *chain) addUncarried() {
	c.addEach(func(f family) []part { return []part{f.to("xnet"), accept()} })
	c.addEach(func(f family) []part { return []part{f.to("pass"), accept()} })
	for _, f := range families {
		c.add(f.to("peer"), counted(countUncarried), prohibit())
		c.add(f.to("open"), counted(countUncarried), prohibit())
	}
}

// out sees what this host sends. Only a chain of type route has the route
// looked up again when the mark has changed.
func (b builder) out() *chain {
	c := &chain{name: "out", base: &base{nftables.ChainTypeRoute, nftables.ChainHookOutput, "output"}}
	c.add(notTCP(), follow("out_other"))
	c.about("Our own sockets are never captured.")
	c.add(b.own(), follow("out_own"))
	c.add(opens(), follow("out_new"))
	c.about("Clients that we captured, and servers on this host that answer a delivery.")
	c.addEach(func(f family) []part { return []part{f.forth().in("flow" + f.digit), b.reroute(), accept()} })
	if b.Local && b.ResetExisting {
		c.add(follow("out_old"))
	}
	return c
}

// outOwn finds deliveries: first packets of ours from an address that is not
// this host's.
func (b builder) outOwn() *chain {
	c := &chain{name: "out_own"}
	c.add(opens(), fromElsewhere(), follow("out_deliver"))
	return c
}

// outDeliver remembers what the answers to a delivery will look like. What
// cannot come back is not sent.
func (b builder) outDeliver() *chain {
	c := &chain{name: "out_deliver"}
	c.addEach(func(f family) []part { return []part{f.back().remember("flow"+f.digit, firstFor), accept()} })
	c.add(counted(countRefused), drop())
	return c
}

// outNew captures this host's own connections.
func (b builder) outNew() *chain {
	c := &chain{name: "out_new"}
	c.add(toUs(), accept())
	if !b.Local {
		return c
	}
	b.addLeftAlone(c)
	c.add(port("tcp", "dport", "xport"), accept())
	c.addEach(func(f family) []part { return []part{f.to("xnet"), accept()} })
	c.about("Should one of our sockets lack its mark, this still ends the loop.")
	c.addEach(func(f family) []part { return []part{f.target().in("ep" + f.digit), accept()} })
	for _, f := range families {
		flow := "flow" + f.digit
		c.add(f.to("peer"), f.forth().remember(flow, firstFor), b.reroute(), accept())
		c.about("The set is full.")
		c.add(f.to("peer"), counted(countRefused), drop())
		c.add(f.to("open"), alive(), f.forth().remember(flow, firstFor), b.reroute(), accept())
		c.add(f.to("open"), f.forth().forget(flow))
	}
	return c
}

// outOld does for this host's own connections what strayOld does for others'.
func (b builder) outOld() *chain {
	c := &chain{name: "out_old"}
	if !b.Local || !b.ResetExisting {
		return c
	}
	c.add(toUs(), accept())
	c.add(resets(), accept())
	c.about("Should the tunnel's listener lack its mark.")
	c.add(port("tcp", "sport", "tunnel"), accept())
	b.addLeftAlone(c)
	c.add(port("tcp", "dport", "xport"), accept())
	c.add(port("tcp", "sport", "xport"), accept())
	c.addEach(func(f family) []part { return []part{f.to("xnet"), accept()} })
	c.addEach(func(f family) []part { return []part{f.target().in("ep" + f.digit), accept()} })
	c.addEach(func(f family) []part { return []part{isTCP(), f.to("peer"), counted(countStray), reset()} })
	return c
}

// outOther refuses what this host itself sends to peers and is not TCP.
func (b builder) outOther() *chain {
	c := &chain{name: "out_other"}
	if !b.Local {
		return c
	}
	c.add(b.own(), accept())
	c.add(toUs(), accept())
	c.addErrors()
	c.about("Neighbours, and leases: to one neighbour or server that a peer owns.")
	c.add(icmp(ipv6, "neigh6"), accept())
	c.add(port("udp", "sport", "dhcp"), port("udp", "dport", "dhcp"), accept())
	b.addLeftAlone(c)
	c.addUncarried()
	return c
}

// addLeftAlone passes excluded processes.
func (b builder) addLeftAlone(c *chain) {
	c.add(ofUser("xuid"), accept())
	for _, g := range b.groups {
		c.add(inCgroup(g), accept())
	}
}

// post is the net below: a packet meant for this host that is about to leave it
// has lost the policy routing, or its socket is tied to a device.
func (b builder) post() *chain {
	c := &chain{name: "post", base: &base{nftables.ChainTypeFilter, nftables.ChainHookPostrouting, "postrouting"}}
	c.add(leaving(), anyMark(b.Routing.Captured), counted(countLeak), drop())
	return c
}

// addEach adds a rule for each family.
func (c *chain) addEach(parts func(family) []part) {
	for _, f := range families {
		c.add(parts(f)...)
	}
}

// The types of messages that are errors, ICMP (RFC 792) and ICMPv6 (RFC 4443
// §2.1); and neighbour discovery (RFC 4861 §4).
var (
	errors4     = []named{{"destination-unreachable", 3}, {"time-exceeded", 11}, {"parameter-problem", 12}}
	errors6     = []named{{"destination-unreachable", 1}, {"packet-too-big", 2}, {"time-exceeded", 3}, {"parameter-problem", 4}}
	neighbours6 = []named{{"nd-router-solicit", 133}, {"nd-router-advert", 134}, {"nd-neighbor-solicit", 135}, {"nd-neighbor-advert", 136}, {"nd-redirect", 137}}
)

// dhcpPorts are the ports of servers and clients, RFC 2131 §4.1 and RFC 8415
// §7.2. A renewed lease is unicast, perhaps with a server that a peer owns.
var dhcpPorts = []PortRange{{67, 68}, {546, 547}}

// named is a number that nft has a word for.
type named struct {
	word   string
	number byte
}

func typeSet(name, typ string, key nftables.SetDatatype, types []named) *set {
	s := &set{name: name, typ: typ, key: key}
	for _, t := range types {
		s.elements = append(s.elements, element{text: t.word, key: []byte{t.number}})
	}
	return s
}

func networkSet(name string, key nftables.SetDatatype, ps []netip.Prefix) *set {
	s := &set{name: name, typ: key.Name, key: key, ranges: true}
	for _, r := range ranges(ps) {
		e := element{text: r.text(), key: r.first.AsSlice()}
		if next := r.last.Next(); next.IsValid() {
			e.end = next.AsSlice()
		}
		s.elements = append(s.elements, e)
	}
	return s
}

// text is the span as a prefix if it is one, as nft prints it.
func (s span) text() string {
	if s.first == s.last {
		return s.first.String()
	}
	if ps := appendPrefixes(nil, s); len(ps) == 1 {
		return ps[0].String()
	}
	return s.first.String() + "-" + s.last.String()
}

func portSet(name string, ports []PortRange) *set {
	s := &set{name: name, typ: "inet_service", key: nftables.TypeInetService, ranges: true}
	for _, r := range joinPorts(ports) {
		e := element{text: fmt.Sprint(r.First), key: binary.BigEndian.AppendUint16(nil, r.First)}
		if r.Last != r.First {
			e.text = fmt.Sprintf("%d-%d", r.First, r.Last)
		}
		if r.Last < 1<<16-1 {
			e.end = binary.BigEndian.AppendUint16(nil, r.Last+1)
		}
		s.elements = append(s.elements, e)
	}
	return s
}

func singlePorts(ports []uint16) []PortRange {
	var rs []PortRange
	for _, p := range ports {
		rs = append(rs, PortRange{p, p})
	}
	return rs
}

// joinPorts makes ranges that overlap or touch into one.
func joinPorts(ports []PortRange) []PortRange {
	var joined []PortRange
	for _, r := range slices.SortedFunc(slices.Values(ports), func(a, b PortRange) int { return int(a.First) - int(b.First) }) {
		if n := len(joined); n > 0 && int(r.First) <= int(joined[n-1].Last)+1 {
			joined[n-1].Last = max(joined[n-1].Last, r.Last)
			continue
		}
		joined = append(joined, r)
	}
	return joined
}

func userSet(name string, uids []uint32) *set {
	s := &set{name: name, typ: "uid", key: nftables.TypeUID, native: true}
	for _, uid := range slices.Compact(slices.Sorted(slices.Values(uids))) {
		s.elements = append(s.elements, element{text: fmt.Sprint(uid), key: binaryutil.NativeEndian.PutUint32(uid)})
	}
	return s
}

func endpointSet(name string, addr nftables.SetDatatype, endpoints []netip.AddrPort) *set {
	s := &set{name: name, typ: addr.Name + " . inet_service", key: nftables.MustConcatSetType(addr, nftables.TypeInetService)}
	for _, ep := range endpoints {
		// Every field is padded to a whole register.
		key := append(binary.BigEndian.AppendUint16(ep.Addr().AsSlice(), ep.Port()), 0, 0)
		s.elements = append(s.elements, element{text: fmt.Sprintf("%s . %d", ep.Addr(), ep.Port()), key: key})
	}
	return s
}

func flowSet(name string, addr nftables.SetDatatype) *set {
	types := []nftables.SetDatatype{addr, nftables.TypeInetService, addr, nftables.TypeInetService}
	var words []string
	for _, t := range types {
		words = append(words, t.Name)
	}
	return &set{
		name: name, typ: strings.Join(words, " . "), key: nftables.MustConcatSetType(types...),
		memory: true, dynamic: true, timeout: flowFor, size: flowSize,
	}
}

// endpoints are those of all peers by family, each once.
func endpoints(peers []Peer) (v4, v6 []netip.AddrPort) {
	for _, p := range peers {
		for _, ep := range p.Endpoints {
			ep = netip.AddrPortFrom(ep.Addr().Unmap().WithZone(""), ep.Port())
			if ep.Addr().Is4() {
				v4 = append(v4, ep)
			} else {
				v6 = append(v6, ep)
			}
		}
	}
	sorted := func(eps []netip.AddrPort) []netip.AddrPort {
		slices.SortFunc(eps, netip.AddrPort.Compare)
		return slices.Compact(eps)
	}
	return sorted(v4), sorted(v6)
}
