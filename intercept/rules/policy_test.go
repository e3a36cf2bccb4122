package rules

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// handle is a route socket of the present namespace.
func handle(t *testing.T) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// TestRouting adds twice and removes twice.
func TestRouting(t *testing.T) {
	h := newHost(t)
	on(t, h, func() error {
		nl := handle(t)
		count := func() (rules, routes int) {
			for _, f := range routedFamilies {
				rs, err := nl.RuleList(f.number)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range rs {
					if r.Priority >= 1508 && r.Priority <= 1511 {
						rules++
					}
				}
				table, err := nl.RouteListFiltered(f.number, &netlink.Route{Table: 15008}, netlink.RT_FILTER_TABLE)
				if err != nil {
					t.Fatal(err)
				}
				routes += len(table)
			}
			return rules, routes
		}
		for range 2 {
			if err := addRouting(DefaultRouting); err != nil {
				t.Fatal(err)
			}
			if rules, routes := count(); rules != 8 || routes != 2 {
				t.Errorf("added: %d rules and %d routes, want 8 and 2", rules, routes)
			}
		}
		for range 2 {
			if err := removeRouting(DefaultRouting); err != nil {
				t.Fatal(err)
			}
			if rules, routes := count(); rules != 0 || routes != 0 {
				t.Errorf("removed: %d rules and %d routes are left", rules, routes)
			}
		}
		return nil
	})
}

// TestRoutingWithoutIPv6 does the half that there is.
func TestRoutingWithoutIPv6(t *testing.T) {
	h := newHost(t)
	for _, name := range []string{"net.ipv6.conf.all.disable_ipv6", "net.ipv6.conf.default.disable_ipv6"} {
		if err := h.Sysctl(name, "1"); err != nil {
			t.Fatal(err)
		}
	}
	before := state(t, h)
	apply(t, h, westPlan())
	on(t, h, func() error {
		nl := handle(t)
		routes, err := nl.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: 15008}, netlink.RT_FILTER_TABLE)
		if err != nil || len(routes) != 1 {
			t.Errorf("IPv4 routes in our table: %v, %v, want one", routes, err)
		}
		return nil
	})
	apply(t, h, westPlan())
	remove(t, h)
	if d := cmp.Diff(before, state(t, h)); d != "" {
		t.Errorf("not as before: (-before +after)\n%s", d)
	}
}

// TestRoutingAbsent: only IPv6 may be absent.
func TestRoutingAbsent(t *testing.T) {
	for _, err := range []error{unix.EAFNOSUPPORT, unix.EOPNOTSUPP, unix.EACCES} {
		if routedFamilies[0].absent(err) || !routedFamilies[1].absent(err) {
			t.Errorf("%v: absent IPv4 %v, IPv6 %v", err, routedFamilies[0].absent(err), routedFamilies[1].absent(err))
		}
	}
	if routedFamilies[1].absent(unix.EPERM) {
		t.Error("a missing permission is taken for missing IPv6")
	}
}

// TestRoutingTableTaken does not share a table.
func TestRoutingTableTaken(t *testing.T) {
	h := newHost(t)
	on(t, h, func() error {
		return handle(t).RouteAdd(&netlink.Route{Family: unix.AF_INET, Dst: routedFamilies[0].any, Type: unix.RTN_BLACKHOLE, Table: 15008})
	})
	before := state(t, h)
	err := h.Do(func() error { return addRouting(DefaultRouting) })
	if err == nil || !strings.Contains(err.Error(), "table 15008") || !strings.Contains(err.Error(), "routing.table") {
		t.Errorf("with another default route in the table: %v", err)
	}
	on(t, h, func() error { return removeRouting(DefaultRouting) })
	if d := cmp.Diff(before, state(t, h)); d != "" {
		t.Errorf("somebody else's route is not as before: (-before +after)\n%s", d)
	}
	if errors.Is(err, unix.EEXIST) {
		t.Error("the number says less than the words")
	}
}
