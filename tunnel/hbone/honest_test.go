package hbone

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// unharmed fails if either side has found fault with the other, or lets it go.
func (p *pair) unharmed(t *testing.T) {
	t.Helper()
	for _, s := range []*side{p.client, p.server} {
		if s.err != nil || s.Conn.err != nil || s.drain.begun() {
			t.Fatalf("%s after %v: %v, %v, GOAWAY %t", s.name, p.now, s.err, s.Conn.err, s.drain.begun())
		}
	}
}

// wantFault fails unless the server has cut the tunnel for it.
func (p *pair) wantFault(t *testing.T, f Fault) {
	t.Helper()
	if e, ok := p.server.err.(*ConnError); !ok || e.Fault != f {
		t.Errorf("after %v the server says %v, want the fault %s", p.now, p.server.err, f)
	}
}

// exchange is how one of many short connections goes: it is asked for, a byte goes
// each way, and one of the two sides has enough first.
type exchange int

const (
	clientEnds exchange = iota
	serverEnds
	clientResets
	serverResets
	serverRefuses // in place of the answer
	takenBack     // by a client that does not wait for it
)

// busy opens so many connections a second, for as long. Honest traffic is of all
// kinds, a tenth to a fifth of each but the first.
type busy struct {
	*pair
	kinds  []exchange
	done   int // which have come to their end as they should
	opened int
	// takeBack is how a client takes a request back.
	takeBack func(*Stream)
}

var honestKinds = []exchange{
	clientEnds, serverEnds, clientResets, clientEnds, serverResets, clientEnds, serverRefuses, takenBack, clientEnds, takenBack,
}

// kind is how the exchange on a stream goes.
func (b *busy) kind(id uint32) exchange { return b.kinds[int(id/2)%len(b.kinds)] }

func (b *busy) run(perSecond int, d time.Duration) {
	var dialing []*Stream
	b.server.rec.request = func(s *Stream, _ Request) { dialing = append(dialing, s) }
	const step = time.Millisecond
	due := 0
	for ; (d > 0 || b.client.Streams() > 0) && b.server.err == nil; d -= step {
		if d > 0 {
			due += perSecond
		}
		for ; due >= 1000; due -= 1000 {
			b.begin()
		}
		dialed := dialing // in one step: a server that is near
		dialing = nil
		for _, s := range dialed {
			if b.kind(s.id) == serverRefuses {
				s.Refuse(Refused)
			} else {
				s.Accept()
			}
		}
		b.advance(step)
		for b.turn() {
			b.pair.run()
		}
		b.client.sweep()
		b.server.sweep()
	}
	b.settle()
	b.turn()
}

// begin opens a stream.
func (b *busy) begin() {
	if b.client.Room() == 0 {
		b.t.Fatalf("no room after %d", b.opened)
	}
	s := b.open()
	b.opened++
	if b.kind(s.id) == takenBack {
		b.client.send() // it leaves, and is thought better of
		b.takeBack(s)
		b.done++
	}
}

// turn has both sides answer what they have heard, and reports whether that was
// something.
func (b *busy) turn() bool {
	atClient, atServer := b.client.rec.take(), b.server.rec.take()
	for _, e := range atClient {
		b.atClient(e)
	}
	for _, e := range atServer {
		b.atServer(e)
	}
	return len(atClient)+len(atServer) > 0
}

// stream reads an event, and finds its stream.
func stream(s *side, event string) (what string, _ *Stream) {
	var id uint32
	fmt.Sscanf(event, "%s %d", &what, &id)
	return what, s.rec.known[id]
}

func (b *busy) atClient(event string) {
	what, s := stream(b.client, event)
	switch kind := b.kind(s.id); {
	case what == "accepted":
		b.client.write(s, []byte{1})
	case what == "data" && kind == clientEnds:
		b.client.end(s)
	case what == "data" && kind == clientResets:
		s.Reset(http2.ErrCodeConnect)
	case what == "end" && kind == serverEnds:
		b.client.end(s)
	case what == "refused" && kind == serverRefuses, what == "reset" && kind == serverResets,
		what == "end" && kind == clientEnds:
		b.done++
	case what == "refused", what == "reset" && kind != takenBack:
		b.t.Errorf("stream %d: %s", s.id, event)
	}
}

func (b *busy) atServer(event string) {
	what, s := stream(b.server, event)
	switch kind := b.kind(s.id); {
	case what == "data":
		b.server.write(s, []byte{2})
		if kind == serverEnds {
			b.server.end(s)
		}
	case what == "end" && kind == clientEnds:
		b.server.end(s)
	case what == "end" && kind == serverEnds, what == "reset" && kind == clientResets:
		b.done++
	}
	if what == "data" && b.kind(s.id) == serverResets {
		b.server.send() // the byte goes first
		s.Reset(http2.ErrCodeConnect)
	}
}

// sweep forgets what is over: there are many.
func (s *side) sweep() {
	for id, st := range s.rec.known {
		if st.gone {
			delete(s.rec.known, id)
			delete(s.rec.got, id)
		}
	}
}

