package engine

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// where is where the calling thread may run.
func where(t *testing.T) unix.CPUSet {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Error(err)
	}
	return set
}

// TestHome: a loop keeps to its processor from when it is busy until it has not been so
// for a while.
func TestHome(t *testing.T) {
	onThread(func() {
		all := where(t)
		cpu := 0
		for !all.IsSet(cpu) {
			cpu++
		}
		var only unix.CPUSet
		only.Set(cpu)
		h := home{cpu: cpu}
		h.enter()
		for _, c := range []struct {
			at   time.Duration
			load float64
			want unix.CPUSet
		}{
			{time.Second, Busy - .01, all},
			{2 * time.Second, Busy, only},
			{2*time.Second + calmTime, 0, only},
			{3 * time.Second, 1, only},
			{3*time.Second + calmTime, .1, only},
			{3*time.Second + calmTime + 1, .1, all},
			{10 * time.Second, 0, all},
		} {
			h.look(c.at, c.load)
			if where(t) != c.want {
				t.Errorf("after %v, %v busy: may run on %d processors", c.at, c.load, new(where(t)).Count())
			}
		}
	})
}

// TestHomeless: a processor that is not to be had is not asked for again, and a loop without
// one stays free.
func TestHomeless(t *testing.T) {
	onThread(func() {
		all := where(t)
		none := len(all)*64 - 1 // no machine has as many
		for _, cpu := range []int{-1, none} {
			h := home{cpu: cpu}
			h.enter()
			h.look(time.Second, 1)
			if h.cpu != -1 || where(t) != all {
				t.Errorf("processor %d: %+v", cpu, h)
			}
		}
	})
}

// TestHomeOfRun: Run is what looks.
func TestHomeOfRun(t *testing.T) {
	l, err := NewLoop()
	if err != nil {
		t.Fatal(err)
	}
	var all unix.CPUSet
	onThread(func() { all = where(t) })
	cpu := 0
	for !all.IsSet(cpu) {
		cpu++
	}
	l.Home(cpu)
	done := make(chan error)
	go func() { done <- l.Run() }()
	home := make(chan struct{})
	end := time.Now().Add(10 * time.Second)
	var work func()
	work = func() { // the loop has nothing but this to do, so that it is busy all the time
		set := where(t)
		if set.Count() == 1 && set.IsSet(cpu) || time.Now().After(end) {
			close(home)
			return
		}
		l.Post(work)
	}
	l.Post(work)
	<-home
	if !time.Now().Before(end) {
		t.Error("a busy loop does not keep to its processor")
	}
	l.Post(l.Stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
	onThread(func() {
		if where(t) != all {
			t.Error("the loop's processor stays with its thread, which others have got")
		}
	})
}

// onThread runs f on a thread of its own, which is thrown away.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}
