package audit

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"slices"
	"time"
)

// Event is what a record is about, of a closed list.
type Event string

// The events.
const (
	Allowed         Event = "allowed"          // a connection may pass
	Denied          Event = "denied"           // a connection may not
	DryRun          Event = "dry_run"          // a rule in dry run would have decided otherwise
	Failed          Event = "failed"           // a connection could not be carried
	Cut             Event = "cut"              // we have ended a connection before its time
	TunnelOpened    Event = "tunnel_opened"    // a peer has proved who it is
	TunnelRefused   Event = "tunnel_refused"   // somebody has not, or may not
	TunnelWithdrawn Event = "tunnel_withdrawn" // what a peer has proved counts no more
	TunnelCut       Event = "tunnel_cut"       // a peer has broken the protocol, or flooded us
	IdentityUpdated Event = "identity_updated" // our own certificate, or roots, are others now
	IdentityRefused Event = "identity_refused" // others were offered, and not taken
	Reloaded        Event = "reloaded"         // another configuration is in force
	ReloadRefused   Event = "reload_refused"   // another was offered, and not taken
	Dropped         Event = "dropped"          // records are missing before this one
)

var events = []Event{
	Allowed, Denied, DryRun, Failed, Cut, TunnelOpened, TunnelRefused, TunnelWithdrawn, TunnelCut,
	IdentityUpdated, IdentityRefused, Reloaded, ReloadRefused, Dropped,
}

// Events lists every Event there is.
func Events() []Event { return slices.Clone(events) }

// Record is one decision. The names of its fields in JSON are those in every sink;
// fields that say nothing are left out.
type Record struct {
	// Time is when, in UTC. Log.Write fills it in, and Gateway.
	Time    time.Time `json:"time"`
	Event   Event     `json:"event"`
	Gateway string    `json:"gateway"`
	// Direction is inbound, for what peers bring, or outbound.
	Direction string `json:"direction,omitempty"`
	// Peer is the peer's name, ID the SPIFFE ID and Serial the certificate that it
	// has proved: or our own, where the event is about that.
	Peer   string `json:"peer,omitempty"`
	ID     string `json:"id,omitempty"`
	Serial string `json:"serial,omitempty"`
	// Client and Target are the ends of a connection.
	Client netip.AddrPort `json:"client,omitzero"`
	Target netip.AddrPort `json:"target,omitzero"`
	// From is the other end of a tunnel that was refused.
	From netip.AddrPort `json:"from,omitzero"`
	// Reason is why, in one word.
	Reason string `json:"reason,omitempty"`
	// Rule is the policy's that has decided, and RuleAt where it stands, file:line.
	Rule   string `json:"rule,omitempty"`
	RuleAt string `json:"rule_at,omitempty"`
	// Sent and Received are the bytes of a connection that was cut, out of and into
	// the local socket.
	Sent     uint64 `json:"sent_bytes,omitempty"`
	Received uint64 `json:"received_bytes,omitempty"`
	// Dropped is how many records are missing.
	Dropped uint64 `json:"dropped,omitempty"`
}

// appendJSON appends r as one line.
func (r *Record) appendJSON(b []byte) []byte {
	buf := bytes.NewBuffer(b)
	e := json.NewEncoder(buf)
	e.SetEscapeHTML(false)
	// Fails for types that a Record does not have, and times after the year 9999.
	_ = e.Encode(r)
	return buf.Bytes()
}
