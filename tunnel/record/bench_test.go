package record

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkTunnel seals, writes, reads and opens, both ends in one goroutine
// over loopback. The bytes are counted once.
func BenchmarkTunnel(b *testing.B) {
	for _, standard := range []bool{true, false} {
		for _, size := range []int{64, 1400, maxPlaintext, 256 << 10} {
			b.Run(fmt.Sprintf("standard=%t/%d", standard, size), func(b *testing.B) {
				near, far := newPair(b, standard)
				for _, c := range []Conn{near, far} {
					check(b, unix.SetsockoptInt(c.FD(), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
				}
				plain, buf := noise(size), make([]byte, batch)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					carry(b, near, far, plain, buf)
				}
			})
		}
	}
}

// carry sends plain from one end to the other.
func carry(b testing.TB, from, to Conn, plain, buf []byte) {
	if err := from.Seal(plain); err != nil {
		b.Fatal(err)
	}
	for got := 0; got < len(plain); {
		if _, err := from.Flush(); err != nil {
			b.Fatal(err)
		}
		n, err := to.Read(buf)
		if err != nil && err != ErrAgain {
			b.Fatal(err)
		}
		got += n
	}
}

// BenchmarkHandshake is one on each side, with the hand-over.
func BenchmarkHandshake(b *testing.B) {
	for _, standard := range []bool{true, false} {
		b.Run(fmt.Sprintf("standard=%t", standard), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				near, far := newPair(b, standard)
				near.Close()
				far.Close()
			}
		})
	}
}
