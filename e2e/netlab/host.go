package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is a network namespace. Its methods may be called from any goroutine, until [Lab.Close].
type Host struct {
	name string
	ns   int             // descriptor of the namespace, -1 once closed; closed by close
	nl   *netlink.Handle // its sockets are in the namespace; closed by close
	work chan func()     // run on the host's own thread
	done chan struct{}   // closed by close

	mu      sync.Mutex
	started []*os.Process // guarded by mu; killed by close
}

// Name is what Lab.Host was given.
func (h *Host) Name() string { return h.name }

// live is the host's own thread. It makes the namespace, and starts every command of the host: a child's
// Pdeathsig is tied to the thread that started it, so that thread must live as long as the host does. The
// thread is not given back: it ends with the goroutine.
func (h *Host) live(born chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The process's first thread is what /proc/self shows, and it never ends: sit on it, so that
		// another one is found.
		var other sync.WaitGroup
		other.Go(func() { h.live(born) })
		other.Wait()
		runtime.UnlockOSThread()
		return
	}
	err := h.make()
	born <- err
	if err != nil {
		return
	}
	for {
		select {
		case f := <-h.work:
			f()
		case <-h.done:
			return
		}
	}
}

// make unshares the network namespace of the calling thread and keeps hold of it.
func (h *Host) make() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("new network namespace (did the program call Enter?): %w", err)
	}
	ns, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the network namespace: %w", err)
	}
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err == nil {
		err = errors.Join(loopbackUp(), defaults())
	}
	if err != nil {
		unix.Close(ns)
		return err
	}
	h.ns, h.nl = ns, nl
	return nil
}

// defaults sets what a new namespace inherits from the machine (devconf_inherit_init_net) or would make it
// wait for: duplicate address detection holds an address back for a second.
func defaults() error {
	var errs []error
	for name, value := range map[string]string{
		"net.ipv4.ip_forward":                        "0",
		"net.ipv4.conf.all.rp_filter":                "0",
		"net.ipv4.conf.default.rp_filter":            "0",
		"net.ipv6.conf.all.accept_dad":               "0", // the larger of all and the interface's counts
		"net.ipv6.conf.default.accept_dad":           "0",
		"net.ipv6.conf.default.accept_ra":            "0",
		"net.ipv6.conf.default.router_solicitations": "0",
	} {
		errs = append(errs, writeSysctl(name, value))
	}
	return errors.Join(errs...)
}

// close kills the host's commands and lets go of the namespace.
func (h *Host) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, p := range h.started {
		_ = p.Kill() // an error says that it has ended
	}
	close(h.done)
	h.nl.Close()
	err := unix.Close(h.ns)
	h.ns = -1
	return err
}

// Do runs fn on the calling goroutine, with its OS thread inside the host's network namespace: sockets that
// fn makes belong to the host for good, /proc/sys/net is the host's, and so is /proc/thread-self/net
// (/proc/net is not: it follows the process's first thread). Goroutines that fn starts are elsewhere.
// Calls may be nested, also of different hosts; fn may panic or call t.FailNow. Start commands with
// [Host.Start]: a Pdeathsig would be bound to a thread that may end.
func (h *Host) Do(fn func() error) (err error) {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("visit host %s: remember the way home: %w", h.name, err)
	}
	defer func() { err = errors.Join(err, goHome(home)) }()
	if err := unix.Setns(h.ns, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("visit host %s: %w", h.name, err)
	}
	return fn()
}

// goHome ends a visit. A thread that cannot return stays locked to its goroutine and is thrown away with it.
func goHome(home int) error {
	defer unix.Close(home)
	if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("return from a host: %w", err)
	}
	runtime.UnlockOSThread()
	return nil
}

// Start starts cmd on the host. The command is killed by [Lab.Close], and by the kernel when this program
// dies; the caller has to Wait for it.
func (h *Host) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	result := make(chan error, 1)
	select {
	case h.work <- func() { result <- cmd.Start() }:
	case <-h.done:
		return fmt.Errorf("start %s: host %s is closed", cmd.Path, h.name)
	}
	if err := <-result; err != nil {
		return fmt.Errorf("start on host %s: %w", h.name, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.started = append(h.started, cmd.Process)
	return nil
}

// Listen is [net.Listen] on the host. The caller closes the listener.
func (h *Host) Listen(network, address string) (ln net.Listener, err error) {
	err = h.Do(func() error {
		ln, err = net.Listen(network, address)
		return err
	})
	return ln, err
}

// Dial is [net.Dialer.DialContext] on the host; address is a literal one, there are no names here. For a
// dialer with settings use it inside [Host.Do]. The caller closes the connection.
func (h *Host) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = h.Do(func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}
