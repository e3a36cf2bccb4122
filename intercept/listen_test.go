package intercept

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// transparent opens a transparent listener on the gateway, on any free port of
// loopback. It is closed with the test.
func (s street) transparent(t *testing.T, a family, o Options) (fd int, port uint16) {
	t.Helper()
	err := s.gateway.Do(func() (err error) {
		fd, err = Listen(at(a.loopback, 0), o)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd, local(t, fd).Port()
}

// local is a socket's own address.
func local(t *testing.T, fd int) netip.AddrPort {
	t.Helper()
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	if sa, ok := sa.(*unix.SockaddrInet6); ok {
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	v4 := sa.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), uint16(v4.Port))
}

// take accepts one connection, which is closed with the test.
func take(t *testing.T, listener int) Flow {
	t.Helper()
	if !ready(t, listener, unix.POLLIN) {
		t.Fatal("nothing to accept")
	}
	f, err := Accept(listener)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(f.FD) })
	return f
}

// TestCapture: a connection to somewhere else arrives with its addresses as they
// were, and every option.
func TestCapture(t *testing.T) {
	testFamilies(t, func(t *testing.T, s street, a family) {
		listener, port := s.transparent(t, a, keepalive)
		if err := s.gateway.Do(func() error { return divert(a, port) }); err != nil {
			t.Fatal(err)
		}
		for _, target := range []netip.AddrPort{at(a.away, 80), at(a.nowhere, 65535), at(a.nowhere, 1)} {
			c := s.dial(t, target)
			f := take(t, listener)
			if client := netip.MustParseAddrPort(c.LocalAddr().String()); f.Client != client || f.Target != target {
				t.Errorf("%v to %v, want %v to %v", f.Client, f.Target, client, target)
			}
			wantCarried(t, f.FD, c)
			wantFlags(t, f.FD)
			wantOptions(t, f.FD, keepaliveOptions...)
		}
	})
}

// divert sends TCP that comes off the cable to the listener at port, without a
// word about where it is going.
func divert(a family, port uint16) error {
	const mark, table = 1, 101
	proto, number := nftables.TableFamilyIPv4, unix.AF_INET
	if a.client.Is6() {
		proto, number = nftables.TableFamilyIPv6, unix.AF_INET6
	}
	c, err := nftables.New()
	if err != nil {
		return err
	}
	rules := c.AddTable(&nftables.Table{Name: "divert", Family: proto})
	chain := c.AddChain(&nftables.Chain{
		Name: "prerouting", Table: rules, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle,
	})
	c.AddRule(&nftables.Rule{Table: rules, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte("inner"), make([]byte, unix.IFNAMSIZ-len("inner"))...)},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Immediate{Register: 1, Data: a.loopback.AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.TProxy{Family: byte(proto), TableFamily: byte(proto), RegAddr: 1, RegPort: 2},
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(mark)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("add the tproxy rule: %w", err)
	}
	everything := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if a.client.Is6() {
		everything = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	rule := netlink.NewRule()
	rule.Family, rule.Mark, rule.Table, rule.Priority = number, mark, table, 5
	route := &netlink.Route{Dst: everything, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, LinkIndex: 1, Table: table}
	return errors.Join(netlink.RuleAdd(rule), netlink.RouteAdd(route))
}

func TestListenOptions(t *testing.T) {
	testFamilies(t, func(t *testing.T, s street, a family) {
		fd, _ := s.transparent(t, a, keepalive)
		wantFlags(t, fd)
		options := []option{keepaliveOptions[0], {"SO_ACCEPTCONN", unix.SOL_SOCKET, unix.SO_ACCEPTCONN, 1}}
		if a.client.Is4() {
			options = append(options, option{"IP_TRANSPARENT", unix.SOL_IP, unix.IP_TRANSPARENT, 1})
		} else {
			options = append(options,
				option{"IPV6_TRANSPARENT", unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1},
				option{"IPV6_V6ONLY", unix.SOL_IPV6, unix.IPV6_V6ONLY, 1})
		}
		wantOptions(t, fd, options...)
		if got := local(t, fd).Addr(); got != a.loopback {
			t.Errorf("listens on %v, want %v", got, a.loopback)
		}
	})
}

// TestListenBusy: a port that another program has is an error that says which,
// and one that our own connections of a moment ago had is none.
func TestListenBusy(t *testing.T) {
	testFamilies(t, func(t *testing.T, s street, a family) {
		listener, port := s.transparent(t, a, Options{})
		err := s.gateway.Do(func() error {
			fd, err := Listen(at(a.loopback, port), Options{})
			if err == nil {
				unix.Close(fd)
			}
			return err
		})
		if !errors.Is(err, unix.EADDRINUSE) {
			t.Fatalf("%v, want EADDRINUSE", err)
		}
		var c net.Conn
		err = s.gateway.Do(func() (err error) {
			c, err = net.DialTimeout("tcp", at(a.loopback, port).String(), patience)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		f := take(t, listener)
		if err := unix.Shutdown(f.FD, unix.SHUT_WR); err != nil { // ours ends first, and waits for the client's FIN
			t.Fatal(err)
		}
		if err := unix.Shutdown(listener, unix.SHUT_RDWR); err != nil {
			t.Fatal(err)
		}
		err = s.gateway.Do(func() error {
			fd, err := Listen(at(a.loopback, port), Options{})
			if err == nil {
				unix.Close(fd)
			}
			return err
		})
		if err != nil {
			t.Errorf("again, with a connection that is not over: %v", err)
		}
	})
}

func TestAcceptNothing(t *testing.T) {
	testFamilies(t, func(t *testing.T, s street, a family) {
		listener, port := s.transparent(t, a, Options{})
		if f, err := Accept(listener); err != unix.EAGAIN {
			t.Errorf("%+v, %v, want EAGAIN", f, err)
		}
		err := s.gateway.Do(func() error {
			c, err := net.DialTimeout("tcp", at(a.loopback, port).String(), patience)
			if err != nil {
				return err
			}
			return errors.Join(c.(*net.TCPConn).SetLinger(0), c.Close()) // reset before it is accepted
		})
		if err != nil {
			t.Fatal(err)
		}
		take(t, listener)
		if f, err := Accept(listener); err != unix.EAGAIN {
			t.Errorf("%+v, %v, want EAGAIN", f, err)
		}
	})
}

// TestListenFails: options that cannot be are told of when the listener opens, since
// what is accepted has them from it.
func TestListenFails(t *testing.T) {
	s := newStreet(t)
	err := s.gateway.Do(func() error {
		fd, err := Listen(at(families[0].loopback, 0), Options{Idle: time.Second, Count: 1000}) // tcp(7): at most 127
		if err == nil {
			return unix.Close(fd)
		}
		return err
	})
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("%v, want EINVAL", err)
	}
}

// TestAcceptUnmaps: the IPv4 client of an IPv6 socket is an IPv4 client.
func TestAcceptUnmaps(t *testing.T) {
	s := newStreet(t)
	ln := s.gatewayListens(t, "[::]:0")
	port := netip.MustParseAddrPort(ln.Addr().String()).Port()
	target := at(families[0].gateway, port)
	c := s.dial(t, target)
	f := take(t, descriptor(t, ln))
	if client := netip.MustParseAddrPort(c.LocalAddr().String()); f.Client != client || f.Target != target {
		t.Errorf("%v to %v, want %v to %v", f.Client, f.Target, client, target)
	}
}
