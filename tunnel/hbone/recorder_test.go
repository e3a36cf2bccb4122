package hbone

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// recorder is a Handler that writes down what it hears, one line an event.
// Pieces of DATA that follow each other on one stream are one event, so that
// the record does not depend on how the bytes were cut.
type recorder struct {
	clock   *time.Duration
	events  []string
	rooms   int                    // how often Room was called
	known   map[uint32]*Stream     // every stream that was ever heard of
	got     map[uint32][]byte      // what came on each
	undel   map[uint32]int         // of it, undelivered
	hold    bool                   // keep what comes undelivered
	request func(*Stream, Request) // what to do with requests; nil: nothing
	hook    func(event string)     // called after each event, if set
	lastFor uint32                 // the stream of the last event, if it was DATA
	lastLen int
}

func newRecorder(clock *time.Duration) *recorder {
	return &recorder{
		clock: clock,
		known: make(map[uint32]*Stream),
		got:   make(map[uint32][]byte),
		undel: make(map[uint32]int),
	}
}

func (r *recorder) note(format string, args ...any) {
	r.lastFor = 0
	e := fmt.Sprintf(format, args...)
	r.events = append(r.events, e)
	if r.hook != nil {
		r.hook(e)
	}
}

// take returns the events since it was last called.
func (r *recorder) take() []string {
	e := r.events
	r.events, r.lastFor = nil, 0
	return e
}

func (r *recorder) Request(s *Stream, q Request) {
	r.known[s.id] = s
	if q.Client.IsValid() {
		r.note("request %d %s from %s", s.id, q.Target, q.Client)
	} else {
		r.note("request %d %s", s.id, q.Target)
	}
	if r.request != nil {
		r.request(s, q)
	}
}

func (r *recorder) Overloaded(q Request) { r.note("overloaded: %s", q.Target) }
func (r *recorder) Malformed(why string) { r.note("malformed: %s", why) }

func (r *recorder) Accepted(s *Stream) { r.note("accepted %d", s.id) }

func (r *recorder) Refused(s *Stream, why Refusal) {
	e := fmt.Sprintf("refused %d %s", s.id, why.Reason)
	if why.Status != "" {
		e += " " + why.Status
	}
	if why.Retry {
		e += " retry"
	}
	r.note("%s", e)
}

func (r *recorder) Data(s *Stream, p []byte) {
	r.got[s.id] = append(r.got[s.id], p...)
	if r.lastFor == s.id {
		r.lastLen += len(p)
		r.events[len(r.events)-1] = fmt.Sprintf("data %d %d", s.id, r.lastLen)
	} else {
		r.note("data %d %d", s.id, len(p))
		r.lastFor, r.lastLen = s.id, len(p)
	}
	if r.hold {
		r.undel[s.id] += len(p)
		return
	}
	s.Delivered(*r.clock, len(p))
}

func (r *recorder) End(s *Stream) { r.note("end %d", s.id) }

func (r *recorder) Reset(s *Stream, cause error) {
	r.note("reset %d %s", s.id, describe(cause))
}

func (r *recorder) Writable(s *Stream) { r.note("writable %d", s.id) }

func (r *recorder) Room() { r.rooms++ }

// deliver lets n held bytes of a stream leave.
func (r *recorder) deliver(s *Stream, n int) {
	r.undel[s.id] -= n
	s.Delivered(*r.clock, n)
}

// describe says of a cause what tests care about.
func describe(cause error) string {
	e, ok := errors.AsType[*ResetError](cause)
	switch {
	case !ok:
		return cause.Error()
	case e.Remote:
		return e.Code.String() + " by peer"
	}
	return e.Code.String()
}

// checkBudgets holds the books together: what is reserved is what the living
// streams' windows and the undelivered bytes of dead ones add up to, and each
// window is what the peer may still send, what it has sent and was not
// delivered, and what is owed for.
func checkBudgets(t testing.TB, c *Conn) {
	t.Helper()
	var sum int64
	for _, s := range c.streams {
		sum += s.window
		parts := s.recv + s.undel + s.owed
		if c.in.data == s {
			parts += int64(c.in.left) // counted, and yet to come
		}
		if s.recvEnd {
			parts = s.undel
		}
		if s.window != parts {
			t.Errorf("stream %d: window %d, its parts add up to %d", s.id, s.window, parts)
		}
	}
	for _, s := range c.h.(*recorder).known {
		if c.streams[s.id] != s {
			sum += s.undel
		}
	}
	if c.credited != sum {
		t.Errorf("credit in the books: %d, given to streams: %d", c.credited, sum)
	}
	holding := 0
	for _, s := range c.streams {
		if !s.recvEnd {
			holding++
		}
	}
	if c.holding != holding {
		t.Errorf("%d streams hold what they started with, counted are %d", holding, c.holding)
	}
	if c.credited > int64(c.cfg.TunnelBudget) {
		t.Errorf("credit given: %d, budget of the tunnel: %d", c.credited, c.cfg.TunnelBudget)
	}
}

// checkEmpty ends a Conn and sees that it leaves nothing reserved.
func checkEmpty(t testing.TB, c *Conn) {
	t.Helper()
	checkBudgets(t, c)
	r := c.h.(*recorder)
	c.Fail(errTestOver)
	for _, s := range r.known {
		s.Discard()
	}
	if c.credited != 0 {
		t.Errorf("credit in the books after the end: %d, want none", c.credited)
	}
	if len(c.streams) != 0 || c.waiting.first != nil {
		t.Errorf("streams after the end: %d, waiting: %v, want none", len(c.streams), c.waiting.first)
	}
}

var errTestOver = errors.New("the test is over")

// wantCode fails unless err ends the tunnel with code.
func wantCode(t testing.TB, why string, err error, code http2.ErrCode) {
	t.Helper()
	e, ok := errors.AsType[*ConnError](err)
	if !ok || e.Code != code {
		t.Fatalf("%s: tunnel ended with %v, want %v", why, err, code)
	}
}
