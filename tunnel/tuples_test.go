package tunnel

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"wishbone/identity/authz"
	"wishbone/tunnel/engine"
	"wishbone/tunnel/hbone"
	"wishbone/tunnel/route"
)

// owns is a policy under which one peer owns the clients' network.
func owns(t *testing.T, owner string) *authz.Policy {
	t.Helper()
	policy, err := authz.New(authz.Config{
		Networks: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")},
		Peers: []authz.Peer{{
			Name: owner, IDs: []spiffeid.ID{idOf(owner)},
			Networks: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return policy
}

func idOf(peer string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://mesh.example/gateway/" + peer)
}

// delivered is a delivery for a peer, on a socket that stands for the server's.
func delivered(t *testing.T, w *worker, peer string) *delivery {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(pair[1]) })
	r := hbone.Request{Client: netip.MustParseAddrPort("10.1.0.2:40000"), Target: netip.MustParseAddrPort("10.2.0.2:80")}
	d := &delivery{pt: &peerTunnel{in: w.in, id: idOf(peer), peer: peer}, request: r}
	d.info = &carried{direction: InboundFlow, client: r.Client, target: r.Target, peer: peer, id: idOf(peer)}
	if d.permit, err = owns(t, peer).Authorize(d.pt.id, r.Client, r.Target); err != nil {
		t.Fatal(err)
	}
	if d.flow, err = w.loop.NewFlow(pair[0], d); err != nil {
		t.Fatal(err)
	}
	w.begin(d.flow, d.info)
	return d
}

// TestReplace: a peer's delivery gives way to a newer one with its 4-tuple, and
// never to another peer's, such as a reload may bring about that moves the
// network from the one to the other.
func TestReplace(t *testing.T) {
	for newer, want := range map[string]bool{"west": true, "south": false} {
		t.Run(newer, func(t *testing.T) {
			g, err := New(Config{Loops: 1, Routes: func() *route.Table { return new(route.Table) }})
			if err != nil {
				t.Fatal(err)
			}
			g.Run()
			defer g.Close(t.Context())
			taken := fmt.Errorf("connect: %w", unix.EADDRNOTAVAIL)
			var old *delivery
			g.each(func(w *worker) {
				old = delivered(t, w, "west")
				old.register()
				d := delivered(t, w, newer)
				// It ends here; that it is delivered then is for real sockets to show.
				d.flow.Abort(engine.Cut, nil)
				if got := d.again(taken); got != want {
					t.Errorf("tried again: %t, want %t", got, want)
				}
			})
			// What was posted before has run when this does.
			g.each(func(w *worker) {
				if old.flow.Done() != want || (w.stats.Closed[engine.Replaced] == 1) != want {
					t.Errorf("the older one ended: %t (%v), want %t", old.flow.Done(), w.stats.Closed, want)
				}
				if held := old.holder() == old; held == want {
					t.Errorf("the older one holds its ports: %t, want %t", held, !want)
				}
			})
		})
	}
}

// TestAgain: a delivery is tried again only where its 4-tuple was in use, and not
// for ever.
func TestAgain(t *testing.T) {
	g, err := New(Config{Loops: 1, Routes: func() *route.Table { return new(route.Table) }})
	if err != nil {
		t.Fatal(err)
	}
	g.Run()
	defer g.Close(t.Context())
	g.each(func(w *worker) {
		for _, errno := range []unix.Errno{unix.ECONNREFUSED, unix.EADDRINUSE, unix.ETIMEDOUT} {
			if delivered(t, w, "west").again(errno) {
				t.Errorf("tried again after %v", errno)
			}
		}
		d := delivered(t, w, "west")
		d.flow.Abort(engine.Cut, nil)
		n := 0
		for d.again(unix.EADDRNOTAVAIL) {
			n++
		}
		if n != 10 {
			t.Errorf("%d attempts more, want 10", n)
		}
		w.loop.Cancel(&d.timer)
	})
}
