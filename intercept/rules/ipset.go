package rules

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// generation tells the sets of one Apply from those of the one before. Rules
// change from one generation to the next in one step, which no set that changes
// under its rules could. A process killed halfway leaves the tables mangle and
// filter with one each, so that a third is always free.
type generation byte

var generations = []generation{'a', 'b', 'c'}

// liveSetName is the switch for peers with PassUnavailable: while it holds the two
// halves of the address space, the gateway is there. It outlives generations.
func liveSetName(f family) string { return "wb_live" + f.digit }

// setName is what the rules of one generation call a set.
func setName(base string, f family, g generation) string {
	return fmt.Sprintf("wb_%s%s_%c", base, f.digit, g)
}

// setBases are the sets that every generation has.
var setBases = []string{"own", "src", "peer", "open", "pass", "xnet", "ep"}

const (
	hashNet    = "hash:net"
	hashIPPort = "hash:ip,port"
)

// ipset is one set with its members: networks, or addresses with TCP ports.
type ipset struct {
	name     string
	kind     string // as the kernel calls its type
	family   family
	networks []netip.Prefix
	ports    []netip.AddrPort
	timeout  time.Duration // of its members; 0: they stay
}

// planSets are the sets of a generation, in the order of setBases.
func planSets(p Plan, f family, g generation) []ipset {
	o := flatten(p)
	ep4, ep6 := endpoints(p.Peers)
	networks, ports := [][]netip.Prefix{o.own4, o.sources4, o.reject4, o.open4, o.pass4, o.exclude4, nil}, ep4
	if f == ipv6 {
		networks, ports = [][]netip.Prefix{o.own6, o.sources6, o.reject6, o.open6, o.pass6, o.exclude6, nil}, ep6
	}
	var sets []ipset
	for i, base := range setBases {
		sets = append(sets, ipset{name: setName(base, f, g), kind: hashNet, family: f, networks: networks[i]})
	}
	last := &sets[len(sets)-1]
	last.kind, last.ports = hashIPPort, ports
	return sets
}

// liveSwitch is the switch as it is when on. A set knows no /0.
func liveSwitch(f family) ipset {
	halves := []string{"0.0.0.0/1", "128.0.0.0/1"}
	if f == ipv6 {
		halves = []string{"::/1", "8000::/1"}
	}
	s := ipset{name: liveSetName(f), kind: hashNet, family: f, timeout: LiveFor}
	for _, h := range halves {
		s.networks = append(s.networks, netip.MustParsePrefix(h))
	}
	return s
}

// room is how many members the kernel shall allow: at least as many as it does
// by itself.
func (s ipset) room() uint32 { return uint32(max(65536, len(s.networks)+len(s.ports))) }

// seconds is the timeout as the kernel counts it, nil for none.
func (s ipset) seconds() *uint32 {
	if s.timeout == 0 {
		return nil
	}
	return new(uint32(s.timeout / time.Second))
}

// create makes the set, without members. One that is there already stays as it
// is.
func (s ipset) create() error {
	err := netlink.IpsetCreate(s.name, s.kind, netlink.IpsetCreateOptions{
		Replace: true, Family: s.family.protocol, MaxElements: s.room(), Timeout: s.seconds(),
	})
	if err != nil {
		return fmt.Errorf("create ipset %s: %w", s.name, explainIPSet(err))
	}
	return nil
}

// fill adds the members. Those that are there get their timeout anew.
func (s ipset) fill() error {
	for _, n := range s.networks {
		entry := &netlink.IPSetEntry{Replace: true, IP: n.Addr().AsSlice(), CIDR: uint8(n.Bits()), Timeout: s.seconds()}
		if err := netlink.IpsetAdd(s.name, entry); err != nil {
			return fmt.Errorf("add %v to ipset %s: %w", n, s.name, explainIPSet(err))
		}
	}
	for _, p := range s.ports {
		entry := &netlink.IPSetEntry{
			Replace: true, IP: p.Addr().AsSlice(), Protocol: new(uint8(unix.IPPROTO_TCP)), Port: new(p.Port()),
		}
		if err := netlink.IpsetAdd(s.name, entry); err != nil {
			return fmt.Errorf("add %v to ipset %s: %w", p, s.name, explainIPSet(err))
		}
	}
	return nil
}

// text is the set as ipset restore reads it.
func (s ipset) text() string {
	var b strings.Builder
	inet := "inet"
	if s.family == ipv6 {
		inet = "inet6"
	}
	fmt.Fprintf(&b, "create %s %s family %s maxelem %d", s.name, s.kind, inet, s.room())
	if t := s.seconds(); t != nil {
		fmt.Fprintf(&b, " timeout %d", *t)
	}
	b.WriteByte('\n')
	for _, n := range s.networks {
		fmt.Fprintf(&b, "add %s %v\n", s.name, n)
	}
	for _, p := range s.ports {
		fmt.Fprintf(&b, "add %s %v,tcp:%d\n", s.name, p.Addr(), p.Port())
	}
	return b.String()
}

// errSetBusy says that a rule refers to a set.
var errSetBusy = errors.New("in use by a rule")

// destroySet takes a set away. One that is not there is no error.
func destroySet(name string) error {
	err := netlink.IpsetDestroy(name)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, nl.IPSetError(nl.IPSET_ERR_BUSY)):
		err = errSetBusy
	}
	return fmt.Errorf("destroy ipset %s: %w", name, explainIPSet(err))
}

// destroyGeneration takes the sets of a generation away. The error is
// errSetBusy where rules use them.
func destroyGeneration(f family, g generation) error {
	var errs []error
	for _, base := range setBases {
		errs = append(errs, destroySet(setName(base, f, g)))
	}
	return errors.Join(errs...)
}

// freeGeneration finds a generation that no rule uses, and clears it.
func freeGeneration(f family) (generation, error) {
	for _, g := range generations {
		err := destroyGeneration(f, g)
		if err == nil {
			return g, nil
		}
		if !errors.Is(err, errSetBusy) {
			return 0, err
		}
	}
	return 0, fmt.Errorf("ipsets wb_*%s: all generations are in use; remove the rules that refer to them", f.digit)
}

// releaseTime bounds how long the kernel may hold a set after its last rule
// went: nf_tables lets go of what a rule held after a grace period.
const releaseTime = 2 * time.Second

// released tries destroy until nothing it destroys is in use any more.
func released(destroy func() error) error {
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(releaseTime); ; <-poll.C {
		err := destroy()
		if !errors.Is(err, errSetBusy) || time.Now().After(deadline) {
			return err
		}
	}
}

// explainIPSet says what to do about errors that the kernel is terse about.
func explainIPSet(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (CAP_NET_ADMIN is needed)", err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, nl.IPSetError(nl.IPSET_ERR_FIND_TYPE)):
		return fmt.Errorf("%w (are the kernel modules ip_set, ip_set_hash_net and ip_set_hash_ipport there?)", err)
	}
	return err
}
