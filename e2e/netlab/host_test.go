package netlab

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// newHost is a host without cables.
func newHost(t *testing.T) *Host {
	t.Helper()
	l := New()
	h, err := l.Host("h")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return h
}

// where names the network namespace of the calling thread.
func where(t *testing.T, h *Host) (name string) {
	t.Helper()
	if err := h.Do(func() error { name = currentNetwork(); return nil }); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestDoVisitsAndReturns(t *testing.T) {
	a, b := newHost(t), newHost(t)
	home, inA, inB := currentNetwork(), where(t, a), where(t, b)
	if home == inA || inA == inB {
		t.Fatalf("hosts share a namespace: %s, %s, %s", home, inA, inB)
	}
	err := a.Do(func() error {
		if got := where(t, b); got != inB {
			t.Errorf("a visit within a visit went to %s, want %s", got, inB)
		}
		if got := currentNetwork(); got != inA {
			t.Errorf("after a visit within a visit in %s, want %s", got, inA)
		}
		return io.ErrUnexpectedEOF
	})
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Do said %v, not what the function said", err)
	}
	if got := currentNetwork(); got != home {
		t.Errorf("in %s after all, want %s", got, home)
	}
}

func TestDoReturnsFromPanic(t *testing.T) {
	h, home := newHost(t), currentNetwork()
	func() {
		defer func() { recover() }()
		h.Do(func() error { panic("oh") })
	}()
	if got := currentNetwork(); got != home {
		t.Errorf("in %s after a panic, want %s", got, home)
	}
}

func TestStartedCommandLivesOnTheHost(t *testing.T) {
	h := newHost(t)
	var out strings.Builder
	cmd := exec.Command("readlink", "/proc/self/ns/net")
	cmd.Stdout = &out
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if got, want := strings.TrimSpace(out.String()), where(t, h); got != want {
		t.Errorf("the command ran in %s, want %s", got, want)
	}
}

// A child whose parent thread ends gets its Pdeathsig: visits must not be able to cause that.
func TestStartedCommandOutlivesTheStartersThread(t *testing.T) {
	h := newHost(t)
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error)
	go onLostThread(func() { started <- h.Start(cmd) }) // the receive below waits for it
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	io.WriteString(in, "alive\n")
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "alive\n" {
		t.Errorf("it said %q (%v)", line, err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended by %v", err)
	}
}

func TestCloseKillsCommands(t *testing.T) {
	l := New()
	h, err := l.Host("h")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("it ended by %v, want a kill", err)
	}
	if err := h.Start(exec.Command("true")); err == nil {
		t.Error("a closed host starts commands")
	}
}

func TestSocketsStayWhereTheyWereMade(t *testing.T) {
	h := newHost(t)
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := h.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		conn, err := h.Dial(t.Context(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if conn, err := net.Dial("tcp", ln.Addr().String()); err == nil {
			conn.Close()
			t.Errorf("%s is reachable from elsewhere", address)
		}
	}
}

func TestSysctlIsTheHostsOwn(t *testing.T) {
	a, b := newHost(t), newHost(t)
	if err := a.Forward(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		if got := sysctlOf(t, a, name); got != "1" {
			t.Errorf("%s is %s after Forward", name, got)
		}
		if got := sysctlOf(t, b, name); got != "0" {
			t.Errorf("%s is %s on another host", name, got)
		}
	}
	if err := a.Sysctl("net.ipv4.no_such_thing", "1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("setting what does not exist: %v", err)
	}
}

func sysctlOf(t *testing.T, h *Host, name string) (value string) {
	t.Helper()
	if err := h.Do(func() error { value = sysctlValue(name); return nil }); err != nil {
		t.Fatal(err)
	}
	return value
}

func TestWithoutForwardingNothingPasses(t *testing.T) {
	w := newWorld(t)
	if err := w.West.Sysctl("net.ipv4.ip_forward", "0"); err != nil {
		t.Fatal(err)
	}
	ln := echo(t, w.Server, netip.AddrPortFrom(Server4, 80))
	c := capture(t, w)
	ctx, cancel := contextThatEndsSoon(t)
	defer cancel()
	if conn, err := w.Client.Dial(ctx, "tcp", ln.Addr().String()); err == nil {
		conn.Close()
		t.Error("the server was reached")
	}
	if traffic := stop(t, c); traffic.String() != "" {
		t.Errorf("something crossed:\n%v", traffic)
	}
}
