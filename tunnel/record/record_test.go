package record

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// noise is n bytes that are the same each time.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func TestReadResumesAtEveryByte(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		c, p := newPeer(t, e)
		for cut := range overhead + len("hello") {
			rec := p.out.seal(typeData, []byte("hello"))
			p.send(rec[:cut])
			if got, err := readAll(c, 100); len(got) > 0 || err != ErrAgain {
				t.Fatalf("after %d bytes of %d: read %q, %v", cut, len(rec), got, err)
			}
			p.send(rec[cut:])
			if got, err := readAll(c, 100); string(got) != "hello" || err != ErrAgain {
				t.Fatalf("cut after %d bytes: read %q, %v", cut, got, err)
			}
		}
	})
}

func TestReadByteByByte(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		c, p := newPeer(t, e)
		const long = 4000
		plain := noise(long + 100)
		wire := p.out.seal(typeData, plain[:50])
		wire = append(wire, p.out.keyUpdate(1)...)
		wire = append(wire, p.out.seal(typeData, plain[50:50+long])...)
		wire = append(wire, p.out.keyUpdate(0)...)
		wire = append(wire, p.out.seal(typeData, plain[50+long:])...)
		wire = append(wire, p.out.seal(typeAlert, []byte{1, 0})...)
		var got []byte
		var err error
		for i := range wire {
			if p.send(wire[i : i+1]); err != nil && err != ErrAgain {
				t.Fatalf("after %d bytes of %d: %v", i, len(wire), err)
			}
			var more []byte
			more, err = readAll(c, 1000)
			got = append(got, more...)
		}
		if !bytes.Equal(got, plain) || err != ErrClosed {
			t.Errorf("%d bytes, equal: %v, and in the end %v", len(got), bytes.Equal(got, plain), err)
		}
	})
}

// interrupted is a connection whose every other read fails with err.
type interrupted struct {
	net.Conn
	err  error
	turn int
}

func (i *interrupted) Read(p []byte) (int, error) {
	if i.turn++; i.turn%2 == 0 {
		return 0, i.err
	}
	return i.Conn.Read(p[:min(len(p), 7)])
}

// onlyTimeout is a net.Error that is not temporary.
type onlyTimeout struct{ again }

func (onlyTimeout) Timeout() bool   { return true }
func (onlyTimeout) Temporary() bool { return false }

// crypto/tls documents neither: a read may be resumed after an error that is
// temporary, and never after another, be it a timeout. Should this test fail
// with a new Go, errAgain has to follow.
func TestOnlyTemporaryErrorsCanBeResumed(t *testing.T) {
	for name, c := range map[string]struct {
		err     error
		resumes bool
	}{
		"temporary": {errAgain, true},
		"timeout":   {onlyTimeout{}, false},
		"other":     {os.ErrDeadlineExceeded, true}, // says both of itself
		"plain":     {errors.New("plain"), false},
	} {
		t.Run(name, func(t *testing.T) {
			near, far := tcp(t)
			done := make(chan error, 1)
			go func() { // ends with the handshake; received from below
				session := tls.Server(far, serverConfig(t))
				err := session.Handshake()
				if err == nil {
					_, err = session.Write([]byte("hello"))
				}
				done <- err
			}()
			wrapped := &interrupted{Conn: near, err: c.err}
			wrapped.turn = -1 << 40 // not yet
			session := tls.Client(&switchable{Conn: near, wrapped: wrapped}, clientConfig())
			check(t, session.HandshakeContext(timeout(t)))
			session.NetConn().(*switchable).on = true
			wrapped.turn = 0
			check(t, <-done)
			var got []byte
			buf := make([]byte, 100)
			for range 100 {
				n, err := session.Read(buf)
				got = append(got, buf[:n]...)
				if err == nil && len(got) == 5 {
					break
				}
			}
			if resumed := string(got) == "hello"; resumed != c.resumes {
				t.Errorf("read %q in a hundred attempts; want resumed = %v", got, c.resumes)
			}
		})
	}
}

