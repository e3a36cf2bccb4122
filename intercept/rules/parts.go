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
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The words that rules are made of. Each gives the text that nft reads, and the
// expressions that nft makes of it.

// Registers as the kernel numbers them: 1 is the first of 16 bytes, 8 the same
// place as the first of 4 bytes (nf_tables.h, enum nft_registers).
const (
	reg   = unix.NFT_REG_1
	reg2  = unix.NFT_REG_2
	reg32 = unix.NFT_REG32_00
)

// family is IPv4 or IPv6: what its packets look like, and which sets have its
// addresses.
type family struct {
	word         string // in nft's text
	digit        string // ends the names of its sets
	protocol     byte
	source, dest uint32 // where the addresses are in the header
	size         uint32 // of an address
	loopback     netip.Addr
}

var (
	ipv4 = family{"ip", "4", unix.NFPROTO_IPV4, 12, 16, 4, netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	ipv6 = family{"ip6", "6", unix.NFPROTO_IPV6, 8, 24, 16, netip.IPv6Loopback()}

	families = []family{ipv4, ipv6}
)

func (f family) need() need { return need{expr.MetaKeyNFPROTO, f.protocol} }

func protocol(p byte) need { return need{expr.MetaKeyL4PROTO, p} }

func (n need) exprs() []expr.Any { return equals(meta(n.key), []byte{n.value}) }

// is says the family in so many words.
func (f family) is() part {
	return part{text: "meta nfproto ipv" + f.digit, exprs: f.need().exprs(), says: []need{f.need()}}
}

// from, to and their opposites ask where a packet comes from and goes to.
func (f family) from(set string) part    { return f.in("saddr", f.source, set, false) }
func (f family) notFrom(set string) part { return f.in("saddr", f.source, set, true) }
func (f family) to(set string) part      { return f.in("daddr", f.dest, set, false) }

func (f family) in(word string, offset uint32, set string, not bool) part {
	return part{
		text:  f.word + " " + word + lookupText(set+f.digit, not),
		exprs: []expr.Any{f.load(offset, reg), lookup(set+f.digit, not)},
		needs: []need{f.need()},
	}
}

func (f family) load(offset, into uint32) expr.Any {
	return &expr.Payload{DestRegister: into, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size}
}

// key is a number of fields of a packet, one behind the other.
type key struct {
	text  string
	exprs []expr.Any
	needs []need
}

// forth is the packet's 4-tuple as it is on the wire; back is that of the
// packets in the other direction; target is where it goes.
func (f family) forth() key  { return f.key("saddr", "sport", "daddr", "dport") }
func (f family) back() key   { return f.key("daddr", "dport", "saddr", "sport") }
func (f family) target() key { return f.key("daddr", "dport") }

func (f family) key(fields ...string) key {
	k := key{needs: []need{f.need(), protocol(unix.IPPROTO_TCP)}}
	into := uint32(reg32)
	var words []string
	for _, field := range fields {
		word, load, size := "tcp", expr.Any(nil), uint32(4) // a port takes up a whole register
		switch field {
		case "saddr":
			word, load, size = f.word, f.load(f.source, into), f.size
		case "daddr":
			word, load, size = f.word, f.load(f.dest, into), f.size
		default:
			load = loadPort(field, into)
		}
		k.exprs = append(k.exprs, load)
		words = append(words, word+" "+field)
		into += size / 4
	}
	k.text = strings.Join(words, " . ")
	return k
}

func loadPort(field string, into uint32) expr.Any {
	offset := uint32(0)
	if field == "dport" {
		offset = 2
	}
	return &expr.Payload{DestRegister: into, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}
}

// in asks whether the key is in a set.
func (k key) in(set string) part {
	return part{
		text:  k.text + lookupText(set, false),
		exprs: append(slices.Clip(k.exprs), &expr.Lookup{SourceRegister: reg32, SetName: set}),
		needs: k.needs,
	}
}

// remember puts the key into a set, or starts its time anew. A full set ends
// the rule. Time 0 is the set's own.
func (k key) remember(set string, d time.Duration) part {
	p := k.dynset(set, unix.NFT_DYNSET_OP_UPDATE, d)
	p.text = fmt.Sprintf("update @%s { %s }", set, k.text)
	if d > 0 {
		p.text = fmt.Sprintf("update @%s { %s timeout %ds }", set, k.text, int(d.Seconds()))
	}
	return p
}

// forget takes the key out of a set.
func (k key) forget(set string) part {
	const opDelete = 2 // NFT_DYNSET_OP_DELETE, linux/netfilter/nf_tables.h
	p := k.dynset(set, opDelete, 0)
	p.text = fmt.Sprintf("delete @%s { %s }", set, k.text)
	return p
}

func (k key) dynset(set string, op uint32, d time.Duration) part {
	return part{
		exprs: append(slices.Clip(k.exprs), &expr.Dynset{SrcRegKey: reg32, SetName: set, Operation: op, Timeout: d}),
		needs: k.needs,
	}
}

// icmp asks for the type of a packet of ICMP or ICMPv6.
func icmp(f family, set string) part {
	word, proto := "icmp", byte(unix.IPPROTO_ICMP)
	if f.protocol == unix.NFPROTO_IPV6 {
		word, proto = "icmpv6", unix.IPPROTO_ICMPV6
	}
	return part{
		text: word + " type" + lookupText(set, false),
		exprs: []expr.Any{
			&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Len: 1},
			lookup(set, false),
		},
		needs: []need{f.need(), protocol(proto)},
	}
}

