package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// firstIndex is beyond the numbers that the kernel gives out in a namespace with few interfaces.
const firstIndex = 1000

// Link lays a cable between two hosts: a veth pair, one end in each, up, with the given addresses (each with
// the length of its network). Addresses are usable at once. Names are at most 15 characters.
func (l *Lab) Link(a *Host, ifA string, addrA []netip.Prefix, b *Host, ifB string, addrB []netip.Prefix) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = ifA
	// The kernel postpones "carrier on" by up to a second where the two ends have the same number
	// (net/core/link_watch.c, linkwatch_urgent_event), as the first cables of new namespaces do.
	attrs.Index = firstIndex + int(l.cables.Add(1))
	cable := &netlink.Veth{LinkAttrs: attrs, PeerName: ifB, PeerNamespace: netlink.NsFd(b.ns)}
	if err := a.nl.LinkAdd(cable); err != nil {
		return fmt.Errorf("link %s %s to %s %s: %w", a.name, ifA, b.name, ifB, err)
	}
	if err := a.configure(ifA, addrA); err != nil {
		return err
	}
	if err := b.configure(ifB, addrB); err != nil {
		return err
	}
	return errors.Join(a.settle(ifA), b.settle(ifB))
}

// settleTime bounds how long the kernel may take to get an interface going; it takes a millisecond.
const settleTime = 5 * time.Second

// settle waits until the interface has its link-local address, the last thing that the kernel does when a
// cable is plugged in. Before, a forwarded packet's neighbour is asked for from no address, in vain, and then
// again a second later (ndisc_send_ns).
func (h *Host) settle(ifname string) error {
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(settleTime); time.Now().Before(deadline); <-poll.C {
		ready, err := h.linkLocal(ifname)
		if err != nil {
			return fmt.Errorf("host %s: addresses of %s: %w", h.name, ifname, err)
		}
		if ready {
			return nil
		}
	}
	return fmt.Errorf("host %s: %s has no link-local address after %v", h.name, ifname, settleTime)
}

// linkLocal says whether the interface has a link-local address that it may use.
func (h *Host) linkLocal(ifname string) (bool, error) {
	link, err := h.nl.LinkByName(ifname)
	if err != nil {
		return false, err
	}
	addrs, err := h.nl.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
		return a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0
	}), nil
}

// configure gives an interface its addresses and sets it up.
func (h *Host) configure(ifname string, addrs []netip.Prefix) error {
	link, err := h.nl.LinkByName(ifname)
	if err != nil {
		return fmt.Errorf("host %s: find %s: %w", h.name, ifname, err)
	}
	for _, p := range addrs {
		// IFA_F_NODAD: nobody else is on the cable, and detection would hold the address back for a second.
		addr := &netlink.Addr{IPNet: IPNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := h.nl.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("host %s: add %v to %s: %w", h.name, p, ifname, err)
		}
	}
	if err := h.nl.LinkSetUp(link); err != nil {
		return fmt.Errorf("host %s: set %s up: %w", h.name, ifname, err)
	}
	return nil
}

// setMTU sets the largest packet of an interface, bytes.
func (h *Host) setMTU(ifname string, mtu int) error {
	link, err := h.nl.LinkByName(ifname)
	if err == nil {
		err = h.nl.LinkSetMTU(link, mtu)
	}
	if err != nil {
		return fmt.Errorf("host %s: set mtu %d on %s: %w", h.name, mtu, ifname, err)
	}
	return nil
}

// Route sends what is bound for dst via a neighbour. 0.0.0.0/0 and ::/0 are default routes. An existing
// route to dst is replaced.
func (h *Host) Route(dst netip.Prefix, via netip.Addr) error {
	if err := h.nl.RouteReplace(&netlink.Route{Dst: IPNet(dst.Masked()), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("host %s: route %v via %v: %w", h.name, dst, via, err)
	}
	return nil
}

// Forward makes the host a router, for both families.
func (h *Host) Forward() error {
	if err := h.Sysctl("net.ipv4.ip_forward", "1"); err != nil {
		return err
	}
	return h.Sysctl("net.ipv6.conf.all.forwarding", "1")
}

// Sysctl sets one of the host's network settings, such as net.ipv4.conf.all.rp_filter.
func (h *Host) Sysctl(name, value string) error {
	if err := h.Do(func() error { return writeSysctl(name, value) }); err != nil {
		return fmt.Errorf("host %s: %w", h.name, err)
	}
	return nil
}

// writeSysctl sets name in the network namespace of the calling thread, which /proc/sys/net shows.
func writeSysctl(name, value string) error {
	if err := os.WriteFile(sysctlPath(name), []byte(value), 0o644); err != nil {
		return fmt.Errorf("set %s to %s: %w", name, value, err)
	}
	return nil
}

// IPNet is p as netlink wants it, with the host's bits kept.
func IPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