// switchable is a connection that becomes another.
type switchable struct {
	net.Conn
	wrapped net.Conn
	on      bool
}

func (s *switchable) Read(p []byte) (int, error) {
	if s.on {
		return s.wrapped.Read(p)
	}
	return s.Conn.Read(p)
}

func TestKeyUpdateIsAnsweredByReading(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		c, p := newPeer(t, e)
		check(t, c.Seal([]byte("old key")))
		p.send(p.out.keyUpdate(1))
		p.send(p.out.seal(typeData, []byte("under the new key")))
		queued := c.Queued()
		if got, err := readAll(c, 100); string(got) != "under the new key" || err != ErrAgain {
			t.Fatalf("read %q, %v", got, err)
		}
		if c.Queued() != queued+overhead+5 {
			t.Errorf("%d bytes are queued, before reading it was %d", c.Queued(), queued)
		}
		check(t, c.Seal([]byte("new key")))
		if done, err := c.Flush(); !done || err != nil {
			t.Fatal(done, err)
		}
		p.want("what was sealed before", typeData, []byte("old key"))
		p.want("the answer asks for none", typeHandshake, []byte{keyUpdate, 0, 0, 1, 0})
		p.in.update()
		p.want("what was sealed after", typeData, []byte("new key"))

		p.send(p.out.keyUpdate(0))
		if _, err := readAll(c, 100); err != ErrAgain || c.Queued() != 0 {
			t.Errorf("a key update without a request: %v, %d bytes queued", err, c.Queued())
		}
	})
}

// What a hostile peer may send without end must end the session, or be worth a
// byte of data each time.
func TestFloodsAreBounded(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		floods := map[string]func(p *peer) []byte{
			"key updates":           func(p *peer) []byte { return p.out.keyUpdate(0) },
			"requested key updates": func(p *peer) []byte { return p.out.keyUpdate(1) },
			"empty records":         func(p *peer) []byte { return p.out.seal(typeData, nil) },
			"ignored alerts":        func(p *peer) []byte { return p.out.seal(typeAlert, []byte{1, 90}) },
			"change cipher specs":   func(*peer) []byte { return []byte{20, 3, 3, 0, 1, 1} },
		}
		for name, one := range floods {
			t.Run(name, func(t *testing.T) {
				c, p := newPeer(t, e)
				for i := range 100 {
					p.send(one(p))
					_, err := readAll(c, 100)
					if err == ErrAgain {
						continue
					}
					want := maxIdle
					if name == "change cipher specs" && !e.standard {
						want = 0 // after the handshake there are none (RFC 8446 §5)
					}
					if i != want {
						t.Errorf("cut at the %d-th", i+1)
					}
					if _, again := readAll(c, 100); again == ErrAgain {
						t.Error("not for good")
					}
					return
				}
				t.Error("a hundred in a row are borne")
			})
		}
	})
}

func TestAnswersDoNotPileUp(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		c, p := newPeer(t, e)
		for range 1 << 20 {
			p.send(p.out.keyUpdate(1))
			p.send(p.out.seal(typeData, []byte("x"))) // so that they are not in a row
			_, err := readAll(c, 100)
			if c.Queued() > maxAnswers+100 {
				t.Fatalf("%d bytes are queued", c.Queued())
			}
			if err != ErrAgain {
				if !errors.Is(err, errAnswers) {
					t.Error(err)
				}
				return
			}
		}
		t.Error("a peer may ask for ever and not read")
	})
}

func TestPoliteKeyUpdatesAreBorne(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		c, p := newPeer(t, e)
		for range maxAnswers/(overhead+5) + 100 {
			p.send(p.out.keyUpdate(1))
			p.send(p.out.seal(typeData, []byte("x")))
			if _, err := readAll(c, 100); err != ErrAgain {
				t.Fatal(err)
			}
			if done, err := c.Flush(); !done || err != nil {
				t.Fatal(done, err)
			}
			p.receive()
			p.in.update()
		}
	})
}

