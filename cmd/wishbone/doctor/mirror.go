package doctor

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"wishbone/config"
)

// mirror looks for peers that are this very gateway, as they are in a configuration
// that was copied from the other side.
func (e *examination) mirror(context.Context) {
	const remedy = "is this the configuration of the other side? A peer has the ids, endpoints and networks of another gateway"
	host, err := hostAddrs()
	if err != nil {
		e.warn("peers", "", "list this host's addresses: %v", err)
		return
	}
	for i, p := range e.plan.Peers {
		var signs []string
		for _, a := range p.Endpoints {
			if e.listensOn(a, host) {
				signs = append(signs, fmt.Sprintf("%s is where it listens", a))
			}
		}
		for _, n := range p.Networks {
			if n.IsSingleIP() && slices.Contains(host, n.Addr()) {
				signs = append(signs, fmt.Sprintf("%s is its address", n))
			}
		}
		id := e.ownID(e.cfg.Peers[i])
		switch check := "peer " + p.Name; {
		case signs != nil:
			if id != "" {
				signs = append(signs, id+" is its id")
			}
			e.ourselves = append(e.ourselves, p.Name)
			e.fail(check, remedy, "%s is this gateway itself: %s", p.Name, strings.Join(signs, ", "))
		case id != "": // which two gateways may share
			e.warn(check, remedy, "%s has our own id %s", p.Name, id)
		}
	}
}

// others are the peers that are not this gateway.
func (e *examination) others() []config.Peer {
	return slices.DeleteFunc(slices.Clone(e.cfg.Peers), func(p config.Peer) bool { return slices.Contains(e.ourselves, p.Name) })
}

// ownID is the id of a peer that is our own too, "" for none.
func (e *examination) ownID(p config.Peer) string {
	if e.source == nil {
		return ""
	}
	svid, err := e.source.GetX509SVID()
	if err != nil || !slices.Contains(p.IDs, svid.ID) {
		return "" // identity has told of an error
	}
	return svid.ID.String()
}

// listensOn says whether an endpoint is a listener of this gateway's for peers.
func (e *examination) listensOn(endpoint netip.AddrPort, host []netip.Addr) bool {
	to := endpoint.Addr().Unmap()
	return slices.Contains(host, to) && slices.ContainsFunc(e.cfg.Listen.Tunnel, func(l netip.AddrPort) bool {
		return l.Port() == endpoint.Port() && (l.Addr().IsUnspecified() || l.Addr().Unmap() == to)
	})
}

// hostAddrs are the addresses of this host.
func hostAddrs() (all []netip.Addr, err error) {
	list, err := net.InterfaceAddrs()
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			all = append(all, p.Addr().Unmap())
		}
	}
	return all, err
}
