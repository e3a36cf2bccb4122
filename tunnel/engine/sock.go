package engine

import (
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The end of a socket is told in several ways, and each only once: after a
// reset exactly one call says ECONNRESET and the next read says 0, which looks
// like a FIN. So every sign of a reset (EPOLLERR, or an error of write or
// SO_ERROR) sets Flow.reset, which stays set and is looked at before a read of
// 0 is believed. What came before the reset can still be read.

// readSocket reads; 0 with a nil error is the end of input.
func readSocket(fd int, p []byte) (int, error) {
	for {
		n, err := unix.Read(fd, p)
		if err != unix.EINTR {
			return max(n, 0), err
		}
	}
}

// writeSocket writes what the vector holds; it may write less. Flags are those of
// send(2).
func writeSocket(fd int, iov []unix.Iovec, flags int) (int, error) {
	msg := unix.Msghdr{Iov: unsafe.SliceData(iov)}
	msg.SetIovlen(len(iov))
	for {
		n, _, errno := syscall.Syscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), uintptr(flags))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

func appendIovec(iov []unix.Iovec, p []byte) []unix.Iovec {
	v := unix.Iovec{Base: unsafe.SliceData(p)}
	v.SetLen(len(p))
	return append(iov, v)
}

func iovecBytes(v unix.Iovec) []byte { return unsafe.Slice(v.Base, v.Len) }

func iovecLen(iov []unix.Iovec) (n int) {
	for _, v := range iov {
		n += int(v.Len)
	}
	return n
}

// outcome says how a connection attempt ended.
func outcome(fd int) error {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && n != 0 {
		err = syscall.Errno(n)
	}
	return err
}

// sendQueue is how many bytes the peer has not acknowledged (tcp(7), SIOCOUTQ); a
// connection that has gone has none.
func sendQueue(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

const chunkSize = 32 << 10

var chunkPool = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// chunks is a queue of bytes in pooled pieces.
type chunks struct {
	list []*[chunkSize]byte
	head int // first byte in list[0]
	tail int // end of the last piece
	size int
}

func (c *chunks) add(p []byte) {
	for len(p) > 0 {
		if len(c.list) == 0 || c.tail == chunkSize {
			c.list = append(c.list, chunkPool.Get().(*[chunkSize]byte))
			c.tail = 0
		}
		n := copy(c.list[len(c.list)-1][c.tail:], p)
		p = p[n:]
		c.tail += n
		c.size += n
	}
}

// first is the piece at the front.
func (c *chunks) first() []byte {
	end := chunkSize
	if len(c.list) == 1 {
		end = c.tail
	}
	return c.list[0][c.head:end]
}

// skip takes n bytes off the front piece.
func (c *chunks) skip(n int) {
	c.size -= n
	if c.head += n; c.size > 0 && c.head < chunkSize {
		return
	}
	chunkPool.Put(c.list[0])
	c.list[0] = nil
	c.list = c.list[1:]
	c.head = 0
	if c.size == 0 {
		*c = chunks{}
	}
}

// writeTo writes until the queue is empty or the socket is full, and returns
// how many bytes left. A full socket is no error.
func (c *chunks) writeTo(fd int) (total int, err error) {
	for c.size > 0 {
		p := c.first()
		n, err := unix.Write(fd, p)
		switch err {
		case nil:
			c.skip(n)
			total += n
		case unix.EINTR:
		case unix.EAGAIN:
			return total, nil
		default:
			return total, err
		}
	}
	return total, nil
}

// drop throws everything away and returns how much it was.
func (c *chunks) drop() int {
	n := c.size
	for _, p := range c.list {
		chunkPool.Put(p)
	}
	*c = chunks{}
	return n
}
