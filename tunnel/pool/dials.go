package pool

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// slowDial is after how long a dial is not waited for alone.
const slowDial = time.Second

// maxDials bounds the dials to one peer at the same time, besides the one that
// tries the first endpoint again.
const maxDials = 3

// minBackoff is the first pause after a round of failed dials, and maxBackoff
// bounds all: a peer that comes back is found within about a second.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = time.Second
)

// memory is after how long without another failure the failures are forgotten.
const memory = 10 * time.Second

// dials is how dialing a peer stands. In a round each endpoint is tried, from
// the first on; the round is over when one works or when all have failed.
type dials struct {
	running []*dialing
	latest  time.Duration // when the last one began
	first   int           // the endpoint to try first: the last that worked
	changed time.Duration // since when it is the first
	failed  []bool        // the endpoints that failed in this round
	failure time.Duration // when the last one did
}

// dialing is one dial that has not come to its end.
type dialing struct {
	endpoint int
	began    time.Duration
	probe    bool // for its own sake: nobody waits for it, and its failure means nothing
}

// newDials is the state for a number of endpoints.
func newDials(endpoints int) *dials { return &dials{failed: make([]bool, endpoints)} }

// next is the endpoint to dial now, if any: one dial at a time, unless those
// that run are slow. One that has failed in this round is dialled again only
// beside slow ones, and not more often than they.
func (d *dials) next(now time.Duration) (endpoint int, ok bool) {
	if now-d.failure >= memory {
		d.endRound()
	}
	running := 0
	for _, r := range d.running {
		switch {
		case r.probe:
		case now-r.began < slowDial:
			return 0, false
		default:
			running++
		}
	}
	if running >= maxDials || len(d.failed) == 0 {
		return 0, false
	}
	endpoint = d.pick()
	return endpoint, !d.failed[endpoint] || now-d.latest >= slowDial
}

// pick prefers an endpoint that is not being dialled, then one that has not
// failed, then the earlier one.
func (d *dials) pick() int {
	cost := make([]int, len(d.failed))
	for i, failed := range d.failed {
		if failed {
			cost[i] = 1
		}
	}
	for _, r := range d.running {
		if !r.probe {
			cost[r.endpoint] += 2
		}
	}
	best := d.first
	for i := range cost {
		if e := (d.first + i) % len(cost); cost[e] < cost[best] {
			best = e
		}
	}
	return best
}

// mayProbe says whether to dial an endpoint for its own sake: not beside another
// dial to it, unless that is slow.
func (d *dials) mayProbe(now time.Duration, endpoint int) bool {
	running := 0
	for _, r := range d.running {
		switch {
		case r.endpoint != endpoint:
		case now-r.began < slowDial:
			return false
		default:
			running++
		}
	}
	return running < maxDials
}

// use makes an endpoint the one to try first.
func (d *dials) use(now time.Duration, endpoint int) {
	if d.first != endpoint {
		d.first, d.changed = endpoint, now
	}
}

// fail notes that an endpoint failed, and reports whether all have.
func (d *dials) fail(now time.Duration, endpoint int) bool {
	d.failed[endpoint] = true
	d.failure = now
	return !slices.Contains(d.failed, false)
}

func (d *dials) endRound() { clear(d.failed) }

// backoff is the pause after a round in which every endpoint failed.
type backoff struct {
	until time.Duration
	pause time.Duration
	begun time.Duration // when the last pause began
	err   error         // what the round failed with
}

// fail doubles the pause, with jitter so that gateways do not knock in step.
func (b *backoff) fail(now time.Duration, err error) {
	if now-b.begun >= memory {
		b.pause = 0
	}
	b.err, b.begun = err, now
	b.pause = min(max(2*b.pause, minBackoff), maxBackoff)
	b.until = now + b.pause/2 + rand.N(b.pause/2)
}

// over ends the pause. How long it was is remembered: what worked may not last.
func (b *backoff) over() { b.until, b.err = 0, nil }

// dialIfNeeded dials for those who wait.
func (p *Pool[T]) dialIfNeeded(pr *peer[T]) {
	if pr.waiters.n > 0 {
		p.dial(pr)
	}
}

