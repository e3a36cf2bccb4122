package route

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Peer is a gateway at the other end of tunnels. Those that a Table gives out
// are shared: nobody may change them.
type Peer struct {
	// Name is the peer's name in the configuration, logs and metrics.
	Name string
	// IDs are the SPIFFE IDs that the peer may prove, any of them.
	IDs []spiffeid.ID
	// Endpoints are its addresses as host:port, in the order to try them.
	Endpoints []string
	// Networks are the prefixes that it owns.
	Networks []netip.Prefix
}

// Config is what a Table is made of.
type Config struct {
	// Networks are our own prefixes. What is bound for them goes to no peer.
	Networks []netip.Prefix
	// Peers are the gateways that own all other prefixes.
	Peers []Peer
}

// Table finds the owner of an address. It is immutable and may be used by any
// number of goroutines at once.
type Table struct {
	owners bart.Table[*Peer] // a nil peer stands for ourselves
	peers  []*Peer
}

// New makes a Table; it keeps copies of what is in cfg. Networks may nest, but
// the same prefix cannot stand under two owners, nor twice under one.
func New(cfg Config) (*Table, error) {
	t := new(Table)
	for _, n := range cfg.Networks {
		if err := t.own(n, nil); err != nil {
			return nil, err
		}
	}
	for _, p := range cfg.Peers {
		peer := p.clone()
		for _, n := range peer.Networks {
			if err := t.own(n, peer); err != nil {
				return nil, err
			}
		}
		t.peers = append(t.peers, peer)
	}
	return t, nil
}

// own enters one prefix of owner.
func (t *Table) own(n netip.Prefix, owner *Peer) error {
	if err := checkPrefix(n); err != nil {
		return fmt.Errorf("%s: %w", owner.describe(), err)
	}
	if other, taken := t.owners.Get(n); taken {
		return fmt.Errorf("%s: network %s is already among %s", owner.describe(), n, other.describe())
	}
	t.owners.Insert(n, owner)
	return nil
}

// checkPrefix refuses what could only be a mistake: an address with bits beyond
// the prefix, or an IPv4 network written in IPv6 (addresses are unmapped before
// they are looked up, so it would match nothing).
func checkPrefix(n netip.Prefix) error {
	switch {
	case !n.IsValid():
		return fmt.Errorf("network %s is not valid", n)
	case n.Addr().Is4In6():
		return fmt.Errorf("network %s is an IPv4-mapped one: write it as IPv4", n)
	case n != n.Masked():
		return fmt.Errorf("network %s has bits set beyond its prefix: write %s", n, n.Masked())
	}
	return nil
}

func (p *Peer) clone() *Peer {
	return &Peer{
		Name:      p.Name,
		IDs:       slices.Clone(p.IDs),
		Endpoints: slices.Clone(p.Endpoints),
		Networks:  slices.Clone(p.Networks),
	}
}

// describe names an owner's networks in errors; a nil peer is ourselves.
func (p *Peer) describe() string {
	if p == nil {
		return "our own networks"
	}
	return fmt.Sprintf("the networks of peer %q", p.Name)
}

// Lookup finds the peer that owns a. It is false when nobody does, when we do,
// and for an address with a zone, which is of one link only.
func (t *Table) Lookup(a netip.Addr) (*Peer, bool) {
	p, owned := t.owner(a)
	return p, owned && p != nil
}

// Ours says whether the longest prefix that contains a is one of our own.
func (t *Table) Ours(a netip.Addr) bool {
	p, owned := t.owner(a)
	return owned && p == nil
}

// owner finds who owns a; a nil peer that owns is ourselves.
func (t *Table) owner(a netip.Addr) (p *Peer, owned bool) {
	if !a.IsValid() || a.Zone() != "" {
		return nil, false
	}
	return t.owners.Lookup(a.Unmap())
}

// Peers lists all peers in the order of the configuration. The slice is the
// caller's own.
func (t *Table) Peers() []*Peer {
	return slices.Clone(t.peers)
}
