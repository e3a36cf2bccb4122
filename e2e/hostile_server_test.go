package e2e

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/net/http2"

	"wishbone/identity"
	"wishbone/identity/identitytest"
)

// TestHostileServer: a peer that we have dialled may do with one connection what
// it likes, and the client is told the truth about it; the tunnel and whatever
// else is on it live on.
func TestHostileServer(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(h *hostile)
		got  string // by the client
		how  func(error) bool
		log  []string
		gone bool // the tunnel is, and no other is dialled
	}{
		{name: "it resets the request", how: isReset, log: []string{"connection refused", "reason=unknown"},
			do: func(h *hostile) { h.check(h.framer.WriteRSTStream(h.stream, http2.ErrCodeCancel)) }},
		{name: "its answer is the end", how: isEnd,
			do: func(h *hostile) { h.headers(h.stream, true, ":status", "200") }},
		{name: "its answer is a refusal with a body", how: isReset, log: []string{"connection refused", "reason=unknown"},
			do: func(h *hostile) {
				h.headers(h.stream, false, ":status", "500")
				h.check(h.framer.WriteData(h.stream, true, []byte("body")))
			}},
		{name: "it never answers", how: isReset, log: []string{"connection refused", "reason=timeout"}, do: func(h *hostile) {}},
		{name: "it says 1xx until the end", how: isReset, log: []string{"connection refused", "reason=timeout"},
			do: func(h *hostile) {
				tick := time.NewTicker(20 * time.Millisecond)
				defer tick.Stop()
				for h.state().resets[h.stream] == 0 {
					h.headers(h.stream, false, ":status", "103")
					h.flush()
					<-tick.C
				}
			}},
		{name: "DATA before the answer", how: isReset, log: []string{"peer_cut"},
			do: func(h *hostile) { h.check(h.framer.WriteData(h.stream, false, []byte("early"))) }},
		{name: "an answer without a status", how: isReset, log: []string{"peer_cut"},
			do: func(h *hostile) { h.headers(h.stream, false, "a", "b") }},
		{name: "a second answer", how: isReset, log: []string{"peer_cut"},
			do: func(h *hostile) { h.open(); h.headers(h.stream, false, ":status", "200") }},
		{name: "a reset of its connection", got: "said", how: isReset, log: []string{"server_reset"},
			do: func(h *hostile) {
				h.open()
				h.check(h.framer.WriteData(h.stream, false, []byte("said")))
				h.check(h.framer.WriteRSTStream(h.stream, http2.ErrCodeConnect))
			}},
		{name: "a trickle", got: "0123456789", how: isEnd,
			do: func(h *hostile) {
				h.open()
				for i := range 10 {
					h.check(h.framer.WriteData(h.stream, i == 9, []byte{'0' + byte(i)}))
					h.flush()
				}
			}},
		{name: "GOAWAY that takes back its answer", how: isReset, log: []string{"peer_cut"}, gone: true,
			do: func(h *hostile) { h.open(); h.check(h.framer.WriteGoAway(0, http2.ErrCodeNo, nil)) }},
		{name: "DATA beyond the window", got: "*", how: isReset, log: []string{"peer_cut"},
			do: func(h *hostile) {
				h.open()
				for h.state().resets[h.stream] == 0 { // the client does not read meanwhile
					h.check(h.framer.WriteData(h.stream, false, make([]byte, 16<<10)))
					h.flush()
				}
			}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // some wait for a timeout
			s := newSiege(t)
			h := s.server()
			tt.do(h)
			h.flush()
			h.check(h.app.SetDeadline(time.Now().Add(patience)))
			var got []byte
			var err error
			for buf := make([]byte, 64<<10); err == nil; {
				var n int
				n, err = h.app.Read(buf)
				got = append(got, buf[:n]...)
			}
			if tt.got != "*" && string(got) != tt.got {
				t.Errorf("the client has got %q, want %q", got, tt.got)
			}
			if !tt.how(err) {
				t.Errorf("the client's connection ends with %v", err)
			}
			if tt.log != nil {
				awaitLog(t, s.west, append(tt.log, "client="+h.app.LocalAddr().String())...)
			}
			if tt.gone {
				awaitLog(t, s.west, "tunnel down", fmt.Sprintf("peer=m%d", h.peer))
				if strings.Contains(s.west.Log(), "tunnel not established") {
					t.Error("another was dialled")
				}
				return
			}
			h.alive("the tunnel lives on")
			if n := status(t, s.west).Peers[1+h.peer].Tunnels; n != 1 {
				t.Errorf("there are %d tunnels", n)
			}
		})
	}
}

func isEnd(err error) bool { return err == io.EOF }

// storm is a server that does the same to every tunnel, and counts them.
type storm struct {
	ln      net.Listener
	tunnels atomic.Int64
	streams atomic.Int64
}

// newStorm serves as the next peer; do has each tunnel after the preface.
func (s *siege) newStorm(do func(st *storm, h *hostile)) (*storm, netip.AddrPort) {
	s.t.Helper()
	peer := s.next
	s.next++
	st := &storm{ln: listen(s.t, s.mallory, netip.AddrPortFrom(toWest.Addr(), uint16(15100+peer)))}
	cfg := identity.Server(s.authority.Source(fmt.Sprintf("/gateway/m%d", peer)), func(spiffeid.ID) error { return nil })
	go func() { // ends with the listener
		for {
			c, err := st.ln.Accept()
			if err != nil {
				return
			}
			st.tunnels.Add(1)
			go func() { // ends with the connection
				defer c.Close()
				h := &hostile{s: s, t: s.t, peer: peer, gateway: s.west, on: s.West, conn: tls.Server(c, cfg)}
				// One that west lets go at once is not there to shake hands with.
				_ = h.serveStorm(st, do)
			}()
		}
	}()
	return st, (&hostile{peer: peer}).network(80)
}

