package daemon

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wishbone/tunnel"
)

// TestRests: a source rests after each cut, longer as long as it goes on, and all is
// forgotten after a quiet minute.
func TestRests(t *testing.T) {
	var r rests
	now := time.Unix(0, 0)
	evil := netip.MustParseAddr("192.0.2.1")
	want := func(why string, at netip.Addr, wantLeft time.Duration, wantFirst bool) {
		t.Helper()
		if left, first := r.left(at, now); left != wantLeft || first != wantFirst {
			t.Errorf("%s: %v, first %t, want %v and %t", why, left, first, wantLeft, wantFirst)
		}
	}
	want("before anything", evil, 0, false)
	length := firstRest
	for range 8 {
		r.begin(evil, "ping", now)
		want("cut", evil, length, true)
		now = now.Add(length / 2)
		r.begin(evil, "ping", now)
		want("another is cut meanwhile", netip.MustParseAddr("::ffff:192.0.2.1"), length-length/2, false)
		want("somebody else", evil.Next(), 0, false)
		now = now.Add(length - length/2)
		want("it is over", evil, 0, false)
		now = now.Add(restForgotten - 1)
		length = min(2*length, longestRest)
	}
	if length != longestRest {
		t.Errorf("after so many it is %v", length)
	}
	now = now.Add(longestRest)
	r.begin(evil, "ping", now)
	want("after a quiet minute", evil, firstRest, true)

	r.begin(netip.MustParseAddr("2001:db8::1"), "tls", now)
	want("a /64 is one source", netip.MustParseAddr("2001:db8::2"), firstRest, true)
	for _, fault := range blameless {
		r.begin(netip.MustParseAddr("192.0.2.3"), fault, now)
		want(fault, netip.MustParseAddr("192.0.2.3"), 0, false)
		if !slices.Contains(tunnel.Faults(), fault) {
			t.Errorf("%s is no fault", fault)
		}
	}
}

// TestMisses: handshakes that come to nothing have their source rest, when there are
// more than a gateway that is refused would begin.
func TestMisses(t *testing.T) {
	var r rests
	now := time.Unix(0, 0)
	evil, poor := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for n := range 2 * missBurst {
		if left, _ := r.left(evil, now); (left > 0) != (n > missBurst) {
			t.Fatalf("after %d it rests for %v", n, left)
		}
		r.missed(evil, now)
	}
	for range 10 * missBurst { // as often as is forgiven
		now = now.Add(time.Second / missRate)
		r.missed(poor, now)
	}
	if left, _ := r.left(poor, now); left > 0 {
		t.Errorf("it rests for %v", left)
	}
	for n := range 2 * maxRests {
		r.missed(netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), now)
	}
	if len(r.misses) > maxRests {
		t.Errorf("%d are remembered", len(r.misses))
	}
}

// TestManyRests: so many are remembered; what ends first makes room.
func TestManyRests(t *testing.T) {
	var r rests
	now := time.Unix(0, 0)
	source := func(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("10.0.%d.%d", n>>8, n&255)) }
	for n := range maxRests + 1 {
		r.begin(source(n), "ping", now.Add(time.Duration(n)))
	}
	now = now.Add(maxRests)
	if len(r.of) != maxRests {
		t.Errorf("%d are remembered, want %d", len(r.of), maxRests)
	}
	for n, rests := range map[int]bool{0: false, 1: true, maxRests: true} {
		if left, _ := r.left(source(n), now); left > 0 != rests {
			t.Errorf("source %d rests for %v", n, left)
		}
	}
	now = now.Add(firstRest + restForgotten)
	r.begin(source(maxRests+1), "ping", now)
	if len(r.of) != 1 {
		t.Errorf("%d are remembered after a quiet minute, want one", len(r.of))
	}
}
