package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// What a connection of the load is for: its first byte.
const (
	upload   = 'u' // the client sends the pattern, the server checks it
	download = 'd' // the other way round
	echo     = 'e' // everything comes back
	once     = 'c' // one byte comes back, and the end
	blocked  = 'b' // the server reads nothing
)

// The pattern repeats itself after a length that has nothing to do with any
// buffer's, so that what is lost, doubled or moved does not fit any more.
const period = 1<<20 + 7

const chunk = 256 << 10

// pattern is one period and what a chunk may reach beyond.
var pattern = func() []byte {
	p := make([]byte, period, period+chunk)
	rand.NewChaCha8([32]byte{2}).Read(p)
	return append(p, p[:chunk]...)
}()

var errWrong = errors.New("other bytes arrived than were sent")

// checker reads a pattern and compares.
type checker struct {
	pos   int
	count *atomic.Int64 // bytes that were right
}

func (c *checker) Write(p []byte) (int, error) {
	if !bytes.Equal(p, pattern[c.pos:c.pos+len(p)]) {
		return 0, errWrong
	}
	c.pos = (c.pos + len(p)) % period
	c.count.Add(int64(len(p)))
	return len(p), nil
}

// check reads c to its end.
func (c *checker) check(r io.Reader) error {
	buf := make([]byte, chunk)
	for {
		n, err := r.Read(buf)
		if _, wrong := c.Write(buf[:n]); wrong != nil {
			return wrong
		}
		if err != nil {
			return err
		}
	}
}

// send writes the pattern until that fails.
func send(w io.Writer) error {
	for pos := 0; ; {
		n, err := w.Write(pattern[pos : pos+chunk])
		if err != nil {
			return err
		}
		pos = (pos + n) % period
	}
}

// server is the far end of all load.
type server struct {
	ln    *os.File // blocking
	mu    sync.Mutex
	held  chan struct{}         // closed when blocked connections may end; guarded by mu
	wrong atomic.Pointer[error] // the first connection that got other bytes
	got   atomic.Int64          // bytes of uploads
	open  atomic.Int64          // connections
}

// listen opens a socket for serve. Go's poller must not know of it: it would be woken
// for each connection too, at the cost of whoever connects.
func listen(at netip.AddrPort) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", at, err)
	}
	ln := os.NewFile(uintptr(fd), at.String())
	if err := errors.Join(unix.Bind(fd, address(at)), unix.Listen(fd, 4096)); err != nil {
		return nil, errors.Join(fmt.Errorf("listen at %s: %w", at, err), ln.Close())
	}
	return ln, nil
}

// serve serves until close is called, which closes ln. As many threads take connections,
// and serve the short ones.
func serve(ln *os.File, threads int) *server {
	s := &server{ln: ln, held: make(chan struct{})}
	for range threads {
		go s.accept(int(ln.Fd())) // ends with close
	}
	return s
}

// close ends the acceptors.
func (s *server) close() error {
	return errors.Join(unix.Shutdown(int(s.ln.Fd()), unix.SHUT_RD), s.ln.Close())
}

func (s *server) accept(ln int) {
	for {
		fd, _, err := unix.Accept4(ln, unix.SOCK_CLOEXEC)
		switch err {
		case nil:
			s.open.Add(1)
			s.begin(fd)
		case unix.EINTR, unix.ECONNABORTED:
		default:
			return
		}
	}
}

// begin learns what a connection is for, and serves it.
func (s *server) begin(fd int) {
	kind := make([]byte, 1)
	n, err := unix.Read(fd, kind)
	for err == unix.EINTR {
		n, err = unix.Read(fd, kind)
	}
	if n == 1 && kind[0] != once {
		f := os.NewFile(uintptr(fd), "")
		c, err := net.FileConn(f)
		if err = errors.Join(err, f.Close()); err == nil {
			go s.conn(kind[0], c.(*net.TCPConn)) // ends with the connection
			return
		}
		s.fail(err)
	} else {
		if n == 1 {
			_, _ = unix.Write(fd, kind) // a client that has gone is none of our business
		}
		unix.Close(fd)
	}
	s.open.Add(-1)
}

// conn is one connection. Clients end theirs as they like: only wrong bytes count.
func (s *server) conn(kind byte, c *net.TCPConn) {
	defer s.open.Add(-1)
	defer c.Close()
	var err error
	switch kind {
	case upload:
		err = (&checker{count: &s.got}).check(c)
	case download:
		err = send(c)
	case echo:
		_, err = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) // no splice
	case blocked:
		<-s.gate()
	default:
		err = errWrong
	}
	if errors.Is(err, errWrong) {
		s.fail(err)
	}
}

func (s *server) fail(err error) {
	err = fmt.Errorf("server: %w", err)
	s.wrong.CompareAndSwap(nil, &err)
}

// gate is what blocked connections wait for.
func (s *server) gate() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.held
}

// release ends the blocked connections there are.
func (s *server) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.held)
	s.held = make(chan struct{})
}

// settled waits until no connection is left, or for as long as any candidate should
// take to tell the server that its client has gone.
func (s *server) settled() {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); s.open.Load() > 0 && time.Now().Before(end); <-tick.C {
	}
}

// failed is what has gone wrong so far.
func (s *server) failed() error {
	if err := s.wrong.Load(); err != nil {
		return *err
	}
	return nil
}
