package authz

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Reason says why a Permit was refused. The list is closed, so that it can be
// a label of a metric.
type Reason string

// The reasons, in the order in which they are looked for.
const (
	// UnknownPeer: no peer has this SPIFFE ID.
	UnknownPeer Reason = "unknown_peer"
	// BadTarget: an address or port that is never a target.
	BadTarget Reason = "bad_target"
	// Loop: the target is a listener of the gateway itself.
	Loop Reason = "loop"
	// TargetNotServed: the target's owner is not ourselves.
	TargetNotServed Reason = "target_not_served"
	// NoSource: the peer named no source, and it must.
	NoSource Reason = "no_source"
	// BadSource: an address or port that is never a source.
	BadSource Reason = "bad_source"
	// SourceNotOwned: the source's owner is not the peer that claims it.
	SourceNotOwned Reason = "source_not_owned"
	// FamilyMismatch: source and target are not of one address family, so that
	// no connection can have both.
	FamilyMismatch Reason = "family_mismatch"
	// PolicyDeny: a deny rule matches.
	PolicyDeny Reason = "policy_deny"
	// PolicyDefaultDeny: an allow rule names the target, and none matches.
	PolicyDefaultDeny Reason = "policy_default_deny"
)

var reasons = []Reason{
	UnknownPeer, BadTarget, Loop, TargetNotServed, NoSource, BadSource, SourceNotOwned, FamilyMismatch,
	PolicyDeny, PolicyDefaultDeny,
}

// Reasons lists every Reason there is, for those who count them.
func Reasons() []Reason { return slices.Clone(reasons) }

// DeniedError is the error of every refusal.
type DeniedError struct {
	// Reason is why.
	Reason Reason
	// ID is the peer's SPIFFE ID.
	ID spiffeid.ID
	// Source is what the peer claimed, unmapped; zero if it claimed nothing.
	Source netip.AddrPort
	// Target is what it asked for, unmapped.
	Target netip.AddrPort
	// Rule is the name of the rule that decided, where one did: the deny rule
	// that matches, or the first allow rule that names the target.
	Rule string
	// DryRun is the name of the rule in dry run that would have permitted it, if
	// those in dry run were enforced; mostly empty.
	DryRun string
}

// Error says who was refused what, as whom, and why.
func (e *DeniedError) Error() string {
	source := "no source"
	if e.Source != (netip.AddrPort{}) {
		source = "source " + e.Source.String()
	}
	text := fmt.Sprintf("authorise %s, %s, to %s: %s", e.ID, source, e.Target, e.Reason)
	if e.Rule != "" {
		text += " by rule " + e.Rule
	}
	return text
}
