package intercept

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestListenOnAtOnce: of two gateways that start at once one gets the address, or none.
func TestListenOnAtOnce(t *testing.T) {
	testFamilies(t, func(t *testing.T, s street, a family) {
		var address netip.AddrPort
		err := s.gateway.Do(func() error {
			free, err := Listen(at(a.loopback, 0), Options{})
			if err != nil {
				return err
			}
			address = local(t, free)
			return unix.Close(free)
		})
		if err != nil {
			t.Fatal(err)
		}
		cpus := processors(t)
		for range 100 {
			var got [2][]int
			var both sync.WaitGroup
			gate := make(chan struct{})
			for i := range got {
				both.Go(func() {
					err := s.gateway.Do(func() (err error) {
						<-gate
						got[i], err = ListenOn(address, Options{}, cpus)
						return err
					})
					if err != nil && !errors.Is(err, unix.EADDRINUSE) {
						t.Error(err)
					}
				})
			}
			close(gate)
			both.Wait()
			if got[0] != nil && got[1] != nil {
				t.Error("both have the address")
			}
			for _, fd := range slices.Concat(got[:]...) {
				unix.Close(fd)
			}
		}
	})
}

// TestListenOn: each processor's connections come to its own listener, and nobody else
// gets any.
func TestListenOn(t *testing.T) {
	testFamilies(t, func(t *testing.T, s street, a family) {
		cpus := processors(t)
		var fds []int
		var address netip.AddrPort
		err := s.gateway.Do(func() (err error) {
			free, err := Listen(at(a.loopback, 0), Options{})
			if err != nil {
				return err
			}
			address = local(t, free)
			if _, err := ListenOn(address, Options{}, cpus); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("beside a listener: %v", err)
			}
			unix.Close(free)
			if fds, err = ListenOn(address, keepalive, cpus); err != nil {
				return err
			}
			if _, err := ListenOn(address, Options{}, cpus); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("beside others' listeners: %v", err)
			}
			if _, err := Listen(address, Options{}); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("one listener beside others': %v", err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for _, fd := range fds {
				unix.Close(fd)
			}
		})
		for _, fd := range fds {
			wantFlags(t, fd)
			wantOptions(t, fd, keepaliveOptions...)
		}
		for i, cpu := range cpus {
			for range 8 { // by chance alone they would hardly all come there
				c := connectOn(t, s, cpu, address)
				got := waiting(t, fds)
				if n := len(cpus); got != i && n > 1 && incomingCPU(t) {
					t.Errorf("from processor %d to the listener of %d, of %d", cpu, cpus[got], n)
				}
				f := take(t, fds[got])
				if client := local(t, c); f.Client != client || f.Target != address {
					t.Errorf("%v to %v, want %v to %v", f.Client, f.Target, client, address)
				}
			}
		}
	})
}

// processors are two that this process may use, or the one.
func processors(t *testing.T) (cpus []int) {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; len(cpus) < min(2, set.Count()); cpu++ {
		if set.IsSet(cpu) {
			cpus = append(cpus, cpu)
		}
	}
	return cpus
}

// connectOn connects from within the gateway's host, on a processor.
func connectOn(t *testing.T, s street, cpu int, to netip.AddrPort) (fd int) {
	t.Helper()
	err := s.gateway.Do(func() (err error) { // whose thread this is
		var all, set unix.CPUSet
		set.Set(cpu)
		if err := errors.Join(unix.SchedGetaffinity(0, &all), unix.SchedSetaffinity(0, &set)); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unix.SchedSetaffinity(0, &all)) }()
		family := unix.AF_INET
		if to.Addr().Is6() {
			family = unix.AF_INET6
		}
		if fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		return unix.Connect(fd, sockaddr(to))
	})
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// waiting is the listener at which a connection waits.
func waiting(t *testing.T, fds []int) int {
	t.Helper()
	var polled []unix.PollFd
	for _, fd := range fds {
		polled = append(polled, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	if n := poll(t, polled); n != 1 {
		t.Fatalf("%d listeners have somebody", n)
	}
	return slices.IndexFunc(polled, func(p unix.PollFd) bool { return p.Revents != 0 })
}

// incomingCPU says whether the kernel looks at SO_INCOMING_CPU among listeners that share
// an address: before Linux 6.2 it does not.
func incomingCPU(t *testing.T) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	for _, old := range []string{"4.", "5.", "6.0.", "6.1."} {
		if strings.HasPrefix(release, old) {
			return false
		}
	}
	return true
}
