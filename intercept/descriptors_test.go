package intercept

import (
	"errors"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestScarce: with few descriptors left, deliveries get none, and there is room
// again when some have been given back.
func TestScarce(t *testing.T) {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	const few = 256
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: few, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
			t.Error(err)
		}
	})
	nothing, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer nothing.Close()
	fd := int(nothing.Fd())
	if !Room(fd) {
		t.Fatal("no room at the beginning")
	}
	var taken []int
	for Room(fd) {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatalf("after %d: %v", len(taken), err)
		}
		taken = append(taken, n)
	}
	if got := few - 1 - taken[len(taken)-1]; got != reserve {
		t.Errorf("%d descriptors are left, want %d", got, reserve)
	}
	_, err = Connect(netip.AddrPort{}, netip.MustParseAddrPort("127.0.0.1:9"), Options{})
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("a delivery gets %v, want EMFILE", err)
	}
	for _, n := range taken {
		unix.Close(n)
	}
	if !Room(fd) {
		t.Error("no room after all were given back")
	}
}
