package config

import (
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// prefix reads a network, written as its first address and a length.
func prefix(text string) (netip.Prefix, *mistake) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, wrong(prefixHint(text), "%s is no network", quote(text))
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, mappedPrefix(p)
	}
	if p != p.Masked() {
		return netip.Prefix{}, wrong("write "+p.Masked().String(), "%s has bits set beyond its prefix", p)
	}
	return p, nil
}

// prefixHint helps one who wrote an address.
func prefixHint(text string) string {
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return "write " + netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()).String()
	}
	return "write an address and a length, as 10.1.0.0/16 or fd00:1::/64"
}

// mappedPrefix refuses ::ffff:10.0.0.0/104: packets are IPv4 or IPv6, and those
// addresses are in none.
func mappedPrefix(p netip.Prefix) *mistake {
	hint := ""
	if p.Bits() >= 96 {
		hint = "write " + netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96).Masked().String()
	}
	return wrong(hint, "%s is an IPv4-mapped network, which matches nothing", p)
}

// special are the networks of which no host can be anybody's.
var special = []struct {
	netip.Prefix
	what string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "reserved"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved"},
	{netip.MustParsePrefix("::/127"), "loopback"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// network reads a prefix that somebody owns. It may hold none of the special
// ones, but for everything: a hub has 0.0.0.0/0.
func network(text string) (netip.Prefix, *mistake) {
	p, m := prefix(text)
	if m != nil || p.Bits() == 0 {
		return p, m
	}
	for _, s := range special {
		switch {
		case !s.Overlaps(p):
		case p.Bits() >= s.Bits():
			return netip.Prefix{}, wrong("", "%s is %s, which no tunnel carries", p, s.what)
		default:
			return netip.Prefix{}, wrong("write what is left of it as several networks", "%s contains %s, which is %s", p, s.Prefix, s.what)
		}
	}
	return p, nil
}

// listenAddr reads an address and port to listen on.
func listenAddr(text string) (netip.AddrPort, *mistake) {
	ap, err := netip.ParseAddrPort(text)
	switch {
	case err != nil:
		return netip.AddrPort{}, wrong(listenHint(text), "%s is no address and port", quote(text))
	case ap.Port() == 0:
		return netip.AddrPort{}, wrong("choose one between 1 and 65535", "%s has port 0", text)
	case ap.Addr().Zone() != "":
		return netip.AddrPort{}, wrong("", "%s has a zone, which is not supported here", text)
	case ap.Addr().Is4In6():
		return netip.AddrPort{}, wrong("write "+netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String(), "%s is an IPv4-mapped address", text)
	case ap.Addr().IsMulticast():
		return netip.AddrPort{}, wrong("", "%s is a multicast address", text)
	}
	return ap, nil
}

func listenHint(text string) string {
	if port, found := strings.CutPrefix(text, ":"); found && bare(port) {
		return "write " + word("[::]:"+port) + " for all addresses"
	}
	if bare(text) {
		return "write " + word("[::]:"+text) + " for all addresses, or 127.0.0.1:" + text
	}
	return `write an IP address and a port, as 192.0.2.10:15008 or "[::]:15008"`
}

// endpoint reads a host and port to connect to.
func endpoint(text string) (string, *mistake) {
	h, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", wrong(endpointHint(text), "%s is no host and port", quote(text))
	}
	if n, m := digits(port, 10); m != nil || n < 1 || n > 65535 {
		return "", wrong("choose one between 1 and 65535", "%s has no valid port", quote(text))
	}
	if m := hostPart(h); m != nil {
		return "", m
	}
	return text, nil
}

func endpointHint(text string) string {
	if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return "write " + word(netip.AddrPortFrom(a, 15008).String())
	}
	if i := strings.LastIndexByte(text, ':'); i > 0 && strings.Count(text, ":") > 1 {
		if a, err := netip.ParseAddr(text[:i]); err == nil {
			return "write " + word("["+a.String()+"]"+text[i:])
		}
	}
	if hostPart(text) == nil {
		return "write " + text + ":15008"
	}
	return `write a host and a port, as 192.0.2.20:15008, "[2001:db8::20]:15008" or east.example:15008`
}

// hostPart checks the host of an endpoint: an address or a name.
func hostPart(h string) *mistake {
	a, err := netip.ParseAddr(h)
	switch {
	case err != nil:
		return hostName(h)
	case a.Zone() != "":
		return wrong("", "%s has a zone, which is not supported here", quote(h))
	case a.Is4In6():
		return wrong("write "+a.Unmap().String(), "%s is an IPv4-mapped address", h)
	case a.IsUnspecified(), a.IsMulticast():
		return wrong("", "%s is the address of no single host", h)
	}
	return nil
}

// hostName checks a DNS name (RFC 1123 §2.1), with _ as some have it.
func hostName(h string) *mistake {
	labels := strings.Split(strings.ToLower(strings.TrimSuffix(h, ".")), ".")
	if len(h) > 253 || bare(labels[len(labels)-1]) {
		return wrong("", "%s is neither an IP address nor a host name", quote(h))
	}
	for _, l := range labels {
		plain := strings.IndexFunc(l, func(c rune) bool { return !nameRune(c) }) < 0
		if l == "" || len(l) > 63 || !plain || l[0] == '-' || l[len(l)-1] == '-' {
			return wrong("", "%s is neither an IP address nor a host name", quote(h))
		}
	}
	return nil
}

// ports reads a port, or a range as 8000-8100.
func ports(text string) (PortRange, *mistake) {
	from, to, isRange := strings.Cut(text, "-")
	if !isRange {
		to = from
	}
	port := number[uint16](1, 65535)
	first, m := port(strings.TrimSpace(from))
	if m == nil {
		var last uint16
		if last, m = port(strings.TrimSpace(to)); m == nil {
			return orderly(PortRange{first, last})
		}
	}
	return PortRange{}, wrong("write a port from 1 to 65535, or a range as 8000-8100", "%s is no port", quote(text))
}

func orderly(r PortRange) (PortRange, *mistake) {
	if r.First > r.Last {
		return PortRange{}, wrong("write "+PortRange{r.Last, r.First}.String(), "%s ends before it begins", r)
	}
	return r, nil
}

// String writes r as in the file.
func (r PortRange) String() string {
	if r.First == r.Last {
		return strconv.Itoa(int(r.First))
	}
	return strconv.Itoa(int(r.First)) + "-" + strconv.Itoa(int(r.Last))
}
