package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"wishbone/config"
)

// Restrictions are what a gateway has laid upon itself before its first secret.
type Restrictions struct {
	// Landlock is the version of the kernel's Landlock that keeps it out of the
	// file system (landlock(7)), 0 where the kernel has none.
	Landlock int
	// Capabilities are those that it has kept.
	Capabilities Capabilities
}

// Log says what is in force.
func (r Restrictions) Log(log *slog.Logger) {
	log.Info("hardened: no dumps, no new privileges", "capabilities", r.Capabilities.String()) // JSON would have the number
	if r.Landlock == 0 {
		log.Info("this kernel has no Landlock: the file system is open to the gateway as to its user")
		return
	}
	log.Info("the file system is closed but for what the gateway needs", "landlock", r.Landlock)
}

// hardenedVar marks the program that Harden has started. Its value begins with
// the process's number, which execve(2) keeps, so that a stray variable is not
// believed.
const hardenedVar = "WISHBONE_HARDENED"

// Harden gives up, for the life of this process and its children, whatever a
// gateway with this configuration does not need: capabilities, places in the file
// system, the gaining of anything by execve(2), and dumps of memory that will
// hold a private key.
//
// Most of this belongs to threads, of which a Go program has several before its
// first line, and not every build can reach them all (syscall.AllThreadsSyscall
// works without cgo only). So Harden restricts one thread, and has it execute
// this very program once more in place of the process: same number, arguments
// and environment. Only there it returns.
func Harden(cfg *config.Config) (Restrictions, error) {
	if r, ok := hardened(); ok {
		return r, seal(&r)
	}
	// Never unlocked: what this thread has given up, no other goroutine shall miss.
	runtime.LockOSThread()
	if err := startAgain(cfg); err != nil {
		return Restrictions{}, fmt.Errorf("start hardened: %w", err)
	}
	panic("execve has returned without an error")
}

// hardened says whether this is the program that was started again.
func hardened() (r Restrictions, ok bool) {
	var pid int
	_, err := fmt.Sscanf(os.Getenv(hardenedVar), "%d:%d", &pid, &r.Landlock)
	if err != nil || pid != os.Getpid() {
		return r, false
	}
	os.Unsetenv(hardenedVar) // for its children
	return r, true
}

// seal does what does not outlast execve(2), and sees that the rest has.
func seal(r *Restrictions) (err error) {
	set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err == nil && set != 1 {
		err = errors.New("it has not outlasted execve")
	}
	if err != nil {
		return fmt.Errorf("harden: no_new_privs: %w", err)
	}
	// Memory can then be neither dumped nor looked at by others of this user
	// (PR_SET_DUMPABLE(2const), ptrace(2)).
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("harden: forbid dumps: %w", err)
	}
	r.Capabilities, err = CurrentCapabilities()
	return err
}

// startAgain restricts the calling thread and executes the program. It returns
// only with an error.
func startAgain(cfg *config.Config) error {
	_, have, err := capget()
	if err != nil {
		return err
	}
	keep := have & (NetRaw | NetBindService)
	runs := false // programs: those of iptables
	if have.Has(NetAdmin) && cfg.Capture.Firewall != config.NoFirewall {
		keep |= NetAdmin
		runs = warmUp(cfg.Capture.Firewall) == "iptables"
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := joinGroup(); err != nil {
		return err
	}
	abi, err := confine(places(cfg, runs))
	if err != nil {
		return fmt.Errorf("close the file system with Landlock: %w", err)
	}
	if err := limit(have, keep); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(deathSignal), 0, 0, 0); err != nil {
		return fmt.Errorf("set the parent-death signal: %w", err)
	}
	if err := os.Setenv(hardenedVar, fmt.Sprintf("%d:%d", os.Getpid(), abi)); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", os.Args, os.Environ())
}

// deathSignal is what this process gets when its parent dies. It belongs to the
// first thread, which initialisation is sure to run on, and the thread that
// executes takes its own along (PR_SET_PDEATHSIG(2const)).
var deathSignal = func() (s int32) {
	if err := prctlGet(unix.PR_GET_PDEATHSIG, &s); err != nil {
		return 0 // a kernel without it has nothing to lose
	}
	return s
}()

// warmUp opens the backend that will be used, while modules can still be loaded
// by modprobe (iptables of the older kind does so itself, and will not have
// CAP_SYS_MODULE), and gives its name. What is wrong is said when it is used.
func warmUp(kind config.Firewall) string {
	b, err := Backend(kind)
	if err != nil {
		return ""
	}
	_, _ = b.Counters() // looks into every table
	return b.Name()
}

// joinGroup makes this process one of group wishbone, if there is one and it may:
// then it may give the group its admin socket without CAP_CHOWN (chown(2)).
func joinGroup() error {
	gid, ok := adminGroup()
	if !ok {
		return nil
	}
	groups, err := syscall.Getgroups()
	if err != nil {
		return fmt.Errorf("list own groups: %w", err)
	}
	if slices.Contains(groups, gid) {
		return nil
	}
	if err := syscall.Setgroups(append(groups, gid)); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("join group wishbone: %w", err)
	}
	return nil
}

// adminGroup is group wishbone.
func adminGroup() (gid int, ok bool) {
	g, err := user.LookupGroup("wishbone")
	if err != nil {
		return 0, false
	}
	gid, err = strconv.Atoi(g.Gid)
	return gid, err == nil
}

// limit leaves the calling thread, and what it executes, only some of its
// capabilities.
func limit(have, keep Capabilities) error {
	if have.Has(1 << unix.CAP_SETPCAP) {
		// Under no_new_privs nothing comes back out of the bounding set anyway. The
		// three stay in it: execve(2) refuses a file whose own it could not give.
		for c := uintptr(0); ; c++ {
			if (NetRaw | NetAdmin | NetBindService).Has(1 << c) {
				continue
			}
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); errors.Is(err, unix.EINVAL) {
				break // beyond the last one
			} else if err != nil {
				return fmt.Errorf("bounding set: %w", err)
			}
		}
	}
	half := func(shift int) unix.CapUserData {
		c := uint32(keep >> shift)
		return unix.CapUserData{Effective: c, Permitted: c, Inheritable: c}
	}
	data := [2]unix.CapUserData{half(0), half(32)}
	if err := unix.Capset(capVersion(), &data[0]); err != nil {
		return err
	}
	// Ambient ones outlast execve(2) for who is not root and has no capable file.
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("ambient set: %w", err)
	}
	for _, c := range []uintptr{unix.CAP_NET_RAW, unix.CAP_NET_ADMIN, unix.CAP_NET_BIND_SERVICE} {
		if !keep.Has(1 << c) {
			continue
		}
		// EPERM: securebits forbid it. What is then missing is said by CheckCapabilities.
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("ambient set: %w", err)
		}
	}
	return nil
}
