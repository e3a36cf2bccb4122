package hbone

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// pair is a client and a server joined by two slices, in fake time.
//
//	p := newPair(t, pairConfig{})
//	s := p.open()                          // HEADERS are on their way
//	p.run()                                // everything arrives
//	p.server.want("why", "request 1 …")    // events, in order
//	p.client.write(s, []byte("hello"))     // sent as credit allows
//	p.advance(time.Second)                 // timers fire, delayed bytes arrive
//
// When the test ends, the pair sees that both sides' books are balanced.
type pair struct {
	t              testing.TB
	now            time.Duration
	delay          time.Duration // one way
	chunk          chunker
	client, server *side
	budget         *Budget // the client's and the server's together
}

// pairConfig says how a pair differs from the usual one.
type pairConfig struct {
	client, server Config
	delay          time.Duration
	chunk          chunker // how the bytes are cut; nil: not at all
	budget         int64   // of the process; 0: 1 GiB
	silent         bool    // the server leaves requests unanswered
}

// chunker says how many of n bytes arrive together.
type chunker func(n int) int

// chunkings are the ways in which bytes may arrive.
var chunkings = map[string]chunker{
	"whole":  func(n int) int { return n },
	"bytes":  func(int) int { return 1 },
	"threes": func(n int) int { return min(3, n) },
	"random": randomChunks(1),
}

func randomChunks(seed uint64) chunker {
	r := rand.New(rand.NewPCG(seed, 0))
	return func(n int) int { return 1 + r.IntN(min(n, 1<<r.IntN(18))) }
}

// testChunkings runs f once for each way of cutting the bytes.
func testChunkings(t *testing.T, f func(t *testing.T, chunk chunker)) {
	for name, chunk := range chunkings {
		t.Run(name, func(t *testing.T) { f(t, chunk) })
	}
}

// side is one end of a pair: a Conn, its record, and the engine's part.
type side struct {
	*Conn
	rec   *recorder
	p     *pair
	name  string
	wire  []parcel // on the way to the other side
	flows []*flow
	err   error // what Receive or Tick returned
}

// parcel is bytes that arrive at a time.
type parcel struct {
	at    time.Duration
	bytes []byte
}

// flow is what a side has still to send on a stream.
type flow struct {
	s    *Stream
	rest []byte
	end  bool
}

func newPair(t testing.TB, cfg pairConfig) *pair {
	t.Helper()
	p := &pair{t: t, now: 1, delay: cfg.delay, chunk: cfg.chunk, budget: NewBudget(max(cfg.budget, 1))}
	if cfg.budget == 0 {
		p.budget = NewBudget(1 << 30)
	}
	if p.chunk == nil {
		p.chunk = chunkings["whole"]
	}
	p.client = p.newSide("client", Client, cfg.client)
	p.server = p.newSide("server", Server, cfg.server)
	if !cfg.silent {
		p.server.rec.request = func(s *Stream, _ Request) { s.Accept() }
	}
	t.Cleanup(p.check)
	p.run()
	return p
}

func (p *pair) newSide(name string, role Role, cfg Config) *side {
	s := &side{p: p, name: name, rec: newRecorder(&p.now)}
	cfg.Role, cfg.Budget = role, p.budget
	s.Conn = New(cfg, s.rec, p.now)
	return s
}

// check is how every test of a pair ends.
func (p *pair) check() {
	checkEmpty(p.t, p.client.Conn)
	checkEmpty(p.t, p.server.Conn)
	if used := p.budget.Used(); used != 0 && !p.t.Failed() {
		p.t.Errorf("the process's budget after the end: %d used, want none", used)
	}
}

var (
	testTarget  = netip.MustParseAddrPort("10.2.0.5:80")
	testClient  = netip.MustParseAddrPort("10.1.0.7:40000")
	testRequest = Request{Client: testClient, Target: testTarget}
)

// open opens a stream; it must be possible.
func (p *pair) open() *Stream {
	p.t.Helper()
	s, err := p.client.Open(p.now, testRequest, nil)
	if err != nil {
		p.t.Fatalf("open: %v", err)
	}
	p.client.rec.known[s.id] = s
	return s
}

// opened opens a stream and returns both its ends, once it is accepted.
func (p *pair) opened() (client, server *Stream) {
	p.t.Helper()
	s := p.open()
	p.settle()
	if !s.open {
		p.t.Fatalf("stream %d was not accepted: %q %q", s.id, p.client.rec.events, p.server.rec.events)
	}
	p.client.rec.take()
	p.server.rec.take()
	return s, p.server.rec.known[s.id]
}

