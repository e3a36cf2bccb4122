package daemon

import (
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestProcessors: each loop has one of the processors that we may use, or none has.
func TestProcessors(t *testing.T) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU()))
	cpus := processors(loops())
	if n := len(cpus); n != set.Count() && set.Count() > 1 || n == 1 {
		t.Errorf("%v for %d loops on %d processors", cpus, loops(), set.Count())
	}
	for _, cpu := range cpus {
		if !set.IsSet(cpu) {
			t.Errorf("processor %d, which we may not use", cpu)
		}
		set.Clear(cpu) // each once
	}
	runtime.GOMAXPROCS(runtime.NumCPU() - 1) // a quota
	if cpus := processors(loops()); runtime.NumCPU() > 1 && cpus != nil {
		t.Errorf("%v for %d loops", cpus, loops())
	}
}
