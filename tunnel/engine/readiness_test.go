package engine_test

import (
	"errors"
	"io"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/tunnel/hbone"
	"wishbone/tunnel/record"
)

// TestStaleAgain: what has come since a session last looked, and was told of while
// there was still something to read, is read. Nobody tells of it again.
func TestStaleAgain(t *testing.T) {
	p := newPair(t, server(t, echo))
	near, far := sessions(t)
	s := &stale{Conn: far}
	quiet := hbone.Config{PingInterval: time.Hour} // PINGs would be told of
	p.on(p.west, func() { p.tunnel = must(p.west.AddTunnel(near, quiet, &westEnd{p})) })
	quiet.Role = hbone.Server
	p.on(p.east, func() { must(p.east.AddTunnel(s, quiet, &eastEnd{p, t})) })
	c := dial(t, p.address)
	say := func(what string) {
		if _, err := io.WriteString(c, what); err != nil {
			t.Error(err)
		}
	}
	hear := func(what string) {
		got := make([]byte, len(what))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != what {
			t.Fatalf("%q came back (%v), want %q", got, err, what)
		}
	}
	say("all is said that tunnels begin with")
	hear("all is said that tunnels begin with")
	p.round(p.west)
	p.round(p.east)
	p.on(p.east, func() {
		s.halfway = func() {
			say("second")
			eventually(t, "it comes", func() bool {
				n, err := unix.IoctlGetInt(far.FD(), unix.TIOCINQ)
				return n > 0 || err != nil
			})
		}
	})
	say("first")
	hear("firstsecond")
}

// stale is a session that hands what it has read out in more than a turn, and then
// says that there is no more, without another look.
type stale struct {
	record.Conn
	halfway func() // a turn is over, and the next has not begun; nil: as ever
	had     []byte
	calls   int
}

func (s *stale) Read(p []byte) (int, error) {
	if s.halfway == nil || s.calls > 4 {
		return s.Conn.Read(p)
	}
	if s.calls == 0 {
		s.had = make([]byte, 64<<10)
		n, err := s.Conn.Read(s.had)
		s.had = s.had[:n]
		if n == 0 || err != nil && !errors.Is(err, record.ErrAgain) {
			return n, err
		}
	}
	s.calls++
	switch s.calls {
	case 4:
		s.halfway()
	case 5:
		return copy(p, s.had), record.ErrAgain
	}
	n := copy(p, s.had[:1])
	s.had = s.had[n:]
	return n, nil
}
