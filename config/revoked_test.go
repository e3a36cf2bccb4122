package config

import (
	"slices"
	"testing"
)

// TestRevoked: serial numbers in every way that openssl prints them.
func TestRevoked(t *testing.T) {
	c, err := parseHere(t, base+`revoked:
  ids: [spiffe://mesh.example/gateway/east]
  serials: [0A1B2C, "7f:3E:00:01", 00ff, 10, 0123456789abcdef0123456789abcdef01234567]
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"a1b2c", "7f3e0001", "ff", "10", "123456789abcdef0123456789abcdef01234567"}
	if !slices.Equal(c.Revoked.Serials, want) {
		t.Errorf("serials %q, want %q", c.Revoked.Serials, want)
	}
	if len(c.Revoked.IDs) != 1 || c.Revoked.IDs[0] != c.Peers[0].IDs[0] {
		t.Errorf("ids %v", c.Revoked.IDs)
	}
}
