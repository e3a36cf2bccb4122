package config

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Rule is one rule of the policy.
type Rule struct {
	// Name is the rule's own.
	Name   string
	Action RuleAction
	// DryRun says that it is logged and counted, and decides nothing.
	DryRun bool
	From   From
	To     To
	// Line is where it stands in the file.
	Line int
}

// RuleAction is allow or deny.
type RuleAction string

// The actions of rules.
const (
	Allow RuleAction = "allow"
	Deny  RuleAction = "deny"
)

// From is whose connections a rule is about. An empty list means any; of the
// others each must match.
type From struct {
	IDs      []IDPattern
	Peers    []string
	Networks []netip.Prefix
}

// To is where they go. An empty list means any.
type To struct {
	Networks []netip.Prefix
	Ports    []PortRange
}

// IDPattern is a SPIFFE ID, in whose path a segment may be "*", any one segment,
// and the last "**", one or more of them. It is as in the file, and checked.
type IDPattern string

// Matches says whether id is one of those. It goes by whole segments.
func (p IDPattern) Matches(id spiffeid.ID) bool {
	want, have := string(p), id.String()
	for more := true; more; {
		var w, h string
		var moreHave bool
		w, want, more = strings.Cut(want, "/")
		h, have, moreHave = strings.Cut(have, "/")
		switch {
		case w == "**":
			return true
		case w != h && w != "*", more != moreHave:
			return false
		}
	}
	return true
}

// segments are the trust domain of an ID, and those of its path.
func segments(id string) []string {
	return strings.Split(strings.TrimPrefix(id, "spiffe://"), "/")
}

// idPattern reads an IDPattern.
func idPattern(text string) (IDPattern, *mistake) {
	parts := segments(text)
	for i, s := range parts {
		last := i == len(parts)-1
		switch {
		case !strings.Contains(s, "*"):
		case i == 0:
			return "", wrong("name the trust domain: spiffe://mesh.example/gateway/*", "%s has a wildcard for the trust domain", quote(text))
		case s == "**" && !last:
			return "", wrong("write * for each segment, and ** at the end only", "%s has ** before its end", quote(text))
		case s != "*" && s != "**":
			return "", wrong("* stands for a whole segment, and ** for all that are left", "%s has a wildcard within a segment", quote(text))
		default:
			parts[i] = "x" // what a segment may look like
		}
	}
	id, err := spiffeid.FromString(strings.TrimSuffix(text, strings.Join(segments(text), "/")) + strings.Join(parts, "/"))
	switch {
	case err != nil:
		return "", wrong("write it as spiffe://mesh.example/gateway/east or spiffe://mesh.example/gateway/*", "%s is no SPIFFE ID: %v", quote(text), err)
	case id.Path() == "":
		return "", wrong("write "+text+"/** for all of it", "%s names a trust domain, not a gateway", text)
	}
	return IDPattern(text), nil
}

// Subjects are the SPIFFE IDs of the peers that f is about by ids and peers,
// wherever their sources lie. Nil means that it names neither, and so any; where
// no peer is meant the list is there, and empty.
func (c *Config) Subjects(f From) []spiffeid.ID {
	if len(f.IDs) == 0 && len(f.Peers) == 0 {
		return nil
	}
	ids := []spiffeid.ID{}
	for _, p := range c.Peers {
		ids = append(ids, f.of(p)...)
	}
	return ids
}

// of are the SPIFFE IDs of p that f is about.
func (f From) of(p Peer) (ids []spiffeid.ID) {
	if len(f.Peers) > 0 && !slices.Contains(f.Peers, p.Name) {
		return nil
	}
	for _, id := range p.IDs {
		if len(f.IDs) == 0 || slices.ContainsFunc(f.IDs, func(w IDPattern) bool { return w.Matches(id) }) {
			ids = append(ids, id)
		}
	}
	return ids
}

func ruleKeys(r *Rule) []key {
	return []key{
		{name: "name", kind: "name", must: true, example: "name: no-telnet", read: one(&r.Name, name)},
		{name: "action", kind: "allow or deny", must: true, example: "action: deny", read: one(&r.Action, among(Allow, Deny))},
		{name: "from", keys: func() []key {
			return []key{
				{name: "ids", kind: "list of SPIFFE IDs and patterns", read: some(&r.From.IDs, idPattern)},
				{name: "peers", kind: "list of names", read: some(&r.From.Peers, name)},
				{name: "networks", kind: "list of networks", read: some(&r.From.Networks, network)},
			}
		}},
		{name: "to", keys: func() []key {
			return []key{
				{name: "networks", kind: "list of networks", read: some(&r.To.Networks, network)},
				{name: "ports", kind: "list of ports and ranges", read: some(&r.To.Ports, ports)},
			}
		}},
		{name: "dryRun", kind: "true or false", def: "false", read: one(&r.DryRun, whether("true", "false"))},
	}
}

// some is many, of one at least: without any it would not be clear whether all
// are meant, or none.
func some[T comparable](to *[]T, read func(string) (T, *mistake)) func(value) {
	return func(v value) {
		if v.kind == list && len(v.items) == 0 {
			v.fail(wrong("remove the key where any is meant", "is an empty list, which would match nothing"))
		}
		many(to, read)(v)
	}
}
