package e2e

import (
	"strings"
	"testing"
)

// TestFlowsOfPeer: the connections of one peer are listed alone, and a peer that
// there is not is a mistake, not an empty list.
func TestFlowsOfPeer(t *testing.T) {
	p := newPair(t, func(west, _ *site) {
		west.peers = `
  - {name: east, ids: [spiffe://mesh.example/gateway/east], endpoints: ["192.0.2.20:15008"], networks: ` + west.peerNetworks + `}
  - {name: south, ids: [spiffe://mesh.example/gateway/south], endpoints: ["192.0.2.30:15008"], networks: [10.9.0.0/16]}`
	})
	p.open(listen(t, p.Server, web))
	for _, tt := range []struct {
		peer  string
		code  int
		lines int
		want  string
	}{
		{"east", 0, 2, " east "},
		{"south", 0, 1, "direction "},
		{"west", 2, 2, "wishbone: error: gateway west has no peer \"west\"\nhint: its peers are east, south\n"},
		{"", 2, 2, "gateway west has no peer \"\""},
	} {
		code, out := runOn(t, p.West, "1", "flows", "--peer", tt.peer, "--admin", p.west.AdminPath())
		if code != tt.code || strings.Count(out, "\n") != tt.lines || !strings.Contains(out, tt.want) {
			t.Errorf("--peer %q: exit code %d\n%s", tt.peer, code, out)
		}
	}
}
