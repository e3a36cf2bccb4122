package rules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What is missing says nothing of what is left: a flush takes the rules and not
// the policy routing, a network manager the policy routing and not the rules.

// Standing names something of ours that is there, "" for nothing.
func (*nftBackend) Standing(r Routing) (string, error) {
	conn, err := nftables.New()
	if err != nil {
		return "", fmt.Errorf("look for the nftables rules: %w", err)
	}
	all, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", fmt.Errorf("look for the nftables rules: %w", explain(err))
	}
	if slices.ContainsFunc(all, func(t *nftables.Table) bool { return t.Name == tableName }) {
		return "table inet " + tableName, nil
	}
	return standingRouting(r)
}

// Standing names something of ours that is there, "" for nothing.
func (b *iptablesBackend) Standing(r Routing) (string, error) {
	for _, t := range b.tools {
		for _, table := range tables {
			all, err := t.ListChains(table)
			if err != nil {
				return "", fmt.Errorf("look for the rules of %s: %w", program(t.family), err)
			}
			i := slices.IndexFunc(all, func(chain string) bool { return strings.HasPrefix(chain, chainPrefix) })
			if i >= 0 {
				return fmt.Sprintf("%s chain %s of table %s", program(t.family), all[i], table), nil
			}
		}
	}
	return standingRouting(r)
}

// standingRouting names a policy rule that is there.
func standingRouting(r Routing) (string, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return "", fmt.Errorf("look for the policy routing: %w", err)
	}
	defer h.Close()
	for _, f := range routedFamilies {
		rules, err := h.RuleList(f.number)
		if err != nil && !f.absent(err) {
			return "", fmt.Errorf("look for the policy routing: %w", err)
		}
		for _, want := range f.rules(r) {
			if isAmong(rules, want) {
				return f.policyRule(want), nil
			}
		}
	}
	return "", nil
}

// isAmong says whether one of our policy rules is among those that are there.
func isAmong(rules []netlink.Rule, want *netlink.Rule) bool {
	return slices.ContainsFunc(rules, func(got netlink.Rule) bool {
		return got.Priority == want.Priority && got.Mark == want.Mark && got.IifName == want.IifName
	})
}

// policyRule is what a policy rule is called.
func (f routedFamily) policyRule(rule *netlink.Rule) string {
	return fmt.Sprintf("%s policy rule %d", f.name, rule.Priority)
}
