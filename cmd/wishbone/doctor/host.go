package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/daemon"
)

// hintOf is what an error advises.
func hintOf(err error) string { return daemon.Advice(err) }

// fewFiles is a limit that a gateway reaches soon: a connection takes one.
const fewFiles = 8192

func (e *examination) limits(context.Context) {
	const check = "open files"
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		e.warn(check, "", "read the limit: %v", err)
		return
	}
	if limit.Max < fewFiles {
		e.warn(check, "LimitNOFILE=1048576 in the unit, or ulimit -Hn", "at most %d: a connection takes one", limit.Max)
		return
	}
	e.ok(check, "up to %d", limit.Max)
}

// ports sees that every listener can be opened.
func (e *examination) ports(ctx context.Context) {
	const check = "ports"
	if e.running {
		e.ok(check, "the gateway is running and has its own")
		return
	}
	want := append(slices.Clone(e.cfg.Listen.Tunnel), e.cfg.Listen.Metrics, e.cfg.Listen.Ready,
		netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), e.cfg.Listen.Transparent))
	free := true
	for _, a := range want {
		if !a.IsValid() {
			continue
		}
		var lc net.ListenConfig
		ln, err := lc.Listen(ctx, "tcp", a.String())
		if err != nil {
			free = false
			e.fail(check, portRemedy(err, a.Port()), "%v", err)
			continue
		}
		ln.Close()
	}
	if free {
		e.ok(check, "all free")
	}
}

// portRemedy is what to do about an address that cannot be listened on.
func portRemedy(err error, port uint16) string {
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return "no interface of this host has this address: ip addr shows those that are there"
	case errors.Is(err, unix.EACCES):
		return "ports below 1024 need CAP_NET_BIND_SERVICE: " + daemon.HowToGive("NET_BIND_SERVICE", "NET_RAW")
	}
	return fmt.Sprintf("ss -ltnp 'sport = :%d' shows who listens there", port)
}

// foreignChains looks for other tables that drop what is not listed: a captured
// packet passes the input hook with a foreign destination, and accept in one
// table does not overrule drop in another (nft(8)).
func (e *examination) foreignChains(context.Context) {
	const check = "other firewalls"
	conn, err := nftables.New()
	var chains []*nftables.Chain
	if err == nil {
		chains, err = conn.ListChains()
	}
	if errors.Is(err, unix.EPERM) {
		e.ok(check, "only root may look (or who has CAP_NET_ADMIN)")
		return
	}
	if err != nil {
		e.warn(check, "", "list the chains of nftables: %v", err)
		return
	}
	clear := true
	for _, c := range chains {
		if c.Table.Name == "wishbone" || c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookInput || c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop {
			continue
		}
		clear = false
		r := e.cfg.Routing
		e.warn(check, fmt.Sprintf("nft insert rule %s %s %s meta mark and %#x == %#x accept (iptables: -m mark --mark %#x/%#x -j ACCEPT)",
			family(c.Table.Family), c.Table.Name, c.Name, r.Mask, r.Mark, r.Mark, r.Mask),
			"chain %s of table %s drops what it does not list: captured connections too, unless it accepts their mark", c.Name, c.Table.Name)
	}
	if clear {
		e.ok(check, "none drops by default what comes in")
	}
}

func family(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	}
	return "inet"
}

// foreignRules looks for policy rules of others that use our marks.
func (e *examination) foreignRules(context.Context) {
	const check = "marks"
	r := e.cfg.Routing
	clear := true
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		list, err := netlink.RuleList(family)
		if err != nil {
			continue // a host without this family
		}
		for _, rule := range list {
			ours := rule.Priority >= r.Priority && rule.Priority < r.Priority+4
			if ours || looksAt(rule)&r.Mask == 0 {
				continue
			}
			clear = false
			e.warn(check, "set routing.mark and routing.mask to bits that nobody else uses",
				"policy rule %d also looks at bits %#x of the mark", rule.Priority, looksAt(rule)&r.Mask)
		}
	}
	if clear {
		e.ok(check, "nobody else routes by bits %#x", r.Mask)
	}
}

