package daemon

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A peer that is cut for a fault and comes back at once costs more than its flood
// did: a handshake for each. So its source, as sourceOf has it, rests for a moment,
// and longer each time it goes on: what comes from there meanwhile is closed before
// anything is computed. Tunnels that live are left alone.
const (
	firstRest   = time.Second
	longestRest = 30 * time.Second
	// restForgotten is how long after its end a rest makes the next one longer.
	restForgotten = time.Minute
	maxRests      = 1024
)

// blameless are the faults that a broken path has as well: whoever comes back after
// it is the one that is waited for.
var blameless = []string{"silent", "no_settings"}

// rests are the sources that rest, or have done so lately.
type rests struct {
	mu sync.Mutex
	of map[netip.Prefix]*rest // guarded by mu
}

// rest is one of them.
type rest struct {
	length time.Duration
	until  time.Time
	told   bool // that somebody was turned away for it
}

// begin notes that a tunnel from an address was cut for a fault. What else is cut
// while its source rests is of the same doing and changes nothing.
func (r *rests) begin(remote netip.Addr, fault string, now time.Time) {
	if slices.Contains(blameless, fault) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	source := sourceOf(remote)
	old := r.of[source]
	length := firstRest
	switch {
	case old == nil:
		r.makeRoom(now)
	case now.Before(old.until):
		return
	case !old.forgotten(now):
		length = min(2*old.length, longestRest)
	}
	r.of[source] = &rest{length: length, until: now.Add(length)}
}

func (e *rest) forgotten(now time.Time) bool { return now.Sub(e.until) >= restForgotten }

// makeRoom forgets what is long over, or else the one that ends first.
func (r *rests) makeRoom(now time.Time) {
	if r.of == nil {
		r.of = make(map[netip.Prefix]*rest)
	}
	if len(r.of) < maxRests {
		return
	}
	var first netip.Prefix
	for source, e := range r.of {
		if e.forgotten(now) {
			delete(r.of, source)
		} else if f := r.of[first]; f == nil || e.until.Before(f.until) {
			first = source
		}
	}
	if len(r.of) >= maxRests {
		delete(r.of, first)
	}
}

// left is how long an address has still to rest, and whether that is said for the
// first time of this rest.
func (r *rests) left(remote netip.Addr, now time.Time) (left time.Duration, first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.of[sourceOf(remote)]
	if e == nil || !now.Before(e.until) {
		return 0, false
	}
	first, e.told = !e.told, true
	return e.until.Sub(now), first
}
