package hbone

import (
	"fmt"
	"net/netip"
	"strings"
)

// Request asks a peer gateway for a connection.
type Request struct {
	// Client is the original source, sent as forwarded: for="addr:port"
	// (RFC 7239 §4). Zero where the peer named none.
	Client netip.AddrPort
	// Target is the original destination, sent as :authority.
	Target netip.AddrPort
}

// parseAuthority reads a CONNECT target: an IP address and a port, nothing
// else (RFC 9113 §8.5; names are not resolved here). IPv4-mapped addresses are
// unmapped. A zone, a port of zero, user information and surplus characters
// are errors.
func parseAuthority(s string) (netip.AddrPort, error) {
	ap, err := parseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf(":authority %.64q: %w", s, err)
	}
	return ap, nil
}

func parseAddrPort(s string) (netip.AddrPort, error) {
	if len(s) > len("[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]:65535") {
		return netip.AddrPort{}, fmt.Errorf("too long for an address and a port")
	}
	if strings.IndexByte(s, '%') >= 0 {
		return netip.AddrPort{}, fmt.Errorf("a zone has no meaning on the wire")
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("want address:port, an IPv6 address in brackets")
	}
	if ap.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("port 0 is not a port")
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

// appendForwardedFor appends the original source (RFC 7239 §6: an address with a
// port is quoted, an IPv6 address is in brackets).
func appendForwardedFor(b []byte, ap netip.AddrPort) []byte {
	b = append(b, `for="`...)
	return append(ap.AppendTo(b), '"')
}

// parseForwarded reads the one form of the forwarded field that is believed:
// a single element whose "for" is an IP address and a port. Other parameters
// (host, by, proto; ztunnel sends host) are skipped. Several elements, "for"
// twice, obfuscated or unknown nodes and addresses without a port are errors:
// a source is kept or refused, never guessed.
func parseForwarded(s string) (netip.AddrPort, error) {
	bad := func(what string) (netip.AddrPort, error) {
		return netip.AddrPort{}, fmt.Errorf("forwarded %.80q: %s", s, what)
	}
	var found netip.AddrPort
	for rest := s; ; {
		name, value, tail, err := forwardedPair(rest)
		if err != nil {
			return bad(err.Error())
		}
		if strings.EqualFold(name, "for") {
			if found.IsValid() {
				return bad("for is given twice")
			}
			if found, err = parseAddrPort(value); err != nil {
				return bad(err.Error())
			}
		}
		if tail == "" {
			break
		}
		rest = tail
	}
	if !found.IsValid() {
		return bad("for is missing")
	}
	return found, nil
}

// forwardedPair takes one name=value off s and returns what follows its
// semicolon (RFC 7239 §4: no white space inside an element).
func forwardedPair(s string) (name, value, tail string, err error) {
	name, rest, ok := strings.Cut(s, "=")
	if !ok || name == "" || !isToken(name) {
		return "", "", "", fmt.Errorf("want name=value")
	}
	if strings.HasPrefix(rest, `"`) {
		end := strings.IndexByte(rest[1:], '"')
		if end < 0 {
			return "", "", "", fmt.Errorf("quote is not closed")
		}
		value, rest = rest[1:1+end], rest[end+2:]
	} else {
		end := strings.IndexAny(rest, ";, ")
		if end < 0 {
			end = len(rest)
		}
		value, rest = rest[:end], rest[end:]
	}
	if strings.IndexByte(value, '\\') >= 0 {
		return "", "", "", fmt.Errorf("quoted pairs are not used by addresses")
	}
	if rest == "" {
		return name, value, "", nil
	}
	if rest[0] != ';' || len(rest) == 1 {
		return "", "", "", fmt.Errorf("want exactly one element")
	}
	return name, value, rest[1:], nil
}

// isToken reports whether s is a token of RFC 9110 §5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0:
		default:
			return false
		}
	}
	return true
}
