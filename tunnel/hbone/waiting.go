package hbone

import "time"

// waitList holds the streams of a client that wait for an answer, or those of a
// server that are foreign, in the order of their deadlines, which is that of their
// requests. It is linked through the
// streams, so that any of them leaves at no cost.
type waitList struct{ first, last *Stream }

func (l *waitList) push(s *Stream, deadline time.Duration) {
	s.waiting, s.deadline = true, deadline
	s.prev, s.next = l.last, nil
	if l.last == nil {
		l.first = s
	} else {
		l.last.next = s
	}
	l.last = s
}

// remove takes s off the list; it need not be on it.
func (l *waitList) remove(s *Stream) {
	if !s.waiting {
		return
	}
	if s.prev == nil {
		l.first = s.next
	} else {
		s.prev.next = s.next
	}
	if s.next == nil {
		l.last = s.prev
	} else {
		s.next.prev = s.prev
	}
	s.waiting, s.prev, s.next = false, nil, nil
}
