package daemon

import (
	"container/list"
	"errors"
	"net/netip"
	"sync"
)

// Bounds on the handshakes that strangers have begun and not finished: who has not
// proved anything yet gets no more of us than that. One source, an IPv4 address or
// an IPv6 /64, has an eighth of the places: more than any gateway dials at once.
const (
	maxPending     = 1024
	maxPendingFrom = 128
)

// errCrowded ends the handshake that has taken longest when all places are taken:
// a peer is done within milliseconds, and so gets in beside strangers who wait.
var errCrowded = errors.New("too many handshakes under way, and this one was the oldest")

// pending are the handshakes under way.
type pending struct {
	mu    sync.Mutex
	order list.List            // of *begun, the oldest first; guarded by mu
	from  map[netip.Prefix]int // how many each source has; guarded by mu
}

// begun is one of them.
type begun struct {
	source  netip.Prefix
	abandon func(error) // ends the handshake
}

// enter gives a handshake a place, at the cost of the oldest if there is none
// left, and reports false where its source has enough. leave is called at its end.
func (p *pending) enter(remote netip.Addr, abandon func(error)) (leave func(), ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	source := sourceOf(remote)
	if p.from[source] >= maxPendingFrom {
		return nil, false
	}
	if oldest := p.order.Front(); oldest != nil && p.order.Len() >= maxPending {
		oldest.Value.(*begun).abandon(errCrowded)
		p.remove(oldest)
	}
	if p.from == nil {
		p.from = make(map[netip.Prefix]int)
	}
	p.from[source]++
	e := p.order.PushBack(&begun{source, abandon})
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.remove(e)
	}, true
}

// remove takes a place away, unless that has been done.
func (p *pending) remove(e *list.Element) {
	v := p.order.Remove(e).(*begun)
	if v.abandon == nil {
		return
	}
	v.abandon = nil
	if p.from[v.source]--; p.from[v.source] == 0 {
		delete(p.from, v.source)
	}
}

// sourceOf is whom an address belongs to: a host has a /64 to choose from (RFC 4291
// §2.5.4).
func sourceOf(a netip.Addr) netip.Prefix {
	bits := 64
	if a = a.Unmap().WithZone(""); a.Is4() {
		bits = 32
	}
	return netip.PrefixFrom(a, bits).Masked()
}