func (h *hostile) serveStorm(st *storm, do func(st *storm, h *hostile)) error {
	if err := h.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := h.conn.Handshake(); err != nil {
		return err
	}
	if _, err := io.ReadFull(h.conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return err
	}
	h.framer = http2.NewFramer(h.conn, h.conn)
	if err := h.framer.WriteSettings(); err != nil {
		return err
	}
	do(st, h)
	return nil
}

// each has every request that comes.
func each(f func(fr *http2.Framer, stream uint32) error) func(st *storm, h *hostile) {
	return func(st *storm, h *hostile) {
		for {
			frame, err := h.framer.ReadFrame()
			if err != nil {
				return
			}
			if frame.Header().Type != http2.FrameHeaders {
				continue
			}
			st.streams.Add(1)
			if f(h.framer, frame.Header().StreamID) != nil {
				return
			}
		}
	}
}

// TestStorms: a server that lets us go as soon as we are there, or resets whatever
// we ask for, is not dialled again and again for it. A request that it has not
// taken is tried once more, and no other is.
func TestStorms(t *testing.T) {
	for _, tt := range []struct {
		name    string
		do      func(st *storm, h *hostile)
		tunnels int64 // at most
		streams int64 // at most, for a client's connection; 0: as many as tunnels
	}{
		{"GOAWAY for every request", each(func(fr *http2.Framer, stream uint32) error {
			return fr.WriteGoAway(0, http2.ErrCodeNo, nil)
		}), 40, 0},
		{"GOAWAY at once", func(st *storm, h *hostile) {
			if h.framer.WriteGoAway(0, http2.ErrCodeNo, nil) == nil {
				each(func(*http2.Framer, uint32) error { return nil })(st, h)
			}
		}, 40, 0},
		{"GOAWAY with an error for every request", each(func(fr *http2.Framer, stream uint32) error {
			return fr.WriteGoAway(stream, http2.ErrCodeEnhanceYourCalm, []byte("go away"))
		}), 40, 0},
		{"the end for every request", each(func(fr *http2.Framer, stream uint32) error { return errors.New("done") }), 40, 0},
		{"REFUSED_STREAM for every request", each(func(fr *http2.Framer, stream uint32) error {
			return fr.WriteRSTStream(stream, http2.ErrCodeRefusedStream)
		}), 20, 2},
		{"RST_STREAM for every request", each(func(fr *http2.Framer, stream uint32) error {
			return fr.WriteRSTStream(stream, http2.ErrCodeCancel)
		}), 20, 1},
		{"no streams at all", func(st *storm, h *hostile) {
			if h.framer.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 0}) == nil {
				each(func(*http2.Framer, uint32) error { return nil })(st, h)
			}
		}, 20, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSiege(t)
			st, at := s.newStorm(tt.do)
			n := int64(0)
			for stop := time.Now().Add(time.Second); time.Now().Before(stop); n++ {
				c, err := tryDial(t, s.Client, at)
				if err != nil {
					continue // reset at once
				}
				if err := c.SetDeadline(time.Now().Add(briefly)); err != nil {
					t.Fatal(err)
				}
				if err := readEnd(t, c); err == io.EOF {
					t.Fatal("a client is told that all is well")
				}
				c.Close()
			}
			t.Logf("%d connections: %d tunnels, %d requests", n, st.tunnels.Load(), st.streams.Load())
			if got := st.tunnels.Load(); got > tt.tunnels {
				t.Errorf("%d tunnels were dialled for %d connections, want %d at most", got, n, tt.tunnels)
			}
			limit := cmp.Or(tt.streams*n, tt.tunnels)
			if got := st.streams.Load(); got > limit {
				t.Errorf("%d requests were made for %d connections, want %d at most", got, n, limit)
			}
		})
	}
}

// TestHostileServerChains: a server that shows more than anybody needs is refused
// in the handshake, by name, and its client is told at once.
func TestHostileServerChains(t *testing.T) {
	s := newSiege(t)
	for _, tt := range []struct {
		name    string
		padding int
		log     string
	}{
		{"more than 40 KiB", 40 << 10, "too_large"},
		{"more than the handshake may have", 100 << 10, "more than 65536 bytes in the handshake"},
		{"more than crypto/tls reads", 300 << 10, "tls"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := s.during(t)
			peer := s.next
			ln := listen(t, s.mallory, netip.AddrPortFrom(toWest.Addr(), uint16(15100+peer)))
			cfg := identity.Server(s.authority.Source(fmt.Sprintf("/gateway/m%d", peer), identitytest.Options{Padding: tt.padding}),
				func(spiffeid.ID) error { return nil })
			go func() { // ends with the listener
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					// West's verdict counts.
					_ = tls.Server(c, cfg).Handshake()
					c.Close()
				}
			}()
			before := peak(t, s.west)
			refused(t, s.Client, (&hostile{peer: peer}).network(80))
			awaitLog(t, s.west, "tunnel not established", fmt.Sprintf("peer=m%d", peer), tt.log)
			if more := peak(t, s.west) - before; more > mostMemory {
				t.Errorf("it has cost %d KiB, want %d at most", more>>10, mostMemory>>10)
			}
		})
	}
}