// TestHonestOpens: ten thousand connections a second trip no limit, in whatever way
// they end. The same number in the shape of a flood does at once.
func TestHonestOpens(t *testing.T) {
	const perSecond, lasting = 10_000, 10 * time.Second
	for _, delay := range []time.Duration{0, 2 * time.Millisecond} {
		t.Run(fmt.Sprint("one way ", delay), func(t *testing.T) {
			t.Parallel()
			b := &busy{pair: newPair(t, pairConfig{delay: delay}), kinds: honestKinds}
			b.takeBack = func(s *Stream) { s.Reset(http2.ErrCodeCancel) }
			b.run(perSecond, lasting)
			b.unharmed(t)
			if b.opened != perSecond*10 || b.done != b.opened {
				t.Errorf("%d were opened, %d have ended as they should", b.opened, b.done)
			}
		})
	}
	t.Run("taken back without measure", func(t *testing.T) {
		b := &busy{pair: newPair(t, pairConfig{delay: time.Millisecond}), kinds: []exchange{takenBack}}
		b.takeBack = func(s *Stream) { b.client.cut(s, http2.ErrCodeCancel) }
		b.run(perSecond, lasting)
		b.wantFault(t, faultRapidReset)
	})
}

// many opens n streams.
func (p *pair) many(n int) (clients, servers []*Stream) {
	p.t.Helper()
	for range n {
		c, s := p.opened()
		clients, servers = append(clients, c), append(servers, s)
	}
	return clients, servers
}

// crumbs writes one byte at a time both ways on a hundred streams, each a frame of
// its own, or frames with nothing in them.
func (p *pair) crumbs(size int, every, d time.Duration) {
	clients, servers := p.many(100)
	buf := make([]byte, FrameHeader+size)
	say := func(at *side, s *Stream) {
		if at.err == nil && !s.gone && s.Credit() >= size {
			s.PutData((*[FrameHeader]byte)(buf), size)
			at.wire = append(at.wire, parcel{p.now + p.delay, append(at.control(nil), buf...)})
		}
	}
	for ; d > 0 && p.server.err == nil; d -= every {
		for i := range clients {
			say(p.client, clients[i])
			say(p.server, servers[i])
		}
		p.advance(every)
		p.client.rec.take()
		p.server.rec.take()
	}
}

// TestHonestCrumbs: single bytes on a hundred streams for a minute trip no limit,
// nor do the PINGs and WINDOW_UPDATEs that go with them. Frames with nothing in them
// do.
func TestHonestCrumbs(t *testing.T) {
	t.Parallel()
	const every, lasting = 4 * time.Millisecond, time.Minute
	// The least windows there may be, so that credit has to come back.
	cfg := Config{StreamWindow: initialWindow, MaxStreamWindow: initialWindow, ConnWindow: initialWindow}
	p := newPair(t, pairConfig{client: cfg, server: cfg, delay: time.Millisecond})
	p.crumbs(1, every, lasting)
	p.unharmed(t)
	for _, s := range []*side{p.client, p.server} {
		got := 0
		for _, b := range s.rec.got {
			got += len(b)
		}
		if want := int(100 * lasting / every); got != want {
			t.Errorf("%s has got %d bytes, want %d", s.name, got, want)
		}
	}
	p = newPair(t, pairConfig{delay: time.Millisecond})
	p.crumbs(0, every, lasting)
	p.wantFault(t, faultEmptyData)
}

// TestHonestSlowReaders: a hundred readers that stand still for a minute, with all
// that they may be sent, trip no limit, and one beside them goes on. One byte more
// for each of them, again and again, does.
func TestHonestSlowReaders(t *testing.T) {
	t.Parallel()
	p := newPair(t, pairConfig{delay: time.Millisecond})
	p.server.rec.hold = true
	clients, servers := p.many(101)
	block := make([]byte, 16<<10)
	for _, s := range clients[:100] {
		p.client.write(s, make([]byte, 1<<20))
	}
	reader, got := servers[100], 0
	for end := p.now + time.Minute; p.now < end; {
		p.client.write(clients[100], block)
		p.advance(10 * time.Millisecond)
		n := p.server.rec.undel[reader.id]
		p.server.rec.deliver(reader, n)
		got += n
		delete(p.server.rec.got, reader.id)
		p.client.rec.take()
		p.server.rec.take()
	}
	p.unharmed(t)
	if want := 5900 * len(block); got < want {
		t.Errorf("the one that reads has got %d bytes, want %d", got, want)
	}
	for _, s := range servers[:100] {
		if n := p.server.rec.undel[s.id]; n != 256<<10 {
			t.Errorf("stream %d waits for a reader with %d bytes", s.id, n)
		}
	}
	for n := 0; n < 20 && p.server.err == nil; n++ {
		var greedy []*Stream
		for range 50 {
			greedy = append(greedy, p.open())
		}
		p.settle()
		for _, s := range greedy {
			s.send, p.client.Conn.send = 1<<20, 8<<20 // it believes to have credit
			p.client.write(s, make([]byte, 256<<10+1))
			p.advance(0)
		}
		p.settle()
		for _, s := range greedy {
			p.server.rec.deliver(p.server.rec.known[s.id], p.server.rec.undel[s.id])
		}
	}
	p.wantFault(t, faultRapidReset)
}
