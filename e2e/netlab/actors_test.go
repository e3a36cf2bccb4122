package netlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// modeVar asks the test program to play a part instead of running tests.
const modeVar = "NETLAB_TEST_MODE"

// act plays a part and returns the exit status. Most parts begin with Enter, so they are played twice.
func act(mode string) int {
	switch mode {
	case "nothing":
		return 0
	case "forbidden":
		return actForbidden()
	case "toothless":
		return actToothless()
	case "orphan":
		return actOrphan()
	}
	if err := Enter(); err != nil {
		return explain(err)
	}
	switch mode {
	case "status":
		return 7
	case "cat":
		io.Copy(os.Stdout, os.Stdin)
		return 0
	case "signal":
		return actSignal()
	case "hang":
		fmt.Println("ready")
		select {}
	case "descendants":
		return actDescendants()
	case "world":
		return actWorld()
	}
	return 3
}

// explain prints what a caller of Enter can know.
func explain(err error) int {
	no, ok := errors.AsType[*ForbiddenError](err)
	if !ok {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println("forbidden:", no.Hint)
	return 9
}

func actSignal() int {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM)
	fmt.Println("ready")
	fmt.Println("got", <-signals)
	return 0
}

// self is this program in another part, with the same standard output.
func self(mode string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), modeVar+"="+mode)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd
}

// actDescendants starts a command on a host, which starts another and leaves it behind.
func actDescendants() int {
	h, err := New().Host("h")
	if err == nil {
		err = h.Start(self("orphan", "parent"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	io.Copy(io.Discard, os.Stdin)
	return 0
}

// actOrphan is first the parent and then, in a session of its own, the orphan, which says that it is ready.
func actOrphan() int {
	if len(os.Args) > 1 {
		cmd := self("orphan")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return 0
	}
	signal.Ignore(unix.SIGTERM, unix.SIGHUP, unix.SIGINT)
	fmt.Println("ready")
	select {}
}

// actWorld reaches the server from the client.
func actWorld() int {
	w, err := NewWorld(WorldConfig{})
	if err != nil {
		return explain(err)
	}
	defer w.Close()
	ln, err := w.Server.Listen("tcp", "[fd00:2::2]:80")
	if err != nil {
		return explain(err)
	}
	defer ln.Close()
	conn, err := w.Client.Dial(context.Background(), "tcp", ln.Addr().String())
	if err != nil {
		return explain(err)
	}
	defer conn.Close()
	fmt.Println("reached the server")
	return 0
}

// actForbidden becomes a user without powers where no more user namespaces may be made, and tries to enter.
func actForbidden() int {
	if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0o644); err != nil {
		return explain(err)
	}
	runtime.LockOSThread()
	const noroot = 1 // SECBIT_NOROOT: uid 0 gets no capabilities by exec, capabilities(7)
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noroot, 0, 0, 0); err != nil {
		return explain(err)
	}
	var none [2]unix.CapUserData
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		return explain(err)
	}
	return become("status")
}

// actToothless has mount(2) denied from now on, as a security module does it, and tries to enter.
func actToothless() int {
	runtime.LockOSThread()
	deny := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the system call's number, seccomp(2)
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_MOUNT, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(deny)), Filter: &deny[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return explain(err)
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
		return explain(err)
	}
	return become("status")
}

// become is exec with this thread's powers.
func become(mode string) int {
	os.Setenv(modeVar, mode)
	return explain(syscall.Exec("/proc/self/exe", os.Args, os.Environ()))
}
