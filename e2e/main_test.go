package e2e

import (
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/cli"
	"wishbone/e2e/netlab"
)

var long = flag.Bool("long", false, "run for minutes what else runs for seconds")

// runVar asks the test program to be something else: "1" for the command line,
// or what beInstead knows.
const runVar = "WISHBONE_E2E_RUN"

// with is a mode with no other capabilities (capabilities(7)) than those named,
// of root or, where "nobody" is among them, of another user.
func with(mode string, capabilities ...string) string {
	return mode + " with " + strings.Join(capabilities, ",")
}

func TestMain(m *testing.M) {
	if mode := os.Getenv(runVar); mode != "" {
		os.Exit(beInstead(mode))
	}
	if err := netlab.Enter(); err != nil {
		fmt.Fprintf(os.Stderr, "these tests need network namespaces: %v\n", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// beInstead is the test program as something else, and its exit code.
func beInstead(mode string) int {
	var err error
	mode, capabilities, limited := strings.Cut(mode, " with ")
	switch {
	case limited:
		err = keepOnly(mode, strings.Split(capabilities, ","))
	case mode == "connect":
		err = connect(os.Args[1])
	case mode == "open":
		var f *os.File
		if f, err = os.Open(os.Args[1]); err == nil {
			f.Close()
		}
	case mode == "stay":
		fmt.Println("here")
		_, err = io.Copy(io.Discard, os.Stdin)
	case mode == "sink":
		err = discard(os.Args[1:])
	case mode == "probe":
		err = probe(os.Args[1], os.Args[2:])
	default:
		return cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

var capabilityNumbers = map[string]uint{
	"net_raw": unix.CAP_NET_RAW, "net_admin": unix.CAP_NET_ADMIN, "net_bind_service": unix.CAP_NET_BIND_SERVICE, "sys_module": unix.CAP_SYS_MODULE,
}

// keepOnly starts this program once more, as root with few powers, which is what
// an ordinary user with these powers has. Every thread has capabilities of its
// own, and exec(2) keeps those of the one that calls it; uid 0 would get all of
// them back without the bit, and lose them without the ambient set
// (capabilities(7)). It returns only with an error.
func keepOnly(mode string, names []string) error {
	runtime.LockOSThread()
	const noroot = 1 // SECBIT_NOROOT
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noroot, 0, 0, 0); err != nil {
		return err
	}
	var keep [2]unix.CapUserData
	var ambient []uint
	for _, name := range names {
		switch n, ok := capabilityNumbers[name]; {
		case ok:
			keep[0].Permitted |= 1 << n
			ambient = append(ambient, n)
		case name == "nobody":
			if err := becomeNobody(); err != nil {
				return err
			}
		case name != "":
			return fmt.Errorf("capability %q", name)
		}
	}
	keep[0].Effective, keep[0].Inheritable = keep[0].Permitted, keep[0].Permitted
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &keep[0]); err != nil {
		return err
	}
	for _, n := range ambient {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(n), 0, 0); err != nil {
			return err
		}
	}
	// The signal belongs to the thread, and netlab has given it to the first.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	if err := os.Setenv(runVar, mode); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", os.Args, os.Environ())
}

// nobodyID is a user that files of the tests do not belong to.
const nobodyID = 65534

// becomeNobody makes the calling thread another user's, with the same permitted
// capabilities (PR_SET_KEEPCAPS).
func becomeNobody() error {
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 {
		return fmt.Errorf("setgroups: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, nobodyID, nobodyID, nobodyID); errno != 0 {
		return fmt.Errorf("setresgid: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, nobodyID, nobodyID, nobodyID); errno != 0 {
		return fmt.Errorf("setresuid: %w", errno)
	}
	return nil
}
