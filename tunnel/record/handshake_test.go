package record

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// begin starts a handshake whose result comes through the channel.
func begin(ctx context.Context, t *testing.T, r role, nc *net.TCPConn, cfg *tls.Config, slots Slots) <-chan error {
	result := make(chan error, 1)
	var running sync.WaitGroup
	running.Go(func() {
		c, err := end{role: r}.conn(ctx, nc, cfg, slots)
		if err == nil {
			err = c.Close()
		}
		result <- err
	})
	t.Cleanup(running.Wait)
	return result
}

// silent begins a handshake with somebody who says nothing, and waits until it
// waits for them.
func silent(ctx context.Context, t *testing.T, slots Slots) (far *net.TCPConn, result <-chan error) {
	t.Helper()
	near, far := tcp(t)
	result = begin(ctx, t, client, near, clientConfig(), slots)
	_, err := io.ReadFull(far, make([]byte, 5)) // its ClientHello
	check(t, err)
	return far, result
}

// free waits until no slot is held.
func free(t *testing.T, slots Slots) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 10_000 {
		if len(slots) == 0 {
			return
		}
		<-tick.C
	}
	t.Errorf("%d slots are held", len(slots))
}

func TestWaitingHandshakeHoldsNoSlot(t *testing.T) {
	slots := NewSlots(1)
	ctx, cancel := context.WithCancel(timeout(t))
	_, result := silent(ctx, t, slots)
	near, far := tcp(t)
	server := begin(timeout(t), t, server, far, serverConfig(t), slots)
	c, err := Client(timeout(t), near, clientConfig(), Options{Slots: slots})
	if err != nil {
		t.Fatalf("a handshake beside one that waits: %v", err)
	}
	check(t, c.Close())
	check(t, <-server)
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("the one that waited: %v", err)
	}
	free(t, slots)
}

func TestBlockedWriteHoldsNoSlot(t *testing.T) {
	slots := NewSlots(1)
	near, far := tcp(t)
	check(t, near.SetWriteBuffer(4096))
	cfg := serverConfig(t)
	cfg.Certificates = []tls.Certificate{selfSigned(t, 200_000)}
	result := begin(timeout(t), t, server, near, cfg, slots)
	gate := &gated{TCPConn: far, open: make(chan struct{})}
	reader := make(chan error, 1)
	go func() { reader <- tls.Client(gate, clientConfig()).Handshake() }() // received from below
	full(t, near)
	free(t, slots)
	check(t, near.SetWriteBuffer(1<<20)) // no need to be slow any longer
	close(gate.open)
	check(t, <-reader)
	check(t, <-result)
	free(t, slots)
}

// full waits until a socket takes no more.
func full(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	check(t, err)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 10_000 {
		fds := []unix.PollFd{{Events: unix.POLLOUT}}
		n := -1
		check(t, raw.Control(func(fd uintptr) {
			fds[0].Fd = int32(fd)
			n, err = unix.Poll(fds, 0)
		}))
		if n == 0 && err == nil {
			return
		}
		<-tick.C
	}
	t.Fatal("the socket does not fill")
}

// gated reads nothing until it is opened.
type gated struct {
	*net.TCPConn
	open chan struct{}
}

func (g *gated) Read(p []byte) (int, error) {
	<-g.open
	return g.TCPConn.Read(p)
}

func TestHandshakeEndsWithItsContext(t *testing.T) {
	slots := NewSlots(1)
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	far, result := silent(ctx, t, slots)
	if err := <-result; !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	closed(t, far)
	free(t, slots)
}

// closed sees that the other end of c is closed.
func closed(t *testing.T, c *net.TCPConn) {
	t.Helper()
	check(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
	if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the other end is not closed: %v", err)
	}
}