// wireRecords are the sizes of the plaintexts of the records in b.
func wireRecords(t *testing.T, b []byte) (plain []int) {
	t.Helper()
	for len(b) > 0 {
		n := recordSize(b)
		if n == 0 {
			t.Fatalf("%d bytes are no record", len(b))
		}
		plain = append(plain, n-overhead)
		b = b[n:]
	}
	return plain
}

func TestRecordsAreFullAndCounted(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		c, p := newPeer(t, e)
		if c.Records() != 0 {
			t.Errorf("%d records before any", c.Records())
		}
		check(t, c.Seal(noise(3*maxPlaintext+10)))
		check(t, c.Seal([]byte("small")))
		p.send(p.out.keyUpdate(1))
		if _, err := readAll(c, 100); err != ErrAgain {
			t.Fatal(err)
		}
		check(t, c.Seal(noise(maxPlaintext)))
		if err := c.Seal(nil); err != nil {
			t.Fatal(err)
		}
		o, _, _ := insides(t, c)
		got := wireRecords(t, o.out)
		want := []int{maxPlaintext, maxPlaintext, maxPlaintext, 10, 5, 5, maxPlaintext}
		if !slices.Equal(got, want) {
			t.Errorf("records of %v bytes, want %v", got, want)
		}
		count := len(got)
		if !e.standard {
			count = 1 // under the present key
		}
		if c.Records() != uint64(count) {
			t.Errorf("Records says %d, want %d", c.Records(), count)
		}
	})
}

func TestFirstReadFindsWhatCameWithTheHandshake(t *testing.T) {
	for _, standard := range []bool{true, false} {
		e := end{server, standard}
		t.Run(e.String(), func(t *testing.T) {
			c := join(t, e, func(nc *net.TCPConn) error {
				corked := &cork{TCPConn: nc}
				session := tls.Client(corked, clientConfig())
				err := session.HandshakeContext(t.Context())
				if err == nil {
					_, err = session.Write([]byte("early"))
				}
				return errors.Join(err, corked.pull())
			})
			defer c.Close()
			waiting, err := unix.IoctlGetInt(c.FD(), unix.SIOCINQ)
			check(t, err)
			// Ours leaves it in the socket, whose next edge in epoll has been.
			if left := waiting == overhead+len("early"); left == standard || waiting != 0 && standard {
				t.Fatalf("%d bytes are in the socket", waiting)
			}
			if got, err := readAll(c, 100); string(got) != "early" || err != ErrAgain {
				t.Errorf("read %q, %v", got, err)
			}
		})
	}
}

// cork holds back everything after the first write.
type cork struct {
	*net.TCPConn
	begun bool
	held  []byte
}

func (c *cork) Write(p []byte) (int, error) {
	if c.begun {
		c.held = append(c.held, p...)
		return len(p), nil
	}
	c.begun = true
	return c.TCPConn.Write(p)
}

func (c *cork) pull() error {
	_, err := c.TCPConn.Write(c.held)
	return err
}

func TestFlushInPieces(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		c, p := newPeer(t, e)
		check(t, unix.SetsockoptInt(c.FD(), unix.SOL_SOCKET, unix.SO_SNDBUF, 4096))
		plain := noise(2 << 20)
		half := len(plain) / 2
		check(t, c.Seal(plain[:half])) // does not block, whatever the socket takes
		var got []byte
		for i := 0; len(got) < len(plain); i++ {
			before := c.Queued()
			done, err := c.Flush()
			if err != nil {
				t.Fatal(err)
			}
			if done != (c.Queued() == 0) || c.Queued() > before {
				t.Fatalf("flush says %v; %d bytes were queued, %d are", done, before, c.Queued())
			}
			if i == 0 {
				if done {
					t.Fatal("a small socket took all at once")
				}
				check(t, c.Seal(plain[half:])) // behind what is still queued
			}
			p.read(777)
			for n := recordSize(p.pending); n > 0; n = recordSize(p.pending) {
				_, data := p.receive()
				got = append(got, data...)
			}
		}
		if !bytes.Equal(got, plain) {
			t.Error("what arrived is not what was sealed")
		}
		if done, err := c.Flush(); !done || err != nil {
			t.Error(done, err)
		}
	})
}

