package config

import (
	"net/netip"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Config is one configuration file, checked and with its defaults filled in.
type Config struct {
	// Path is the file that it was read from.
	Path string
	// Name is what this gateway is called in logs and metrics.
	Name      string
	Identity  Identity
	Networks  []netip.Prefix
	Listen    Listen
	Peers     []Peer
	Capture   Capture
	Routing   Routing
	Timeouts  Timeouts
	Keepalive Keepalive
	Drain     Drain
	Limits    Limits
	// EarlyData offers peers to hold what their clients say before we have
	// connected, and makes use of such offers.
	EarlyData bool
	// TLS is who protects the records of tunnels.
	TLS TLS
	Log Log
	// Audit is where the record of decisions goes; zero where there is none.
	Audit Audit
	// Policy narrows what peers may reach, in the order of the file.
	Policy []Rule
	// Revoked is who is refused whatever they prove.
	Revoked Revoked
}

// Identity says where our certificate comes from: the Workload API or files, one of
// the two.
type Identity struct {
	// WorkloadAPI is the address of a SPIFFE Workload API, unix:///path. Empty
	// where files are used.
	WorkloadAPI string
	// Files is nil where the Workload API is used.
	Files *Files
	// Federation has the bundles of other trust domains.
	Federation []Federated
	// Grace is how long connections of a peer go on after what it has proved its
	// SPIFFE ID with last has expired.
	Grace time.Duration
}

// Files are the paths of an identity on disk; relative ones have been made
// relative to the configuration file's directory.
type Files struct{ Cert, Key, Bundle string }

// Bundles are the files of Federation.
func (i Identity) Bundles() map[spiffeid.TrustDomain]string {
	paths := make(map[spiffeid.TrustDomain]string)
	for _, f := range i.Federation {
		paths[f.TrustDomain] = f.Bundle
	}
	return paths
}

// Federated is another trust domain, whose peers are known by a bundle on disk.
type Federated struct {
	TrustDomain spiffeid.TrustDomain
	Bundle      string
}

// Listen is what the gateway listens on.
type Listen struct {
	// Tunnel are the addresses for peers.
	Tunnel []netip.AddrPort
	// Transparent is the port on loopback that captured connections go to.
	Transparent uint16
	// Metrics and Ready serve HTTP; the zero AddrPort ("off") serves nothing.
	Metrics, Ready netip.AddrPort
	// Admin is the path of the admin socket; empty ("off") for none.
	Admin string
}

// Peer is a gateway at the other end.
type Peer struct {
	Name string
	// IDs are SPIFFE IDs, any of which it may prove.
	IDs []spiffeid.ID
	// Endpoints are host:port, tried in order.
	Endpoints []string
	// Networks are what it owns.
	Networks []netip.Prefix
	Inbound  Inbound
	Outbound Outbound
}

// Inbound is how a peer's connections are delivered.
type Inbound struct{ Source Source }

// Source is the address that a delivery comes from.
type Source string

// The sources.
const (
	Preserve Source = "preserve" // the client's address and port
	Address  Source = "address"  // the client's address, any port
	Gateway  Source = "gateway"  // the gateway's own
)

// Outbound is what becomes of traffic to a peer that the tunnel cannot carry.
type Outbound struct {
	Unavailable Action // TCP while the gateway is not there
	Uncarried   Action // what is not TCP
}

// Action is reject or pass.
type Action string

// The actions.
const (
	Reject Action = "reject"
	Pass   Action = "pass"
)

// Capture says which connections are taken.
type Capture struct {
	Firewall Firewall
	// Forwarded and Local are capture.from.
	Forwarded, Local bool
	// Sources narrows forwarded capture; empty means Networks.
	Sources []netip.Prefix
	Exclude Exclude
	// ResetExisting is existing: reset.
	ResetExisting bool
}

// Firewall is who writes the rules, and how.
type Firewall string

// The firewalls.
const (
	FirewallAuto Firewall = "auto"
	NFTables     Firewall = "nftables"
	IPTables     Firewall = "iptables"
	NoFirewall   Firewall = "none"
)

// TLS is who protects the records of tunnels after the handshake.
type TLS string

// The two: we do, or crypto/tls does.
const (
	TLSDirect   TLS = "direct"
	TLSStandard TLS = "standard"
)

// Exclude is what is never captured.
type Exclude struct {
	Networks []netip.Prefix // destinations
	Ports    []PortRange    // destination ports
	UIDs     []uint32
	Cgroups  []string // cgroup v2 paths, relative to its root
}

// PortRange is an inclusive range of TCP ports.
type PortRange struct{ First, Last uint16 }

// Routing are the numbers that we use in the kernel.
type Routing struct {
	// Mark is the captured mark and Mask the field it lies in: two bits, of
	// which Mark is one; the other is the own mark.
	Mark, Mask uint32
	// Table is the routing table, Priority the first of four rule priorities.
	Table, Priority int
}

// Timeouts bound what waits for others.
type Timeouts struct{ Connect, Handshake, Request time.Duration }

// Keepalive is that of client and server legs.
type Keepalive struct {
	Idle, Interval time.Duration
	Count          int
}

// Drain is how the gateway stops.
type Drain struct{ Grace time.Duration }

// Limits bound what others can make us spend.
type Limits struct {
	// Memory bounds the credit given to peers, in bytes.
	Memory int64
	// StreamsPerTunnel bounds the streams on one tunnel.
	StreamsPerTunnel int
	// Handshakes bounds how many TLS handshakes compute at once.
	Handshakes int
}

// Log is what is logged, and how.
type Log struct {
	Level  string // debug, info, warn, error
	Format string // text, json
}

// Audit is where the record of decisions goes: one of the three.
type Audit struct {
	File             string // its path
	Syslog, Journald string // the datagram sockets of such daemons
}

// Revoked is who is refused whatever they prove.
type Revoked struct {
	IDs []spiffeid.ID
	// Serials are numbers of certificates, in hexadecimal as %x has them.
	Serials []string
	// CRLs are the paths of revocation lists, as those of Files.
	CRLs []string
}
