package daemon

import (
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What a service manager is told of a gateway (sd_notify(3)).

// NotifyReady says that it serves, for the first time or after a reload.
func NotifyReady() error { return notify("READY=1", "STATUS=serving") }

// NotifyReloading says that it reads its configuration again. NotifyReady comes
// when that is done, well or not.
func NotifyReloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return notify("RELOADING=1", fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000), "STATUS=reloading")
}

// NotifyStopping says that it drains, and asks not to be killed for as long as
// live connections may take, and a little more.
func NotifyStopping(grace time.Duration) error {
	const end = 10 * time.Second // to cut what is left, and to take down the rules
	return notify("STOPPING=1", "STATUS=draining", fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", (grace+end).Microseconds()))
}

// notify sends a message to the service manager that has started this process, if
// one wants to hear of it.
func notify(assignments ...string) error {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	// Go takes @ for an abstract address, as systemd writes it.
	conn, err := net.Dial("unixgram", socket)
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	defer conn.Close() // what was sent is there
	if _, err := conn.Write([]byte(strings.Join(assignments, "\n"))); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}
