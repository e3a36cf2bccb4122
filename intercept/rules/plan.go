package rules

import (
	"net/netip"
	"time"
)

// Plan is what the kernel has to do for us. It is plain data: making one does
// nothing, and a Backend turns it into rules.
type Plan struct {
	// Own are our networks: what peers may reach, and what may be captured.
	Own []netip.Prefix
	// Peers own the networks that connections are captured for.
	Peers []Peer
	// Forwarded captures connections of hosts behind us, Local those of this
	// host's own processes.
	Forwarded, Local bool
	// Sources narrows forwarded capture to these source networks. Empty means
	// Own.
	Sources []netip.Prefix
	// Exclude is never captured, nor guarded.
	Exclude Exclude
	// ResetExisting resets connections to peers that are older than the rules;
	// otherwise they go on untouched. So do those to peers with PassUnavailable,
	// which may be plain at any time.
	ResetExisting bool
	// Transparent is the port on loopback (127.0.0.1 and ::1) of the listener
	// that captured connections go to.
	Transparent uint16
	// Tunnel are the ports that peers reach us on.
	Tunnel []uint16
	// Routing are the numbers to use.
	Routing Routing
}

// Peer is one peer's part in a Plan.
type Peer struct {
	Name     string
	Networks []netip.Prefix
	// Endpoints are the addresses of its tunnel listeners, as far as known.
	Endpoints []netip.AddrPort
	// PassUnavailable lets connections go plain while the gateway is not there
	// (outbound.unavailable: pass). Its addresses are then not guarded.
	PassUnavailable bool
	// PassUncarried lets what is not TCP go plain (outbound.uncarried: pass), and
	// come back: it is not guarded.
	PassUncarried bool
}

// Exclude is what is left alone.
type Exclude struct {
	Networks []netip.Prefix // destinations
	Ports    []PortRange    // destination ports of TCP
	UIDs     []uint32       // local processes of these users
	Cgroups  []string       // local processes in these cgroups (v2), or below
}

// PortRange is an inclusive range of ports.
type PortRange struct{ First, Last uint16 }

// Routing are the numbers of marks, table and rules. Mask has two bits: Captured
// is one of them, Own the other; both together mark what output re-routes. Who
// changes them removes what was installed with the old ones first.
type Routing struct {
	Captured, Own, Mask uint32
	// Table is the routing table for captured packets; Priority is the first of
	// four consecutive rule priorities.
	Table, Priority int
}

// DefaultRouting stays clear of the marks, tables and priorities that
// Kubernetes, Cilium, Calico, Tailscale, WireGuard and Docker use.
var DefaultRouting = Routing{
	Captured: 0x08000000, Own: 0x04000000, Mask: 0x0c000000,
	Table: 15008, Priority: 1508,
}

// LiveFor is how long the rules believe that the gateway is there after Live.
const LiveFor = 10 * time.Second

// Backend writes rules of one kind of firewall, and the policy routing that goes
// with them. It is owned by one goroutine, but for Live, which any may call.
type Backend interface {
	// Name is nftables or iptables.
	Name() string
	// Apply installs the plan, or replaces an earlier one (also one that a
	// killed process left behind) in place: connections that exist go on.
	Apply(p Plan) error
	// Remove takes away everything of ours, also where it is not complete, and
	// also if it was kept ([Keep]). The host is then as it was. Removing nothing is no error.
	Remove(r Routing) error
	// Missing names what of the rules somebody else has taken away, or is "".
	Missing(r Routing) (what string, err error)
	// Standing names something of the rules that is there, or is "".
	Standing(r Routing) (what string, err error)
	// Live tells the rules that the gateway is there, for the time to live that
	// peers with PassUnavailable depend on. It must be called every LiveFor/3.
	Live(p Plan) error
	// Counters gives how often each rule that refuses something has done so,
	// by name: "guard" (a peer's address claimed from outside), "uncarried"
	// (not TCP), "refused" (no listener: the gateway is not there), "stray" (a
	// segment of a connection that we no longer hold), "leak" (a marked packet
	// that was about to leave).
	Counters() (map[string]uint64, error)
}
