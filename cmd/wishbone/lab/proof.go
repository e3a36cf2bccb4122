package lab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/e2e/netlab"
)

// Prove fetches a page over each family, and writes what happened to w: what the
// client connected to, whom the server saw, what crossed the underlay, and who
// the gateways are to each other. An error says what is not as it should be.
func (l *Lab) Prove(ctx context.Context, w io.Writer) error {
	for _, server := range []netip.Addr{netlab.Server4, netlab.Server6} {
		if err := l.proveFamily(ctx, w, server); err != nil {
			return fmt.Errorf("proof for %s: %w", server, err)
		}
	}
	return nil
}

func (l *Lab) proveFamily(ctx context.Context, w io.Writer, server netip.Addr) error {
	underlay, err := l.World.West.Capture(netlab.Outer)
	if err != nil {
		return err
	}
	lan, err := l.World.Client.Capture(netlab.Inner)
	if err != nil {
		return err
	}
	marker := "marker-" + rand.Text()
	var flows pairOfFlows
	v, err := l.fetch(ctx, server, marker, func() error {
		var err error
		flows, err = l.flows(ctx)
		return err
	})
	wire, wireErr := underlay.Stop()
	plain, plainErr := lan.Stop()
	if err := errors.Join(err, wireErr, plainErr); err != nil {
		return err
	}
	l.tell(w, v, flows, wire)
	return errors.Join(
		v.check(server, marker),
		flows.check(v),
		checkPackets(wire, plain, marker))
}

// pairOfFlows is what the two gateways know of one connection.
type pairOfFlows struct{ west, east daemon.Flow }

// flows asks both gateways for the connection that is open now.
func (l *Lab) flows(ctx context.Context) (p pairOfFlows, err error) {
	for _, g := range []struct {
		*Gateway
		flow *daemon.Flow
	}{{l.West, &p.west}, {l.East, &p.east}} {
		var all []daemon.Flow
		if err := g.Ask(ctx, "/flows", &all); err != nil {
			return p, err
		}
		if len(all) == 0 {
			return p, fmt.Errorf("gateway %s carries no connection: the page came another way", g.Name)
		}
		*g.flow = all[len(all)-1] // the youngest
	}
	return p, nil
}

// tell shows a person what happened.
func (l *Lab) tell(w io.Writer, v visit, f pairOfFlows, wire *netlab.Traffic) {
	packets, bytes := wire.Count(netlab.TCP, tunnelPort)
	tunnel := "the tunnel's beginning among them"
	if l.shown {
		tunnel = "on the tunnel that was up already"
	}
	l.shown = true
	fmt.Fprintf(w, `
the client    %s connected to %s
the server    saw %s
the underlay  carried %d packets, %d bytes, all of them TLS to or from port %d, %s
west          met %s
east          met %s
the page      %s
`, v.client, v.server, v.seen, packets, bytes, tunnelPort, tunnel, f.west.ID, f.east.ID, strings.TrimSpace(strings.SplitN(v.body, "\n", 2)[0]))
}

func (v visit) check(server netip.Addr, marker string) error {
	switch {
	case v.seen != v.client:
		return fmt.Errorf("the server saw %s, but the client is %s", v.seen, v.client)
	case v.server != netip.AddrPortFrom(server, page):
		return fmt.Errorf("the client is connected to %s, but it asked for %s", v.server, server)
	case !strings.Contains(v.body, marker):
		return fmt.Errorf("the page does not have what was asked for: %q", v.body)
	}
	return nil
}

// check sees that both gateways carried this very connection, and knew each
// other.
func (p pairOfFlows) check(v visit) error {
	for _, g := range []struct {
		name, id string
		flow     daemon.Flow
	}{{"west", "spiffe://" + domain + "/gateway/east", p.west}, {"east", "spiffe://" + domain + "/gateway/west", p.east}} {
		if g.flow.Client != v.client || g.flow.Target != v.server {
			return fmt.Errorf("gateway %s carried %s to %s", g.name, g.flow.Client, g.flow.Target)
		}
		if g.flow.ID != g.id {
			return fmt.Errorf("gateway %s met %q, want %s", g.name, g.flow.ID, g.id)
		}
	}
	return nil
}

// checkPackets reads what crossed: only TLS between the gateways, where the same
// request was readable on the client's own network.
func checkPackets(wire, plain *netlab.Traffic, marker string) error {
	if !plain.Contains([]byte(marker)) {
		return errors.New("the request was not seen on the client's own network: reading packets proves nothing")
	}
	if wire.Contains([]byte(marker)) {
		return errors.New("the request crossed the underlay in the clear")
	}
	if v := wire.OnlyTLS(tunnelPort); len(v) > 0 {
		return fmt.Errorf("something else than TLS crossed the underlay: %v", v)
	}
	return nil
}

// ProveRefusal is the negative control: with the gateway at the client's side
// killed, nothing may reach the server, and nothing may leave in the clear.
func (l *Lab) ProveRefusal(ctx context.Context, w io.Writer) error {
	if err := l.West.Kill(); err != nil {
		return err
	}
	underlay, err := l.World.West.Capture(netlab.Outer)
	if err != nil {
		return err
	}
	for _, server := range []netip.Addr{netlab.Server4, netlab.Server6} {
		_, err := l.fetch(ctx, server, "refused", func() error { return nil })
		if err == nil {
			return fmt.Errorf("with west killed, the client still reached %s", server)
		}
		fmt.Fprintf(w, "west killed   the client gets no answer from %s: %v\n", server, err)
	}
	wire, err := underlay.Stop()
	if err != nil {
		return err
	}
	for _, f := range wire.Flows() {
		if f.Src.Port() != tunnelPort && f.Dst.Port() != tunnelPort {
			return fmt.Errorf("with west killed, this crossed the underlay: %s", f)
		}
	}
	return nil
}
