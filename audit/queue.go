package audit

import "sync/atomic"

// queue is a bounded queue, for any number of writers and one reader, without a
// lock: a writer that the scheduler has stopped keeps no other from going on. Each
// place has a turn, which says whom it waits for: the writer of position p while
// the turn is p, then the reader while it is p+1, then the writer a round later.
type queue struct {
	places []queued
	next   atomic.Uint64 // position of the next write
	_      [56]byte      // the reader's own is on another cache line
	taken  uint64        // position of the next read
}

type queued struct {
	turn   atomic.Uint64
	record Record
}

// newQueue makes one for size records, a power of two.
func newQueue(size int) *queue {
	q := &queue{places: make([]queued, size)}
	for i := range q.places {
		q.places[i].turn.Store(uint64(i))
	}
	return q
}

func (q *queue) place(at uint64) *queued { return &q.places[at&uint64(len(q.places)-1)] }

// put adds r, or says that there is no room.
func (q *queue) put(r *Record) bool {
	for at := q.next.Load(); ; at = q.next.Load() {
		p := q.place(at)
		switch turn := p.turn.Load(); {
		case turn == at:
			if !q.next.CompareAndSwap(at, at+1) {
				continue
			}
			p.record = *r
			p.turn.Store(at + 1)
			return true
		case turn < at:
			return false // a round behind: the reader has not been here
		}
	}
}

// take appends what there is to batch, until it is full.
func (q *queue) take(batch []Record) []Record {
	for len(batch) < cap(batch) {
		p := q.place(q.taken)
		if p.turn.Load() != q.taken+1 {
			break
		}
		batch = append(batch, p.record)
		p.record = Record{} // its strings are kept no longer than needed
		p.turn.Store(q.taken + uint64(len(q.places)))
		q.taken++
	}
	return batch
}

// empty says whether there is nothing to take.
func (q *queue) empty() bool { return q.place(q.taken).turn.Load() != q.taken+1 }