func TestReadSizes(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		for _, size := range []int{1, 100, maxPlaintext - 1, maxPlaintext, maxPlaintext + 1, 256 << 10} {
			c, p := newPeer(t, e)
			check(t, unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20))
			plain := noise(100_000)
			for rest := plain; len(rest) > 0; {
				n := min(len(rest), maxPlaintext)
				p.send(p.out.seal(typeData, rest[:n]))
				rest = rest[n:]
			}
			if got, err := readAll(c, size); !bytes.Equal(got, plain) || err != ErrAgain {
				t.Errorf("reading %d bytes at a time: got %d, %v", size, len(got), err)
			}
		}
	})
}

func TestOneReadTakesAllThereIs(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		c, p := newPeer(t, e)
		for range 3 {
			p.send(p.out.seal(typeData, noise(5000)))
		}
		n, err := c.Read(make([]byte, 256<<10))
		if n != 15000 || err != ErrAgain {
			t.Errorf("read %d, %v; a second call should not be needed to hear that there is no more", n, err)
		}
		if n, err := c.Read(nil); n != 0 || err != nil {
			t.Errorf("read nothing into nothing: %d, %v", n, err)
		}
	})
}

func TestQuietConnHoldsNoBuffers(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		c, p := newPeer(t, e)
		check(t, c.Seal(noise(100_000)))
		p.send(p.out.seal(typeData, noise(10_000)))
		if n, err := c.Read(make([]byte, 100)); n != 100 || err != nil {
			t.Fatal(n, err)
		}
		o, in, _ := insides(t, c)
		if o.box == nil {
			t.Error("there is something to write and no buffer: the test looks at the wrong place")
		}
		if _, err := readAll(c, 256<<10); err != ErrAgain {
			t.Fatal(err)
		}
		for done := false; !done; p.read(64 << 10) {
			var err error
			if done, err = c.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if *in != nil || o.box != nil || o.out != nil {
			t.Error("a buffer is kept")
		}
	})
}

func TestOutgrownBufferIsNotKept(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		c, p := newPeer(t, e)
		check(t, c.Seal(noise(2*maxKept)))
		o, _, _ := insides(t, c)
		box := o.box
		for done := false; !done; p.read(1 << 20) {
			var err error
			if done, err = c.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if cap(*box) > maxKept {
			t.Errorf("a buffer of %d bytes goes back to the pool", cap(*box))
		}
	})
}

func TestCloseNotify(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		c, p := newPeer(t, e)
		p.send(p.out.seal(typeData, []byte("last words")))
		p.send(p.out.seal(typeAlert, []byte{1, 0}))
		if got, err := readAll(c, 100); string(got) != "last words" || err != ErrClosed {
			t.Fatalf("read %q, %v", got, err)
		}
		if _, err := c.Read(make([]byte, 100)); err != ErrClosed {
			t.Errorf("and then %v", err)
		}
		check(t, c.Seal([]byte("still open this way")))
		check(t, c.Close())
		p.want("the other direction goes on", typeData, []byte("still open this way"))
		p.want("to its own end", typeAlert, []byte{1, 0})
		if n := p.read(100); n != 0 {
			t.Errorf("%d bytes after close_notify", n)
		}
	})
}

