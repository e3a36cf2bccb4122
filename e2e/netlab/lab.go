package netlab

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// Lab is a set of hosts and cables. Its methods may be called from any goroutine.
type Lab struct {
	wg sync.WaitGroup // one goroutine a host

	cables atomic.Int32 // laid so far; numbers their first ends

	mu    sync.Mutex
	hosts []*Host // guarded by mu
}

// New returns a lab without hosts. The program must have called [Enter] (or be privileged, and careful).
func New() *Lab { return &Lab{} }

// Host adds a host: a network namespace with its loopback up, no other interface, forwarding off and the
// return-path filter off, whatever this machine's defaults are. The name is for messages only.
func (l *Lab) Host(name string) (*Host, error) {
	h := &Host{name: name, work: make(chan func()), done: make(chan struct{})}
	born := make(chan error)
	l.wg.Go(func() { h.live(born) })
	if err := <-born; err != nil {
		return nil, fmt.Errorf("make host %s: %w", name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts = append(l.hosts, h)
	return h, nil
}

// Close kills what was started on the hosts and gives the namespaces up. Whoever started a command still has
// to Wait for it; sockets and captures belong to whoever made them, and keep their namespace until closed.
// No method of a host may be under way or follow.
func (l *Lab) Close() error {
	l.mu.Lock()
	hosts := l.hosts
	l.hosts = nil
	l.mu.Unlock()
	var errs []error
	for _, h := range hosts {
		errs = append(errs, h.close())
	}
	l.wg.Wait()
	return errors.Join(errs...)
}
