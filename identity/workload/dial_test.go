package workload

import (
	"errors"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestNotAllowed has the kernel refuse a socket without any permission, to root
// too: root's word over permissions is a capability, which is dropped.
func TestNotAllowed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := syscall.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	s, err := newSource(Config{Address: "unix://" + path})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, as it must not be
		// used again.
		runtime.LockOSThread()
		if err := dropOverride(); err != nil {
			done <- err
			return
		}
		c, err := s.dial(t.Context())
		if err == nil {
			c.Close()
			err = errors.New("connected")
		}
		done <- err
	}()
	if err := <-done; !errors.Is(err, syscall.EACCES) {
		t.Fatalf("connect: %v, want %v", err, syscall.EACCES)
	}
	e := s.unavailable("gRPC's words")
	if e.Problem != NotAllowed {
		t.Errorf("%v, want problem %s", e, NotAllowed)
	}
	if !errors.Is(e, syscall.EACCES) || !strings.Contains(e.Error(), path) {
		t.Errorf("%v does not say what the kernel said, of %s", e, path)
	}
}

// dropOverride takes this thread's capabilities (capabilities(7)).
func dropOverride() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	return unix.Capset(&header, &none[0])
}
