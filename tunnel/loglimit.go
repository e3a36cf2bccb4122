package tunnel

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Limits of the lines that others can have us log, of each kind.
const (
	logBurst = 50 // at once
	logRate  = 2  // a second
	logTell  = 10 * time.Second
)

// LogLimit keeps the log from being flooded: peers and strangers can have us tell of
// something as often as they like. Of each kind of line some are written at once and
// a few a second. How many were left out is told every ten seconds while there
// are any, and at Close. All methods may be called from any goroutine.
type LogLimit struct {
	log *slog.Logger

	mu    sync.Mutex
	kinds map[logKind]*logLines // of late; guarded by mu
	tell  *time.Timer           // runs while there are kinds; guarded by mu
}

// logKind is what the lines of a kind have in common.
type logKind struct {
	msg    string
	peer   string // empty for strangers, who share
	reason string
}

// logLines are those of a kind.
type logLines struct {
	level   float64 // written, less what time has forgiven
	at      time.Time
	leftOut uint64 // and not yet told of
}

func (n *logLines) forgive(now time.Time) {
	n.level, n.at = max(0, n.level-logRate*now.Sub(n.at).Seconds()), now
}

// NewLogLimit makes one for a log. The caller ends it with Close.
func NewLogLimit(log *slog.Logger) *LogLimit {
	return &LogLimit{log: log, kinds: make(map[logKind]*logLines)}
}

// Allow reports whether one more line is to be written, and counts it if not. Peer is
// who has caused it, as far as that is proved; all others share. Reason may be empty.
func (l *LogLimit) Allow(level slog.Level, msg, peer, reason string) bool {
	if !l.log.Enabled(context.Background(), level) {
		return false
	}
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.lines(logKind{msg, peer, reason}, now)
	n.forgive(now)
	if n.level+1 > logBurst {
		n.leftOut++
		return false
	}
	n.level++
	return true
}

// lines finds those of a kind. With the first of all the timer begins. mu is held.
func (l *LogLimit) lines(k logKind, now time.Time) *logLines {
	n := l.kinds[k]
	if n != nil {
		return n
	}
	if len(l.kinds) == 0 {
		l.tell = time.AfterFunc(logTell, l.tellAll)
	}
	n = &logLines{at: now}
	l.kinds[k] = n
	return n
}

// tellAll tells what was left out since the last time.
func (l *LogLimit) tellAll() {
	for k, lines := range l.untold(time.Now()) {
		attrs := []slog.Attr{slog.String("line", k.msg), slog.String("reason", k.reason), slog.Uint64("lines", lines)}
		if k.peer != "" {
			attrs = append(attrs, slog.String("peer", k.peer))
		}
		l.log.LogAttrs(context.Background(), slog.LevelWarn, "log lines left out: too many of a kind", attrs...)
	}
}

// untold takes how many were left out, by kind, and forgets kinds of which there were
// none of late.
func (l *LogLimit) untold(now time.Time) map[logKind]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := make(map[logKind]uint64)
	for k, n := range l.kinds {
		if n.leftOut > 0 {
			all[k], n.leftOut = n.leftOut, 0
		}
		if n.forgive(now); n.level == 0 {
			delete(l.kinds, k)
		}
	}
	if len(l.kinds) > 0 {
		l.tell.Reset(logTell)
	}
	return all
}

// Close tells the rest. Nothing may be written afterwards.
func (l *LogLimit) Close() {
	l.tellAll()
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.kinds)
	if l.tell != nil {
		l.tell.Stop()
	}
}
