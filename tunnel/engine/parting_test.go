package engine_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"wishbone/tunnel/engine"
	"wishbone/tunnel/hbone"
	"wishbone/tunnel/record"
)

// slowPeer is the far side of a tunnel, driven by the test: it reads when it is
// told to. It accepts every request, and ends its own direction at once.
type slowPeer struct {
	hbone.Handler // nil: what it does not hear of
	rec           record.Conn
	h2            *hbone.Conn
	got           int
	ended         bool
}

func (s *slowPeer) Room()                            {}
func (s *slowPeer) Accepted(*hbone.Stream)           {}
func (s *slowPeer) Data(_ *hbone.Stream, p []byte)   { s.got += len(p) }
func (s *slowPeer) End(*hbone.Stream)                { s.ended = true }
func (s *slowPeer) Reset(_ *hbone.Stream, why error) {}

func (s *slowPeer) Request(st *hbone.Stream, _ hbone.Request) {
	st.Accept()
	st.End()
}

// write sends what the peer has to say.
func (s *slowPeer) write(t *testing.T) {
	for s.h2.HasControl() {
		if err := s.rec.Seal(s.h2.AppendControl(make([]byte, 0, 1<<16))); err != nil {
			t.Fatal(err)
		}
	}
	if done, err := s.rec.Flush(); !done || err != nil {
		t.Fatalf("peer's flush: %t, %v", done, err)
	}
}

// read takes in what has come, once there is something, and returns the error
// that ended the tunnel.
func (s *slowPeer) read(t *testing.T) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := s.rec.Read(buf)
		if n > 0 {
			if err := s.h2.Receive(1, buf[:n]); err != nil {
				return err
			}
			return nil
		}
		if err != record.ErrAgain {
			return err
		}
		fds := []unix.PollFd{{Fd: int32(s.rec.FD()), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 20_000); n == 0 || err != nil && err != unix.EINTR {
			t.Fatalf("nothing comes from the tunnel: %v", err)
		}
	}
}

// newSlowPeer joins a loop's tunnel to a peer that takes little at a time.
func newSlowPeer(t *testing.T) (*pair, *slowPeer) {
	client, server := sessions(t)
	if err := unix.SetsockoptInt(server.FD(), unix.SOL_SOCKET, unix.SO_RCVBUF, 48<<10); err != nil {
		t.Fatal(err)
	}
	s := &slowPeer{rec: server}
	s.h2 = hbone.New(hbone.Config{Role: hbone.Server}, s, 1)
	p := &pair{west: must(engine.NewLoop()), ends: make(chan ended, 4), refusals: make(chan hbone.Refusal, 4), lost: make(chan error, 4)}
	p.running.Go(func() {
		if err := p.west.Run(); err != nil {
			t.Error(err)
		}
	})
	p.on(p.west, func() { p.tunnel = must(p.west.AddTunnel(client, hbone.Config{}, &westEnd{p})) })
	t.Cleanup(func() {
		p.west.Post(p.west.Stop)
		server.Close()
		p.running.Wait()
	})
	return p, s
}

// TestPeerReadsLate: a peer that still speaks when the tunnel is closed, and
// reads only then, gets everything that was sent, and the end of the session.
func TestPeerReadsLate(t *testing.T) {
	const size = 200_000
	p, s := newSlowPeer(t)
	fd, client := tcpPair(t)
	p.closed = func(f *engine.Flow) {
		f.Tunnel().Close(nil)
		p.west.Stop() // the loop waits for what is on its way
	}
	p.on(p.west, func() {
		f := must(p.west.NewFlow(fd, p.flow(t, false)))
		if err := f.Open(p.tunnel, hbone.Request{Target: netip.MustParseAddrPort("192.0.2.1:1")}); err != nil {
			t.Error(err)
		}
	})
	for s.h2.Streams() == 0 {
		if err := s.read(t); err != nil {
			t.Fatal(err)
		}
	}
	release := p.hold(p.west)
	if _, err := client.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	client.CloseWrite()
	s.write(t)
	release()
	if err := <-p.lost; err != nil {
		t.Errorf("tunnel closed with %v", err)
	}
	s.h2.Drain() // any word will do: it comes when the tunnel has gone
	s.write(t)
	err := error(nil)
	for err == nil {
		err = s.read(t)
	}
	if s.got != size || !s.ended || !errors.Is(err, record.ErrClosed) {
		t.Errorf("peer read %d bytes of %d, the end: %t, then %v", s.got, size, s.ended, err)
	}
}

