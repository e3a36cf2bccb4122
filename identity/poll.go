package identity

import (
	"log/slog"
	"sync"
	"time"
)

// pollInterval is how often files are read unless told otherwise. Two readings, and
// the time that peers have to prove themselves anew, make less than the two seconds
// within which a withdrawal ends what it forbids.
const pollInterval = 200 * time.Millisecond

// Watch says how files are watched.
type Watch struct {
	// Interval is how often they are read. 0 means 200 ms. A change counts when two
	// readings in a row agree.
	Interval time.Duration
	// Log gets a record for each change, and for each mistake once. Nil discards.
	Log *slog.Logger
	// Refused hears of each change that is not taken, and why. Nil does not.
	Refused func(Reason)
}

func (w Watch) withDefaults() Watch {
	if w.Interval <= 0 {
		w.Interval = pollInterval
	}
	if w.Log == nil {
		w.Log = slog.New(slog.DiscardHandler)
	}
	if w.Refused == nil {
		w.Refused = func(Reason) {}
	}
	return w
}

// poller looks at something again and again until Close. Reading files, rather
// than inotify or the times in a directory, sees a change whichever way it comes:
// a rename, a symbolic link that moves, a network file system.
type poller struct {
	stop chan struct{}
	once sync.Once
	wg   sync.WaitGroup // the goroutine that looks
}

// start begins to look. It is called once.
func (p *poller) start(every time.Duration, look func()) {
	p.stop = make(chan struct{})
	p.wg.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-p.stop:
				return
			case <-tick.C:
				look()
			}
		}
	})
}

// Close stops watching and waits until that is so. What was last read stays
// readable. It may be called more than once.
func (p *poller) Close() error {
	p.once.Do(func() { close(p.stop) })
	p.wg.Wait()
	return nil
}

// settled tells what is new and no longer in the making: what two readings have
// found. Between them somebody may be in the midst of writing, with one file of
// three replaced, or a bundle that lacks its second half.
type settled struct {
	seen   sum // what was last read, good or bad
	judged sum // what was last judged
}

// is takes a reading. again says that it settles what was judged before.
func (s *settled) is(now sum) (yes, again bool) {
	if now != s.seen {
		s.seen = now
		return false, false
	}
	again = now == s.judged
	s.judged = now
	return true, again
}
