package daemon

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// Bounds on the handshakes that strangers have begun and not finished: who has not
// proved anything yet gets no more of us than that. One source, an IPv4 address or
// an IPv6 /64, has an eighth of the places: more than any gateway dials at once.
const (
	maxPending     = 1024
	maxPendingFrom = 128
)

// An answer to a ClientHello takes a few hundred microseconds of a core, and costs
// who asks for it nothing. So of each source a few handshakes are answered, and the
// others wait for one of these to end, or to have had its turn: peers end theirs
// within a round trip or two, and whoever does not gets so many answers a turn.
const (
	maxTurns  = 16
	turnLasts = time.Second
)

// errCrowded ends the handshake that has taken longest when all places are taken:
// a peer is done within milliseconds, and so gets in beside strangers who wait.
var errCrowded = errors.New("too many handshakes under way, and this one was the oldest")

// errTurn ends a handshake that has waited for its turn in vain.
var errTurn = fmt.Errorf("too many handshakes from there do not end: %d are answered at a time", maxTurns)

// pending are the handshakes under way.
type pending struct {
	mu    sync.Mutex
	order list.List                // of *begun, the oldest first; guarded by mu
	from  map[netip.Prefix]*origin // those that have a place; guarded by mu
}

// origin is a source of handshakes.
type origin struct {
	places int           // that it has; guarded by pending.mu
	turns  chan struct{} // holds as many as have their turn
}

// begun is a handshake with a place.
type begun struct {
	pending *pending
	place   *list.Element
	source  netip.Prefix
	origin  *origin
	abandon func(error) // ends the handshake; nil once the place is lost; guarded by pending.mu
	endTurn func()      // nil until the turn has come
}

// enter gives a handshake a place, at the cost of the oldest if there is none left,
// or nil where its source has enough. leave gives it back.
func (p *pending) enter(remote netip.Addr, abandon func(error)) *begun {
	p.mu.Lock()
	defer p.mu.Unlock()
	source := sourceOf(remote)
	o := p.from[source]
	switch {
	case o == nil:
		o = &origin{turns: make(chan struct{}, maxTurns)}
	case o.places >= maxPendingFrom:
		return nil
	}
	if oldest := p.order.Front(); oldest != nil && p.order.Len() >= maxPending {
		b := oldest.Value.(*begun)
		b.abandon(errCrowded)
		b.lose()
	}
	if p.from == nil {
		p.from = make(map[netip.Prefix]*origin)
	}
	p.from[source] = o
	o.places++
	b := &begun{pending: p, source: source, origin: o, abandon: abandon}
	b.place = p.order.PushBack(b)
	return b
}

// turn waits until the handshake is to be answered. It is called once, by whoever
// leaves.
func (b *begun) turn(ctx context.Context) error {
	select {
	case b.origin.turns <- struct{}{}:
	case <-ctx.Done():
		return errTurn
	}
	over := sync.OnceFunc(func() { <-b.origin.turns })
	timer := time.AfterFunc(turnLasts, over)
	b.endTurn = func() {
		timer.Stop()
		over()
	}
	return nil
}

// leave gives the place back, and the turn.
func (b *begun) leave() {
	if b.endTurn != nil {
		b.endTurn()
	}
	b.pending.mu.Lock()
	defer b.pending.mu.Unlock()
	b.lose()
}

// lose takes the place away, unless that has been done. pending.mu is held.
func (b *begun) lose() {
	if b.abandon == nil {
		return
	}
	b.abandon = nil
	b.pending.order.Remove(b.place)
	if b.origin.places--; b.origin.places == 0 {
		delete(b.pending.from, b.source)
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
