package record

import "context"

// Slots bounds how many handshakes compute at the same time, so that a storm
// of them leaves the processors to the loops. Waiting for the network does not
// hold a slot. The nil Slots does not bound.
type Slots chan struct{}

// NewSlots returns n slots.
func NewSlots(n int) Slots { return make(Slots, n) }

// slot is one handshake's place among the Slots.
type slot struct {
	slots Slots
	ctx   context.Context // of the handshake
	held  bool
}

// enter waits for a place, at most until the handshake's time is over.
func (s *slot) enter() error {
	if s.slots == nil {
		return nil
	}
	select {
	case s.slots <- struct{}{}:
		s.held = true
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

func (s *slot) leave() {
	if s.held {
		s.held = false
		<-s.slots
	}
}

// during runs f in a place; f may leave it by without.
func (s *slot) during(f func() error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	return f()
}

// without runs f, which waits for the network, outside of the place.
func (s *slot) without(f func([]byte) (int, error), p []byte) (int, error) {
	s.leave()
	n, err := f(p)
	if again := s.enter(); err == nil {
		err = again
	}
	return n, err
}
