package engine

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Early data is what a client says before its peer's answer, and goes out with the
// request where both gateways have it (hbone.Config.EarlyData). The client's side
// sends copies: the bytes stay in the socket until the answer is yes. So there is
// nothing to keep for another try, on another tunnel and from the beginning; nothing
// is lost where the answer is no, as without early data; and the kernel's own buffer
// bounds it. The server's side holds them in pending, within the stream's window,
// and has no socket to write to before it connects, nor writes before Accept.

// earlyLimit bounds what is sent of a flow before the answer: about what a socket
// that nobody reads takes in (tcp(7), tcp_rmem).
const earlyLimit = 64 << 10

// fillEarly is fill before the answer. The end of the input waits.
func (f *Flow) fillEarly(buf []byte, room int) []byte {
	n := min(f.stream.Credit(), room, earlyLimit-f.early)
	if n == 0 {
		return buf
	}
	p, err := f.peek(n)
	switch {
	case err == unix.EAGAIN:
		f.readable = false
		return buf
	case err != nil:
		f.reset = true
		f.abandon()
		return buf
	case len(p) == 0: // nothing new: an edge tells of it, or the answer comes
		return buf
	}
	at := len(buf)
	buf = buf[:at+header+len(p)]
	f.stream.PutData((*[header]byte)(buf[at:]), len(p))
	copy(buf[at+header:], p)
	f.early += len(p)
	if len(p) == n {
		f.enqueue()
	}
	return buf
}

// peek reads up to n bytes, and leaves them in the socket, behind those that have
// been sent early. The kernel has no offset for that (recv(2), MSG_PEEK), or not in
// every version, so that it is all copied to where a tunnel's input lies at other
// times. It stops before an urgent byte, as every read does.
func (f *Flow) peek(n int) ([]byte, error) {
	p := f.loop.plain[:f.early+n]
	m, err := receive(f.fd, unsafe.SliceData(p), len(p), unix.MSG_PEEK)
	return p[min(f.early, m):m], err
}

// takeEarly takes off the socket what has been sent early. It is all there, even if
// the socket was reset since.
func (f *Flow) takeEarly() error {
	for left := f.early; left > 0; {
		n, err := receive(f.fd, nil, left, unix.MSG_TRUNC) // tcp(7): discards
		if err == nil && n == 0 {                          // never, while it is all there
			err = unix.ECONNRESET
		}
		if err != nil {
			return err
		}
		left -= n
	}
	f.sent += uint64(f.early)
	return nil
}

func receive(fd int, p *byte, n, flags int) (int, error) {
	for {
		n, _, errno := syscall.Syscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(p)), uintptr(n), uintptr(flags), 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
