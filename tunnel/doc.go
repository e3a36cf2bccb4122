// Package tunnel carries connections between two gateways. Outbound takes a
// captured connection to the peer that owns its target; Inbound takes a peer's
// stream to the target itself. Each is one path, read from top to bottom:
//
//	west gateway                                 east gateway
//	kernel ─tproxy─► intercept.Flow              hbone.Request from a peer
//	  1 route    the peer that owns the target     4 authorise  a Permit, or a refusal
//	  2 pool     a tunnel with room                5 deliver    connect as the Permit says
//	  3 tunnel   a stream ══ CONNECT ══►           6 accept     200
//	    bytes both ways, until both ends are done
//
// Values only move forward, and each is the sum of what is known so far. What
// changes while running (routes, policy, identities) is asked for at the
// moment of use and is an immutable snapshot.
//
// The package does not move bytes (engine), does not know frames (hbone) or
// certificates (identity), and does not touch the firewall.
package tunnel
