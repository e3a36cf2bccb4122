package netlab

import (
	"errors"
	"net/netip"
)

// The addresses of a World, 4 or 6 for the family. Client and server have one each, the two in the middle one on
// either side.
var (
	Client4 = netip.MustParseAddr("10.1.0.2")
	Client6 = netip.MustParseAddr("fd00:1::2")
	Server4 = netip.MustParseAddr("10.2.0.2")
	Server6 = netip.MustParseAddr("fd00:2::2")

	WestInner4 = netip.MustParseAddr("10.1.0.1")
	WestInner6 = netip.MustParseAddr("fd00:1::1")
	WestOuter4 = netip.MustParseAddr("192.0.2.10")
	WestOuter6 = netip.MustParseAddr("2001:db8::10")
	EastInner4 = netip.MustParseAddr("10.2.0.1")
	EastInner6 = netip.MustParseAddr("fd00:2::1")
	EastOuter4 = netip.MustParseAddr("192.0.2.20")
	EastOuter6 = netip.MustParseAddr("2001:db8::20")
)

// WorldConfig varies a World.
type WorldConfig struct {
	MTU      int  // of the underlay, bytes; 0: 1500
	Distance bool // between west and east, instead of a cable: see World.WAN
}

// World is client — west ═ underlay ═ east — server. West owns 10.1.0.0/16 and fd00:1::/64, east
// 10.2.0.0/16 and fd00:2::/64. West and east are plain routers that know the way, so that without gateways,
// or past them, the client reaches the server: a bypass shows.
type World struct {
	*Lab
	Client, West, East, Server *Host
	WAN                        *WAN // with WorldConfig.Distance: does nothing to packets until it is set
}

// The interfaces of a World: client and server have Inner only, west and east both.
const (
	Inner = "inner"
	Outer = "outer"
)

// NewWorld builds the network. The caller closes it.
func NewWorld(cfg WorldConfig) (*World, error) {
	w := &World{Lab: New()}
	for _, step := range []func() error{w.populate, w.cable, func() error { return w.underlay(cfg.Distance) }, w.routes} {
		if err := step(); err != nil {
			return nil, errors.Join(err, w.Close())
		}
	}
	if cfg.MTU == 0 {
		return w, nil
	}
	if err := errors.Join(w.West.setMTU(Outer, cfg.MTU), w.East.setMTU(Outer, cfg.MTU)); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// populate makes the four hosts.
func (w *World) populate() error {
	for _, h := range []struct {
		name string
		host **Host
	}{{"client", &w.Client}, {"west", &w.West}, {"east", &w.East}, {"server", &w.Server}} {
		var err error
		if *h.host, err = w.Host(h.name); err != nil {
			return err
		}
	}
	return nil
}

// cable lays the cables of the two sites.
func (w *World) cable() error {
	return errors.Join(
		w.Link(w.Client, Inner, nets(Client4, 16, Client6), w.West, Inner, nets(WestInner4, 16, WestInner6)),
		w.Link(w.East, Inner, nets(EastInner4, 16, EastInner6), w.Server, Inner, nets(Server4, 16, Server6)),
	)
}

// underlay lays what is between them.
func (w *World) underlay(distance bool) (err error) {
	west, east := nets(WestOuter4, 24, WestOuter6), nets(EastOuter4, 24, EastOuter6)
	if !distance {
		return w.Link(w.West, Outer, west, w.East, Outer, east)
	}
	w.WAN, err = w.Lab.WAN(w.West, Outer, west, w.East, Outer, east, WANConfig{})
	return err
}

// Close takes the world down.
func (w *World) Close() error {
	var err error
	if w.WAN != nil {
		err = w.WAN.Close()
	}
	return errors.Join(err, w.Lab.Close())
}

// nets are an interface's two addresses, with the v4 network's length; v6 networks are /64.
func nets(v4 netip.Addr, bits int, v6 netip.Addr) []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(v4, bits), netip.PrefixFrom(v6, 64)}
}

// routes makes routers of the two in the middle, and sends everything unknown towards them.
func (w *World) routes() error {
	any4, any6 := netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
	return errors.Join(
		w.West.Forward(), w.East.Forward(),
		w.Client.Route(any4, WestInner4), w.Client.Route(any6, WestInner6),
		w.West.Route(any4, EastOuter4), w.West.Route(any6, EastOuter6),
		w.East.Route(any4, WestOuter4), w.East.Route(any6, WestOuter6),
		w.Server.Route(any4, EastInner4), w.Server.Route(any6, EastInner6),
	)
}