// port asks for a port of TCP or UDP: sport or dport.
func port(word, field, set string) part {
	proto := byte(unix.IPPROTO_TCP)
	if word == "udp" {
		proto = unix.IPPROTO_UDP
	}
	return part{
		text:  word + " " + field + lookupText(set, false),
		exprs: []expr.Any{loadPort(field, reg), lookup(set, false)},
		needs: []need{protocol(proto)},
	}
}

func lookupText(set string, not bool) string {
	if not {
		return " != @" + set
	}
	return " @" + set
}

func lookup(set string, not bool) expr.Any {
	return &expr.Lookup{SourceRegister: reg, SetName: set, Invert: not}
}

// isTCP and notTCP say the protocol in so many words.
func isTCP() part {
	tcp := protocol(unix.IPPROTO_TCP)
	return part{text: "meta l4proto tcp", exprs: tcp.exprs(), says: []need{tcp}}
}

func notTCP() part {
	return part{text: "meta l4proto != tcp", exprs: []expr.Any{
		meta(expr.MetaKeyL4PROTO), compare(expr.CmpOpNeq, []byte{unix.IPPROTO_TCP}),
	}}
}

// alive asks whether the protocol is in the set that Live refreshes.
func alive() part {
	return part{text: "meta l4proto @live", exprs: []expr.Any{meta(expr.MetaKeyL4PROTO), lookup("live", false)}}
}

// Flags of a TCP header, RFC 9293 §3.1.
const (
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// opens asks for the first packet of a connection.
func opens() part {
	return tcpFlags("tcp flags & (syn | ack) == syn", flagSYN|flagACK, flagSYN)
}

// resets asks for a packet that ends a connection at once.
func resets() part { return tcpFlags("tcp flags & rst == rst", flagRST, flagRST) }

func tcpFlags(text string, mask, want byte) part {
	return part{
		text: text,
		exprs: []expr.Any{
			&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
			&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
			compare(expr.CmpOpEq, []byte{want}),
		},
		needs: []need{protocol(unix.IPPROTO_TCP)},
	}
}

// transparent asks whether the packet is for a socket with IP_TRANSPARENT,
// wildcard whether that socket is bound to no address.
func transparent() part { return socket("transparent", expr.SocketKeyTransparent) }
func wildcard() part    { return socket("wildcard", expr.SocketKeyWildcard) }

func socket(word string, key expr.SocketKey) part {
	return part{
		text:  "socket " + word + " 1",
		exprs: equals(&expr.Socket{Key: key, Register: reg}, []byte{1}),
	}
}

// inCgroup asks for packets of processes of a cgroup, or below it.
func inCgroup(c cgroup) part {
	return part{
		text: fmt.Sprintf("socket cgroupv2 level %d %q", c.level(), c.path),
		exprs: equals(&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: uint32(c.level()), Register: reg},
			binaryutil.NativeEndian.PutUint64(c.id)),
	}
}

// ofUser asks for packets of processes of some users.
func ofUser(set string) part {
	return part{text: "meta skuid @" + set, exprs: []expr.Any{meta(expr.MetaKeySKUID), lookup(set, false)}}
}

