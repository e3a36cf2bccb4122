package e2e

import (
	"errors"
	"net/netip"
	"syscall"
	"testing"
)

// readEnd reads until the connection ends, and says how.
func readEnd(t *testing.T, c interface{ Read([]byte) (int, error) }) error {
	t.Helper()
	buf := make([]byte, 4096)
	for {
		if _, err := c.Read(buf); err != nil {
			return err
		}
	}
}

func isReset(err error) bool { return errors.Is(err, syscall.ECONNRESET) }

// TestRefusedDestination: a port that nobody listens on is a reset to the client,
// and both gateways say why.
func TestRefusedDestination(t *testing.T) {
	p := newPair(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			at := netip.AddrPortFrom(f.server, 9)
			refused(t, p.Client, at)
			mustSay(t, p, at, "refused", "connection refused")
		})
	}
}
