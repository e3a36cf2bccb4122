package netlab

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

var marker = []byte("the quick brown fox, in the clear")

// capture watches the underlay of w.
func capture(t *testing.T, w *World) *Capture {
	t.Helper()
	c, err := w.West.Capture(Outer)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// stop ends a capture that has to have gone well.
func stop(t *testing.T, c *Capture) *Traffic {
	t.Helper()
	traffic, err := c.Stop()
	if err != nil {
		t.Fatal(err)
	}
	return traffic
}

// exchange sends data from the client to an echo and reads it back.
func exchange(t *testing.T, conn net.Conn, data []byte) {
	t.Helper()
	defer conn.Close()
	written := make(chan error, 1)
	go func() { // an echo that nobody reads stops taking in; ends with the connection
		_, err := conn.Write(data)
		written <- err
	}()
	if _, err := io.CopyN(io.Discard, conn, int64(len(data))); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
}

// secure are the two ends' settings of a TLS that nobody checks.
func secure(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{
		Certificates:       []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}},
		InsecureSkipVerify: true,
	}
}

func TestCaptureSeesTLSAndNothingElse(t *testing.T) {
	w := newWorld(t)
	testFamilies(t, func(t *testing.T, client, server netip.Addr) {
		ln, err := w.Server.Listen("tcp", netip.AddrPortFrom(server, 15008).String())
		if err != nil {
			t.Fatal(err)
		}
		cfg := secure(t)
		serve(t, tls.NewListener(ln, cfg))
		c := capture(t, w)
		conn, err := w.Client.Dial(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		exchange(t, tls.Client(conn, cfg), bytes.Repeat(marker, 100_000))
		traffic := stop(t, c)
		if found := traffic.OnlyTLS(15008); len(found) > 0 {
			t.Errorf("TLS is not taken for TLS: %v", found)
		}
		if traffic.Contains(marker) {
			t.Error("the marker shows through TLS")
		}
		if _, n := traffic.Count(TCP, 15008); n < 2*len(marker)*100_000 {
			t.Errorf("counted %d bytes, fewer than were sent", n)
		}
	})
}

// serve echoes on ln until the test ends.
func serve(t *testing.T, ln net.Listener) {
	t.Cleanup(func() { ln.Close() })
	go func() { // ends with the listener
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			io.Copy(conn, conn)
			conn.Close()
		}
	}()
}

func TestCaptureFindsWhatIsNotTLS(t *testing.T) {
	w := newWorld(t)
	testFamilies(t, func(t *testing.T, client, server netip.Addr) {
		for _, test := range []struct {
			name string
			port uint16
			data []byte
			want string
		}{
			{"another port", 8080, marker, "not to or from port 15008"},
			{"plain text on the tunnel's port", 15008, marker, "not TLS records"},
			{"plain text behind a record", 15008, append([]byte{0x17, 3, 3, 0, 4, 1, 2, 3, 4}, marker...), "not TLS records"},
		} {
			t.Run(test.name, func(t *testing.T) {
				ln, err := w.Server.Listen("tcp", netip.AddrPortFrom(server, test.port).String())
				if err != nil {
					t.Fatal(err)
				}
				serve(t, ln)
				c := capture(t, w)
				conn, err := w.Client.Dial(t.Context(), "tcp", ln.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				exchange(t, conn, test.data)
				traffic := stop(t, c)
				wantViolation(t, traffic, test.want)
				if !traffic.Contains(marker) {
					t.Error("the marker was not found")
				}
			})
		}
	})
}

func wantViolation(t *testing.T, traffic *Traffic, what string) {
	t.Helper()
	found := traffic.OnlyTLS(15008)
	if !slices.ContainsFunc(found, func(v Violation) bool { return strings.Contains(v.String(), what) }) {
		t.Errorf("violations %v, want one that says %q, of\n%v", found, what, traffic)
	}
}

func TestCaptureFindsDatagramsAndEchoRequests(t *testing.T) {
	w := newWorld(t)
	testFamilies(t, func(t *testing.T, client, server netip.Addr) {
		c := capture(t, w)
		// Nobody listens: an ICMP error comes back, and quotes the datagram.
		conn, err := w.Client.Dial(t.Context(), "udp", netip.AddrPortFrom(server, 53).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := conn.Write(marker); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Fatal("an answer from nobody")
		}
		traffic := stop(t, c)
		if n, _ := traffic.Count(UDP, 53); n != 1 {
			t.Errorf("%d datagrams, want 1", n)
		}
		icmp := map[bool]Protocol{true: ICMP, false: ICMPv6}[server.Is4()]
		if n, _ := traffic.Count(icmp, 0); n != 1 {
			t.Errorf("%d ICMP errors, want 1, of\n%v", n, traffic)
		}
		if !traffic.Contains(marker) {
			t.Error("the marker was not found")
		}
		wantViolation(t, traffic, "not TCP: udp")
	})
}

func TestNothingIsNoProof(t *testing.T) {
	w := newWorld(t)
	wantViolation(t, stop(t, capture(t, w)), "nothing crossed")
}

func TestLostFramesAreNoProof(t *testing.T) {
	wantViolation(t, &Traffic{Lost: 1}, "1 frames lost")
	wantViolation(t, &Traffic{Forgotten: 1}, "1 not kept")
}
