package netlab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Protocol is what an IP packet carries, by its number (IANA, "Assigned Internet Protocol Numbers").
type Protocol uint8

// The protocols that have names here.
const (
	ICMP   Protocol = 1
	TCP    Protocol = 6
	UDP    Protocol = 17
	ICMPv6 Protocol = 58
)

func (p Protocol) String() string {
	switch p {
	case ICMP:
		return "icmp"
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case ICMPv6:
		return "icmpv6"
	}
	return fmt.Sprintf("protocol %d", uint8(p))
}

// packet is one IP packet as far as it matters here. Ports are zero where the protocol has none.
type packet struct {
	proto    Protocol
	src, dst netip.AddrPort
	size     int // bytes, IP header included
	fragment bool
	syn      bool   // tcp
	seq      uint32 // tcp
	payload  []byte // of tcp; of the IP packet for all else
}

// parse reads an Ethernet frame. It says false for what keeps a network going and carries nobody's data: ARP,
// neighbour and router discovery, multicast membership. The packet refers to the frame's memory.
func parse(frame []byte) (packet, bool) {
	if len(frame) < 14 {
		return packet{}, false
	}
	var p packet
	var ok bool
	switch body := frame[14:]; binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_IP:
		p, ok = parse4(body)
	case unix.ETH_P_IPV6:
		p, ok = parse6(body)
	case unix.ETH_P_ARP:
		return packet{}, false
	}
	if !ok {
		return packet{size: len(frame) - 14, payload: frame[14:]}, true // unknown, and not to be overlooked
	}
	p.parseTransport()
	return p, !p.housekeeping()
}

// parse4 reads an IPv4 header, RFC 791 §3.1.
func parse4(b []byte) (packet, bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return packet{}, false
	}
	header, total := int(b[0]&0x0f)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || total < header || total > len(b) {
		return packet{}, false
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	return packet{
		proto: Protocol(b[9]), size: total, payload: b[header:total],
		src: netip.AddrPortFrom(src, 0), dst: netip.AddrPortFrom(dst, 0),
		fragment: binary.BigEndian.Uint16(b[6:])&0x3fff != 0, // more fragments, or an offset
	}, true
}

// parse6 reads an IPv6 header and those that follow it, RFC 8200 §3 and §4.
func parse6(b []byte) (packet, bool) {
	if len(b) < 40 || b[0]>>4 != 6 {
		return packet{}, false
	}
	total := 40 + int(binary.BigEndian.Uint16(b[4:]))
	if total > len(b) {
		return packet{}, false
	}
	src, dst := netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	p := packet{
		proto: Protocol(b[6]), size: total, payload: b[40:total],
		src: netip.AddrPortFrom(src, 0), dst: netip.AddrPortFrom(dst, 0),
	}
	return p, p.skipExtensions()
}

// extensions are the IPv6 headers that may stand before the payload: hop-by-hop, routing, fragment, destination.
var extensions = []Protocol{unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_FRAGMENT, unix.IPPROTO_DSTOPTS}

// skipExtensions moves on to what an IPv6 packet carries.
func (p *packet) skipExtensions() bool {
	for slices.Contains(extensions, p.proto) {
		if len(p.payload) < 8 {
			return false
		}
		size := 8 + 8*int(p.payload[1])
		if p.proto == unix.IPPROTO_FRAGMENT {
			size, p.fragment = 8, true
		}
		if size > len(p.payload) {
			return false
		}
		p.proto, p.payload = Protocol(p.payload[0]), p.payload[size:]
	}
	return true
}

// parseTransport finds ports, and of TCP what puts a stream together (RFC 9293 §3.1).
func (p *packet) parseTransport() {
	if p.fragment || p.proto != TCP && p.proto != UDP || len(p.payload) < 8 {
		return
	}
	b := p.payload
	p.src = netip.AddrPortFrom(p.src.Addr(), binary.BigEndian.Uint16(b))
	p.dst = netip.AddrPortFrom(p.dst.Addr(), binary.BigEndian.Uint16(b[2:]))
	if p.proto != TCP || len(b) < 20 {
		return
	}
	header := int(b[12]>>4) * 4
	if header < 20 || header > len(b) {
		return
	}
	p.seq, p.syn, p.payload = binary.BigEndian.Uint32(b[4:]), b[13]&0x02 != 0, b[header:]
}

// housekeeping says whether the packet is neighbour or router discovery (RFC 4861) or multicast listener
// discovery (RFC 2710, RFC 3810).
func (p *packet) housekeeping() bool {
	if p.proto != ICMPv6 || p.fragment || len(p.payload) == 0 {
		return false
	}
	kind := p.payload[0]
	return kind >= 130 && kind <= 137 || kind == 143
}
