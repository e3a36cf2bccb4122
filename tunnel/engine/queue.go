package engine

// flowQueue is a first-in first-out list of flows, linked through the flows
// themselves.
type flowQueue struct{ head, tail *Flow }

func (q *flowQueue) empty() bool { return q.head == nil }

// single reports whether there is one flow, or none.
func (q *flowQueue) single() bool { return q.head == q.tail }

// push appends f unless it is in the queue.
func (q *flowQueue) push(f *Flow) {
	if f.queued {
		return
	}
	f.queued = true
	if q.tail == nil {
		q.head = f
	} else {
		q.tail.next = f
	}
	q.tail = f
}

// remove takes f out, wherever it is.
func (q *flowQueue) remove(f *Flow) {
	var rest flowQueue
	for !q.empty() {
		if g := q.pop(); g != f {
			rest.push(g)
		}
	}
	*q = rest
}

func (q *flowQueue) pop() *Flow {
	f := q.head
	q.head = f.next
	if q.head == nil {
		q.tail = nil
	}
	f.next, f.queued = nil, false
	return f
}
