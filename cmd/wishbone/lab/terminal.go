package lab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// onTerminal runs the command on a pseudo-terminal and copies between that and
// our own.
func onTerminal(conn *net.UnixConn, req request, stdin, stdout *os.File) (int, error) {
	master, slave, err := openPTY()
	if err != nil {
		return 0, err
	}
	defer master.Close()
	resize(stdin, master)
	old, err := term.MakeRaw(int(stdin.Fd()))
	if err != nil {
		return 0, errors.Join(fmt.Errorf("make the terminal raw: %w", err), slave.Close())
	}
	// A terminal left raw is worse than an error nobody can read.
	defer func() { _ = term.Restore(int(stdin.Fd()), old) }()
	err = send(conn, req, slave, slave, slave)
	if err = errors.Join(err, slave.Close()); err != nil {
		return 0, err
	}
	winch := make(chan os.Signal, 1)
	signal.Notify(winch, unix.SIGWINCH)
	defer signal.Stop(winch)
	go func() { // ends with the program
		for range winch {
			resize(stdin, master)
		}
	}()
	shown := make(chan struct{})
	go copyAll(master, stdin, nil) // ends with the program: a terminal cannot be interrupted
	go copyAll(stdout, master, shown)
	code, err := await(conn)
	<-shown // what the command has written last
	return code, err
}

// copyAll copies until there is no more; a pseudo-terminal whose other side is
// closed says EIO. It closes done, if there is one.
func copyAll(dst, src *os.File, done chan<- struct{}) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	if done != nil {
		close(done)
	}
}

// openPTY makes a pseudo-terminal (pts(4)).
func openPTY() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a pseudo-terminal: %w", err)
	}
	if err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("unlock a pseudo-terminal: %w", err), master.Close())
	}
	// The other side without its path, which another mount namespace may not
	// have (ioctl_tty(2), TIOCGPTPEER).
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, nil, errors.Join(fmt.Errorf("open a pseudo-terminal: %w", errno), master.Close())
	}
	return master, os.NewFile(fd, "pts"), nil
}

// resize gives the pseudo-terminal the size of our own.
func resize(from, to *os.File) {
	ws, err := unix.IoctlGetWinsize(int(from.Fd()), unix.TIOCGWINSZ)
	if err == nil {
		// A wrong size is no reason to stop.
		_ = unix.IoctlSetWinsize(int(to.Fd()), unix.TIOCSWINSZ, ws)
	}
}
