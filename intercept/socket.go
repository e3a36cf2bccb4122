package intercept

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options are what our sockets have in common.
type Options struct {
	// Mark is the own mark (SO_MARK). It must be set on every socket before
	// bind and connect; 0 sets none, for tests without rules.
	Mark uint32
	// Idle, Interval and Count are the keepalive of client legs, and of server
	// legs that KeepAlive is called for (tcp(7): TCP_KEEPIDLE, TCP_KEEPINTVL,
	// TCP_KEEPCNT). The rules forget a flow that is silent for five minutes, so
	// Idle must be well below that.
	// A zero Idle leaves keepalive off; a zero Interval or Count is the kernel's
	// own (75 s, 9). Times are rounded up to whole seconds.
	Idle, Interval time.Duration
	Count          int
}

// Flow is a captured connection. Whoever receives it owns FD and closes it.
type Flow struct {
	Client netip.AddrPort // who connected
	Target netip.AddrPort // where to: the socket's local address, under TPROXY
	FD     int            // non-blocking
}

// Errors of deliveries, to be told apart by their reasons.
var (
	// ErrPortTaken says that the source address and port are in use towards
	// this destination, or altogether.
	ErrPortTaken = errors.New("source address and port are in use")
	// ErrPermission says that the process lacks a capability, which the error
	// names (capabilities(7)).
	ErrPermission = errors.New("not permitted")
)

// Listen opens the transparent listener for one address of loopback. The rules
// hand it connections to any destination; it does not accept others than those
// and local ones. The caller owns the descriptor.
func Listen(at netip.AddrPort, o Options) (fd int, err error) { return listen(at, o, false) }

// ListenOn opens a transparent listener for each of cpus, in their order: the kernel
// hands each the connections that arrive on its processor (socket(7), SO_REUSEPORT and
// SO_INCOMING_CPU; before Linux 6.2, and for processors without a listener, any). Nobody
// else may have one there, as with Listen. The caller owns the descriptors.
func ListenOn(at netip.AddrPort, o Options, cpus []int) (fds []int, err error) {
	defer func() {
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
			fds = nil
		}
	}()
	for i, cpu := range cpus {
		// The first finds out whether another program of our user's listens there,
		// which would share with us what comes.
		fd, err := listen(at, o, i > 0)
		if err != nil {
			return fds, err
		}
		fds = append(fds, fd)
		if err := errors.Join(share(fd), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_INCOMING_CPU, cpu)); err != nil {
			return fds, fmt.Errorf("open transparent listener %s: for processor %d: %w", at, cpu, err)
		}
	}
	return fds, nil
}

// share lets other sockets have the address, too.
func share(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }

// listen opens a listener, beside others at its address that are shared if that is so.
func listen(at netip.AddrPort, o Options, beside bool) (fd int, err error) {
	fd, err = newSocket(at.Addr(), o)
	if err != nil {
		return -1, fmt.Errorf("open transparent listener %s: %w", at, err)
	}
	defer closeOnError(fd, &err)
	if err = setTransparent(fd, at.Addr()); err != nil {
		return -1, fmt.Errorf("open transparent listener %s: %w", at, err)
	}
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, fmt.Errorf("open transparent listener %s: SO_REUSEADDR: %w", at, err)
	}
	if beside {
		if err = share(fd); err != nil {
			return -1, fmt.Errorf("open transparent listener %s: SO_REUSEPORT: %w", at, err)
		}
	}
	// What is accepted has the options of its listener (tcp_create_openreq_child).
	if err = errors.Join(tune(fd), KeepAlive(fd, o)); err != nil {
		return -1, fmt.Errorf("open transparent listener %s: %w", at, err)
	}
	if err = unix.Bind(fd, sockaddr(at)); err != nil {
		return -1, fmt.Errorf("open transparent listener %s: bind: %w", at, err)
	}
	if err = unix.Listen(fd, 4096); err != nil {
		return -1, fmt.Errorf("open transparent listener %s: listen: %w", at, err)
	}
	return fd, nil
}

