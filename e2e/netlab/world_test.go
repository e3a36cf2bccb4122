package netlab

import (
	"io"
	"net"
	"net/netip"
	"testing"
)

// newWorld is a World that goes with the test.
func newWorld(t *testing.T) *World {
	t.Helper()
	w, err := NewWorld(WorldConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// testFamilies runs f once per family, with the client's and the server's address.
func testFamilies(t *testing.T, f func(t *testing.T, client, server netip.Addr)) {
	t.Run("v4", func(t *testing.T) { f(t, Client4, Server4) })
	t.Run("v6", func(t *testing.T) { f(t, Client6, Server6) })
}

// echo tells whoever dials the host who they are, and then echoes, until the test ends.
func echo(t *testing.T, h *Host, address netip.AddrPort) net.Listener {
	t.Helper()
	ln, err := h.Listen("tcp", address.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() { // ends with the listener
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, conn.RemoteAddr().String())
			io.Copy(conn, conn)
			conn.Close()
		}
	}()
	return ln
}

func TestWorldRoutesFromEndToEnd(t *testing.T) {
	w := newWorld(t)
	testFamilies(t, func(t *testing.T, client, server netip.Addr) {
		ln := echo(t, w.Server, netip.AddrPortFrom(server, 8080))
		conn, err := w.Client.Dial(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if got := netip.MustParseAddrPort(conn.LocalAddr().String()).Addr(); got != client {
			t.Errorf("the client dials from %v, want %v", got, client)
		}
		seen := make([]byte, len(conn.LocalAddr().String()))
		if _, err := io.ReadFull(conn, seen); err != nil || string(seen) != conn.LocalAddr().String() {
			t.Errorf("the server saw %q (%v), want %v", seen, err, conn.LocalAddr())
		}
	})
}
