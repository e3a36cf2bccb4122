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

// TestHome: a loop keeps to its processor from when flows begin often until they have not for
// a while.
func TestHome(t *testing.T) {
	onThread(func() {
		all := where(t)
		h := home{cpu: first(all)}
		h.enter()
		const past = 20 * time.Millisecond
		enough := often / 50
		for _, c := range []struct {
			at    time.Duration
			begun int
			want  unix.CPUSet
		}{
			{time.Second, enough - 1, all},
			{2 * time.Second, enough, *h.only()},
			{2*time.Second + calmTime, enough - 1, *h.only()},
			{3 * time.Second, 10 * enough, *h.only()},
			{3*time.Second + calmTime, 0, *h.only()},
			{3*time.Second + calmTime + 1, 0, all},
			{10 * time.Second, 0, all},
		} {
			h.begun = c.begun
			h.look(c.at, past)
			if where(t) != c.want {
				t.Errorf("after %v, %d begun: may run on %d processors", c.at, c.begun, new(where(t)).Count())
			}
		}
	})
}

// TestHomeOfOthers: where others say that the thread must be, it is.
func TestHomeOfOthers(t *testing.T) {
	onThread(func() {
		all := where(t)
		if all.Count() < 2 {
			t.Log("this machine has one processor, and nowhere to go")
			return
		}
		h := home{cpu: first(all)}
		h.enter()
		other := all
		other.Clear(h.cpu)
		look := func(at time.Duration, begun int, want unix.CPUSet) {
			t.Helper()
			h.begun = begun
			if h.look(at, time.Second); where(t) != want {
				t.Errorf("may run on %d processors, among them home: %v", new(where(t)).Count(), new(where(t)).IsSet(h.cpu))
			}
		}
		set := func(to unix.CPUSet) {
			t.Helper()
			if err := unix.SchedSetaffinity(0, &to); err != nil {
				t.Error(err)
			}
		}
		set(other) // taskset -a, before
		look(time.Second, often, other)
		set(all)
		look(2*time.Second, often, *h.only())
		set(other) // and meanwhile
		look(4*time.Second, 0, other)
		set(*h.only())
		look(5*time.Second, often, *h.only())
		look(7*time.Second, 0, *h.only())
	})
}

// TestHomeless: a processor that is not to be had is not kept to, and a loop without one
// stays free.
func TestHomeless(t *testing.T) {
	onThread(func() {
		all := where(t)
		none := len(all)*64 - 1 // no machine has as many
		for _, cpu := range []int{-1, none} {
			h := home{cpu: cpu, begun: often}
			h.enter()
			h.look(time.Second, time.Second)
			if h.inside || where(t) != all {
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
	l.Home(first(all))
	done := make(chan error)
	go func() { done <- l.Run() }()
	kept := make(chan struct{})
	end := time.Now().Add(10 * time.Second)
	var work func()
	work = func() {
		l.home.begun++ // as with a flow
		if where(t) == *l.home.only() || time.Now().After(end) {
			close(kept)
			return
		}
		l.Post(work)
	}
	l.Post(work)
	<-kept
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

// first is the first processor of a set.
func first(set unix.CPUSet) (cpu int) {
	for !set.IsSet(cpu) {
		cpu++
	}
	return cpu
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
