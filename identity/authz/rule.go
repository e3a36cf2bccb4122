package authz

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Action is what a rule does to the connections that it matches.
type Action uint8

const (
	// Deny refuses them, whatever other rules say.
	Deny Action = iota
	// Allow lets them pass, and closes the destinations that the rule names to
	// all that no allow rule matches.
	Allow
)

// String gives the word of the configuration: deny or allow.
func (a Action) String() string {
	switch a {
	case Deny:
		return "deny"
	case Allow:
		return "allow"
	}
	return fmt.Sprintf("action(%d)", uint8(a))
}

// Rule narrows what ownership permits; it never widens it. A nil list in From or
// To means any; one without items is an error, for it could be meant as none.
type Rule struct {
	// Name is the rule's own, in logs, metrics and explanations.
	Name   string
	Action Action
	// DryRun says that the rule is judged and told of, and decides nothing.
	DryRun bool
	From   From
	To     To
}

// From is whose connections a rule is about. All of it must match.
type From struct {
	// IDs are SPIFFE IDs of peers, exactly.
	IDs []spiffeid.ID
	// Networks are where sources lie. A peer whose streams are delivered from
	// the gateway's own address may name no source: deny rules take it to be in
	// any of that peer's networks, allow rules in none.
	Networks []netip.Prefix
}

// To is where they go: the destinations that a rule names. All of it must match.
type To struct {
	Networks []netip.Prefix
	Ports    []PortRange
}

// PortRange is an inclusive range of TCP ports, 1 to 65535.
type PortRange struct{ First, Last uint16 }

// check says what is wrong with r. No mistake may make a rule wider.
func (r *Rule) check(ids map[spiffeid.ID]subject) error {
	switch {
	case r.Action > Allow:
		return fmt.Errorf("unknown %s", r.Action)
	case none(r.From.IDs), none(r.From.Networks), none(r.To.Networks), none(r.To.Ports):
		return errors.New("a list without items matches nothing; nil is any")
	}
	for _, id := range r.From.IDs {
		if _, known := ids[id]; !known {
			return fmt.Errorf("no peer has the id %q", id)
		}
	}
	for _, n := range slices.Concat(r.From.Networks, r.To.Networks) {
		if !canonical(n) {
			return fmt.Errorf("%s is not a network in its canonical form", n)
		}
	}
	for _, span := range r.To.Ports {
		if span.First == 0 || span.First > span.Last {
			return fmt.Errorf("%d-%d is no range of ports", span.First, span.Last)
		}
	}
	return nil
}

// none says that a list is there and has no items.
func none[T any](list []T) bool { return list != nil && len(list) == 0 }
