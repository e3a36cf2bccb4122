package authz

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Source says from which address a peer's streams are delivered.
type Source uint8

const (
	// Preserve: from the address and the port that the peer claims.
	Preserve Source = iota
	// Address: from the address that the peer claims, with any port.
	Address
	// Gateway: from the gateway's own address. A source need not be claimed,
	// but one that is must be owned all the same.
	Gateway
)

// String gives the word of the configuration: preserve, address or gateway.
func (s Source) String() string {
	switch s {
	case Preserve:
		return "preserve"
	case Address:
		return "address"
	case Gateway:
		return "gateway"
	}
	return fmt.Sprintf("source(%d)", uint8(s))
}

// Peer is a gateway whose streams are judged.
type Peer struct {
	// Name is the peer's name in the configuration, logs and metrics.
	Name string
	// IDs are the SPIFFE IDs that it may prove. No two peers share one.
	IDs []spiffeid.ID
	// Networks are the prefixes that it owns.
	Networks []netip.Prefix
	// Source says how its streams are delivered. Zero is Preserve.
	Source Source
}

// Config is what a Policy is made of.
type Config struct {
	// Networks are our own prefixes: the only targets that are served.
	Networks []netip.Prefix
	// Peers are all peers.
	Peers []Peer
	// Ports are those that the gateway itself listens on: on an address of this
	// host they are never targets.
	Ports []uint16
	// Rules narrow what ownership permits. Their order does not matter, but for
	// which of several that match is told.
	Rules []Rule
	// Local says whether an address, unmapped, is one of this host's. It is
	// called from any goroutine and must not block. Nil means that none is.
	Local func(netip.Addr) bool
}

// Policy decides. It is immutable and may be used by any number of goroutines
// at once; a change is a new Policy.
type Policy struct {
	owners bart.Table[*peer] // a nil peer stands for ourselves
	ids    map[spiffeid.ID]subject
	ports  []uint16
	local  func(netip.Addr) bool
	rules  *ruleset // nil without rules
}

// subject is who a SPIFFE ID is, and the rules that are about it.
type subject struct {
	peer  *peer
	rules set
}

// peer is what a judgement needs of a Peer.
type peer struct {
	name    string
	source  Source
	unknown set // with Gateway: the rules that take a source which it has not named
}

// New makes a Policy; it keeps copies of what is in cfg. Networks may nest, but
// the same prefix or SPIFFE ID cannot stand twice.
func New(cfg Config) (*Policy, error) {
	p := &Policy{
		ids:   make(map[spiffeid.ID]subject),
		ports: slices.Clone(cfg.Ports),
		local: cfg.Local,
	}
	if p.local == nil {
		p.local = func(netip.Addr) bool { return false }
	}
	for _, n := range cfg.Networks {
		if err := p.own(n, nil); err != nil {
			return nil, err
		}
	}
	for i := range cfg.Peers {
		if err := p.add(&cfg.Peers[i]); err != nil {
			return nil, err
		}
	}
	if err := p.ruled(&cfg); err != nil {
		return nil, err
	}
	return p, nil
}

// add enters one peer with its IDs and networks.
func (p *Policy) add(cfg *Peer) error {
	if cfg.Source > Gateway {
		return fmt.Errorf("peer %q: unknown %s", cfg.Name, cfg.Source)
	}
	owner := &peer{name: cfg.Name, source: cfg.Source}
	for _, id := range cfg.IDs {
		if err := p.name(id, owner); err != nil {
			return err
		}
	}
	for _, n := range cfg.Networks {
		if err := p.own(n, owner); err != nil {
			return err
		}
	}
	return nil
}

// name enters one SPIFFE ID of owner.
func (p *Policy) name(id spiffeid.ID, owner *peer) error {
	if id.IsZero() {
		return fmt.Errorf("peer %q: empty SPIFFE ID", owner.name)
	}
	if other, taken := p.ids[id]; taken {
		return fmt.Errorf("peer %q: %s is already an id of peer %q", owner.name, id, other.peer.name)
	}
	p.ids[id] = subject{peer: owner}
	return nil
}

// own enters one prefix of owner.
func (p *Policy) own(n netip.Prefix, owner *peer) error {
	if !canonical(n) {
		return fmt.Errorf("%s: %s is not a network in its canonical form", owner.describe(), n)
	}
	if other, taken := p.owners.Get(n); taken {
		return fmt.Errorf("%s: network %s is already among %s", owner.describe(), n, other.describe())
	}
	p.owners.Insert(n, owner)
	return nil
}

// canonical says whether n is as a table wants it.
func canonical(n netip.Prefix) bool {
	return n.IsValid() && !n.Addr().Is4In6() && n == n.Masked()
}

// describe names an owner's networks in errors; a nil peer is ourselves.
func (p *peer) describe() string {
	if p == nil {
		return "our own networks"
	}
	return fmt.Sprintf("the networks of peer %q", p.name)
}