// toUs asks whether the destination is this host, fromElsewhere whether the
// source is not.
func toUs() part {
	return part{
		text:  "fib daddr type local",
		exprs: equals(&expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true}, number(unix.RTN_LOCAL)),
	}
}

func fromElsewhere() part {
	return part{
		text: "fib saddr type != local",
		exprs: []expr.Any{
			&expr.Fib{Register: reg, FlagSADDR: true, ResultADDRTYPE: true},
			compare(expr.CmpOpNeq, number(unix.RTN_LOCAL)),
		},
	}
}

// loopbackIndex is the number of lo in every network namespace (net/core/dev.c,
// LOOPBACK_IFINDEX).
const loopbackIndex = 1

func fromLoopback() part {
	return part{text: "iif lo", exprs: equals(meta(expr.MetaKeyIIF), number(loopbackIndex))}
}

func leaving() part {
	return part{text: "oif != lo", exprs: []expr.Any{
		meta(expr.MetaKeyOIF), compare(expr.CmpOpNeq, number(loopbackIndex)),
	}}
}

// marked asks for a mark under the mask.
func marked(mark, mask uint32) part {
	return part{
		text:  fmt.Sprintf("meta mark & 0x%08x == 0x%08x", mask, mark),
		exprs: []expr.Any{meta(expr.MetaKeyMARK), bits(mask, 0), compare(expr.CmpOpEq, number(mark))},
	}
}

// anyMark asks whether a bit of the mask is set.
func anyMark(mask uint32) part {
	return part{
		text:  fmt.Sprintf("meta mark & 0x%08x != 0", mask),
		exprs: []expr.Any{meta(expr.MetaKeyMARK), bits(mask, 0), compare(expr.CmpOpNeq, number(0))},
	}
}

// setMark sets the bits under the mask, and leaves other people's alone.
func setMark(mark, mask uint32) part {
	return part{
		text: fmt.Sprintf("meta mark set meta mark & 0x%08x | 0x%08x", ^mask, mark),
		exprs: []expr.Any{
			meta(expr.MetaKeyMARK), bits(^mask, mark),
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg},
		},
	}
}

// tproxy hands the packet to the listener on loopback. Without one it ends the
// rule.
func (f family) tproxy(port uint16) part {
	return part{
		text: fmt.Sprintf("tproxy %s to %s", f.word, netip.AddrPortFrom(f.loopback, port)),
		exprs: []expr.Any{
			&expr.Immediate{Register: reg, Data: f.loopback.AsSlice()},
			&expr.Immediate{Register: reg2, Data: binary.BigEndian.AppendUint16(nil, port)},
			&expr.TProxy{Family: f.protocol, TableFamily: unix.NFPROTO_INET, RegAddr: reg, RegPort: reg2},
		},
	}
}

// counted counts the packet under a name.
func counted(name string) part {
	return part{
		text:  "counter name " + name,
		exprs: []expr.Any{&expr.Objref{Type: int(nftables.ObjTypeCounter), Name: name}},
	}
}

func accept() part { return verdict("accept", expr.VerdictAccept, "") }
func drop() part   { return verdict("drop", expr.VerdictDrop, "") }

// follow goes on in another chain and does not come back.
func follow(chain string) part { return verdict("goto "+chain, expr.VerdictGoto, chain) }

func verdict(text string, kind expr.VerdictKind, chain string) part {
	return part{text: text, exprs: []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}}
}

// reset answers with a TCP reset.
func reset() part {
	return part{
		text:  "reject with tcp reset",
		exprs: []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}},
		needs: []need{protocol(unix.IPPROTO_TCP)},
	}
}

// prohibit answers with ICMP's "administratively prohibited".
func prohibit() part {
	return part{
		text:  "reject with icmpx admin-prohibited",
		exprs: []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}},
	}
}

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: reg} }

func compare(op expr.CmpOp, data []byte) expr.Any {
	return &expr.Cmp{Op: op, Register: reg, Data: data}
}

func equals(load expr.Any, data []byte) []expr.Any {
	return []expr.Any{load, compare(expr.CmpOpEq, data)}
}

func bits(mask, xor uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: number(mask), Xor: number(xor)}
}

// number is a number in a register: those are in the host's byte order.
func number(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
