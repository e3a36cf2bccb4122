package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
)

// overlay is machines on one network, with a gateway on each. A machine's own
// addresses are its networks, and its endpoint is one of them. No machine is a
// router.
type overlay struct {
	*pair // for its files; it has no gateways
	vms   []*vm
}

// vm is one machine.
type vm struct {
	name    string
	host    *netlab.Host
	addr    [2]netip.Addr // v4, v6
	gateway *lab.Gateway
	begun   uint64 // connections to others
}

// newOverlay connects machines by a switch and starts their gateways. Tunnels go
// over the family of this number.
func newOverlay(t *testing.T, n, underlay int, backend, uncarried string) *overlay {
	t.Helper()
	needsFirewall(t, backend)
	o := newMachines(t, n)
	for _, m := range o.vms {
		m.gateway = o.start(m.host, site{
			name: m.name, networks: m.networks(), firewall: backend, peers: o.peersOf(m, underlay, uncarried),
		}, site{})
	}
	return o
}

// newMachines connects machines by a switch, without gateways.
func newMachines(t *testing.T, n int) *overlay {
	t.Helper()
	network := netlab.New()
	o := &overlay{pair: newPairOn(t, &netlab.World{Lab: network})}
	plugs := newSwitch(t, network)
	for i := range n {
		m := &vm{name: fmt.Sprintf("vm%d", i+1), addr: [2]netip.Addr{
			netip.AddrFrom4([4]byte{192, 0, 2, byte(10 * (i + 1))}),
			netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", 10*(i+1))),
		}}
		var err error
		if m.host, err = network.Host(m.name); err != nil {
			t.Fatal(err)
		}
		plugs(m)
		o.vms = append(o.vms, m)
	}
	return o
}

