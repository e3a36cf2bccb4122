package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"wishbone/e2e/netlab"
	"wishbone/identity/identitytest"
)

// The addresses: each site has one on the cable, where gateways meet, and one of
// its own network, which wishbone carries.
var (
	westOuter = netip.MustParseAddr("192.0.2.10")
	eastOuter = netip.MustParseAddr("192.0.2.20")
	westInner = netip.MustParseAddr("10.1.0.1")
	eastInner = netip.MustParseAddr("10.2.0.1")
)

// loadPort is where the server of the load listens, on all addresses of east.
const loadPort = 9000

// world is two hosts and a cable: the client with its gateway, the server with the
// other.
type world struct {
	lab        *netlab.Lab
	west, east *netlab.Host
	dir        string
	authority  *identitytest.Authority
	wan        *netlab.WAN // nil with a cable
	server     *server
	running    []*gateways
	early      bool
	env        []string // of wishbone's gateways
}

const domain = "bench.example"

// newWorld builds the network and starts the server. The caller closes the world.
func newWorld(o options) (*world, error) {
	dir, err := os.MkdirTemp("", "wishbone-bench")
	if err != nil {
		return nil, err
	}
	w := &world{lab: netlab.New(), dir: dir, authority: identitytest.New(domain), early: o.early}
	if o.loops > 0 {
		w.env = []string{fmt.Sprintf("GOMAXPROCS=%d", o.loops)} // a loop for each
	}
	for _, step := range []func() error{func() error { return w.cable(o) }, func() error { return w.settings(o.congestion) }, func() error { return w.serve(2 * o.clients) }, w.identities} {
		if err := step(); err != nil {
			return nil, errors.Join(err, w.close())
		}
	}
	return w, nil
}

func (w *world) cable(o options) (err error) {
	if w.west, err = w.lab.Host("west"); err != nil {
		return err
	}
	if w.east, err = w.lab.Host("east"); err != nil {
		return err
	}
	at := func(outer, inner netip.Addr) []netip.Prefix {
		return []netip.Prefix{netip.PrefixFrom(outer, 24), netip.PrefixFrom(inner, 32)}
	}
	if o.rtt == 0 {
		err = w.lab.Link(w.west, "wan", at(westOuter, westInner), w.east, "wan", at(eastOuter, eastInner))
	} else {
		w.wan, err = w.lab.WAN(w.west, "wan", at(westOuter, westInner), w.east, "wan", at(eastOuter, eastInner), netlab.WANConfig{Delay: o.rtt / 2})
	}
	return errors.Join(err,
		w.west.Route(network(eastInner), eastOuter),
		w.east.Route(network(westInner), westOuter))
}

// roll has the distance lose packets by dice that belong to a repetition.
func (w *world) roll(o options, repeat uint64) {
	if w.wan != nil {
		w.wan.Set(netlab.WANConfig{Delay: o.rtt / 2, Loss: o.loss / 100, Seed: repeat + 1})
	}
}

// settings are the same for all: the machine's defaults must not decide.
func (w *world) settings(congestion string) error {
	var errs []error
	for _, h := range []*netlab.Host{w.west, w.east} {
		errs = append(errs, h.Sysctl("net.ipv4.tcp_congestion_control", congestion), h.Sysctl("net.ipv4.ip_local_port_range", "1024 65535"))
	}
	return errors.Join(errs...)
}

func (w *world) serve(threads int) error {
	return w.east.Do(func() error {
		ln, err := listen(netip.AddrPortFrom(netip.IPv4Unspecified(), loadPort))
		if err == nil {
			w.server = serve(ln, threads)
		}
		return err
	})
}

// identities writes certificates for both ends, for all candidates.
func (w *world) identities() error {
	for _, name := range []string{"west", "east"} {
		cert, key, _, err := w.authority.WriteFiles(w.dir, name, "/gateway/"+name)
		if err != nil {
			return err
		}
		both, err := concat(cert, key)
		if err == nil {
			err = os.WriteFile(w.path(name+".both.pem"), both, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func concat(files ...string) (all []byte, err error) {
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		all = append(all, b...)
	}
	return all, nil
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) close() error {
	for _, g := range w.running {
		g.stop()
	}
	var err error
	if w.server != nil {
		err = w.server.close()
	}
	if w.wan != nil {
		err = errors.Join(err, w.wan.Close())
	}
	return errors.Join(err, w.lab.Close(), os.RemoveAll(w.dir))
}

// dial opens a connection of the load, as a candidate wants it.
func (w *world) dial(ctx context.Context, g *gateways) (*net.TCPConn, error) {
	var conn net.Conn
	err := w.west.Do(func() (err error) {
		d := net.Dialer{Timeout: 20 * time.Second}
		if g.from.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(g.from, 0))
		}
		conn, err = d.DialContext(ctx, "tcp", g.at.String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	return conn.(*net.TCPConn), nil
}
