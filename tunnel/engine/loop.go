package engine

import (
	"container/heap"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/tunnel/hbone"
)

// stagingSize is what one turn of a tunnel gathers before it is sealed: about
// what one write takes.
const stagingSize = 256<<10 + 16<<10

// readSize is how much plaintext is read from a tunnel before it is looked at.
const readSize = 256 << 10

// Loop owns an epoll and everything in it. Make it with NewLoop, run it with
// Run, reach it with Post; all other methods are for code that runs on it.
type Loop struct {
	ep, wake int
	start    time.Time
	now      time.Duration
	round    uint64 // of Run

	slots []slot
	free  []uint32

	timers  timerHeap
	dirty   []*Tunnel // have something to send or to read
	dirty2  []*Tunnel // the other half of the double buffer
	staging []byte
	plain   []byte
	iov     []unix.Iovec
	parting int  // connections of closed tunnels that are not yet done
	hurried bool // Hurry was called
	stopped bool // Stop was called
	closing bool // Run is ending: nothing is taken any more

	load    atomic.Int32  // per mille; see Load
	since   time.Duration // the beginning of what load is of next
	spent   time.Duration // of it not waiting
	yielded time.Duration // when; see yield
	home    home

	mu     sync.Mutex
	posted []func() // guarded by mu
	asleep bool     // guarded by mu: a post must wake the loop
	closed bool     // guarded by mu: Run has returned
}

// slot is one registered descriptor. The generation tells a stale event of an
// earlier descriptor from one of the present.
type slot struct {
	gen uint32
	src source
}

// source is anything with a descriptor in the epoll.
type source interface {
	// ready hears what happened to the descriptor.
	ready(events uint32)
	// drop ends it at once, since its loop ends.
	drop()
}

// NewLoop opens a loop. Its descriptors are closed when Run returns, so that
// Run must be called even on one that is stopped at once.
func NewLoop() (*Loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open event loop: epoll_create1: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(ep)
		return nil, fmt.Errorf("open event loop: eventfd: %w", err)
	}
	l := &Loop{
		ep:      ep,
		wake:    wake,
		start:   time.Now(),
		staging: make([]byte, 0, stagingSize),
		plain:   make([]byte, readSize),
		iov:     make([]unix.Iovec, 0, 64),
		home:    home{cpu: -1},
	}
	l.now = 1 // never zero: hbone takes zero for "not yet"
	if _, err := l.add(wake, unix.EPOLLIN, (*waker)(l)); err != nil {
		unix.Close(ep)
		unix.Close(wake)
		return nil, err
	}
	return l, nil
}

// waker drains the eventfd.
type waker Loop

func (w *waker) ready(uint32) {
	var buf [8]byte
	// The count does not matter: what was posted is run every round.
	_, _ = unix.Read(w.wake, buf[:])
}

func (w *waker) drop() {}

// Run runs the loop on the calling goroutine until Stop is called on it. Flows and
// tunnels that are left then are cut, and their handlers hear of it. Every function
// that Post took has run when Run returns.
func (l *Loop) Run() error {
	defer l.close()
	l.home.enter() // whose thread this is from now on
	events := make([]unix.EpollEvent, 256)
	for !l.stopped || l.parting > 0 {
		n, err := unix.EpollWait(l.ep, events, l.timeout())
		l.round++
		l.awake()
		woken := max(time.Since(l.start), 1)
		l.now = woken
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("event loop: epoll_wait: %w", err)
		}
		for _, ev := range events[:max(n, 0)] {
			s := l.slots[uint32(ev.Fd)]
			if s.src != nil && s.gen == uint32(ev.Pad) {
				s.src.ready(ev.Events)
			}
		}
		l.runPosted()
		l.runTimers()
		l.runDirty()
		l.account(woken)
	}
	return nil
}

// loadTime is what Load looks at.
const loadTime = 20 * time.Millisecond

// yieldAfter is less than the 10 ms that Go's scheduler leaves a goroutine, by as much as
// a round may take while somebody floods us. After that it signals the thread every
// 20 us, and takes the processor away from every system call, for as long as the
// goroutine does not yield (runtime/proc.go, retake).
const yieldAfter = 4 * time.Millisecond

// yield lets Go's scheduler see that the loop shares.
func (l *Loop) yield(now time.Duration) {
	if now-l.yielded >= yieldAfter {
		l.yielded = now
		runtime.Gosched()
	}
}

// account adds a round to what Load tells.
func (l *Loop) account(woken time.Duration) {
	now := time.Since(l.start)
	l.spent += now - woken
	l.yield(now)
	if past := now - l.since; past >= loadTime {
		l.load.Store(int32(1000 * l.spent / past))
		l.since, l.spent = now, 0
		l.home.look(now, past)
	}
}

// Load is the part of the last while, 20 ms or more, that the loop had something to
// do, 0 to 1. It may be called from anywhere; of a loop that sleeps it tells what was
// before.
func (l *Loop) Load() float64 { return float64(l.load.Load()) / 1000 }

// Stop ends Run after the present round, or as soon as the tunnels that were
// closed before have sent what they had and their peers have closed too, which
// may take ten seconds; see Hurry. Until then the loop serves what is on it.
func (l *Loop) Stop() { l.stopped = true }

