package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// enteredVar marks the program that Enter started. Its value is the network namespace it was started from,
// so that a stray variable is not believed; the started program removes it, so that its children don't
// inherit it.
const enteredVar = "WISHBONE_NETLAB_FROM"

// Enter moves the program into namespaces of its own: network, mount, PID and, unless it may already
// administer networks, user. Call it first thing in main or TestMain.
//
// A running Go program cannot be moved, so Enter starts this very program once more (same arguments,
// environment and directory) inside. There it returns nil, with the loopback interface up, a /proc of its
// own, and root's powers. Outside it never returns: it passes standard streams, signals and, in the end, the
// exit status through, and exits. If it is killed, the program inside and all that it started die with it.
//
// The error is a [*ForbiddenError] where this machine does not let ordinary users have such namespaces, or
// lets them have toothless ones.
func Enter() error {
	if from := os.Getenv(enteredVar); from != "" && from != currentNetwork() {
		os.Unsetenv(enteredVar)
		return furnish()
	}
	// Pdeathsig follows the thread that started the child, prctl(2) PR_SET_PDEATHSIG: keep it to the end.
	runtime.LockOSThread()
	cmd, err := again()
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, relayed()...)
	if err := cmd.Start(); err != nil {
		signal.Stop(signals)
		return fmt.Errorf("start %s in new namespaces: %w", cmd.Path, forbidden("clone", err))
	}
	go relay(signals, cmd.Process) // ends with the process, a few lines below
	os.Exit(exitStatus(cmd.Wait()))
	return nil
}

// currentNetwork names the network namespace this thread is in.
func currentNetwork() string {
	name, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		return ""
	}
	return name
}

// again describes this very program, to be started in namespaces.
func again() (*exec.Cmd, error) {
	from := currentNetwork()
	if from == "" {
		return nil, errors.New("enter a lab: /proc is not mounted")
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), enteredVar+"="+from)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	if !mayAdminister() {
		asRoot(cmd.SysProcAttr)
	}
	return cmd, nil
}

// asRoot adds a user namespace in which the present user is root, the only user there is
// (user_namespaces(7), "Defining user and group ID mappings").
func asRoot(attr *syscall.SysProcAttr) {
	attr.Cloneflags |= unix.CLONE_NEWUSER
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	attr.GidMappingsEnableSetgroups = false
}

// mayAdminister says whether namespaces can be made without a user namespace around them.
func mayAdminister() bool {
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return false
	}
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
	return data[0].Effective&need == need
}

// relayed lists the signals passed on to the program inside. A terminal sends its own to both; the second
// copy then finds a program that is already ending. Those ignored from birth (nohup) stay ignored.
func relayed() []os.Signal {
	var signals []os.Signal
	for _, s := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2} {
		if !signal.Ignored(s) {
			signals = append(signals, s)
		}
	}
	return signals
}

// relay passes signals on, for as long as the program lives.
func relay(signals <-chan os.Signal, to *os.Process) {
	for s := range signals {
		_ = to.Signal(s) // an error says that it has ended: Enter's Wait knows
	}
}

// exitStatus turns what Wait says into a status, 128+n for a signal as shells have it.
func exitStatus(err error) int {
	if err == nil {
		return 0
	}
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return 1
	}
	if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return exit.ExitCode()
}

// furnish makes the new namespaces habitable. It is also the test of whether they have teeth: under
// AppArmor's restriction unshare succeeds and every capability is denied afterwards.
func furnish() error {
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("bring up lo in a new network namespace: %w", forbidden("lo", err))
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", forbidden("mount", err))
	}
	// The old /proc shows the processes outside, by other numbers.
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount a fresh /proc: %w", forbidden("proc", err))
	}
	return nil
}

// loopbackUp sets lo up in this thread's network namespace, netdevice(7).
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}
