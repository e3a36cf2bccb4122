package engine_test

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wishbone/tunnel/engine"
)

// TestNoDescriptors: a listener that has run out of descriptors rests, and goes
// on when there are some again. It runs in a process of its own, whose limit
// may be lowered without harm.
func TestNoDescriptors(t *testing.T) {
	const child = "ENGINE_TEST_CHILD"
	if os.Getenv(child) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestNoDescriptors$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS: "+t.Name()) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	const clients, spare = 10, 4
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	control(t, ln.(*net.TCPListener), func(l int) { fd = l })
	l := must(engine.NewLoop())
	for range clients { // they wait in the listener's queue
		dial(t, ln.Addr().String())
	}
	restore := limitDescriptors(t, spare)

	results := make(chan error, 100)
	var accepted []int
	var watch *engine.Listener
	l.Post(func() {
		watch = must(l.Listen(fd, func() error {
			c, _, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			if err == nil {
				accepted = append(accepted, c)
			}
			results <- err
			return err
		}))
	})
	done := make(chan error)
	go func() { done <- l.Run() }()
	p := &pair{}
	next := func(want error) {
		t.Helper()
		if got := <-results; got != want {
			t.Fatalf("accept said %v, want %v", got, want)
		}
	}
	for range spare {
		next(nil)
	}
	next(unix.EMFILE)
	for range 3 { // it tries again after each rest, once
		p.round(l)
		p.on(l, func() {
			if !watch.Resting() || len(results) > 0 {
				t.Error("the listener does not rest")
			}
			l.Advance(engine.RestTime)
		})
		next(unix.EMFILE)
	}
	restore()
	p.on(l, func() { l.Advance(engine.RestTime) })
	for range clients - spare {
		next(nil)
	}
	next(unix.EAGAIN)
	p.on(l, func() {
		if watch.Resting() {
			t.Error("the listener still rests")
		}
		l.Stop()
	})
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, c := range accepted {
		unix.Close(c)
	}
}

// limitDescriptors leaves this process n more descriptors than it has.
func limitDescriptors(t *testing.T, n int) (restore func()) {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	set := func(l unix.Rlimit) {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
			t.Fatal(err)
		}
	}
	// The limit is on numbers: fill the gaps, and see where the next would be.
	var last int
	for range 256 {
		fd, err := unix.Dup(0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		last = max(last, fd)
	}
	set(unix.Rlimit{Cur: uint64(last + 1 + n), Max: old.Max})
	return func() { set(old) }
}

// TestListenerLearns: one connection is one call, and many that wait are all taken
// with few calls in vain, and few later.
func TestListenerLearns(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var fd int
	control(t, ln.(*net.TCPListener), func(l int) { fd = l })
	l := must(engine.NewLoop())
	var taken, vain int
	p := &pair{}
	l.Post(func() {
		must(l.Listen(fd, func() error {
			c, _, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			if err != nil {
				vain++
				return err
			}
			taken++
			return unix.Close(c)
		}))
	})
	done := make(chan error)
	go func() { done <- l.Run() }()
	want := func(n int) {
		t.Helper()
		eventually(t, "all are accepted", func() (all bool) {
			p.on(l, func() { all = taken == n })
			return all
		})
		p.round(l)
	}
	dial(t, ln.Addr().String())
	want(1)
	if vain > 0 {
		t.Errorf("%d calls in vain for one connection", vain)
	}
	release := p.hold(l)
	for range 40 {
		dial(t, ln.Addr().String())
	}
	release()
	want(41)
	for n := range 5 {
		dial(t, ln.Addr().String())
		want(42 + n)
	}
	if vain > 2 {
		t.Errorf("%d calls in vain for many connections and then some", vain)
	}
	p.on(l, l.Stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
