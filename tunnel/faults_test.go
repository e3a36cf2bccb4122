package tunnel

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"wishbone/tunnel/hbone"
	"wishbone/tunnel/record"
)

// TestFault: a tunnel is cut for what its peer did, and for nothing else.
func TestFault(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{errors.New("connection reset by peer"), ""},
		{record.ErrClosed, ""},
		{fmt.Errorf("read: %w", record.ErrFault), "tls"},
		{&hbone.ConnError{Code: http2.ErrCodeEnhanceYourCalm, Fault: "ping"}, "ping"},
		{&hbone.ConnError{Code: http2.ErrCodeEnhanceYourCalm, Remote: true}, ""},
	} {
		if got := fault(tt.err); got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.err, got, tt.want)
		}
	}
}

// TestLimitsPage: docs/limits.md has the limits of this room, and every reason.
func TestLimitsPage(t *testing.T) {
	b, err := os.ReadFile("../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range append(Faults(),
		fmt.Sprintf("%d connections to servers under way", maxConnecting),
		fmt.Sprintf("%d tunnels open from one SPIFFE ID, and %d besides", maxTunnels, maxEnding),
		fmt.Sprintf("%d of a kind are written at once, and then %d a second. How many were left out is said every %v s", logBurst, logRate, logTell.Seconds()),
	) {
		if !strings.Contains(string(b), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}
