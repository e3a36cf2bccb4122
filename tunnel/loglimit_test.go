package tunnel

import (
	"bytes"
	"log/slog"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// logText is a log that its LogLimit's timer and the test can use.
type logText struct {
	mu  sync.Mutex
	buf bytes.Buffer // guarded by mu
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// limited is a LogLimit and what it makes of lines.
type limited struct {
	*LogLimit
	out     logText
	written int
}

func newLimited(level slog.Level) *limited {
	l := new(limited)
	l.LogLimit = NewLogLimit(slog.New(slog.NewTextHandler(&l.out, &slog.HandlerOptions{Level: level})))
	return l
}

// warn has n lines of a peer's written, as far as they are.
func (l *limited) warn(n int, peer string) {
	for range n {
		if l.Allow(slog.LevelWarn, "request refused", peer, "malformed") {
			l.written++
		}
	}
}

var toldLines = regexp.MustCompile(`line="request refused" reason=malformed lines=(\d+)(?: peer=(\S+))?\n`)

// told adds up what was told of a peer's lines, and in how many lines.
func (l *limited) told(t *testing.T, peer string) (times, lines int) {
	for _, m := range toldLines.FindAllStringSubmatch(l.out.String(), -1) {
		if m[2] != peer {
			continue
		}
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		times, lines = times+1, lines+n
	}
	return times, lines
}

func (l *limited) want(t *testing.T, peer string, written, times, lines int) {
	t.Helper()
	synctest.Wait()
	gotTimes, gotLines := l.told(t, peer)
	if l.written != written || gotTimes != times || gotLines != lines {
		t.Errorf("%d are written, and %d told of in %d lines; want %d, %d in %d\n%s", l.written, gotLines, gotTimes, written, lines, times, l.out.String())
	}
}

// TestLogLimit: a flood leaves a few lines, and every one that is missing is told of.
func TestLogLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimited(slog.LevelWarn)
		l.warn(1000, "west")
		l.want(t, "west", 50, 0, 0)
		<-time.After(5 * time.Second)
		l.warn(1000, "west") // 2 a second are forgiven
		l.want(t, "west", 60, 0, 0)
		<-time.After(5 * time.Second)
		l.want(t, "west", 60, 1, 1940)
		for range 40 { // a hundred a second, for ten seconds
			l.warn(25, "west")
			<-time.After(250 * time.Millisecond)
		}
		l.want(t, "west", 89, 2, 2911)
		<-time.After(time.Hour) // it is over
		l.want(t, "west", 89, 2, 2911)
		if len(l.kinds) > 0 {
			t.Errorf("%d kinds are remembered", len(l.kinds))
		}
		l.warn(60, "west")
		l.want(t, "west", 139, 2, 2911)
		l.Close()
		l.want(t, "west", 139, 3, 2921)
		<-time.After(time.Hour)
		l.want(t, "west", 139, 3, 2921)
	})
}

// TestLogLimitShares: a peer that floods takes no lines from another, nor from
// strangers; those have one share.
func TestLogLimitShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimited(slog.LevelInfo)
		defer l.Close()
		l.warn(1000, "west")
		l.warn(20, "north")
		l.warn(1000, "")
		if !l.Allow(slog.LevelWarn, "request refused", "west", "denied") || !l.Allow(slog.LevelWarn, "connection refused", "west", "malformed") {
			t.Error("a flood of one kind takes lines from another")
		}
		<-time.After(logTell)
		l.want(t, "west", 50+20+50, 1, 950)
		l.want(t, "", 120, 1, 950)
		l.want(t, "north", 120, 0, 0)
	})
}

// TestLogLimitAbove: a log without warnings gets no word of those that are missing.
func TestLogLimitAbove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimited(slog.LevelError)
		l.warn(1000, "west")
		l.Close()
		if l.written > 0 || strings.TrimSpace(l.out.String()) != "" {
			t.Errorf("%d are written, and %q", l.written, l.out.String())
		}
	})
}

// BenchmarkLogLimit is the cost of a line that is left out.
func BenchmarkLogLimit(b *testing.B) {
	l := newLimited(slog.LevelWarn)
	defer l.Close()
	for b.Loop() {
		l.Allow(slog.LevelWarn, "request refused", "west", "malformed")
	}
}
