package engine

import (
	"bytes"
	"math/rand/v2"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestChunks: a queue of bytes gives back what it was given, whatever the pieces.
func TestChunks(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var c chunks
	var twin, written []byte
	for range 300 {
		p := make([]byte, r.IntN(1<<r.IntN(17)))
		for i := range p {
			p[i] = byte(i * 7)
		}
		if len(p) > 0 {
			p[r.IntN(len(p))] = 'x'
		}
		c.add(p)
		twin = append(twin, p...)
		for range r.IntN(4) {
			if c.size == 0 {
				break
			}
			n := r.IntN(len(c.first())) + 1
			written = append(written, c.first()[:n]...)
			c.skip(n)
		}
		if c.size != len(twin)-len(written) {
			t.Fatalf("the queue holds %d bytes, want %d", c.size, len(twin)-len(written))
		}
		if need := c.size/chunkSize + 2; len(c.list) > need {
			t.Fatalf("%d bytes take %d pieces", c.size, len(c.list))
		}
		if c.size > 4<<20 && c.drop() != len(twin)-len(written) {
			t.Fatal("drop tells a wrong size")
		} else if c.size == 0 {
			twin = twin[:len(written)]
		}
		if !bytes.Equal(twin[:len(written)], written) {
			t.Fatal("other bytes than went in")
		}
		twin, written = append([]byte(nil), twin[len(written):]...), nil
	}
}

// TestWriteVector: a full socket is no error, and a gone one is.
func TestWriteVector(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	iov := appendIovec(appendIovec(nil, []byte("first ")), []byte("second"))
	if n, err := writeSocket(fds[0], iov, 0); n != iovecLen(iov) || n != 12 || err != nil {
		t.Errorf("wrote %d bytes, %v; want 12", n, err)
	}
	buf := make([]byte, 100)
	if n, err := readSocket(fds[1], buf); string(buf[:max(n, 0)]) != "first second" || err != nil {
		t.Errorf("read %q, %v", buf[:max(n, 0)], err)
	}
	if n, err := readSocket(fds[1], buf); n != 0 || err != unix.EAGAIN {
		t.Errorf("read from an empty socket: %d, %v; want EAGAIN", n, err)
	}
	var c chunks
	c.add(make([]byte, 8<<20))
	n, err := c.writeTo(fds[0])
	if n == 0 || n+c.size != 8<<20 || err != nil {
		t.Errorf("a full socket took %d bytes and left %d (%v) of %d", n, c.size, err, 8<<20)
	}
	unix.Close(fds[1])
	if _, err := c.writeTo(fds[0]); err == nil {
		t.Error("a socket whose other end has gone takes bytes")
	}
	if _, err := writeSocket(fds[0], iov, 0); err != unix.EPIPE {
		t.Errorf("write to a socket whose other end has gone: %v, want EPIPE", err)
	}
}

// TestSendQueue: what was not acknowledged is counted.
func TestSendQueue(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		if n := sendQueue(int(fd)); n != 0 {
			t.Errorf("%d bytes wait in a fresh socket", n)
		}
		var q chunks
		q.add(make([]byte, 64<<20))
		if _, err := q.writeTo(int(fd)); err != nil {
			t.Error(err)
		}
		if n := sendQueue(int(fd)); n == 0 {
			t.Error("nothing waits in a socket that takes no more")
		}
	})
	if err != nil {
		t.Error(err)
	}
	if n := sendQueue(-1); n != 0 {
		t.Errorf("%d bytes wait in no socket", n)
	}
}
