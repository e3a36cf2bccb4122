package intercept

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPermissions runs in a network that has loopback only: what is permitted
// ends there for want of a route.
func TestPermissions(t *testing.T) {
	v4, v6 := families[0], families[1]
	raw, admin := unix.CAP_NET_RAW, unix.CAP_NET_ADMIN
	connect := func(from, to netip.AddrPort, o Options) func() (int, error) {
		return func() (int, error) { return Connect(from, to, o) }
	}
	listen := func(at netip.AddrPort, o Options) func() (int, error) {
		return func() (int, error) { return Listen(at, o) }
	}
	for _, tc := range []struct {
		name    string
		lacking []int
		do      func() (int, error)
		want    error
		hint    string
	}{
		{"foreign source", []int{raw, admin}, connect(at(v4.client, 40000), at(v4.server, 9), Options{}), ErrPermission, "IP_TRANSPARENT: not permitted: it wants CAP_NET_RAW"},
		{"foreign source, IPv6", []int{raw, admin}, connect(at(v6.client, 0), at(v6.server, 9), Options{}), ErrPermission, "IPV6_TRANSPARENT: not permitted: it wants CAP_NET_RAW"},
		{"own source with a mark", []int{raw, admin}, connect(netip.AddrPort{}, at(v4.loopback, 9), Options{Mark: 1}), ErrPermission, "CAP_NET_RAW"},
		{"listener", []int{raw, admin}, listen(at(v4.loopback, 0), Options{}), ErrPermission, "CAP_NET_RAW"},
		{"listener, IPv6", []int{raw, admin}, listen(at(v6.loopback, 0), Options{}), ErrPermission, "IPV6_TRANSPARENT"},
		{"privileged port", []int{unix.CAP_NET_BIND_SERVICE}, connect(at(v4.client, 800), at(v4.server, 9), Options{}), ErrPermission, "CAP_NET_BIND_SERVICE"},
		{"with CAP_NET_RAW", []int{admin}, connect(at(v4.client, 40000), at(v4.server, 9), Options{Mark: 1}), unix.ENETUNREACH, ""},
		{"with CAP_NET_ADMIN", []int{raw}, connect(at(v6.client, 40000), at(v6.server, 9), Options{Mark: 1}), unix.ENETUNREACH, ""},
		{"listener with CAP_NET_RAW", []int{admin}, listen(at(v4.loopback, 0), Options{Mark: 1}), nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var fd int
			var err error
			without(t, func() { fd, err = tc.do() }, tc.lacking...)
			if err == nil {
				unix.Close(fd)
			}
			if !errors.Is(err, tc.want) || err != nil && !strings.Contains(err.Error(), tc.hint) {
				t.Errorf("%v, want %v that names %q", err, tc.want, tc.hint)
			}
		})
	}
}

// TestListenersPortWithoutPermission: CAP_NET_RAW carries everything but a client
// port that equals one of a listener on every address.
func TestListenersPortWithoutPermission(t *testing.T) {
	ln, err := net.Listen("tcp", "[::]:15008")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	without(t, func() { _, err = Connect(at(families[0].client, 15008), at(families[0].loopback, 9), Options{}) }, unix.CAP_NET_ADMIN)
	if !errors.Is(err, ErrPortTaken) {
		t.Errorf("%v, want ErrPortTaken", err)
	}
}

// keepalive are options other than the kernel's own, and what sockets then say.
var keepalive = Options{Mark: 0x04000000, Idle: 180 * time.Second, Interval: 15 * time.Second, Count: 4}

