package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
)

// hostAddrs knows this host's own addresses, as they change.
type hostAddrs struct {
	log *slog.Logger
	set atomic.Pointer[map[netip.Addr]struct{}]

	ctx    context.Context // until close
	cancel context.CancelFunc
	done   chan struct{} // closed when nothing is followed any more
}

func newHostAddrs(log *slog.Logger) *hostAddrs {
	h := &hostAddrs{log: log, done: make(chan struct{})}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

// watchAddrs reads the addresses and follows their changes until close.
func watchAddrs(log *slog.Logger) (*hostAddrs, error) {
	h := newHostAddrs(log)
	changes, err := h.subscribe()
	if err == nil {
		err = h.read()
	}
	if err != nil {
		h.cancel()
		return nil, fmt.Errorf("read this host's addresses: %w", err)
	}
	go h.follow(changes) // close waits for it
	return h, nil
}

// subscribe tells of changes until the first error, or until close. The kernel drops
// what comes faster than it is read, and says so once: ENOBUFS (netlink(7)).
func (h *hostAddrs) subscribe() (<-chan netlink.AddrUpdate, error) {
	ctx, end := context.WithCancel(h.ctx)
	changes := make(chan netlink.AddrUpdate, 64)
	err := netlink.AddrSubscribeWithOptions(changes, ctx.Done(), netlink.AddrSubscribeOptions{
		ErrorCallback: func(err error) {
			if ctx.Err() == nil { // the end of it is told as an error too
				h.log.Warn("follow this host's addresses anew", "error", err)
			}
			end() // nobody else closes the socket
		},
	})
	if err != nil {
		end()
	}
	return changes, err
}

// has says whether a is an address of this host, those of loopback included.
func (h *hostAddrs) has(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	_, ok := (*h.set.Load())[a.Unmap()]
	return ok
}

func (h *hostAddrs) read() error {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	set := make(map[netip.Addr]struct{}, len(list))
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			set[p.Addr().Unmap()] = struct{}{}
		}
	}
	h.set.Store(&set)
	return nil
}

// follow reads everything again at each change: changes are rare and few. Where they
// are not it subscribes anew, and only then reads, so that nothing falls between.
func (h *hostAddrs) follow(changes <-chan netlink.AddrUpdate) {
	defer close(h.done)
	for {
		for range changes {
			h.reread()
		}
		select { // a burst is over sooner if it is not read a hundred times
		case <-time.After(followAgain):
		case <-h.ctx.Done():
			return
		}
		next, err := h.subscribe()
		if err != nil {
			h.log.Warn("follow this host's addresses anew", "error", err)
			continue // changes has ended: another pause
		}
		changes = next
		h.reread()
	}
}

// followAgain is how long changes go unnoticed that came too fast.
const followAgain = 100 * time.Millisecond

func (h *hostAddrs) reread() {
	if err := h.read(); err != nil {
		h.log.Warn("read this host's addresses", "error", err)
	}
}

func (h *hostAddrs) close() {
	h.cancel()
	<-h.done
}