// TestCloseWrite: the end goes behind everything that is queued, however long
// that takes, and the other direction goes on.
func TestCloseWrite(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		c, p := newPeer(t, e)
		check(t, unix.SetsockoptInt(c.FD(), unix.SOL_SOCKET, unix.SO_SNDBUF, 4096))
		plain := noise(100_000)
		check(t, c.Seal(plain))
		done, err := c.CloseWrite()
		if done || err != nil {
			t.Fatalf("a small socket took all at once: %t, %v", done, err)
		}
		if err := c.Seal([]byte("x")); err == nil {
			t.Error("sealing behind close_notify works")
		}
		var got []byte
		for len(got) < len(plain) {
			p.read(777)
			for recordSize(p.pending) > 0 && len(got) < len(plain) {
				typ, data := p.receive()
				if typ != typeData {
					t.Fatalf("record of type %d after %d bytes", typ, len(got))
				}
				got = append(got, data...)
			}
			if !done {
				done, err = c.CloseWrite()
				check(t, err)
			}
		}
		if !bytes.Equal(got, plain) || !done {
			t.Errorf("got %d bytes of %d, the end: %t", len(got), len(plain), done)
		}
		p.want("the end of the session", typeAlert, []byte{1, 0})
		if n := p.read(100); n != 0 {
			t.Errorf("%d bytes after close_notify", n)
		}
		p.send(p.out.seal(typeData, []byte("still open this way")))
		if got, err := readAll(c, 100); string(got) != "still open this way" || err != ErrAgain {
			t.Errorf("read %q, %v", got, err)
		}
		check(t, c.Close())
		if _, err := c.CloseWrite(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after close: %v", err)
		}
	})
}

func TestCutIsNotAnEnd(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		for name, cut := range map[string]int{"between records": 0, "in a header": 3, "in a record": 20} {
			t.Run(name, func(t *testing.T) {
				c, p := newPeer(t, e)
				p.send(p.out.seal(typeData, []byte("whole")))
				p.send(p.out.seal(typeData, []byte("cut"))[:cut])
				p.close()
				got, err := readAll(c, 100)
				if err == ErrAgain { // as it may after a short read
					_, err = c.Read(make([]byte, 100))
				}
				if string(got) != "whole" || !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, ErrClosed) {
					t.Errorf("read %q, %v", got, err)
				}
				if _, err := c.Read(make([]byte, 100)); !errors.Is(err, io.ErrUnexpectedEOF) {
					t.Errorf("and then %v", err)
				}
			})
		}
	})
}

func TestResetIsTold(t *testing.T) {
	for _, standard := range []bool{true, false} {
		t.Run(fmt.Sprintf("standard=%t", standard), func(t *testing.T) {
			near, far := newPair(t, standard)
			check(t, unix.SetsockoptLinger(far.FD(), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
			_, _, fd := insides(t, far)
			check(t, unix.Close(*fd))
			*fd = -1
			wait(t, near.FD(), unix.POLLERR)
			if _, err := near.Read(make([]byte, 100)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("read: %v", err)
			}
			if _, err := near.Read(make([]byte, 100)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the socket tells it once, the session always; it says %v", err)
			}
			check(t, near.Seal([]byte("x")))
			if done, err := near.Flush(); done || !errors.Is(err, unix.EPIPE) {
				t.Errorf("flush: %v, %v", done, err)
			}
		})
	}
}

// wait waits for an event on a descriptor.
func wait(t testing.TB, fd int, event int16) {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: event}}
	for {
		n, err := unix.Poll(fds, 20_000)
		if err == unix.EINTR {
			continue
		}
		if n != 1 || err != nil {
			t.Fatalf("poll: %d, %v", n, err)
		}
		return
	}
}

func TestForgedRecordIsFatal(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		c, p := newPeer(t, e)
		rec := p.out.seal(typeData, []byte("hello"))
		rec[len(rec)-1] ^= 1
		p.send(rec)
		if got, err := readAll(c, 100); len(got) != 0 || err == ErrAgain || err == ErrClosed {
			t.Errorf("read %q, %v", got, err)
		}
		if done, err := c.Flush(); !done || err != nil {
			t.Fatal(done, err)
		}
		p.want("bad_record_mac is told", typeAlert, []byte{2, 20})
	})
}

