package engine_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// control gives the descriptor of c to f.
func control(tb testing.TB, c syscall.Conn, f func(fd int)) {
	tb.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { f(int(fd)) })
	}
	if err != nil {
		tb.Error(err)
	}
}

// eventually polls until ok holds, for what no event tells.
func eventually(tb testing.TB, what string, ok func() bool) {
	tb.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 20_000 {
		if ok() {
			return
		}
		<-tick.C
	}
	tb.Errorf("waited 20 s in vain: %s", what)
}

// waitQueue waits until one of the socket's queues holds n bytes: SIOCOUTQ is
// what was written and not acknowledged, SIOCINQ what came and was not read.
func waitQueue(tb testing.TB, c *net.TCPConn, request uint, n int) {
	tb.Helper()
	eventually(tb, fmt.Sprintf("%d bytes in the socket's queue", n), func() (ok bool) {
		control(tb, c, func(fd int) {
			queued, err := unix.IoctlGetInt(fd, request)
			ok = err != nil || queued == n
		})
		return ok
	})
}

// waitSent waits until everything that c has written was acknowledged.
func waitSent(tb testing.TB, c *net.TCPConn) {
	tb.Helper()
	waitQueue(tb, c, unix.SIOCOUTQ, 0)
}

// fate names the way that a connection ended, as its user sees it.
func fate(err error) string {
	switch {
	case err == nil, errors.Is(err, io.EOF):
		return "end"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "reset"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "nothing"
	}
	return err.Error()
}

// descriptors counts what this process has open. A socket is opened before,
// since with the first one come descriptors of the runtime, which stay.
func descriptors(tb testing.TB) int {
	tb.Helper()
	if ln, err := net.Listen("tcp", "127.0.0.1:0"); err != nil || ln.Close() != nil {
		tb.Fatal(err)
	}
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(names)
}