// newSwitch makes a bridge, and returns what plugs a machine into it.
func newSwitch(t *testing.T, network *netlab.Lab) (plug func(*vm)) {
	t.Helper()
	h, err := network.Host("switch")
	if err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "bridge"
	silent := false // a bridge that watches for multicast groups joins one itself
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &silent}
	err = h.Do(func() error { return errors.Join(netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge)) })
	if err != nil {
		t.Fatal(err)
	}
	return func(m *vm) {
		prefixes := []netip.Prefix{netip.PrefixFrom(m.addr[0], 24), netip.PrefixFrom(m.addr[1], 64)}
		if err := network.Link(m.host, netlab.Outer, prefixes, h, m.name, nil); err != nil {
			t.Fatal(err)
		}
		err := h.Do(func() error {
			link, err := netlink.LinkByName(m.name)
			if err != nil {
				return err
			}
			return netlink.LinkSetMaster(link, bridge)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// networks are a machine's addresses.
func (m *vm) networks() string { return fmt.Sprintf(`[%s/32, "%s/128"]`, m.addr[0], m.addr[1]) }

// peersOf lists all the others.
func (o *overlay) peersOf(m *vm, underlay int, uncarried string) string {
	var b strings.Builder
	for _, other := range o.vms {
		if other != m {
			fmt.Fprintf(&b, `
  - name: %[1]s
    ids: [spiffe://%[2]s/gateway/%[1]s]
    endpoints: ["%[3]s"]
    networks: %[4]s
    outbound: {uncarried: %[5]s}`,
				other.name, domain, netip.AddrPortFrom(other.addr[underlay], 15008), other.networks(), uncarried)
		}
	}
	return b.String()
}

// carries fails unless a connection from one machine to another goes through
// their gateways, once, and nothing else than TLS is on the wire.
func (o *overlay) carries(t *testing.T, from, to *vm, family int) carried {
	t.Helper()
	at := netip.AddrPortFrom(to.addr[family], 8080)
	ln := listen(t, to.host, at)
	defer ln.Close()
	wire := capture(t, from.host, netlab.Outer)
	client := dial(t, from.host, at)
	server := accept(t, ln)
	if want := netip.AddrPortFrom(from.addr[family], addr(client.LocalAddr()).Port()); addr(server.RemoteAddr()) != want {
		t.Errorf("the server sees %s, the client is %s", server.RemoteAddr(), want)
	}
	exchange(t, client, server)
	for _, g := range []*lab.Gateway{from.gateway, to.gateway} {
		if !slices.ContainsFunc(flows(t, g), func(f daemon.Flow) bool { return f.Client == addr(client.LocalAddr()) && f.Target == at }) {
			t.Errorf("gateway %s does not carry it", g.Name)
		}
	}
	from.begun++
	traffic, err := wire.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if v := traffic.OnlyTLS(15008); len(v) > 0 {
		t.Errorf("on the wire of %s: %v", from.name, v)
	}
	return carried{client, server}
}

// TestOverlay: machines that are each other's peers, with no network behind
// them, talk through their gateways, each to each, over both families, whichever
// one the tunnels go over; and to themselves as ever.
func TestOverlay(t *testing.T) {
	for _, backend := range backends {
		for underlay, name := range []string{"over v4", "over v6"} {
			t.Run(backend+" "+name, func(t *testing.T) {
				o := newOverlay(t, 3, underlay, backend, "reject")
				for i, f := range families {
					for _, from := range o.vms {
						for _, to := range o.vms {
							t.Run(from.name+" to "+to.name+" "+f.name, func(t *testing.T) {
								if from == to {
									testSelf(t, from, i)
									return
								}
								o.carries(t, from, to, i).end(t)
							})
						}
					}
				}
				o.testNeighbours(t, underlay)
				for _, m := range o.vms {
					s := status(t, m.gateway)
					if n := s.Connections["outbound"].Opened; n != m.begun || len(s.Refused) > 0 {
						t.Errorf("%s has captured %d connections, want %d, and refused %v: do its own sockets come back to it?",
							m.name, n, m.begun, s.Refused)
					}
				}
			})
		}
	}
}

// testSelf connects a machine to itself: no gateway's affair, as the count of
// what it has captured shows in the end.
func testSelf(t *testing.T, m *vm, family int) {
	at := netip.AddrPortFrom(m.addr[family], 8080)
	ln := listen(t, m.host, at)
	client := dial(t, m.host, at)
	exchange(t, client, accept(t, ln))
	if f := flows(t, m.gateway); slices.ContainsFunc(f, func(f daemon.Flow) bool { return f.Target == at }) {
		t.Errorf("a connection to itself is carried: %+v", f)
	}
}

// testNeighbours makes the machines forget who their neighbours are. Tunnels
// that are up go on, new connections come about: the guard and the refusal of
// what is not TCP leave ARP and neighbour discovery alone.
func (o *overlay) testNeighbours(t *testing.T, underlay int) {
	live := o.carries(t, o.vms[0], o.vms[1], underlay)
	number := []int{unix.AF_INET, unix.AF_INET6}[underlay]
	for _, m := range o.vms {
		if forgotten := neighbours(t, m, number, netlink.NeighDel); len(forgotten) < len(o.vms)-1 {
			t.Errorf("%s knew %v only: the test shows nothing", m.name, forgotten)
		}
	}
	exchange(t, live.client, live.server)
	o.carries(t, o.vms[1], o.vms[0], underlay).end(t)
	nothing := func(*netlink.Neigh) error { return nil }
	if known := neighbours(t, o.vms[0], number, nothing); !slices.Contains(known, o.vms[1].addr[underlay]) {
		t.Errorf("%s knows %v", o.vms[0].name, known)
	}
	live.end(t)
}

// neighbours does something with every other machine that one knows the link
// layer address of, and lists them.
func neighbours(t *testing.T, m *vm, family int, do func(*netlink.Neigh) error) (known []netip.Addr) {
	t.Helper()
	err := m.host.Do(func() error {
		link, err := netlink.LinkByName(netlab.Outer)
		if err != nil {
			return err
		}
		list, err := netlink.NeighList(link.Attrs().Index, family)
		if err != nil {
			return err
		}
		for _, n := range list {
			a, ok := netip.AddrFromSlice(n.IP)
			if !ok || n.State&(netlink.NUD_FAILED|netlink.NUD_INCOMPLETE|netlink.NUD_NOARP) != 0 || a.IsLinkLocalUnicast() {
				continue
			}
			known = append(known, a.Unmap())
			if err := do(&n); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return known
}

// TestOverlayUncarried: machines ask each other's name servers, and ping each
// other, as uncarried says.
func TestOverlayUncarried(t *testing.T) {
	for _, backend := range backends {
		for _, tt := range []struct{ uncarried, want string }{{"reject", forbade}, {"pass", answered}} {
			t.Run(backend+" "+tt.uncarried, func(t *testing.T) {
				o := newOverlay(t, 2, 0, backend, tt.uncarried)
				for i, f := range families {
					for _, way := range [][2]*vm{{o.vms[0], o.vms[1]}, {o.vms[1], o.vms[0]}} {
						from, to := way[0], way[1]
						wire := capture(t, from.host, netlab.Outer)
						if got := ask(t, from.host, to.host, netip.AddrPortFrom(to.addr[i], 53)); got != tt.want {
							t.Errorf("%s: a datagram from %s to %s: %s, want %s", f.name, from.name, to.name, got, tt.want)
						}
						if got := ping(t, from.host, to.addr[i]); got != tt.want {
							t.Errorf("%s: an echo request from %s to %s: %s, want %s", f.name, from.name, to.name, got, tt.want)
						}
						traffic, err := wire.Stop()
						if err != nil {
							t.Fatal(err)
						}
						if n := notTCP(traffic); n == 0 == (tt.want == answered) {
							t.Errorf("%s: %d packets that are not TCP crossed:\n%s", f.name, n, traffic)
						}
						o.carries(t, from, to, i).end(t)
					}
				}
			})
		}
	}
}