// TestDeadPeer: a peer that does not close is waited for, but not for ever, and
// less when there is a hurry, which may be told before or after.
func TestDeadPeer(t *testing.T) {
	for _, tt := range []struct {
		name          string
		before, after bool
		limit         time.Duration
	}{
		{"at leisure", false, false, engine.PartLimit},
		{"hurried before", true, false, engine.HurriedLimit},
		{"hurried after", false, true, engine.HurriedLimit},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, s := newSlowPeer(t)
			s.write(t)
			hurry := func(now bool) {
				if now {
					p.on(p.west, p.west.Hurry)
				}
			}
			parting := func(later time.Duration) (n int) {
				p.on(p.west, func() { p.west.Advance(later) })
				p.round(p.west)
				p.on(p.west, func() { n = p.west.Parting() })
				return n
			}
			hurry(tt.before)
			p.on(p.west, func() {
				p.tunnel.Close(nil)
				p.west.Stop()
			})
			<-p.lost
			hurry(tt.after)
			if tt.limit == engine.PartLimit && parting(2*engine.HurriedLimit) != 1 {
				t.Fatal("the loop does not wait for the peer")
			}
			if parting(tt.limit) != 0 {
				t.Error("the loop waits for a peer that is dead")
			}
		})
	}
}

// TestSaysWhy: a peer that breaks the protocol is told so.
func TestSaysWhy(t *testing.T) {
	p, s := newSlowPeer(t)
	s.write(t)
	frame := make([]byte, hbone.FrameHeader)
	frame[3] = byte(http2.FramePushPromise)
	if err := s.rec.Seal(frame); err != nil {
		t.Fatal(err)
	}
	s.write(t)
	if err := <-p.lost; err == nil {
		t.Error("the tunnel goes on")
	}
	var err error
	for err == nil {
		err = s.read(t)
	}
	if e, ok := errors.AsType[*hbone.ConnError](err); !ok || !e.Remote || e.Code != http2.ErrCodeProtocol {
		t.Errorf("peer saw %v, want GOAWAY with PROTOCOL_ERROR", err)
	}
}

// TestEndBeforeAnswer: a peer may half-close its stream before it is answered,
// as other HBONE clients do; the server sees the FIN all the same.
func TestEndBeforeAnswer(t *testing.T) {
	target := server(t, func(c *net.TCPConn) {
		n, err := io.Copy(io.Discard, c)
		fmt.Fprintf(c, "read %d bytes, %s", n, fate(err))
	})
	client, far := sessions(t)
	s := &slowPeer{rec: client}
	s.h2 = hbone.New(hbone.Config{}, s, 1)
	p := &pair{east: must(engine.NewLoop()), ends: make(chan ended, 4), lost: make(chan error, 4)}
	p.running.Go(func() {
		if err := p.east.Run(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		p.east.Post(p.east.Stop)
		client.Close()
		p.running.Wait()
	})
	p.on(p.east, func() {
		p.server = must(p.east.AddTunnel(far, hbone.Config{Role: hbone.Server}, &eastEnd{p, t}))
	})
	st, err := s.h2.Open(1, hbone.Request{Target: netip.MustParseAddrPort(target)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.write(t)
	end := make([]byte, hbone.FrameHeader)
	end[3], end[4], end[8] = byte(http2.FrameData), byte(http2.FlagDataEndStream), byte(st.ID())
	if err := s.rec.Seal(end); err != nil {
		t.Fatal(err)
	}
	s.write(t)
	for !s.ended {
		if err := s.read(t); err != nil {
			t.Fatal(err)
		}
	}
	if want := len("read 0 bytes, end"); s.got != want {
		t.Errorf("the server's answer has %d bytes, want %d", s.got, want)
	}
	p.want(t, true, engine.Closed)
}
