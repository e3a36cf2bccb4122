package engine_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// plan is what one end of a random conversation does.
type plan struct {
	seed     uint64
	size     int64 // to send
	abort    bool  // reset after it, else FIN
	patience int64 // how much to read before closing, with the rest unread
	rcv, snd int   // socket buffers
}

const forever = 1 << 40

func randomPlan(r *rand.Rand) plan {
	p := plan{
		seed:     r.Uint64N(1 << 16),
		size:     r.Int64N(1 << r.IntN(21)),
		abort:    r.IntN(6) == 0,
		patience: forever,
		rcv:      16384 << r.IntN(6),
		snd:      16384 << r.IntN(6),
	}
	if r.IntN(6) == 0 {
		p.patience = r.Int64N(1 << 18)
	}
	return p
}

// orderly says that an end does nothing that could cost the other a byte.
func (p plan) orderly() bool { return !p.abort && p.patience == forever }

// outcome is what an end has read, and how that ended.
type outcome struct {
	got []byte
	end string
}

func (p plan) act(c *net.TCPConn) outcome {
	c.SetReadBuffer(p.rcv)
	c.SetWriteBuffer(p.snd)
	var writing sync.WaitGroup
	var failed error
	writing.Go(func() { failed = p.write(c) })
	o := p.read(c)
	writing.Wait()
	if o.end == "end" && failed != nil {
		o.end = fate(failed) // of a reset only one call is told; the next read says 0
	}
	return o
}

func (p plan) write(c *net.TCPConn) error {
	r := rand.New(rand.NewPCG(p.seed, 1))
	src := noise(p.seed, p.size)
	for {
		_, err := io.CopyN(c, src, 1+r.Int64N(1<<r.IntN(17)))
		switch {
		case err == io.EOF && p.abort:
			c.SetLinger(0)
			return c.Close()
		case err == io.EOF:
			return c.CloseWrite()
		case err != nil:
			return err
		}
	}
}

func (p plan) read(c *net.TCPConn) (o outcome) {
	r := rand.New(rand.NewPCG(p.seed, 2))
	for int64(len(o.got)) < p.patience {
		buf := make([]byte, 1+r.IntN(1<<r.IntN(16)))
		n, err := c.Read(buf)
		o.got = append(o.got, buf[:n]...)
		if err != nil {
			o.end = fate(err)
			return o
		}
	}
	c.Close()
	o.end = "gave up"
	return o
}

// check holds what one end saw against what the other did.
func (p plan) check(t *testing.T, who string, o outcome, other plan) {
	want, err := io.ReadAll(noise(other.seed, other.size))
	if err != nil {
		t.Fatal(err)
	}
	switch whole := len(o.got) == len(want); {
	case !bytes.HasPrefix(want, o.got):
		t.Errorf("%s read %d bytes that are not the beginning of the %d that were sent", who, len(o.got), len(want))
	case o.end == "nothing":
		t.Errorf("%s waits in vain after %d bytes of %d", who, len(o.got), len(want))
	case o.end == "end" && other.patience == forever && (!whole || other.abort):
		t.Errorf("%s saw an orderly end after %d bytes of %d, reset by the other: %t", who, len(o.got), len(want), other.abort)
	case o.end != "end" && p.orderly() && other.orderly():
		t.Errorf("%s saw %q after %d bytes of %d, though both ends were orderly", who, o.end, len(o.got), len(want))
	}
}

// TestRandom: whatever two ends do, each reads the beginning of what the other
// sent, and an orderly end only after all of it.
func TestRandom(t *testing.T) {
	t.Run("in turn", func(t *testing.T) { testRandom(t, newPair) })
	t.Run("early", func(t *testing.T) { testRandom(t, newEarlyPair) })
}

func testRandom(t *testing.T, through func(testing.TB, string) *pair) {
	const at, conversations = 16, 200
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var plans [conversations][2]plan
	var seen [conversations]chan outcome
	for i := range plans {
		plans[i] = [2]plan{randomPlan(r), randomPlan(r)}
		seen[i] = make(chan outcome, 1)
	}
	p := through(t, server(t, func(c *net.TCPConn) {
		var id [2]byte // the client says which conversation this is
		if _, err := io.ReadFull(c, id[:]); err != nil {
			t.Error(err)
			return
		}
		c.Write(id[:])
		i := binary.BigEndian.Uint16(id[:])
		seen[i] <- plans[i][1].act(c)
	}))
	var wg sync.WaitGroup
	next := make(chan int)
	for range at {
		wg.Go(func() {
			for i := range next {
				converse(t, p.address, i, plans[i], seen[i])
			}
		})
	}
	for i := range conversations {
		next <- i
	}
	close(next)
	wg.Wait()
	p.settled(t)
}

func converse(t *testing.T, address string, i int, plans [2]plan, server <-chan outcome) {
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Error(err)
		return
	}
	c := nc.(*net.TCPConn)
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	id := binary.BigEndian.AppendUint16(nil, uint16(i))
	c.Write(id)
	if _, err := io.ReadFull(c, id); err != nil {
		t.Error(err)
		return
	}
	o := plans[0].act(c)
	theirs := <-server
	plans[0].check(t, "client", o, plans[1])
	plans[1].check(t, "server", theirs, plans[0])
}