func TestHandshakeThatGetsNoSlotEndsWithItsContext(t *testing.T) {
	slots := NewSlots(1)
	slots <- struct{}{} // a handshake that computes for long
	near, far := tcp(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := Client(ctx, near, clientConfig(), Options{Slots: slots}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	closed(t, far)
	if len(slots) != 1 {
		t.Errorf("%d slots are held, want the one of another", len(slots))
	}
}

// A handshake that has lost its slot while it waited, and whose time is over
// before there is another, ends too.
func TestHandshakeThatGetsNoSlotBackEndsWithItsContext(t *testing.T) {
	slots := NewSlots(1)
	ctx, cancel := context.WithCancel(timeout(t))
	far, result := silent(ctx, t, slots)
	slots <- struct{}{} // free, since it waits
	_, err := far.Write([]byte("HTTP/1.1 400 Bad Request\r\n"))
	check(t, err)
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	closed(t, far)
	if len(slots) != 1 {
		t.Errorf("%d slots are held, want the one of another", len(slots))
	}
}

func TestFailedHandshakeClosesAndFreesItsSlot(t *testing.T) {
	denied := errors.New("denied")
	deny := func(cfg *tls.Config) *tls.Config {
		cfg.VerifyConnection = func(tls.ConnectionState) error { return denied }
		return cfg
	}
	for name, c := range map[string]struct {
		cfg  *tls.Config
		far  func(*net.TCPConn) error
		want func(error) bool
	}{
		"refused by us": {
			deny(clientConfig()),
			func(nc *net.TCPConn) error {
				// It fails here too, or hears of it later.
				_ = tls.Server(nc, serverConfig(t)).Handshake()
				return nil
			},
			func(err error) bool { return errors.Is(err, denied) },
		},
		"refused by them": {
			clientConfig(),
			func(nc *net.TCPConn) error {
				cfg := serverConfig(t)
				cfg.MaxVersion, cfg.MinVersion = tls.VersionTLS12, tls.VersionTLS12
				if tls.Server(nc, cfg).Handshake() == nil {
					return errors.New("the other end accepts what it must not")
				}
				return nil
			},
			func(err error) bool { return err != nil },
		},
		"not TLS": {
			clientConfig(),
			func(nc *net.TCPConn) error {
				_, err := nc.Write([]byte("SSH-2.0-OpenSSH_9.2\r\n"))
				return err
			},
			func(err error) bool { var e tls.RecordHeaderError; return errors.As(err, &e) },
		},
		"closed": {
			clientConfig(),
			func(nc *net.TCPConn) error { return nc.CloseWrite() },
			func(err error) bool { return errors.Is(err, io.EOF) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			slots := NewSlots(1)
			near, far := tcp(t)
			result := begin(timeout(t), t, client, near, c.cfg, slots)
			check(t, c.far(far))
			if err := <-result; !c.want(err) {
				t.Error(err)
			}
			closed(t, far)
			free(t, slots)
		})
	}
}

func TestPanicFreesItsSlot(t *testing.T) {
	slots := NewSlots(1)
	near, far := tcp(t)
	cfg := clientConfig()
	cfg.VerifyConnection = func(tls.ConnectionState) error { panic("a bug in a verifier") }
	other := make(chan error, 1)
	go func() { other <- tls.Server(far, serverConfig(t)).Handshake() }() // received from below
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		Client(timeout(t), near, cfg, Options{Slots: slots})
	}()
	near.Close()
	if <-other == nil {
		t.Error("the server's handshake worked")
	}
	free(t, slots)
}

// The net package must have given up the descriptor, without harm to it.
func TestHandOver(t *testing.T) {
	near, far := tcp(t)
	slots := NewSlots(1)
	result := begin(timeout(t), t, server, far, serverConfig(t), slots)
	c, err := Client(timeout(t), near, clientConfig(), Options{Slots: slots})
	check(t, err)
	check(t, <-result)
	defer c.Close()
	if err := near.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection was not closed: %v", err)
	}
	flags, err := unix.FcntlInt(uintptr(c.FD()), unix.F_GETFL, 0)
	check(t, err)
	if flags&unix.O_NONBLOCK == 0 {
		t.Error("the descriptor blocks")
	}
	flags, err = unix.FcntlInt(uintptr(c.FD()), unix.F_GETFD, 0)
	check(t, err)
	if flags&unix.FD_CLOEXEC == 0 {
		t.Error("children inherit the descriptor")
	}
	free(t, slots)
}

// A ticket is taken after the handshake, and crypto/tls asks the connection for
// its addresses then.
func TestAddressesOutliveTheHandshake(t *testing.T) {
	near, far := tcp(t)
	scfg := serverConfig(t)
	scfg.SessionTicketsDisabled = false
	result := make(chan error, 1)
	go func() { // ends with the handshake; received from below
		result <- errors.Join(tls.Server(far, scfg).HandshakeContext(t.Context()), far.CloseWrite())
	}()
	cfg := clientConfig()
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	c, err := Client(timeout(t), near, cfg, Options{Standard: true})
	check(t, err)
	defer c.Close()
	check(t, <-result)
	wait(t, c.FD(), unix.POLLIN)
	for err = ErrAgain; err == ErrAgain; wait(t, c.FD(), unix.POLLIN) {
		_, err = readAll(c, 100)
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if _, ok := cfg.ClientSessionCache.Get(near.RemoteAddr().String()); !ok {
		t.Error("no ticket was taken: the test shows nothing")
	}
}
