package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// What keeps the processors from halting while latency or short connections are
// measured: waking one up takes longer than what is measured.
const (
	awakeSpin = "spin" // a thread on each that runs only when nothing else wants to (sched(7), SCHED_IDLE)
	awakePoll = "poll" // the kernel looks for work instead (its pm_qos_interface, cpu_dma_latency); for root
	awakeNo   = "no"   // nothing does
)

var awakes = []string{awakeSpin, awakePoll, awakeNo}

// awake measures while the processors are kept from halting.
func awake(run measure) measure {
	return func(ctx context.Context, w *world, g *gateways, o options) (figures, error) {
		stop, err := o.keepAwake()
		if err != nil {
			return nil, err
		}
		defer stop()
		return run(ctx, w, g, o)
	}
}

// keepAwake does what o says until stop is called.
func (o options) keepAwake() (stop func(), err error) {
	runtime.GOMAXPROCS(2*runtime.NumCPU() + 3*o.clients) // for those that wait in the kernel too
	switch o.awake {
	case awakePoll:
		return poll()
	case awakeNo:
		return func() {}, nil
	}
	return spin(), nil
}

// poll lets no processor sleep more deeply than in a loop.
func poll() (stop func(), err error) {
	f, err := os.OpenFile("/dev/cpu_dma_latency", os.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("keep processors polling: %w", err)
	}
	if _, err := f.Write(make([]byte, 4)); err != nil { // microseconds, for as long as the file is open
		return nil, errors.Join(fmt.Errorf("keep processors polling: %w", err), f.Close())
	}
	return func() { _ = f.Close() }, nil // what it has set ends with it
}

func spin() (stop func()) {
	var done atomic.Bool
	for range runtime.NumCPU() {
		go func() {
			runtime.LockOSThread() // not given back: the thread ends with this
			attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}
			if unix.SchedSetAttr(0, &attr, 0) != nil {
				return // then they may halt
			}
			for !done.Load() {
			}
		}()
	}
	return func() { done.Store(true) }
}
