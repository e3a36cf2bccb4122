package netlab

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestWAN: what crosses a distance takes its time, and what is lost comes again.
func TestWAN(t *testing.T) {
	l := New()
	defer func() { check(t, l.Close()) }()
	a, err := l.Host("a")
	check(t, err)
	b, err := l.Host("b")
	check(t, err)
	const delay = 20 * time.Millisecond
	w, err := l.WAN(a, "wan", nets4("192.0.2.1/24"), b, "wan", nets4("192.0.2.2/24"), WANConfig{Delay: delay})
	check(t, err)
	defer func() { check(t, w.Close()) }()
	ln, err := b.Listen("tcp", "192.0.2.2:80")
	check(t, err)
	defer ln.Close()
	go func() { // ends with ln
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer c.Close()
				_, _ = io.Copy(c, c) // the client sees what became of it
			}()
		}
	}()

	began := time.Now()
	c, err := a.Dial(t.Context(), "tcp", "192.0.2.2:80")
	check(t, err)
	defer c.Close()
	if took := time.Since(began); took < 2*delay {
		t.Errorf("connecting took %v, less than a round trip", took)
	}
	talk(t, c, 1<<20)
	if passed, lost := w.Count(); passed < 2*(1<<20)/1500 || lost > 0 {
		t.Errorf("%d packets passed, %d lost", passed, lost)
	}
	w.Set(WANConfig{Delay: time.Millisecond, Loss: .05, Seed: 1})
	talk(t, c, 1<<20)
	if passed, lost := w.Count(); lost < 10 || lost > passed/10 {
		t.Errorf("%d packets passed, %d lost", passed, lost)
	}
}

func nets4(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }

// talk sends n bytes and receives them.
func talk(t *testing.T, c net.Conn, n int) {
	t.Helper()
	sent := make(chan error, 1)
	go func() { // received from below
		_, err := c.Write(make([]byte, n))
		sent <- err
	}()
	check(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
	_, err := io.ReadFull(c, make([]byte, n))
	check(t, err)
	check(t, <-sent)
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
