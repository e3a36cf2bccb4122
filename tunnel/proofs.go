package tunnel

import (
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// proofs are the last that SPIFFE IDs have proved, over all loops and both
// directions. One outlives its tunnel. There are as many as peers have IDs.
type proofs struct {
	mu    sync.Mutex
	round int                      // of judgements; guarded by mu
	m     map[spiffeid.ID]*Session // without their Conns; guarded by mu
}

// add notes what was proved, and found good in a round of judgements. What an
// earlier one has found good is not taken: its own loop will see to it.
func (p *proofs) add(s Session, round int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if known := p.m[s.ID]; round != p.round || known != nil && s.Proved.Before(known.Proved) {
		return
	}
	if p.m == nil {
		p.m = make(map[spiffeid.ID]*Session)
	}
	s.Conn = nil // its owner's
	p.m[s.ID] = &s
}

// last is the latest proof of an ID that counts, or nil. It is immutable.
func (p *proofs) last(id spiffeid.ID) *Session {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.m[id]
}

// judge begins a round, and forgets what was withdrawn. The lock is held meanwhile:
// nobody may count on the rest too early, nor miss it.
func (p *proofs) judge(withdrawn func(Session) *Withdrawal) (round int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.round++
	for id, s := range p.m {
		if withdrawn(*s) != nil {
			delete(p.m, id)
		}
	}
	return p.round
}
