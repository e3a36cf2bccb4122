package hbone

import (
	"slices"
	"time"
)

// glitch is a kind of frame that costs the receiver more than the sender.
type glitch int

const (
	glitchPing glitch = iota
	glitchSettings
	glitchWindow
	glitchEmptyData
	glitchClosed
	glitchRapidReset
	glitchRefused
	glitchOther
	glitchKinds
)

// allowance is how many frames of a kind are borne: a burst, and so many a
// second. Honest traffic stays far below; a flood is cut within its burst.
type allowance struct {
	fault            Fault
	burst, perSecond float64
}

var allowances = [glitchKinds]allowance{
	glitchPing:       {faultPing, 100, 10},
	glitchSettings:   {faultSettings, 100, 1},
	glitchWindow:     {faultWindow, 10000, 10000}, // and those that DATA earns
	glitchEmptyData:  {faultEmptyData, 1000, 100},
	glitchClosed:     {faultClosed, 5000, 5000},
	glitchRapidReset: {faultRapidReset, 500, 200}, // and those that answers earn
	glitchRefused:    {faultRefused, 5000, 5000},
	glitchOther:      {faultOther, 1000, 100},
}

// glitches counts each kind in a bucket that leaks.
type glitches [glitchKinds]struct {
	level float64
	at    time.Duration
}

// add notes one more and reports whether that is still borne.
func (g *glitches) add(now time.Duration, kind glitch) bool {
	b, a := &g[kind], allowances[kind]
	b.level = max(0, b.level-(now-b.at).Seconds()*a.perSecond) + 1
	b.at = now
	return b.level <= a.burst
}

// windowUpdateEarns is for how many bytes of DATA a peer may give us one
// WINDOW_UPDATE more: some peers say so for every 4 KiB, twice. What is left to
// count are those that make us send in crumbs.
const windowUpdateEarns = 1 << 10

// sent notes DATA, for which the peer will give credit back.
func (g *glitches) sent(n int) {
	b := &g[glitchWindow]
	b.level = max(0, b.level-float64(n)/windowUpdateEarns)
}

// answered notes an answer of ours to a request that was waited for. A peer like us
// takes no more back than one for so many: where thousands of clients a second come
// and go, those who do not wait are many too. Nor do they cost more than the others.
func (g *glitches) answered() {
	b := &g[glitchRapidReset]
	b.level = max(0, b.level-1.0/answersEach)
}

// recentResets remembers the streams that we reset last: their peer may go on
// sending until it hears of it (RFC 9113 §5.4.2).
type recentResets struct {
	ids  []uint32
	next int
}

const maxRecentResets = 256

func (r *recentResets) add(id uint32) {
	if len(r.ids) < maxRecentResets {
		r.ids = append(r.ids, id)
		return
	}
	r.ids[r.next] = id
	r.next = (r.next + 1) % maxRecentResets
}

func (r *recentResets) has(id uint32) bool { return slices.Contains(r.ids, id) }
