package rules

import (
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// A ruleset is an nftables table in both its forms: text for people and for
// nft, expressions for the kernel. Rules are put together from parts that have
// both, so that what is printed is what is installed.
type ruleset struct {
	counters []string
	sets     []*set
	chains   []*chain
}

// set is a named set of the table.
type set struct {
	name string
	typ  string // as in nft's text
	key  nftables.SetDatatype
	// ranges says that elements are ranges (flags interval), native that keys
	// are numbers in the host's byte order.
	ranges, native bool
	// memory is filled while the rules run, and kept when a plan replaces
	// another; dynamic is memory that the rules themselves fill.
	memory, dynamic bool
	timeout         time.Duration // of elements of a dynamic set
	size            uint32        // of a dynamic set
	elements        []element
}

// element is one key of a set, or a range of them.
type element struct {
	text string
	key  []byte
	end  []byte // the first key behind a range; nil: it runs to the last key
}

// chain is a list of rules. Other chains go to it, or the kernel calls it.
type chain struct {
	name  string
	base  *base // nil if the kernel does not call it
	rules []rule

	note string // comment for the next rule
}

// base is where the kernel calls a chain. All of ours have the priority of
// mangle (-150): behind connection tracking, before anybody's DNAT.
type base struct {
	kind nftables.ChainType
	hook *nftables.ChainHook
	name string // of the hook
}

// rule is a line of a chain: conditions, and what is then done.
type rule struct {
	note  string
	text  string
	exprs []expr.Any
}

// part is a piece of a rule.
type part struct {
	text  string
	exprs []expr.Any
	// needs is what must be known of a packet before it can be looked into.
	// Where the rule has not said it, nft adds it unseen, and so does add.
	needs []need
	// says is what is known of a packet that passed this part.
	says []need
}

// need is the family or the protocol of a packet.
type need struct {
	key   expr.MetaKey
	value byte
}

// about puts a comment above the next rule.
func (c *chain) about(text string) { c.note = text }

// add appends a rule.
func (c *chain) add(parts ...part) {
	r := rule{note: c.note}
	c.note = ""
	var known []need
	var words []string
	for _, p := range parts {
		for _, n := range p.needs {
			if !slices.Contains(known, n) {
				known = append(known, n)
				r.exprs = append(r.exprs, n.exprs()...)
			}
		}
		known = append(known, p.says...)
		r.exprs = append(r.exprs, p.exprs...)
		words = append(words, p.text)
	}
	r.text = strings.Join(words, " ")
	c.rules = append(c.rules, r)
}
