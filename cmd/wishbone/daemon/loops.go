package daemon

import (
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"

	"wishbone/intercept"
)

// loops is how many event loops run: as many as the processors that we may use, and
// as their time that we have (GOMAXPROCS, which Go takes from the cgroup's quota).
func loops() int { return max(1, min(runtime.NumCPU(), runtime.GOMAXPROCS(0))) }

// processors are those that n loops keep to while flows begin on them all the time, if there
// is a loop for each. Fewer would keep to the same ones as those of other gateways, and
// one has no choice.
func processors(n int) (cpus []int) {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil || set.Count() != n || n == 1 {
		return nil
	}
	for cpu := 0; len(cpus) < set.Count(); cpu++ {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus
}

// transparent opens a listener for each processor, or one for all. The caller owns them.
func transparent(at netip.AddrPort, o intercept.Options, cpus []int) ([]int, error) {
	if cpus != nil {
		return intercept.ListenOn(at, o, cpus)
	}
	fd, err := intercept.Listen(at, o)
	return []int{fd}, err
}
