package rules

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Policy routing sends packets with our marks to this host, whatever their
// destination. For each family there are a route, to be found in a table of its
// own, and four rules. Both backends use the same.

// addRouting installs the routes, then the rules. What is there already stays.
// A host without IPv6 gets the IPv4 half.
func addRouting(r Routing) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("add policy routing: %w", err)
	}
	defer h.Close()
	for _, f := range routedFamilies {
		if err := f.add(h, r); err != nil {
			if f.absent(err) {
				continue
			}
			return fmt.Errorf("add policy routing for %s: %w", f.name, err)
		}
	}
	return nil
}

// removeRouting removes what addRouting made, and only that: a rule goes if
// everything about it is as we make it.
func removeRouting(r Routing) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("remove policy routing: %w", err)
	}
	defer h.Close()
	errs := []error{removeMarks(r)}
	for _, f := range routedFamilies {
		if err := f.remove(h, r); err != nil && !f.absent(err) {
			errs = append(errs, fmt.Errorf("remove policy routing for %s: %w", f.name, err))
		}
	}
	return errors.Join(errs...)
}

// routedFamily is a family with its set of rules and tables.
type routedFamily struct {
	name   string
	number int
	any    *net.IPNet
}

var routedFamilies = []routedFamily{
	{"IPv4", unix.AF_INET, &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}},
	{"IPv6", unix.AF_INET6, &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}},
}

// absent says whether an error comes of a kernel without IPv6: not built in, or
// switched off at boot, or by net.ipv6.conf.lo.disable_ipv6 (EACCES).
func (f routedFamily) absent(err error) bool {
	return f.number == unix.AF_INET6 &&
		(errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EACCES))
}

// off says whether IPv6 is switched off for the device that our routes are on. The
// kernel refuses them then, and takes away those that are there; its rules it would
// take.
func (f routedFamily) off() bool {
	if f.number != unix.AF_INET6 {
		return false
	}
	text, err := os.ReadFile("/proc/sys/net/ipv6/conf/lo/disable_ipv6") // of this thread's network namespace
	return err == nil && strings.TrimSpace(string(text)) != "0"
}

func (f routedFamily) add(h *netlink.Handle, r Routing) error {
	route := f.route(r)
	switch err := h.RouteAdd(route); {
	case errors.Is(err, unix.EEXIST):
		if err := f.requireOurs(h, r); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("add route to table %d: %w", r.Table, err)
	}
	for _, rule := range f.rules(r) {
		if err := h.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) { // the very same rule is there
			return fmt.Errorf("add rule with priority %d: %w", rule.Priority, err)
		}
	}
	return nil
}

func (f routedFamily) remove(h *netlink.Handle, r Routing) error {
	rules := f.rules(r)
	slices.Reverse(rules)
	for _, rule := range rules {
		if err := h.RuleDel(rule); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete rule with priority %d: %w", rule.Priority, err)
		}
	}
	// The errors for an absent route are IPv4's and IPv6's.
	if err := h.RouteDel(f.route(r)); err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete route from table %d: %w", r.Table, err)
	}
	return nil
}

// route delivers whatever is looked up in our table to this host.
func (f routedFamily) route(r Routing) *netlink.Route {
	return &netlink.Route{
		Family: f.number, Dst: f.any, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST,
		LinkIndex: loopbackIndex, Table: r.Table,
	}
}

// routes lists those in our table that deliver to this host.
func (f routedFamily) routes(h *netlink.Handle, r Routing) ([]netlink.Route, error) {
	return listRoutes(h, f.number, &netlink.Route{Table: r.Table, Type: unix.RTN_LOCAL}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
}

// listRoutes lists the routes of a table that are like another one. The kernel picks
// them itself where it knows how (since Linux 4.20): a host may have a million others. It
// has an error then for a table with nothing in it.
func listRoutes(h *netlink.Handle, family int, like *netlink.Route, what uint64) (routes []netlink.Route, err error) {
	if err = setStrict(h, true); err == nil {
		routes, err = h.RouteListFiltered(family, like, what)
	}
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	return routes, errors.Join(err, setStrict(h, false)) // rules are asked for in the lax form
}

// setStrict has the kernel look at all of a request, or not (netlink(7),
// NETLINK_GET_STRICT_CHK), if it knows of that.
func setStrict(h *netlink.Handle, yes bool) error {
	if err := h.SetStrictCheck(yes); !errors.Is(err, unix.ENOPROTOOPT) {
		return err
	}
	return nil
}

// requireOurs is for a table with a default route in it.
func (f routedFamily) requireOurs(h *netlink.Handle, r Routing) error {
	routes, err := f.routes(h, r)
	if err != nil {
		return fmt.Errorf("list routes of table %d: %w", r.Table, err)
	}
	for _, route := range routes {
		if route.LinkIndex == loopbackIndex && (route.Dst == nil || route.Dst.String() == f.any.String()) {
			return nil
		}
	}
	return fmt.Errorf("table %d has a default route that is not ours; set routing.table to another number", r.Table)
}

// rules are the four, in the order in which they may be added: a goto wants its
// landing place, and must stand before the lookup that it spares packets.
func (f routedFamily) rules(r Routing) []*netlink.Rule {
	const nop = 3 // FR_ACT_NOP, linux/fib_rules.h
	landing := f.rule(r.Priority + 3)
	landing.Type = nop

	// The kernel asks whence a packet came (rp_filter) with its mark, if
	// src_valid_mark is set, and "iif lo". Our table's answer would be that it
	// came from this host, and the packet a martian. So the ordinary tables
	// answer.
	reverse := f.marked(r.Priority, r.Captured, r.Mask)
	reverse.IifName = "lo"
	reverse.Goto = landing.Priority

	in := f.marked(r.Priority+1, r.Captured, r.Mask)
	in.Table = r.Table

	// For packets that output has marked "iif lo" is the truth, hence a mark of
	// their own.
	out := f.marked(r.Priority+2, r.Mask, r.Mask)
	out.Table = r.Table
	return []*netlink.Rule{landing, reverse, in, out}
}

func (f routedFamily) marked(priority int, mark, mask uint32) *netlink.Rule {
	rule := f.rule(priority)
	rule.Mark, rule.Mask = mark, &mask
	return rule
}

func (f routedFamily) rule(priority int) *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family, rule.Priority = f.number, priority
	return rule
}
