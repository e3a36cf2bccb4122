package rules

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// That rules are meant to stay is marked by a route in our table, behind the one
// that everything takes. It is there, and not among the rules of a firewall,
// because everybody may list routes, and only who has CAP_NET_ADMIN those: a
// gateway without it finds out whether rules stand, and whose plan they are.

// keptProtocol tells our mark from routes of others (rtnetlink(7), rtm_protocol;
// iproute2's rt_protos has no such number).
const keptProtocol = 158

// Digest tells one plan from another. It is never 0. Endpoints do not count: they
// may be names, which come out differently from one look-up to the next.
func (p Plan) Digest() uint32 {
	p.Peers = slices.Clone(p.Peers)
	for i := range p.Peers {
		p.Peers[i].Endpoints = nil
	}
	text, err := json.Marshal(p)
	if err != nil { // plain data has none
		panic(err)
	}
	h := fnv.New32a()
	h.Write(text)
	return max(h.Sum32()>>1, 1) // an int everywhere
}

// Keep marks the rules that stand, which are p's, as meant to stay whatever
// becomes of the gateway. Removing the rules removes the mark.
func Keep(p Plan) error {
	return withMarks(p.Routing, "mark the rules as kept", func(h *netlink.Handle, marks []netlink.Route) error {
		digest := p.Digest()
		if !slices.ContainsFunc(marks, func(m netlink.Route) bool { return metric(m) == digest }) {
			if err := h.RouteAdd(mark(p.Routing, digest)); err != nil {
				return err
			}
		}
		for _, m := range marks {
			if metric(m) == digest {
				continue
			}
			if err := h.RouteDel(mark(p.Routing, metric(m))); err != nil {
				return err
			}
		}
		return nil
	})
}

// Kept is the digest of the plan whose rules stand and are meant to stay, or 0.
// It takes no capability.
func Kept(r Routing) (digest uint32, err error) {
	err = withMarks(r, "look whether the rules are kept", func(_ *netlink.Handle, marks []netlink.Route) error {
		if len(marks) > 0 {
			digest = metric(marks[0])
		}
		return nil
	})
	return digest, err
}

// withMarks lists the marks for do.
func withMarks(r Routing, what string, do func(*netlink.Handle, []netlink.Route) error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer h.Close()
	marks, err := listRoutes(h, unix.AF_INET, &netlink.Route{Table: r.Table, Type: unix.RTN_UNREACHABLE, Protocol: keptProtocol},
		netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE|netlink.RT_FILTER_PROTOCOL)
	if err == nil {
		err = do(h, marks)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// removeMarks takes the mark away.
func removeMarks(r Routing) error {
	return withMarks(r, "remove the mark of kept rules", func(h *netlink.Handle, marks []netlink.Route) error {
		for _, m := range marks {
			if err := h.RouteDel(mark(r, metric(m))); err != nil {
				return err
			}
		}
		return nil
	})
}

// mark is the route; the metric that never lets it win is what it says.
func mark(r Routing, digest uint32) *netlink.Route {
	v4 := routedFamilies[0]
	return &netlink.Route{
		Family: v4.number, Dst: v4.any, Type: unix.RTN_UNREACHABLE, Protocol: keptProtocol, Table: r.Table, Priority: int(digest),
	}
}

// metric is what a mark says.
func metric(m netlink.Route) uint32 { return uint32(m.Priority) }