// Hurry leaves the tunnels that are closed, now or later, a second for that.
func (l *Loop) Hurry() {
	l.hurried = true
	for _, s := range l.slots {
		if p, ok := s.src.(*parting); ok {
			p.arm()
		}
	}
}

// close runs what is posted, ends what is left, and closes the descriptors.
func (l *Loop) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.runPosted()
	l.closing = true
	for i := 0; i < len(l.slots); i++ {
		if src := l.slots[i].src; src != nil {
			src.drop()
		}
	}
	unix.Close(l.wake)
	unix.Close(l.ep)
}

// Post has f run on the loop soon. It never blocks, and may be called from
// anywhere. It reports false, and f never runs, once the loop has ended.
func (l *Loop) Post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.posted = append(l.posted, f)
	if l.asleep {
		l.asleep = false
		one := [8]byte{1}
		// Fails only when the counter is full, and then the loop wakes anyway.
		_, _ = unix.Write(l.wake, one[:])
	}
	return true
}

// Now is the time since the loop began, as of this round.
func (l *Loop) Now() time.Duration { return l.now }

func (l *Loop) awake() {
	l.mu.Lock()
	l.asleep = false
	l.mu.Unlock()
}

// timeout is how long epoll may sleep, in milliseconds; 0 while there is work.
func (l *Loop) timeout() int {
	if len(l.dirty) > 0 {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.posted) > 0 {
		return 0
	}
	l.asleep = true
	if len(l.timers) == 0 {
		return -1
	}
	d := l.timers[0].when - time.Since(l.start)
	return int(max(0, (d+time.Millisecond-1)/time.Millisecond))
}

func (l *Loop) runPosted() {
	l.mu.Lock()
	fs := l.posted
	l.posted = nil
	l.mu.Unlock()
	for _, f := range fs {
		f()
	}
}

// runDirty gives each tunnel with work one turn.
func (l *Loop) runDirty() {
	work := l.dirty
	l.dirty, l.dirty2 = l.dirty2[:0], work
	for i, t := range work {
		work[i] = nil
		t.listed = false
		t.turn()
	}
}

var errStopped = errors.New("event loop has ended")

// add registers a descriptor; the result is its place, for remove.
func (l *Loop) add(fd int, events uint32, src source) (uint32, error) {
	if l.closing {
		return 0, errStopped
	}
	var i uint32
	if n := len(l.free); n > 0 {
		i, l.free = l.free[n-1], l.free[:n-1]
	} else {
		i = uint32(len(l.slots))
		l.slots = append(l.slots, slot{})
	}
	l.slots[i].src = src
	ev := unix.EpollEvent{Events: events, Fd: int32(i), Pad: int32(l.slots[i].gen)}
	if err := unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		l.vacate(i)
		return 0, fmt.Errorf("watch descriptor: %w", err)
	}
	return i, nil
}

// remove takes a descriptor out of the epoll, before it is closed: a closed
// descriptor with a living duplicate would keep reporting (epoll(7)).
func (l *Loop) remove(i uint32, fd int) {
	// Fails only if the descriptor is not there, which is what is wanted.
	_ = unix.EpollCtl(l.ep, unix.EPOLL_CTL_DEL, fd, nil)
	l.vacate(i)
}

func (l *Loop) vacate(i uint32) {
	l.slots[i].src = nil
	l.slots[i].gen++
	l.free = append(l.free, i)
}

// Timer is a function that runs on its loop at a time. The zero Timer is
// ready to be set.
type Timer struct {
	when  time.Duration
	index int // in the heap, from 1; 0 when not set
	f     func()
}

// At sets a timer, or moves it. One whose time has come runs in this round.
func (l *Loop) At(t *Timer, when time.Duration, f func()) {
	t.f = f
	switch {
	case t.index == 0:
		t.when = when
		heap.Push(&l.timers, t)
	case t.when != when:
		t.when = when
		heap.Fix(&l.timers, t.index-1)
	}
}

// After sets a timer relative to now.
func (l *Loop) After(t *Timer, d time.Duration, f func()) { l.At(t, l.now+d, f) }

// Cancel stops a timer; one that is not set is left alone.
func (l *Loop) Cancel(t *Timer) {
	if t.index != 0 {
		heap.Remove(&l.timers, t.index-1)
	}
}

func (l *Loop) runTimers() {
	for len(l.timers) > 0 && l.timers[0].when <= l.now {
		t := heap.Pop(&l.timers).(*Timer)
		t.f()
	}
}

// timerHeap orders timers by time (container/heap).
type timerHeap []*Timer

func (h timerHeap) Len() int           { return len(h) }
func (h timerHeap) Less(i, j int) bool { return h[i].when < h[j].when }

// Swap is for container/heap.
func (h timerHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i+1, j+1
}

// Push is for container/heap.
func (h *timerHeap) Push(x any) {
	t := x.(*Timer)
	*h = append(*h, t)
	t.index = len(*h)
}

// Pop is for container/heap.
func (h *timerHeap) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	t.index = 0
	return t
}

// hbone's frame header precedes each piece of DATA in the staging buffer.
const header = hbone.FrameHeader