var keepaliveOptions = []option{
	{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, 0x04000000},
	{"TCP_NODELAY", unix.SOL_TCP, unix.TCP_NODELAY, 1},
	{"SO_OOBINLINE", unix.SOL_SOCKET, unix.SO_OOBINLINE, 1},
	{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
	{"TCP_KEEPIDLE", unix.SOL_TCP, unix.TCP_KEEPIDLE, 180},
	{"TCP_KEEPINTVL", unix.SOL_TCP, unix.TCP_KEEPINTVL, 15},
	{"TCP_KEEPCNT", unix.SOL_TCP, unix.TCP_KEEPCNT, 4},
}

func TestConnectOptions(t *testing.T) {
	testFamilies(t, func(t *testing.T, s street, a family) {
		_, to := s.listen(t, a.server)
		for _, from := range []netip.AddrPort{{}, at(a.client, 0), at(a.client, 40000)} {
			with := s.connect(t, from, to, keepalive)
			defer unix.Close(with)
			if err := KeepAlive(with, keepalive); err != nil {
				t.Fatal(err)
			}
			wantOptions(t, with, keepaliveOptions...)
		}
		plain := s.connect(t, at(a.client, 40001), to, Options{})
		defer unix.Close(plain)
		wantOptions(t, plain, option{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, 0}, option{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 0})
		if a.client.Is6() { // IP_TRANSPARENT would do as well, and hide that ours is missing
			wantOptions(t, plain, option{"IPV6_TRANSPARENT", unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1})
		}
	})
}

// TestKeepaliveInSeconds: the kernel counts whole seconds, and less than one is
// not none; what is not said is the kernel's.
func TestKeepaliveInSeconds(t *testing.T) {
	s := newStreet(t)
	_, to := s.listen(t, families[0].server)
	fd := s.connect(t, netip.AddrPort{}, to, Options{})
	defer unix.Close(fd)
	if err := KeepAlive(fd, Options{Idle: 1500 * time.Millisecond, Interval: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	wantOptions(t, fd,
		option{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		option{"TCP_KEEPIDLE", unix.SOL_TCP, unix.TCP_KEEPIDLE, 2},
		option{"TCP_KEEPINTVL", unix.SOL_TCP, unix.TCP_KEEPINTVL, 1},
		option{"TCP_KEEPCNT", unix.SOL_TCP, unix.TCP_KEEPCNT, 9}, // tcp(7): the default
	)
}

// TestControl: the sockets of dialers and listeners are marked before anything
// is sent, and give a silent peer up.
func TestControl(t *testing.T) {
	marked := []option{
		{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, 7},
		{"TCP_USER_TIMEOUT", unix.SOL_TCP, unix.TCP_USER_TIMEOUT, 20000},
	}
	control := Control(Options{Mark: 7}, 20*time.Second)
	for _, network := range []string{"tcp4", "tcp6"} {
		t.Run(network, func(t *testing.T) {
			lc := net.ListenConfig{Control: control}
			ln, err := lc.Listen(t.Context(), network, map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"}[network])
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			d := net.Dialer{Control: control}
			near, err := d.DialContext(t.Context(), network, ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer near.Close()
			far, _ := accept(t, ln.(*net.TCPListener))
			for name, c := range map[string]any{"listener": ln, "dialled": near, "accepted": far} {
				t.Run(name, func(t *testing.T) { wantOptions(t, descriptor(t, c), marked...) })
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		lc := net.ListenConfig{Control: Control(Options{}, 0)}
		lc.SetMultipathTCP(false) // else Go makes an MPTCP socket, which has no TCP_USER_TIMEOUT
		ln, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		wantOptions(t, descriptor(t, ln), option{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, 0}, option{"TCP_USER_TIMEOUT", unix.SOL_TCP, unix.TCP_USER_TIMEOUT, 0})
	})
	t.Run("without permission", func(t *testing.T) {
		var err error
		without(t, func() {
			d := net.Dialer{Control: control}
			_, err = d.DialContext(context.Background(), "tcp", "127.0.0.1:9")
		}, unix.CAP_NET_RAW, unix.CAP_NET_ADMIN)
		if !errors.Is(err, ErrPermission) {
			t.Errorf("%v, want ErrPermission", err)
		}
	})
}

// descriptor is that of a connection or listener, which keeps it.
func descriptor(t *testing.T, c any) (number int) {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { number = int(fd) }); err != nil {
		t.Fatal(err)
	}
	return number
}
