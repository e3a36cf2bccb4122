package netlab

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(modeVar); mode != "" {
		os.Exit(act(mode))
	}
	if err := Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// onLostThread runs f on a thread that ends with it.
func onLostThread(f func()) {
	runtime.LockOSThread()
	f()
}

// contextThatEndsSoon bounds the wait for what must not happen.
func contextThatEndsSoon(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), 300*time.Millisecond)
}
