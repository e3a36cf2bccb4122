package daemon

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/vishvananda/netlink"
)

// hostAddrs knows this host's own addresses, as they change.
type hostAddrs struct {
	set  atomic.Pointer[map[netip.Addr]struct{}]
	stop chan struct{}
	done chan struct{}
}

// watchAddrs reads the addresses and follows their changes until close.
func watchAddrs(log *slog.Logger) (*hostAddrs, error) {
	h := &hostAddrs{stop: make(chan struct{}), done: make(chan struct{})}
	updates := make(chan netlink.AddrUpdate, 64)
	err := netlink.AddrSubscribeWithOptions(updates, h.stop, netlink.AddrSubscribeOptions{
		ErrorCallback: func(err error) {
			select {
			case <-h.stop: // the end of it is told as an error too
			default:
				log.Warn("follow this host's addresses", "error", err)
			}
		},
	})
	if err == nil {
		err = h.read()
	}
	if err != nil {
		close(h.stop)
		return nil, fmt.Errorf("read this host's addresses: %w", err)
	}
	go h.follow(updates, log) // close waits for it
	return h, nil
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

// follow reads everything again at each change: changes are rare and few.
func (h *hostAddrs) follow(updates <-chan netlink.AddrUpdate, log *slog.Logger) {
	defer close(h.done)
	for range updates {
		if err := h.read(); err != nil {
			log.Warn("read this host's addresses", "error", err)
		}
	}
}

func (h *hostAddrs) close() {
	close(h.stop)
	<-h.done
}
