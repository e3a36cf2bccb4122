package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// pumps are streams that carry checked bytes both ways for as long as they are
// let: the client sends numbered blocks of noise, the server answers each with
// itself, and the client compares.
type pumps struct {
	done   chan struct{}
	wg     sync.WaitGroup
	rounds []atomic.Uint64 // blocks that have come back, a pump each
	errs   chan error
}

// pumpBlock is what goes there and back in a round, bytes.
const pumpBlock = 4 << 10

// startPumps opens n streams through the pair and begins to pump.
func startPumps(t *testing.T, p *pair, ln net.Listener, n int) *pumps {
	t.Helper()
	s := &pumps{done: make(chan struct{}), rounds: make([]atomic.Uint64, n), errs: make(chan error, 2*n)}
	for i := range n {
		c := p.connect(t, p.Client, ln)
		for _, end := range []*net.TCPConn{c.client, c.server} {
			if err := end.SetDeadline(time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
		s.wg.Go(func() { s.echo(c.server) })
		s.wg.Go(func() { s.pump(c.client, &s.rounds[i], uint64(i)) })
	}
	return s
}

// echo sends back what comes until it ends.
func (s *pumps) echo(c *net.TCPConn) {
	if _, err := io.Copy(c, c); err != nil {
		s.errs <- err
		return
	}
	c.CloseWrite()
}

// pace is how often a pump goes round: streams that live, not streams that fill
// the machine.
const pace = 100 * time.Millisecond

// pump goes round until it is stopped, then ends its stream in order.
func (s *pumps) pump(c *net.TCPConn, rounds *atomic.Uint64, seed uint64) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	sent, got := make([]byte, pumpBlock), make([]byte, pumpBlock)
	for n := uint64(0); ; n++ {
		select {
		case <-s.done:
			c.CloseWrite()
			if m, err := io.Copy(io.Discard, c); m > 0 || err != nil {
				s.errs <- fmt.Errorf("at the end of a pump: %d bytes too many, %v", m, err)
			}
			return
		case <-tick.C:
		}
		noiseFor(sent, seed, n)
		if _, err := c.Write(sent); err != nil {
			s.errs <- err
			return
		}
		if _, err := io.ReadFull(c, got); err != nil {
			s.errs <- err
			return
		}
		if !bytes.Equal(got, sent) {
			s.errs <- fmt.Errorf("round %d of pump %d came back changed", n, seed)
			return
		}
		rounds.Add(1)
	}
}

// noiseFor fills a block that can be told from every other.
func noiseFor(block []byte, seed, n uint64) {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	binary.BigEndian.PutUint64(key[8:], n)
	// A ChaCha8 never fails (rand.ChaCha8.Read).
	_, _ = rand.NewChaCha8(key).Read(block)
}

// check fails unless every pump goes on.
func (s *pumps) check(t *testing.T) {
	t.Helper()
	before := make([]uint64, len(s.rounds))
	for i := range s.rounds {
		before[i] = s.rounds[i].Load()
	}
	for i := range s.rounds {
		eventually(t, "a pump goes round", func() bool {
			select {
			case err := <-s.errs:
				t.Fatalf("a pump has stopped: %v", err)
			default:
			}
			return s.rounds[i].Load() > before[i]
		})
	}
}

// stop ends all streams in order, and fails unless each was whole to the end.
func (s *pumps) stop(t *testing.T) {
	t.Helper()
	close(s.done)
	s.wg.Wait()
	close(s.errs)
	for err := range s.errs {
		t.Error(err)
	}
}
