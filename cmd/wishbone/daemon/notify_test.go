package daemon

import (
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// TestNotify: a service manager hears each state in one datagram, on a socket
// with a path or an abstract one.
func TestNotify(t *testing.T) {
	for _, socket := range []string{filepath.Join(t.TempDir(), "notify"), fmt.Sprintf("@wishbone-test-%d", time.Now().UnixNano())} {
		manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer manager.Close()
		t.Setenv("NOTIFY_SOCKET", socket)
		for _, tt := range []struct {
			send func() error
			want string
		}{
			{NotifyReady, `READY=1\nSTATUS=serving`},
			{NotifyReloading, `RELOADING=1\nMONOTONIC_USEC=[1-9]\d+\nSTATUS=reloading`},
			{func() error { return NotifyStopping(30 * time.Second) }, `STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=40000000`},
		} {
			if err := tt.send(); err != nil {
				t.Fatal(err)
			}
			message := make([]byte, 1024)
			n, err := manager.Read(message)
			if err != nil || !regexp.MustCompile("^"+tt.want+"$").Match(message[:n]) {
				t.Errorf("it hears %q, %v, want %q", message[:n], err, tt.want)
			}
		}
	}
}

// TestNotifyNobody: without a service manager nothing is sent, and one that is
// gone is named.
func TestNotifyNobody(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := NotifyReady(); err != nil {
		t.Errorf("nobody listens: %v", err)
	}
	socket := filepath.Join(t.TempDir(), "gone")
	t.Setenv("NOTIFY_SOCKET", socket)
	if err := NotifyReady(); err == nil || !strings.HasPrefix(err.Error(), "notify the service manager: ") || !strings.Contains(err.Error(), socket) {
		t.Errorf("the manager is gone: %v", err)
	}
}