// dial dials another tunnel to the peer, unless that has to wait.
func (p *Pool[T]) dial(pr *peer[T]) {
	now, live := p.cfg.Now(), pr.live()
	if now < pr.backoff.until || live >= p.cfg.MaxTunnels || p.held() != nil {
		return
	}
	if live == 0 && now-pr.dials.changed >= p.cfg.FailBack {
		pr.dials.use(now, 0)
	}
	if endpoint, ok := pr.dials.next(now); ok {
		p.begin(pr, &dialing{endpoint: endpoint, began: now})
	}
}

// failBack tries the first endpoint again after a time on another.
func (p *Pool[T]) failBack(pr *peer[T]) {
	now, d := p.cfg.Now(), pr.dials
	if d.first != 0 && now-d.changed >= p.cfg.FailBack {
		d.changed = now
		p.begin(pr, &dialing{began: now, probe: true})
	}
}

func (p *Pool[T]) begin(pr *peer[T], r *dialing) {
	d := pr.dials
	d.running = append(d.running, r)
	d.latest = r.began
	p.cfg.Dial(pr.route, pr.route.Endpoints[r.endpoint], func(t T, err error) {
		d.running = slices.DeleteFunc(d.running, func(other *dialing) bool { return other == r })
		p.dialled(pr, d, r, t, err)
	})
}

// dialled takes the result of a dial. It is not wanted if the peer's gateway
// has changed since; the failure of a probe leaves everything as it is.
func (p *Pool[T]) dialled(pr *peer[T], d *dials, r *dialing, t T, err error) {
	stale := d != pr.dials
	switch {
	case err == nil && stale:
		t.Drain()
	case err == nil:
		p.dialWorked(pr, r.endpoint, t)
	case !stale && !r.probe:
		p.dialFailed(pr, r.endpoint, err)
	}
}

// dialWorked puts a tunnel to use. One to a later endpoint than that in use is
// kept only if someone waits for it, and so is any while the pool drains.
func (p *Pool[T]) dialWorked(pr *peer[T], endpoint int, t T) {
	now, d := p.cfg.Now(), pr.dials
	d.failed[endpoint] = false
	pr.backoff.over()
	extra := endpoint > d.first && pr.liveAt(d.first, now, 0)
	if (extra || p.draining) && pr.waiters.n == 0 || pr.live() >= p.cfg.MaxTunnels {
		t.Drain()
		return
	}
	if !extra {
		d.use(now, endpoint)
	}
	e := &entry[T]{tunnel: t, gateway: d, endpoint: endpoint, born: now, until: now + p.life(t), idle: now}
	pr.tunnels = append(pr.tunnels, e)
	p.serve(pr)
	if p.draining {
		e.retire()
		p.dialIfNeeded(pr)
		return
	}
	p.widen(pr, 0)
}

// life is how long a fresh tunnel takes new streams.
func (p *Pool[T]) life(t T) time.Duration {
	if p.cfg.Life == nil {
		return p.cfg.MaxAge
	}
	return min(p.cfg.MaxAge, p.cfg.Life(t))
}

// dialFailed goes on to the next endpoint; after a whole round it gives up for
// a while, and so do those who wait.
func (p *Pool[T]) dialFailed(pr *peer[T], endpoint int, err error) {
	now, d := p.cfg.Now(), pr.dials
	if d.fail(now, endpoint) {
		d.endRound()
		d.use(now, pr.fallback())
		pr.backoff.fail(now, err)
		p.giveUp(pr)
	}
	p.dialIfNeeded(pr)
}

// fallback is the endpoint to try first when the one in use has failed: one
// that still has a tunnel, else the first of all.
func (pr *peer[T]) fallback() int {
	for _, e := range pr.tunnels {
		if !e.retired {
			return e.endpoint
		}
	}
	return 0
}

// giveUp fails those who wait, if nothing that could serve them is there and
// all endpoints have just failed. A dial that hangs is not waited for then: its
// endpoint has refused another one meanwhile.
func (p *Pool[T]) giveUp(pr *peer[T]) {
	if pr.live() == 0 && p.cfg.Now() < pr.backoff.until {
		pr.failWaiters(fmt.Errorf("peer %s: %w", pr.route.Name, pr.backoff.err))
	}
}
