package e2e

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/cli"
	"wishbone/e2e/netlab"
)

// runVar asks the test program to be the command line.
const runVar = "WISHBONE_E2E_RUN"

func TestMain(m *testing.M) {
	if mode := os.Getenv(runVar); mode != "" {
		os.Unsetenv(runVar) // for its children
		if mode == "nocaps" {
			panic(dropCapabilities()) // returns only with an error
		}
		if mode == "connect" {
			if err := connect(os.Args[1]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		}
		os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	if err := netlab.Enter(); err != nil {
		fmt.Fprintf(os.Stderr, "these tests need network namespaces: %v\n", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// dropCapabilities starts this program once more, as root without powers. Every
// thread has capabilities of its own, and exec(2) keeps those of the one that
// calls it; uid 0 would get all of them back without the bit (capabilities(7)).
func dropCapabilities() error {
	runtime.LockOSThread()
	const noroot = 1 // SECBIT_NOROOT
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noroot, 0, 0, 0); err != nil {
		return err
	}
	var none [2]unix.CapUserData
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		return err
	}
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), runVar+"=1"))
}
