package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Short connections are opened by threads that wait in the kernel, since one that
// waits in Go's scheduler takes as much time as what is measured.

// patience is how long a short connection may take.
const patience = 5 * time.Second

// roundTrip is one short connection of the thread's own host: what it takes, in
// seconds. It fails with os.ErrDeadlineExceeded where nothing answers.
func roundTrip(g *gateways) (float64, error) {
	began := time.Now()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	if err := dialShort(fd, g); err != nil {
		return 0, fmt.Errorf("connect: %w", err)
	}
	if _, err := unix.Write(fd, []byte{once}); err != nil {
		return 0, fmt.Errorf("write: %w", err)
	}
	answer, err := readAll(fd)
	switch {
	case errors.Is(err, unix.EAGAIN): // socket(7), SO_RCVTIMEO
		return 0, os.ErrDeadlineExceeded
	case err != nil:
		return 0, fmt.Errorf("read: %w", err)
	case string(answer) != string(rune(once)):
		return 0, fmt.Errorf("%w: %q", errWrong, answer)
	}
	return time.Since(began).Seconds(), nil
}

// dialShort connects a socket as a candidate wants it.
func dialShort(fd int, g *gateways) error {
	timeout := unix.NsecToTimeval(int64(patience))
	err := errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout),
		unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_USER_TIMEOUT, int(patience/time.Millisecond)))
	if err == nil && g.from.IsValid() {
		err = unix.Bind(fd, address(netip.AddrPortFrom(g.from, 0)))
	}
	if err != nil {
		return err
	}
	return unix.Connect(fd, address(g.at))
}

func address(a netip.AddrPort) unix.Sockaddr {
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

func readAll(fd int) (all []byte, err error) {
	var buf [16]byte
	for {
		n, err := unix.Read(fd, buf[:])
		switch {
		case err == unix.EINTR:
		case err != nil || n == 0:
			return all, err
		default:
			all = append(all, buf[:n]...)
		}
	}
}