// looksAt are the bits of the mark that a rule compares: all of them, if it names
// a mark without a mask (ip-rule(8)).
func looksAt(rule netlink.Rule) uint32 {
	switch {
	case rule.Mask != nil:
		return *rule.Mask
	case rule.Mark != 0:
		return ^uint32(0)
	}
	return 0
}

// forwarding sees that this host is a router, if it is to be one.
func (e *examination) forwarding(context.Context) {
	const check = "forwarding"
	if !e.cfg.Capture.Forwarded {
		return
	}
	for _, f := range []struct {
		is6  bool
		name string
	}{{false, "net.ipv4.ip_forward"}, {true, "net.ipv6.conf.all.forwarding"}} {
		if !slices.ContainsFunc(e.cfg.Networks, func(p netip.Prefix) bool { return p.Addr().Is6() == f.is6 }) {
			continue
		}
		if v := sysctl(f.name); v != "1" {
			e.warn(check, "sysctl -w "+f.name+"=1 (not needed where all clients and servers are on this host)", "%s is %s: this host forwards nothing", f.name, v)
			continue
		}
		e.ok(check, "%s is 1", f.name)
	}
}

func sysctl(name string) string {
	b, err := os.ReadFile(filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/")))
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

// reversePath looks for the strict filter: it drops what would be answered by
// another way (ip-sysctl: the larger of all and the interface's counts).
func (e *examination) reversePath(context.Context) {
	const check = "reverse path"
	links, err := netlink.LinkList()
	if err != nil {
		e.warn(check, "", "list interfaces: %v", err)
		return
	}
	all, strict := sysctl("net.ipv4.conf.all.rp_filter"), []string(nil)
	for _, l := range links {
		name := l.Attrs().Name
		own := sysctl("net.ipv4.conf." + name + ".rp_filter")
		if max(all, own) == "1" && name != "lo" {
			strict = append(strict, name)
		}
	}
	if len(strict) > 0 {
		e.warn(check, "sysctl -w net.ipv4.conf.all.rp_filter=2, if paths are not symmetric", "rp_filter is strict (1) on %s: fine while every way there is the way back", strings.Join(strict, ", "))
		return
	}
	e.ok(check, "rp_filter is not strict")
}

// routes sees that there is some way to every peer's networks: without one, the
// kernel refuses before any rule is asked.
func (e *examination) routes(context.Context) {
	const check = "routes"
	all := true
	for _, p := range e.cfg.Peers {
		for _, n := range p.Networks {
			to := n.Addr()
			if !n.IsSingleIP() { // else it is the network's own, which no host has
				to = to.Next()
			}
			if _, err := netlink.RouteGet(to.AsSlice()); err != nil {
				all = false
				e.fail(check, fmt.Sprintf("ip route add %s via GATEWAY (a default route is enough)", n), "no route to %s of peer %s: %v", n, p.Name, err)
			}
		}
	}
	if all {
		e.ok(check, "there is a way to every peer's networks")
	}
}

// localSources sees that local clients will be believed by the peers.
func (e *examination) localSources(context.Context) {
	const check = "local clients"
	if !e.cfg.Capture.Local {
		return
	}
	all := true
	for _, p := range e.others() {
		for _, n := range p.Networks {
			routes, err := netlink.RouteGet(n.Addr().AsSlice())
			if err != nil || len(routes) == 0 || routes[0].Src == nil {
				continue
			}
			src, ok := netip.AddrFromSlice(routes[0].Src)
			if src = src.Unmap(); !ok || slices.ContainsFunc(e.cfg.Networks, func(o netip.Prefix) bool { return o.Contains(src) }) {
				continue
			}
			all = false
			e.warn(check, fmt.Sprintf("add %s/%d to networks here, and to this gateway's networks at peer %s", src, src.BitLen(), p.Name),
				"this host's own connections to %s come from %s, which is not in networks: peer %s will not believe them", n, src, p.Name)
		}
	}
	if all {
		e.ok(check, "their addresses are in networks")
	}
}
