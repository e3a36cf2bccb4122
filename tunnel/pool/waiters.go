package pool

import "time"

// Waiter is a request that waits for a tunnel.
type Waiter[T Tunnel] struct {
	deadline   time.Duration
	take       func(T, error)
	queue      *waiters[T] // nil once it has been served, failed or cancelled
	prev, next *Waiter[T]
}

// Cancel withdraws a request: its function is not called any more, and nothing
// of it is kept. It does nothing after the request has had its answer.
func (w *Waiter[T]) Cancel() {
	if w.queue != nil {
		w.queue.remove(w)
	}
}

// waiters are requests in the order of their arrival, which is also that of
// their deadlines.
type waiters[T Tunnel] struct {
	head, tail *Waiter[T]
	n          int
}

func (q *waiters[T]) push(w *Waiter[T]) {
	w.queue, w.prev = q, q.tail
	if q.tail != nil {
		q.tail.next = w
	} else {
		q.head = w
	}
	q.tail = w
	q.n++
}

// pop takes the first out; there must be one.
func (q *waiters[T]) pop() *Waiter[T] {
	w := q.head
	q.remove(w)
	return w
}

func (q *waiters[T]) remove(w *Waiter[T]) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		q.head = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		q.tail = w.prev
	}
	w.queue, w.prev, w.next = nil, nil, nil
	q.n--
}
