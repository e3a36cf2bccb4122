package netlab

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	captureRoom = 64 << 20  // bytes of frames that a capture keeps
	queueRoom   = 32 << 20  // bytes the kernel may hold until they are read
	frameRoom   = 256 << 10 // bytes; offloaded segments are much larger than the MTU
)

// Capture reads everything that crosses an interface, in both directions, until [Capture.Stop].
type Capture struct {
	where   string
	file    *os.File
	ended   chan struct{} // closed when read has ended
	traffic Traffic       // owned by read until ended
	err     error         // likewise
}

// Capture begins to read the frames on one of the host's interfaces. What crosses after it returned is seen.
// The caller stops it.
func (h *Host) Capture(ifname string) (*Capture, error) {
	fd := -1
	err := h.Do(func() (err error) {
		fd, err = packetSocket(ifname)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("capture on host %s, %s: %w", h.name, ifname, err)
	}
	c := &Capture{where: h.name + " " + ifname, file: os.NewFile(uintptr(fd), "packet"), ended: make(chan struct{})}
	raw, err := c.file.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, c.file.Close())
	}
	go c.read(raw) // Stop waits for it
	return c, nil
}

// packetSocket is a socket of the present network namespace that gets every frame of an interface, packet(7).
func packetSocket(ifname string) (int, error) {
	link, err := net.InterfaceByName(ifname)
	if err != nil {
		return -1, err
	}
	// Protocol 0: nothing arrives before the socket is bound to the interface.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, queueRoom)
	if err == unix.EPERM {
		// An ordinary user gets what the machine allows everybody (socket(7),
		// rmem_max). What that is too small for is counted as lost.
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, queueRoom)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("enlarge the queue of a packet socket: %w", err)
	}
	every := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8) // network order
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: every, Ifindex: link.Index}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind a packet socket: %w", err)
	}
	return fd, nil
}

// read takes in frames until the deadline that Stop sets, and then what is still queued.
func (c *Capture) read(raw syscall.RawConn) {
	defer close(c.ended)
	buf := make([]byte, frameRoom)
	var failed error
	err := raw.Read(func(fd uintptr) bool {
		failed = c.takeQueued(int(fd), buf)
		return failed != nil // no error: wait for more
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = raw.Control(func(fd uintptr) {
			failed = errors.Join(c.takeQueued(int(fd), buf), c.countLost(int(fd)))
		})
	}
	c.err = errors.Join(err, failed)
}

// takeQueued takes in frames until none is left.
func (c *Capture) takeQueued(fd int, buf []byte) error {
	for {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
		switch {
		case err == unix.EAGAIN:
			return nil
		case err == unix.EINTR:
			continue
		case err == unix.ENETDOWN: // said once when the interface goes down
			continue
		case err != nil:
			return fmt.Errorf("read a packet socket: %w", err)
		}
		c.traffic.add(buf[:min(n, len(buf))])
	}
}

// countLost asks how many frames the kernel had no room for.
func (c *Capture) countLost(fd int) error {
	stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return fmt.Errorf("ask for lost packets: %w", err)
	}
	c.traffic.Lost += int(stats.Drops)
	return nil
}

// Stop ends the capture and returns what crossed until now; it does not wait for more. To be called once.
func (c *Capture) Stop() (*Traffic, error) {
	err := c.file.SetReadDeadline(time.Unix(1, 0))
	<-c.ended
	if err := errors.Join(err, c.err, c.file.Close()); err != nil {
		return nil, fmt.Errorf("capture on %s: %w", c.where, err)
	}
	return &c.traffic, nil
}