// Accept takes one connection off a transparent listener, with its options. EAGAIN means that
// there is none; other errors concern this connection or the descriptor table
// (EMFILE, ENFILE), never the listener.
func Accept(listener int) (Flow, error) {
	var client, target rawAddress
	fd, err := client.ask(unix.SYS_ACCEPT4, listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	if err != nil {
		return Flow{}, err
	}
	if _, err = target.ask(unix.SYS_GETSOCKNAME, fd, 0); err != nil {
		unix.Close(fd)
		return Flow{}, fmt.Errorf("accept captured connection: %w", err)
	}
	return Flow{Client: client.addrPort(), Target: target.addrPort(), FD: fd}, nil
}

// Connect begins a connection to a destination from a source that need not be
// ours: address and port, or with port 0 any port of that address. The zero
// from connects from this host's own address. The descriptor becomes writable
// when the attempt has ended; SO_ERROR says how. The caller owns it, and asks for
// KeepAlive where it lasts.
//
// A client's port may be one that a listener on this host has, at every address
// even; that takes CAP_NET_ADMIN, and without it is ErrPortTaken.
func Connect(from, to netip.AddrPort, o Options) (fd int, err error) {
	if fd, err = connect(from, to, o); err == nil {
		return fd, nil
	}
	if !from.Addr().IsValid() {
		return -1, fmt.Errorf("connect to %s: %w", to, err)
	}
	return -1, fmt.Errorf("connect to %s from %s: %w", to, from, err)
}

func connect(from, to netip.AddrPort, o Options) (fd int, err error) {
	if err = checkEnds(from, to); err != nil {
		return -1, err
	}
	fd, err = newSocket(to.Addr(), o)
	if err != nil {
		return -1, err
	}
	defer closeOnError(fd, &err)
	if Scarce(fd) {
		return -1, fmt.Errorf("socket: the last descriptors are not for deliveries: %w", unix.EMFILE)
	}
	if err = tune(fd); err != nil {
		return -1, err
	}
	if from.Addr().IsValid() {
		if err = bindSource(fd, from); err != nil {
			return -1, err
		}
	}
	if err = unix.Connect(fd, sockaddr(to)); err != nil && err != unix.EINPROGRESS {
		return -1, classify(err)
	}
	return fd, nil
}

// checkEnds refuses what the kernel would take for something else: 0.0.0.0 and
// :: are this host's own address as a source, and its loopback as a destination
// (ip(7), INADDR_ANY). Families that do not fit each other it refuses by itself.
func checkEnds(from, to netip.AddrPort) error {
	for _, a := range []netip.Addr{from.Addr(), to.Addr()} {
		if a.IsUnspecified() || a.IsMulticast() {
			return fmt.Errorf("%s is no host's address", a)
		}
	}
	return nil
}

// bindSource ties a socket to a foreign address (ip(7), IP_TRANSPARENT). The
// order of the options matters, and every one of them is checked: a delivery
// that lost its source is refused, never made.
func bindSource(fd int, from netip.AddrPort) error {
	if err := setTransparent(fd, from.Addr()); err != nil {
		return err
	}
	// The same client port to two destinations at once needs SO_REUSEADDR.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fmt.Errorf("SO_REUSEADDR: %w", err)
	}
	if from.Port() == 0 {
		// The port is chosen at connect, per destination (ip(7)).
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return fmt.Errorf("IP_BIND_ADDRESS_NO_PORT: %w", err)
		}
	}
	err := unix.Bind(fd, sockaddr(from))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EADDRINUSE) && bindAnyway(fd, from) == nil:
		return nil
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("bind: %w: port %d wants CAP_NET_BIND_SERVICE", ErrPermission, from.Port())
	}
	return fmt.Errorf("bind: %w", classify(err))
}

// bindAnyway binds to a port that some listener has at every address, our own
// for tunnels say, which no option for sharing allows. TCP_REPAIR does
// (net/ipv4/inet_connection_sock.c, SK_FORCE_REUSE), and means nothing else to a
// socket that is not connected. Nothing is taken from anybody: the kernel finds
// connections before listeners, and connect still refuses a 4-tuple in use.
func bindAnyway(fd int, from netip.AddrPort) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, 1); err != nil {
		return err
	}
	err := unix.Bind(fd, sockaddr(from))
	return errors.Join(err,
		unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, 0),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), // TCP_REPAIR has ended it
	)
}

// classify turns the two errnos of a taken 4-tuple into ErrPortTaken: at bind
// it is EADDRINUSE, at connect EADDRNOTAVAIL.
func classify(err error) error {
	if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("%w (%w)", ErrPortTaken, err)
	}
	return err
}