// settle lets the time of two round trips pass.
func (p *pair) settle() { p.advance(4 * p.delay) }

// run moves bytes until nothing moves any more; the time stands still.
func (p *pair) run() {
	for p.client.send()+p.server.send() > 0 {
		p.client.arrive(p.server)
		p.server.arrive(p.client)
	}
}

// advance lets time pass: bytes arrive and timers fire when they are due.
func (p *pair) advance(d time.Duration) {
	end := p.now + d
	p.run()
	for {
		next := min(p.client.due(), p.server.due())
		if next > end {
			break
		}
		p.now = max(p.now, next)
		p.client.tick()
		p.server.tick()
		p.client.arrive(p.server)
		p.server.arrive(p.client)
		p.run()
	}
	p.now = end
}

// due is when something happens next on this side.
func (s *side) due() time.Duration {
	d := forever
	if s.err == nil && s.Conn.err == nil {
		d = s.Deadline()
	}
	if len(s.wire) > 0 {
		d = min(d, s.wire[0].at)
	}
	return d
}

const forever = time.Duration(1<<63 - 1)

// tick runs the timers, and sees that they do not ask for the past again.
func (s *side) tick() {
	if s.err != nil || s.Conn.err != nil || s.Deadline() > s.p.now {
		return
	}
	if err := s.Tick(s.p.now); err != nil {
		s.die(err)
	} else if s.Deadline() <= s.p.now {
		s.p.t.Fatalf("%s: Tick at the deadline left a deadline in the past: a busy loop", s.name)
	}
}

// send puts what the side has to say on the wire and returns how much that is.
func (s *side) send() int {
	buf := s.collect(nil)
	if len(buf) > 0 {
		s.wire = append(s.wire, parcel{s.p.now + s.p.delay, buf})
	}
	if len(buf) > 0 && s.p.delay == 0 {
		return len(buf)
	}
	return 0
}

// arrive hands over what is due.
func (s *side) arrive(to *side) {
	for len(s.wire) > 0 && s.wire[0].at <= s.p.now {
		b := s.wire[0].bytes
		s.wire = s.wire[1:]
		for len(b) > 0 && to.err == nil {
			n := s.p.chunk(len(b))
			// A copy: what the peer keeps of it would be seen to change.
			piece := bytes.Clone(b[:n])
			if err := to.Receive(s.p.now, piece); err != nil {
				to.die(err)
			}
			clear(piece)
			b = b[n:]
		}
	}
}

// die ends a side as the engine does: what it still has to say goes first.
func (s *side) die(err error) {
	s.err = err
	s.wire = append(s.wire, parcel{s.p.now + s.p.delay, s.control(nil)})
	s.Fail(err)
}

// collect does what the engine does: control frames first, then DATA.
func (s *side) collect(buf []byte) []byte {
	buf = s.control(buf)
	for _, f := range slices.Clone(s.flows) {
		buf = s.fill(f, buf)
	}
	return buf
}

func (s *side) control(buf []byte) []byte {
	for s.HasControl() {
		buf = s.AppendControl(slices.Grow(buf, 64))
	}
	return buf
}

// fill sends what a flow may send.
func (s *side) fill(f *flow, buf []byte) []byte {
	for len(f.rest) > 0 {
		n := min(f.s.Credit(), len(f.rest))
		if n == 0 {
			return buf
		}
		var hdr [FrameHeader]byte
		f.s.PutData(&hdr, n)
		buf = append(append(buf, hdr[:]...), f.rest[:n]...)
		f.rest = f.rest[n:]
	}
	if !f.s.open && !f.s.gone {
		return buf // the end has no place before the answer
	}
	if f.end {
		f.s.End()
	}
	s.flows = slices.DeleteFunc(s.flows, func(g *flow) bool { return g == f })
	return s.control(buf)
}

// write queues bytes for a stream.
func (s *side) write(st *Stream, p []byte) { s.flowOf(st).rest = append(s.flowOf(st).rest, p...) }

// end queues a half-close behind them.
func (s *side) end(st *Stream) { s.flowOf(st).end = true }

func (s *side) flowOf(st *Stream) *flow {
	for _, f := range s.flows {
		if f.s == st {
			return f
		}
	}
	f := &flow{s: st}
	s.flows = append(s.flows, f)
	return f
}

// want fails unless exactly these events have happened since the last look.
func (s *side) want(why string, events ...string) {
	s.p.t.Helper()
	if got := s.rec.take(); !slices.Equal(got, events) {
		s.p.t.Fatalf("%s: %s heard\n\t%q, want\n\t%q", why, s.name, got, events)
	}
}

// pattern is n bytes that show when some are lost or out of place.
func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return p
}
