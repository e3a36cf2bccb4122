package hbone

import (
	"fmt"
	"testing"
	"time"
)

// link is two machines joined by a buffer, without the record that tests keep.
type link struct {
	client, server *Conn
	near, far      end
	now            time.Duration
	buf            []byte
}

// end is a Handler that accepts and delivers at once.
type end struct {
	l        *link
	received int
	accepted *Stream
}

func (e *end) Request(s *Stream, _ Request) { e.accepted = s; s.Accept() }
func (e *end) Accepted(s *Stream)           { e.accepted = s }
func (e *end) Data(s *Stream, p []byte)     { e.received += len(p); s.Delivered(e.l.now, len(p)) }
func (e *end) End(s *Stream)                { s.End() }
func (e *end) Malformed(string)             {}
func (e *end) Overloaded(Request)           {}
func (e *end) Refused(*Stream, Refusal)     {}
func (e *end) Reset(*Stream, error)         {}
func (e *end) Writable(*Stream)             {}
func (e *end) Room()                        {}

func newLink(tb testing.TB) *link {
	l := &link{now: 1, buf: make([]byte, 0, 320<<10)}
	l.near.l, l.far.l = l, l
	l.client = New(Config{Role: Client}, &l.near, l.now)
	l.server = New(Config{Role: Server}, &l.far, l.now)
	l.settle(tb)
	l.client.ping.next, l.server.ping.next = forever, forever
	l.client.ping.begun, l.server.ping.begun = true, true
	return l
}

// settle moves control frames until there are none.
func (l *link) settle(tb testing.TB) {
	for l.client.HasControl() || l.server.HasControl() {
		l.pass(tb, l.server, l.client.AppendControl(l.buf))
		l.pass(tb, l.client, l.server.AppendControl(l.buf))
	}
}

func (l *link) pass(tb testing.TB, to *Conn, p []byte) {
	if err := to.Receive(l.now, p); err != nil {
		tb.Fatal(err)
	}
}

func (l *link) open(tb testing.TB) *Stream {
	s, err := l.client.Open(l.now, testRequest, nil)
	if err != nil {
		tb.Fatal(err)
	}
	l.settle(tb)
	return s
}

// write sends n bytes, which are already in the buffer behind the header.
func (l *link) write(tb testing.TB, s *Stream, n int) {
	for n > 0 {
		m := min(s.Credit(), n)
		if m == 0 {
			tb.Fatal("no credit")
		}
		s.PutData((*[FrameHeader]byte)(l.buf[:FrameHeader]), m)
		l.pass(tb, l.server, l.buf[:FrameHeader+m])
		l.now += time.Microsecond
		l.settle(tb)
		n -= m
	}
}

// BenchmarkData moves bytes of one stream, and of 64 in turn, in frames of some
// size. Nothing copies them, so that this is the cost of frames and credit.
func BenchmarkData(b *testing.B) {
	for _, streams := range []int{1, 64} {
		for _, size := range []int{64, 1 << 10, 16 << 10, 256 << 10} {
			b.Run(fmt.Sprintf("streams=%d/frame=%d", streams, size), func(b *testing.B) {
				l := newLink(b)
				all := make([]*Stream, streams)
				for i := range all {
					all[i] = l.open(b)
				}
				b.SetBytes(int64(size))
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					l.write(b, all[i%streams], size)
					i++
				}
				if l.far.received != i*size {
					b.Fatalf("%d bytes arrived of %d", l.far.received, i*size)
				}
			})
		}
	}
}

// BenchmarkOpen is the life of a stream: opened, accepted, ended both ways.
func BenchmarkOpen(b *testing.B) {
	l := newLink(b)
	b.ReportAllocs()
	for b.Loop() {
		s := l.open(b)
		s.End()
		l.settle(b)
		if !s.Gone() {
			b.Fatal("the stream is not gone")
		}
		if s.id > maxStreamID-4 {
			l = newLink(b)
		}
	}
}

// BenchmarkPing is a round trip of the smallest kind.
func BenchmarkPing(b *testing.B) {
	l := newLink(b)
	b.ReportAllocs()
	for b.Loop() {
		l.now += time.Second
		l.client.ping.next = l.now
		if err := l.client.Tick(l.now); err != nil {
			b.Fatal(err)
		}
		l.settle(b)
	}
}

// TestDataAllocatesNothing: neither frames nor credit do, at any size of frame.
func TestDataAllocatesNothing(t *testing.T) {
	l := newLink(t)
	a, b := l.open(t), l.open(t)
	for _, size := range []int{1, 100, 16 << 10, 200 << 10} {
		n := testing.AllocsPerRun(100, func() {
			l.write(t, a, size)
			l.write(t, b, size)
		})
		if n != 0 {
			t.Errorf("frames of %d: %v allocations, want none", size, n)
		}
	}
}
