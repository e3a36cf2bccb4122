package e2e

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"wishbone/e2e/netlab"
)

// TestNarrowWay: connections that go a long way together have a tunnel each as soon
// as the way is seen to lose packets, and one tunnel before.
func TestNarrowWay(t *testing.T) {
	world, err := netlab.NewWorld(netlab.WorldConfig{Distance: true})
	if err != nil {
		t.Fatal(err)
	}
	p := newPairOn(t, world)
	p.westSite, p.eastSite = sites()
	p.startWest()
	p.startEast()
	ln := listen(t, p.Server, netip.AddrPortFrom(netlab.Server4, 0))
	tunnels := func() int { return status(t, p.west).Peers[0].Tunnels }
	load := split(bytes.Repeat([]byte("wishbone"), 1<<17), 4)
	carry := func() {
		clients, servers := open(t, p.Client, ln, len(load.pieces))
		ship(t, load, clients, servers)
	}

	const delay = 5 * time.Millisecond // twice: see tunnel/engine/line.go
	world.WAN.Set(netlab.WANConfig{Delay: delay})
	carry()
	carry()
	one := tunnels()
	if one > 2 { // each loop of west has its own
		t.Errorf("%d tunnels while nothing is lost", one)
	}
	world.WAN.Set(netlab.WANConfig{Delay: delay, Loss: .03, Seed: 1})
	eventually(t, "there are as many tunnels as connections", func() bool {
		carry()
		return tunnels() >= 4
	})
	if n := tunnels(); n > 16 { // eight for each loop
		t.Errorf("%d tunnels", n)
	}
	if _, lost := world.WAN.Count(); lost == 0 {
		t.Error("nothing was lost: this shows nothing")
	}
}