func TestCloseOfAFullSocketDoesNotBlock(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		c, p := newPeer(t, e)
		check(t, c.Seal(noise(1<<20)))
		if done, err := c.Flush(); done || err != nil {
			t.Fatal(done, err)
		}
		for range 6 {
			p.send(p.out.seal(typeData, noise(maxPlaintext)))
		}
		if _, err := c.Read(make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		o, in, _ := insides(t, c)
		if *in == nil {
			t.Fatal("nothing is left unread: the test shows nothing")
		}
		check(t, c.Close())
		if *in != nil || o.box != nil {
			t.Error("a closed Conn keeps a buffer")
		}
	})
}

func TestCloseClosesOnce(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		c, _ := newPeer(t, e)
		fd := c.FD()
		check(t, c.Close())
		// The next descriptor has the same number, and is somebody else's.
		check(t, unix.Dup3(int(os.Stderr.Fd()), fd, unix.O_CLOEXEC))
		defer unix.Close(fd)
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second close: %v", err)
		}
		if _, err := c.Read(make([]byte, 10)); err == nil || err == ErrAgain {
			t.Errorf("read after close: %v", err)
		}
		if err := c.Seal([]byte("x")); err == nil {
			t.Error("sealing after close works")
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			t.Errorf("somebody else's descriptor: %v", err)
		}
	})
}

func TestState(t *testing.T) {
	for _, standard := range []bool{true, false} {
		t.Run(fmt.Sprintf("standard=%t", standard), func(t *testing.T) {
			near, far := newPair(t, standard)
			for _, c := range []Conn{near, far} {
				if s := c.State(); !s.HandshakeComplete || s.Version != tls.VersionTLS13 {
					t.Errorf("%+v", s)
				}
			}
			if len(near.State().PeerCertificates) != 1 {
				t.Error("the client does not know the server's certificate")
			}
		})
	}
}

func TestPairCarriesBothWays(t *testing.T) {
	for _, standard := range []bool{true, false} {
		t.Run(fmt.Sprintf("standard=%t", standard), func(t *testing.T) {
			near, far := newPair(t, standard)
			plain := noise(4 << 20)
			done := make(chan []byte, 2)
			for _, end := range []Conn{near, far} {
				go func() { done <- exchange(t, end, bytes.Clone(plain)) }() // received from below
			}
			for range 2 {
				if got := <-done; !bytes.Equal(got, plain) {
					t.Errorf("%d of %d bytes arrived, or others", len(got), len(plain))
				}
			}
		})
	}
}

// exchange is a small loop: it sends plain and receives as much.
func exchange(t *testing.T, c Conn, plain []byte) []byte {
	var got []byte
	buf := make([]byte, batch)
	rest := plain
	for len(got) < len(plain) || len(rest) > 0 || c.Queued() > 0 {
		done, err := c.Flush()
		if err != nil {
			t.Error(err)
			return got
		}
		events := int16(unix.POLLIN)
		if n := min(len(rest), batch); done && n > 0 {
			if err := c.Seal(rest[:n]); err != nil {
				t.Error(err)
				return got
			}
			rest = rest[n:]
		}
		n, err := c.Read(buf)
		got = append(got, buf[:n]...)
		switch {
		case err == nil:
			continue
		case err != ErrAgain:
			t.Error(err)
			return got
		}
		if c.Queued() > 0 || len(rest) > 0 {
			events |= unix.POLLOUT
		}
		if len(got) < len(plain) || events&unix.POLLOUT != 0 {
			fds := []unix.PollFd{{Fd: int32(c.FD()), Events: events}}
			if n, err := unix.Poll(fds, 20_000); n == 0 && err == nil {
				t.Error("nothing comes any more")
				return got
			}
		}
	}
	return got
}
