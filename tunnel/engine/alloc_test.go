package engine_test

import (
	"net"
	"runtime"
	"testing"
)

// TestFrameAllocates: bytes that flow through both gateways leave nothing to the
// garbage collector, whether their readers keep up or not.
func TestFrameAllocates(t *testing.T) {
	const streams, each, least = 4, 16 << 20, 64 << 10 // at most so much in a frame beside others
	got := make(chan struct{}, streams)
	p := newPair(t, server(t, gulps(each, got)))
	var clients [streams]*net.TCPConn
	for i := range clients {
		clients[i] = dial(t, p.address)
	}
	chunk := make([]byte, 256<<10)
	pass := func() {
		for _, c := range clients {
			go func() { // ends when all is written, or with the connection
				for range each / len(chunk) {
					if _, err := c.Write(chunk); err != nil {
						t.Error(err)
						return
					}
				}
			}()
		}
		for range clients {
			<-got
		}
	}
	pass() // pools fill, windows grow
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	pass()
	runtime.ReadMemStats(&after)
	const frames = streams * each / least
	if n := after.Mallocs - before.Mallocs; n > frames/10 && !racing {
		t.Errorf("%d allocations for some %d frames", n, frames)
	}
	for _, c := range clients {
		c.Close()
	}
	p.settled(t)
}
