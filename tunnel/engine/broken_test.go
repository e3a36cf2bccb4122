package engine_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/sys/unix"

	"wishbone/tunnel/engine"
	"wishbone/tunnel/hbone"
	"wishbone/tunnel/record"
)

// script is a session without TLS whose peer is a state machine in the same
// process. From some moment on its socket takes nothing more, though there is
// still something to be read: so it is when the peer has closed.
type script struct {
	hbone.Handler // nil: what the peer does not hear of
	peer          *hbone.Conn
	greet         func(*script, *hbone.Stream) // as soon as the stream is accepted, by either side; may be nil
	say           func(*hbone.Stream)          // when the stream's client has said all
	fd            int
	wake          io.Writer // any byte into it has epoll tell the tunnel
	in            [][]byte  // what Read returns, one after the other
	broken        bool
}

func (s *script) Room() {}

func (s *script) Request(st *hbone.Stream, _ hbone.Request) {
	st.Accept()
	s.flush()
	if s.greet != nil {
		s.greet(s, st)
	}
}

func (s *script) Accepted(st *hbone.Stream) { s.greet(s, st) }

func (s *script) End(st *hbone.Stream) { s.say(st) }

// flush moves the peer's control frames to what is read.
func (s *script) flush() {
	s.in = append(s.in, s.peer.AppendControl(make([]byte, 0, 1<<16)))
	io.WriteString(s.wake, "x")
}

// data sends DATA from the peer.
func (s *script) data(st *hbone.Stream, p []byte) {
	frame := make([]byte, hbone.FrameHeader, hbone.FrameHeader+len(p))
	st.PutData((*[hbone.FrameHeader]byte)(frame), len(p))
	s.in = append(s.in, append(frame, p...))
}

func (s *script) Read(p []byte) (int, error) {
	switch {
	case len(s.in) > 0:
		n := copy(p, s.in[0])
		s.in = s.in[1:]
		return n, nil
	case s.broken:
		return 0, record.ErrClosed
	}
	return 0, record.ErrAgain
}

func (s *script) Seal(p []byte) error { return s.peer.Receive(1, p) }

func (s *script) Flush() (bool, error) {
	if s.broken {
		return false, unix.EPIPE
	}
	return true, nil
}

func (s *script) Queued() int                { return 0 }
func (s *script) Records() uint64            { return 0 }
func (s *script) FD() int                    { return s.fd }
func (s *script) State() tls.ConnectionState { return tls.ConnectionState{} }
func (s *script) Close() error               { return unix.Close(s.fd) }

func (s *script) CloseWrite() (bool, error) {
	if done, err := s.Flush(); err != nil {
		return done, err
	}
	return true, unix.Shutdown(s.fd, unix.SHUT_WR)
}

// tcpPair is a connected pair; the near end is a bare descriptor.
func tcpPair(t *testing.T) (near int, far *net.TCPConn) {
	accepted := make(chan int, 1)
	address := server(t, func(c *net.TCPConn) {
		control(t, c, func(fd int) {
			dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Error(err)
			}
			accepted <- dup
		})
	})
	far = dial(t, address)
	return <-accepted, far
}

