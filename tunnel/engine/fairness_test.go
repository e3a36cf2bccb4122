package engine_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestFairness: streams whose senders always have something get the same of their
// tunnel, whatever they write at a time and whenever they began. When the first has
// got its 4 MiB, every other has at least 80 % of that. The tunnel is what is narrow:
// the kernel paces its segments. A sender that the machine does not let run has nothing
// for its turn, so that one fair race of three is enough.
func TestFairness(t *testing.T) {
	for _, up := range []bool{true, false} {
		t.Run(map[bool]string{true: "up", false: "down"}[up], func(t *testing.T) {
			var unfair string
			for range 3 {
				if unfair = compete(t, up); unfair == "" {
					return
				}
			}
			t.Error(unfair)
		})
	}
}

// compete runs a race, and tells who got too little.
func compete(t *testing.T, up bool) (unfair string) {
	const (
		streams = 8
		late    = 2 // of them
		rate    = 64 << 20
	)
	pieces := [streams]int{1 << 10, 256 << 10, 1 << 10, 64 << 10, 1 << 20, 100_000, 1 << 10, 256 << 10}
	send := func(c net.Conn, i int) {
		for p := make([]byte, pieces[i]); ; {
			if _, err := c.Write(p); err != nil {
				return
			}
		}
	}
	r := newRace(streams, streams-late, 4<<20)
	ln, err := (&net.ListenConfig{Control: asOnEthernet}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := newPair(t, serveOn(t, ln, func(c *net.TCPConn) {
		lane := make([]byte, 1)
		if _, err := io.ReadFull(c, lane); err != nil {
			t.Error(err)
		} else if up {
			r.run(c, int(lane[0]))
		} else {
			send(c, int(lane[0]))
		}
	}))
	for _, end := range []int{p.near.FD(), p.rec.FD()} {
		if err := unix.SetsockoptInt(end, unix.SOL_SOCKET, unix.SO_MAX_PACING_RATE, rate); err != nil {
			t.Fatal(err)
		}
	}
	var running sync.WaitGroup
	var clients []net.Conn
	for i := range streams {
		if i == streams-late {
			<-r.early
		}
		c, err := (&net.Dialer{Control: asOnEthernet}).Dial("tcp", p.address)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(20 * time.Second))
		clients = append(clients, c)
		running.Go(func() {
			c.Write([]byte{byte(i)})
			if up {
				send(c, i)
			} else {
				r.run(c, i)
			}
		})
	}
	<-r.over
	for _, c := range clients {
		c.Close()
	}
	running.Wait()
	for i, n := range r.got {
		if n < r.enough/5*4 {
			unfair += fmt.Sprintf("stream %d, which is written %d bytes at a time, has got %d bytes; the first %d\n", i, pieces[i], n, r.enough)
		}
	}
	return unfair
}

// asOnEthernet has a socket's segments be those of an Ethernet: of loopback's, with
// 64 KiB, a receive buffer holds hardly one.
func asOnEthernet(_, _ string, c syscall.RawConn) error {
	var err error
	outer := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_MAXSEG, 1448)
	})
	return errors.Join(outer, err)
}

// race is who gets how much, until the first has enough.
type race struct {
	enough int
	early  chan struct{} // closed when those that begin early run
	over   chan struct{}

	mu    sync.Mutex
	got   []int  // since all run; guarded by mu
	runs  []bool // guarded by mu
	left  int    // of those that run early; guarded by mu
	yet   int    // do not run; guarded by mu
	ended bool   // guarded by mu
}

func newRace(n, early, enough int) *race {
	return &race{enough: enough, early: make(chan struct{}), over: make(chan struct{}),
		got: make([]int, n), runs: make([]bool, n), left: early, yet: n}
}

// run reads c to its end.
func (r *race) run(c net.Conn, lane int) {
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			r.gets(lane, n)
		}
		if err != nil {
			return
		}
	}
}

func (r *race) gets(lane, n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.runs[lane] {
		r.runs[lane] = true
		r.yet--
		if r.left--; r.left == 0 {
			close(r.early)
		}
		if r.yet == 0 {
			return
		}
	}
	if r.yet > 0 || r.ended {
		return
	}
	if r.got[lane] += n; r.got[lane] >= r.enough {
		r.ended = true
		close(r.over)
	}
}