// refused explains why an option for privileged processes was not set.
func refused(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: it wants CAP_NET_RAW or CAP_NET_ADMIN (%w)", ErrPermission, err)
	}
	return err
}

// Control returns a hook for net.Dialer and net.ListenConfig that gives their
// sockets the own mark, and ends a connection whose data the peer has not
// acknowledged for userTimeout (tcp(7), TCP_USER_TIMEOUT; 0 for none). A listener
// should have SetMultipathTCP(false): MPTCP sockets lack some of the options.
func Control(o Options, userTimeout time.Duration) func(network, address string, c syscall.RawConn) error {
	return func(_, address string, c syscall.RawConn) error {
		var opErr error
		err := c.Control(func(fd uintptr) {
			opErr = setMark(int(fd), o.Mark)
			if opErr == nil && userTimeout > 0 {
				opErr = unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
			}
		})
		if err = errors.Join(err, opErr); err != nil {
			return fmt.Errorf("prepare socket for %s: %w", address, err)
		}
		return nil
	}
}

// newSocket makes a marked, non-blocking TCP socket of a's family.
func newSocket(a netip.Addr, o Options) (int, error) {
	family := unix.AF_INET
	if a.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	if family == unix.AF_INET6 { // IPv4 in IPv6's clothes would slip past the options of each
		err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err == nil {
		err = setMark(fd, o.Mark)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func setMark(fd int, mark uint32) error {
	if mark == 0 {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
		return fmt.Errorf("SO_MARK: %w", refused(err))
	}
	return nil
}

// setTransparent allows foreign addresses (ip(7), ipv6(7)). The IPv4 option
// also works on an IPv6 socket, which would hide a mistake: each has its own.
func setTransparent(fd int, a netip.Addr) error {
	level, opt, name := unix.SOL_IP, unix.IP_TRANSPARENT, "IP_TRANSPARENT"
	if a.Is6() {
		level, opt, name = unix.SOL_IPV6, unix.IPV6_TRANSPARENT, "IPV6_TRANSPARENT"
	}
	if err := unix.SetsockoptInt(fd, level, opt, 1); err != nil {
		return fmt.Errorf("%s: %w", name, refused(err))
	}
	return nil
}

// tune sets what legs have in common: no Nagle, since the far side has already
// decided what goes together; the urgent byte in its place among the others, since a
// tunnel has no urgent pointer and read(2) would skip it (RFC 6093 §4, SO_OOBINLINE).
func tune(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("TCP_NODELAY: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1); err != nil {
		return fmt.Errorf("SO_OOBINLINE: %w", err)
	}
	return nil
}

// KeepAlive has the kernel ask for the other end of a silent connection, as o says. What
// a listener accepts has it; what Connect makes does not, since it is four system calls
// that most connections are too short for.
func KeepAlive(fd int, o Options) error {
	if o.Idle == 0 {
		return nil
	}
	for _, opt := range []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.SOL_TCP, unix.TCP_KEEPIDLE, seconds(o.Idle)},
		{unix.SOL_TCP, unix.TCP_KEEPINTVL, seconds(o.Interval)},
		{unix.SOL_TCP, unix.TCP_KEEPCNT, o.Count},
	} {
		if opt.value == 0 {
			continue
		}
		if err := unix.SetsockoptInt(fd, opt.level, opt.name, opt.value); err != nil {
			return fmt.Errorf("keepalive: %w", err)
		}
	}
	return nil
}

// seconds rounds up.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

func closeOnError(fd int, err *error) {
	if *err != nil {
		unix.Close(fd)
	}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// rawAddress is what the kernel says of an end of a TCP socket. The functions of
// x/sys ask for the socket's protocol too, each time.
type rawAddress struct {
	sa  unix.RawSockaddrInet6 // the larger one
	len uint32
}

// ask makes a system call that answers with an address.
func (a *rawAddress) ask(call uintptr, fd int, flags int) (int, error) {
	for {
		a.len = unix.SizeofSockaddrInet6
		n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&a.sa)), uintptr(unsafe.Pointer(&a.len)), uintptr(flags), 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return -1, errno
		}
	}
}

// addrPort unmaps, once, at the door.
func (a *rawAddress) addrPort() netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&a.sa.Port))[:])
	switch a.sa.Family {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4((*unix.RawSockaddrInet4)(unsafe.Pointer(&a.sa)).Addr), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.sa.Addr).Unmap(), port)
	}
	return netip.AddrPort{}
}