// scripted is a loop with one tunnel, whose peer is s, and one stream on it. It
// returns the stream's client. Everything ends with the test.
func scripted(t *testing.T, s *script) (*pair, *net.TCPConn) {
	l := must(engine.NewLoop())
	clientFD, client := tcpPair(t)
	if err := errors.Join(unix.SetsockoptInt(clientFD, unix.SOL_SOCKET, unix.SO_SNDBUF, 32<<10), client.SetReadBuffer(32<<10)); err != nil {
		t.Fatal(err)
	}
	s.fd, s.wake = tcpPair(t)
	s.peer = hbone.New(hbone.Config{Role: hbone.Server}, s, 1)
	s.flush()
	p := &pair{west: l, ends: make(chan ended, 1), refusals: make(chan hbone.Refusal, 1), lost: make(chan error, 1)}
	p.running.Go(func() {
		if err := l.Run(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		p.on(l, l.Stop)
		p.running.Wait()
	})
	p.on(l, func() {
		p.tunnel = must(l.AddTunnel(s, hbone.Config{}, &westEnd{p}))
		p.latest = must(l.NewFlow(clientFD, p.flow(t, false)))
		if err := p.latest.Open(p.tunnel, hbone.Request{Target: netip.MustParseAddrPort("192.0.2.1:1")}); err != nil {
			t.Error(err)
		}
	})
	return p, client
}

// TestPeerHasClosed: a tunnel that can write no more still delivers everything
// that the peer had sent before, and ends in order if the peer had said so.
func TestPeerHasClosed(t *testing.T) {
	const pieces, size = 50, 1000
	s := new(script)
	s.say = func(st *hbone.Stream) {
		for range pieces {
			s.data(st, make([]byte, size))
		}
		st.End()
		s.peer.Drain()
		s.flush()
		s.broken = true
	}
	p, client := scripted(t, s)
	client.CloseWrite()
	if n, err := io.Copy(io.Discard, client); n != pieces*size || err != nil {
		t.Errorf("read %d bytes (%v), want %d", n, err, pieces*size)
	}
	p.want(t, false, engine.Closed)
	if err := <-p.lost; err != nil {
		t.Errorf("tunnel closed with %v, want an orderly end", err)
	}
}

// TestGoodbye: a peer that has said everything and takes no more (RFC 9113 §8.1)
// has closed, as its server has. A slow client gets all of it, however long that
// takes, and then the end, also if it has said something that nobody takes. What
// it sends afterwards is answered by a reset.
func TestGoodbye(t *testing.T) {
	for _, late := range []string{"", "too late"} {
		t.Run(late, func(t *testing.T) {
			const pieces, size = 15, 16 << 10 // within a stream's first credit
			p, client := scripted(t, &script{greet: func(s *script, st *hbone.Stream) {
				for range pieces {
					s.data(st, make([]byte, size))
				}
				st.End()
				st.Reset(http2.ErrCodeNo)
				s.flush()
			}})
			eventually(t, "everything has come", func() bool {
				_, received := p.traffic()
				return received == pieces*size
			})
			p.round(p.west)
			io.WriteString(client, late)
			p.on(p.west, func() { p.west.Advance(2 * engine.AbortLimit) })
			p.round(p.west)
			if p.over.Load() != 0 {
				t.Fatal("the flow has ended before the client could read: this shows nothing")
			}
			if _, n, err := sum(client); n != pieces*size || err != nil {
				t.Errorf("read %d bytes, then %v; want %d, then the end", n, err, pieces*size)
			}
			p.want(t, false, engine.Closed)
			if _, err := io.WriteString(client, "x"); err != nil && late == "" {
				t.Errorf("to a server that has closed and not reset: %v, want one write without an error", err)
			}
			eventually(t, "what is sent to a server that has closed is answered by a reset", func() bool {
				_, err := io.WriteString(client, "x")
				return fate(err) == "reset"
			})
		})
	}
}

// TestClientsGoodbye: only a server may take no more and have said everything (RFC 9113
// §8.1). A client that does so has reset its stream, whose place on the tunnel is free at
// once: its server has as long for what came before as before any reset, and is reset.
func TestClientsGoodbye(t *testing.T) {
	const pieces, size = 15, 16 << 10 // within a stream's first credit
	read, got := make(chan struct{}), make(chan int64, 1)
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	control(t, ln.(*net.TCPListener), func(fd int) { // what is accepted has it too
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<10); err != nil {
			t.Error(err)
		}
	})
	p := newPair(t, serveOn(t, ln, func(c *net.TCPConn) {
		<-read
		_, n, err := sum(c)
		if fate(err) != "reset" {
			t.Errorf("the server's connection ended with %v, want ECONNRESET", err)
		}
		got <- n
	}))
	readAll := sync.OnceFunc(func() { close(read) })
	t.Cleanup(readAll) // before the server's end is waited for
	s := &script{greet: func(s *script, st *hbone.Stream) {
		for range pieces {
			s.data(st, make([]byte, size))
		}
		st.End()
		st.Reset(http2.ErrCodeNo)
		s.flush()
	}}
	s.fd, s.wake = tcpPair(t)
	s.peer = hbone.New(hbone.Config{Role: hbone.Client}, s, 1)
	if _, err := s.peer.Open(1, hbone.Request{Target: p.target}, nil); err != nil {
		t.Fatal(err)
	}
	s.flush()
	var flow *engine.Flow
	p.on(p.east, func() {
		p.requested = func(f *engine.Flow) { flow = f }
		must(p.east.AddTunnel(s, hbone.Config{Role: hbone.Server}, &eastEnd{p, t}))
	})
	eventually(t, "everything has come", func() (all bool) {
		p.on(p.east, func() {
			if flow != nil {
				_, received := flow.Traffic()
				all = received == pieces*size
			}
		})
		return all
	})
	p.round(p.east)
	if p.over.Load() != 0 {
		t.Fatal("the flow has ended before the server could read: this shows nothing")
	}
	p.on(p.east, func() { p.east.Advance(engine.AbortLimit) })
	p.want(t, true, engine.PeerCut)
	readAll()
	if n := <-got; n >= pieces*size {
		t.Errorf("the server read all of %d bytes: it was waited for", n)
	}
}
