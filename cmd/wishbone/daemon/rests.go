package daemon

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

// A peer that is cut for a fault and comes back at once costs more than its flood
// did: a handshake for each. So do strangers who begin handshakes and come to
// nothing. So the source, as sourceOf has it, rests for a moment, and longer each time
// it goes on: what comes from there meanwhile is closed before anything is computed.
// Tunnels that live are left alone.
const (
	firstRest   = time.Second
	longestRest = 30 * time.Second
	// restForgotten is how long after its end a rest makes the next one longer.
	restForgotten = time.Minute
	maxRests      = 1024

	// Handshakes from a source may come to nothing: so many at once, and so many a
	// second. A gateway that is refused tries far less often.
	missBurst = 100
	missRate  = 10
)

// blameless are the faults that a broken path has as well: whoever comes back after
// it is the one that is waited for.
var blameless = []string{"silent", "no_settings"}

// rests are the sources that rest, or have done so lately.
type rests struct {
	mu     sync.Mutex
	of     map[netip.Prefix]*rest   // guarded by mu
	misses map[netip.Prefix]*misses // guarded by mu
}

// misses are a source's handshakes that came to nothing, less what was forgiven.
type misses struct {
	n  float64
	at time.Time
}

func (m *misses) forgive(now time.Time) {
	m.n, m.at = max(0, m.n-missRate*now.Sub(m.at).Seconds()), now
}

// missed notes that a handshake from an address came to nothing.
func (r *rests) missed(remote netip.Addr, now time.Time) {
	source := sourceOf(remote)
	r.mu.Lock()
	m := r.misses[source]
	if m == nil {
		m = r.newMisses(source, now)
	}
	m.forgive(now)
	m.n++
	many := m.n > missBurst
	r.mu.Unlock()
	if many {
		r.begin(remote, reasonHandshake, now)
	}
}

// newMisses makes room for a source, at the cost of the one with the fewest if all
// that are remembered have some.
func (r *rests) newMisses(source netip.Prefix, now time.Time) *misses {
	if r.misses == nil {
		r.misses = make(map[netip.Prefix]*misses)
	}
	if len(r.misses) >= maxRests {
		var least netip.Prefix
		for s, m := range r.misses {
			if m.forgive(now); m.n == 0 {
				delete(r.misses, s)
			} else if l := r.misses[least]; l == nil || m.n < l.n {
				least = s
			}
		}
		if len(r.misses) >= maxRests {
			delete(r.misses, least)
		}
	}
	m := &misses{at: now}
	r.misses[source] = m
	return m
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
