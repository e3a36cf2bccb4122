package daemon

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wishbone/e2e/netlab"
)

func TestMain(m *testing.M) {
	if err := netlab.Enter(); err != nil { // so that addresses can be given to this host
		fmt.Fprintf(os.Stderr, "these tests need namespaces: %v\n", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// comes polls until ok holds, for what no event tells.
func comes(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("it did not come to pass: %s", what)
}

// subscribed are the sockets of this process that hear of changes of addresses.
func subscribed(t *testing.T) (fds []int) {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range open {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		sa, err := unix.Getsockname(fd) // an error says that it is no socket, or gone
		if nl, ok := sa.(*unix.SockaddrNetlink); err == nil && ok && nl.Groups != 0 {
			fds = append(fds, fd)
		}
	}
	return fds
}

// giveAddresses gives this host an interface with all addresses from first to last, one
// after the other. The result takes it away, and them all at once.
func giveAddresses(t *testing.T, first, last netip.Addr) (takeAway func()) {
	t.Helper()
	cable := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "many"}, PeerName: "peer"}
	if err := netlink.LinkAdd(cable); err != nil {
		t.Fatal(err)
	}
	for a := first; a.Compare(last) <= 0; a = a.Next() {
		if err := netlink.AddrAdd(cable, &netlink.Addr{IPNet: netlab.IPNet(netip.PrefixFrom(a, a.BitLen()))}); err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		t.Helper()
		if err := netlink.LinkDel(cable); err != nil {
			t.Error(err)
		}
	}
}

// TestAddressesOverflow: where more addresses change at once than a socket holds (a
// kube-ipvs0 has one for each service) the host's are read anew, and followed on.
func TestAddressesOverflow(t *testing.T) {
	log := &journal{}
	h, err := watchAddrs(slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		h.close()
		comes(t, "no socket is left", func() bool { return len(subscribed(t)) == 0 })
	}()
	sockets := subscribed(t)
	if len(sockets) != 1 {
		t.Fatalf("%d sockets hear of changes, want one", len(sockets))
	}
	// The kernel makes the least of it that there may be (socket(7), SO_RCVBUF).
	if err := unix.SetsockoptInt(sockets[0], unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil {
		t.Fatal(err)
	}
	first, last := netip.MustParseAddr("10.96.0.0"), netip.MustParseAddr("10.96.0.199")
	takeAway := giveAddresses(t, first, last)
	takeAway()
	comes(t, "more changes than the socket holds", func() bool {
		return strings.Contains(log.String(), unix.ENOBUFS.Error())
	})
	comes(t, "what has gone is known to have", func() bool { return !h.has(first) && !h.has(last) })
	comes(t, "there is one subscription again", func() bool { return len(subscribed(t)) == 1 })
	late := netip.MustParseAddr("192.0.2.77")
	defer giveAddresses(t, late, late)()
	comes(t, "a new address is known", func() bool { return h.has(late) })
}

// TestAddressesClosedBetween: close ends the following also where there is nothing to
// follow for a moment.
func TestAddressesClosedBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHostAddrs(slog.New(slog.DiscardHandler))
		ended := make(chan netlink.AddrUpdate)
		close(ended)
		go h.follow(ended) // close waits for it
		synctest.Wait()
		h.close()
	})
}
