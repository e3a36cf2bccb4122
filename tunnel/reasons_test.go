package tunnel

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"wishbone/identity/authz"
	"wishbone/intercept"
	"wishbone/tunnel/hbone"
	"wishbone/tunnel/pool"
)

// TestFailure: every way in which a delivery can fail has its reason.
func TestFailure(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want hbone.Reason
	}{
		{unix.ECONNREFUSED, hbone.Refused},
		{unix.ECONNRESET, hbone.Refused},
		{unix.ENETUNREACH, hbone.Unreachable},
		{unix.EHOSTUNREACH, hbone.Unreachable},
		{unix.EACCES, hbone.Unreachable},
		{unix.ETIMEDOUT, hbone.Timeout},
		{unix.EMFILE, hbone.Overloaded},
		{unix.ENFILE, hbone.Overloaded},
		{unix.ENOBUFS, hbone.Overloaded},
		{unix.EADDRNOTAVAIL, hbone.NoPort},
		{intercept.ErrPortTaken, hbone.NoPort},
		{intercept.ErrPermission, hbone.NoSource},
		{errors.New("something else"), hbone.Failed},
	} {
		if got := failure(fmt.Errorf("connect to 10.2.0.2:80: %w", tt.err)); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.err, got, tt.want)
		}
	}
}

// TestDenial: a peer is told little of why the policy said no.
func TestDenial(t *testing.T) {
	told := map[authz.Reason]hbone.Reason{authz.Loop: hbone.Loop, authz.NoSource: hbone.NoSource}
	for _, r := range authz.Reasons() {
		want := told[r]
		if want == "" {
			want = hbone.Denied
		}
		if got := denial(&authz.DeniedError{Reason: r}); got != want {
			t.Errorf("%s: the peer is told %s, want %s", r, got, want)
		}
	}
}

func TestRefusalOf(t *testing.T) {
	for err, want := range map[error]string{
		pool.ErrOverloaded: "overloaded",
		hbone.ErrBudget:    "overloaded",
		pool.ErrWait:       "peer_down",
		unix.ECONNREFUSED:  "peer_down",
	} {
		if got := refusalOf(fmt.Errorf("peer east: %w", err)); got != want {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
}

// TestReasons: what can be counted is in the list that metrics are made of, once.
func TestReasons(t *testing.T) {
	all := Reasons()
	for _, r := range []string{reasonNoRoute, ReasonPeerDown, string(hbone.Refused), string(authz.SourceNotOwned), string(hbone.Malformed)} {
		if !slices.Contains(all, r) {
			t.Errorf("%s is missing", r)
		}
	}
	if !slices.IsSorted(all) || len(slices.Compact(slices.Clone(all))) != len(all) {
		t.Errorf("not sorted, or something twice: %v", all)
	}
}
