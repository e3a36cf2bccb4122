package pool_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestAnyOrder does everything that can be done to a pool, in any order. Each request
// gets one answer, in time, and if that is a tunnel, it has room.
func TestAnyOrder(t *testing.T) {
	for seed := range uint64(500) {
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { anyOrder(t, rand.New(rand.NewPCG(seed, 1))) }) {
			return
		}
	}
}

func anyOrder(t *testing.T, dice *rand.Rand) {
	w := newWorld(t, config{MaxTunnels: 1 + dice.IntN(6)}, "a", "b")
	w.room = 1 + dice.IntN(4)
	type request struct {
		begun   time.Duration
		answers int
	}
	var requests []*request
	get := func() {
		r := &request{begun: w.now}
		requests = append(requests, r)
		w.pool.Get(w.peer, func(tn *tunnel, err error) {
			r.answers++
			if err != nil {
				return
			}
			if tn.room--; tn.room < 0 {
				t.Errorf("a tunnel without room is given")
			}
			tn.streams++
		})
	}
	up := map[string]*tunnel{}
	anyTunnel := func(do func(*tunnel)) func() {
		return func() {
			if names := slices.Sorted(maps.Keys(up)); len(names) > 0 {
				do(up[names[dice.IntN(len(names))]])
			}
		}
	}
	anyDial := func(do func(endpoint string)) func() {
		return func() {
			if len(w.running) > 0 {
				do(w.running[dice.IntN(len(w.running))].endpoint)
			}
		}
	}
	works := anyDial(func(endpoint string) {
		tn := w.works(endpoint)
		tn.narrow = dice.IntN(3) == 0
		up[tn.name] = tn
	})
	drains := func(then ...func(*tunnel)) func() {
		return anyTunnel(func(tn *tunnel) {
			tn.draining = true
			for _, do := range then {
				do(tn)
			}
		})
	}
	room := func(tn *tunnel) { w.pool.Room(w.peer, tn) }
	gateways := []string{"a", "a b", "b a", "a b c", ""}
	steps := []func(){
		get, get, get, get, works, works, works,
		anyDial(func(endpoint string) { w.fails(endpoint) }),
		anyTunnel(func(tn *tunnel) {
			if tn.streams > 0 {
				w.ends(tn, 1)
			}
		}),
		anyTunnel(func(tn *tunnel) { delete(up, tn.name); w.lost(tn) }),
		drains(room),
		drains(func(tn *tunnel) { w.pool.Spurned(w.peer, tn) }, room),
		anyTunnel(func(tn *tunnel) { w.pool.Renew(w.peer, tn) }),
		anyTunnel(func(tn *tunnel) { tn.starved = !tn.starved }),
		func() { w.peer = peer("east", strings.Fields(gateways[dice.IntN(len(gateways))])...) },
		func() { w.advance(time.Duration(dice.IntN(3000)) * time.Millisecond) },
		func() {
			switch dice.IntN(10) {
			case 0:
				w.pool.Wake()
			case 1:
				w.pool.Keep(nobody)
			}
		},
	}
	const longest = 21 * time.Second // Wait, and the next sweep
	for range 200 {
		steps[dice.IntN(len(steps))]()
		w.pool.Status("east")
		for i, r := range requests {
			if r.answers > 1 || r.answers == 0 && w.now-r.begun > longest {
				t.Fatalf("request %d has %d answers after %v", i, r.answers, w.now-r.begun)
			}
		}
	}
}
