package rules

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Other programs take rules away: a firewall that reloads, a network manager that
// cleans up, a person. Missing finds that out by looking at what they take as a
// whole, not rule by rule.

// Missing names what is not there any more, "" for nothing.
func (*nftBackend) Missing(r Routing) (string, error) {
	conn, err := nftables.New()
	if err != nil {
		return "", fmt.Errorf("look for the nftables rules: %w", err)
	}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", fmt.Errorf("look for the nftables rules: %w", explain(err))
	}
	ours := slices.DeleteFunc(chains, func(c *nftables.Chain) bool { return c.Table.Name != tableName })
	if len(ours) == 0 {
		return "table inet " + tableName, nil
	}
	for _, c := range ours {
		if c.Hooknum == nil || c.Name == "forward" { // which may have nothing to do
			continue
		}
		rules, err := conn.GetRules(c.Table, c)
		if err != nil {
			return "", fmt.Errorf("look for the nftables rules: %w", explain(err))
		}
		if len(rules) == 0 {
			return fmt.Sprintf("the rules of chain %s in table inet %s", c.Name, tableName), nil
		}
	}
	return missingRouting(r)
}

// Missing names what is not there any more, "" for nothing.
func (b *iptablesBackend) Missing(r Routing) (string, error) {
	for _, t := range b.tools {
		for _, j := range jumps {
			if !j.watched {
				continue
			}
			there, err := t.Exists(j.table, j.chain, strings.Fields(j.rule)...)
			if failed, ok := errors.AsType[*iptables.Error](err); ok && failed.ExitStatus() == noTarget {
				err = nil
			}
			if err != nil { // a lock that somebody holds, a right that we lack
				return "", fmt.Errorf("look for the rules of %s: %w", program(t.family), err)
			}
			if !there {
				return fmt.Sprintf("%s rule %s %s in table %s", program(t.family), j.chain, j.rule, j.table), nil
			}
		}
	}
	return missingRouting(r)
}

// noTarget is the exit status of iptables for a rule that leads to a chain which
// does not exist. The words of our rules give it no other cause.
const noTarget = 2

// missingRouting names a part of the policy routing that is not there.
func missingRouting(r Routing) (string, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return "", fmt.Errorf("look for the policy routing: %w", err)
	}
	defer h.Close()
	for _, f := range routedFamilies {
		what, err := f.missing(h, r)
		if err != nil && !f.absent(err) {
			return "", fmt.Errorf("look for the policy routing: %w", err)
		}
		if what != "" {
			return what, nil
		}
	}
	return "", nil
}

func (f routedFamily) missing(h *netlink.Handle, r Routing) (string, error) {
	if f.off() { // then addRouting has made nothing of it
		return "", nil
	}
	rules, err := h.RuleList(f.number)
	if err != nil {
		return "", err
	}
	for _, want := range f.rules(r) {
		if !isAmong(rules, want) {
			return f.policyRule(want), nil
		}
	}
	routes, err := f.routes(h, r)
	if err != nil {
		return "", err
	}
	if len(routes) == 0 {
		return fmt.Sprintf("the %s route of table %d", f.name, r.Table), nil
	}
	return "", nil
}
