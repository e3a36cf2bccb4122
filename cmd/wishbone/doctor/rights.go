package doctor

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// asGateway runs f with the rights to files that a gateway has. That is no more than
// this user's, for it gives up root's to read any before it reads the first
// (daemon.Harden); or those of the user whose gateway runs.
func (e *examination) asGateway(f func()) {
	done := make(chan struct{})
	go func() { // ends when f has
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread is thrown away
		var err error
		if e.running && os.Geteuid() == 0 {
			err = readAs(e.cfg.Listen.Admin)
		}
		if err := errors.Join(err, leaveFiles()); err != nil {
			e.warn("files", "", "looked at with other rights than the gateway's: %v", err)
		}
		f()
	}()
	<-done
}

// leaveFiles takes from the calling thread the capabilities for files of others
// (capabilities(7)).
func leaveFiles() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read this thread's capabilities: %w", err)
	}
	data[0].Effective &^= 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_DAC_READ_SEARCH
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("give up CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH: %w", err)
	}
	return nil
}

// readAs makes the calling thread, where it is about files, one of the user that
// listens on a Unix socket (setfsuid(2), unix(7)). Programs that it starts are root's
// still.
func readAs(socket string) error {
	pid, err := listenerOf(socket)
	if err != nil {
		return err
	}
	who, err := readIDs(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	// The whole process's; they count for files alone, and everything is looked at so.
	// EPERM: an ordinary user's namespace, where nobody may (user_namespaces(7)).
	if err := syscall.Setgroups(who["Groups:"]); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("take the groups of process %d: %w", pid, err)
	}
	if err := unix.Setfsgid(who["Gid:"][0]); err != nil {
		return fmt.Errorf("take the group of process %d: %w", pid, err)
	}
	if err := unix.Setfsuid(who["Uid:"][0]); err != nil {
		return fmt.Errorf("take the user of process %d: %w", pid, err)
	}
	return nil
}

// listenerOf is the process that listens on a Unix socket.
func listenerOf(socket string) (pid int32, err error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	controlErr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if controlErr != nil {
		return 0, controlErr
	}
	if err != nil {
		return 0, fmt.Errorf("ask who listens on %s: %w", socket, err)
	}
	return cred.Pid, nil
}

// readIDs reads users and groups, by the first word of their line (proc_pid_status(5)).
func readIDs(path string) (map[string][]int, error) {
	status, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	ids := map[string][]int{}
	for line := range strings.Lines(string(status)) {
		words := strings.Fields(line)
		switch words[0] {
		case "Uid:", "Gid:", "Groups:":
		default:
			continue
		}
		for _, w := range words[1:] {
			id, err := strconv.Atoi(w)
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", path, err)
			}
			ids[words[0]] = append(ids[words[0]], id)
		}
	}
	if len(ids["Uid:"]) == 0 || len(ids["Gid:"]) == 0 {
		return nil, fmt.Errorf("read %s: it names no user", path)
	}
	return ids, nil
}

// access is access(2) by what the calling thread may do now, rather than the real
// user.
func access(path string, mode uint32) error {
	return unix.Faccessat(unix.AT_FDCWD, path, mode, unix.AT_EACCESS)
}
