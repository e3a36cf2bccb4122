package authz

import "net/netip"

// Metadata services of clouds that listen on unique local IPv6 addresses. Those
// of IPv4 are link-local.
var (
	// docs.aws.amazon.com: EC2 instance metadata, "IPv6 address of the IMDS".
	metadataEC2 = netip.MustParseAddr("fd00:ec2::254")
	// docs.aws.amazon.com: EKS Pod Identity Agent.
	metadataEKS = netip.MustParseAddr("fd00:ec2::23")
)

// never says whether a is no address of a host in somebody's network, so that
// nobody may be reached at it or speak for it. It takes unmapped addresses.
func never(a netip.Addr) bool {
	switch {
	case !a.IsValid(), a.Zone() != "": // a zone is of one link (RFC 4007 §6)
		return true
	case a.IsUnspecified(), a.IsLoopback(), a.IsLinkLocalUnicast(), a.IsMulticast():
		return true
	case a == metadataEC2, a == metadataEKS:
		return true
	}
	return a.Is4() && never4(a.As4()[0])
}

// never4 refuses "this network" (RFC 1122 §3.2.1.3) and what is reserved with
// the limited broadcast (RFC 1112 §4, RFC 919 §7), by the first octet.
func never4(octet byte) bool { return octet == 0 || octet >= 240 }

// unmap makes one form of each address, once, at the door. Unmap would drop a
// zone, and with it the ground to refuse it.
func unmap(a netip.AddrPort) netip.AddrPort {
	if a.Addr().Zone() != "" {
		return a
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
