package lab_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/cli"
	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
)

// runVar asks the test program to be the command line, as the lab's gateways.
const runVar = "WISHBONE_LAB_RUN"

func TestMain(m *testing.M) {
	if os.Getenv(runVar) != "" {
		os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	if err := netlab.Enter(); err != nil {
		fmt.Fprintf(os.Stderr, "these tests need network namespaces: %v\n", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// newLab builds a lab that goes with the test.
func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	l, err := lab.New(ctx, t.TempDir(), runVar+"=1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// TestProof: the demonstration is green, and says what a person wants to see;
// its negative control is one.
func TestProof(t *testing.T) {
	l := newLab(t)
	var out bytes.Buffer
	if err := l.Prove(t.Context(), &out); err != nil {
		t.Fatalf("%v\nwest:\n%s\neast:\n%s", err, l.West.Log(), l.East.Log())
	}
	for _, want := range []string{
		"the client    10.1.0.2:", "connected to 10.2.0.2:80", "the server    saw 10.1.0.2:", "all of them TLS to or from port 15008",
		"west          met spiffe://lab.example/gateway/east", "east          met spiffe://lab.example/gateway/west",
		"the client    [fd00:1::2]:", "connected to [fd00:2::2]:80", "the server    saw [fd00:1::2]:",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the proof does not say %q:\n%s", want, out.String())
		}
	}
	if err := l.ProveRefusal(t.Context(), io.Discard); err != nil {
		t.Error(err)
	}
	if err := l.Prove(t.Context(), io.Discard); err == nil {
		t.Error("with a gateway killed the proof is still green: it proves nothing")
	}
}

// asker has the lab serve commands, and returns how to ask for one with its
// output in a file.
func asker(t *testing.T, l *lab.Lab) func(host string, args ...string) (int, string, error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "lab")
	ln, err := lab.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { // ends with the listener
		l.Serve(ln)
		close(served)
	}()
	t.Cleanup(func() {
		ln.Close()
		<-served
	})
	return func(host string, args ...string) (int, string, error) {
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		code, err := lab.Exec(dir, host, args, null, out, out)
		b, readErr := os.ReadFile(out.Name())
		if readErr != nil {
			t.Fatal(readErr)
		}
		return code, string(b), err
	}
}

// TestExec: commands run on the host that they are meant for, with the asker's
// streams, environment and directory, and their exit code comes back.
func TestExec(t *testing.T) {
	ask := asker(t, newLab(t))
	code, out, err := ask("client", "sh", "-c", "cat /proc/thread-self/net/fib_trie; echo $HERE; pwd; exit 3")
	cwd, cwdErr := os.Getwd()
	if err != nil || cwdErr != nil || code != 3 || !strings.Contains(out, "10.1.0.2") || !strings.Contains(out, cwd) {
		t.Errorf("exit code %d (%v), output:\n%s", code, err, out)
	}
	if code, out, err = ask("server", "sh", "-c", "cat /proc/thread-self/net/fib_trie"); code != 0 || err != nil || strings.Contains(out, "10.1.0.2") || !strings.Contains(out, "10.2.0.2") {
		t.Errorf("on the server: exit code %d (%v), output:\n%s", code, err, out)
	}
	if code, _, err = ask("client", "sh", "-c", "kill -9 $$"); code != 137 || err != nil {
		t.Errorf("killed: exit code %d (%v), want 137 as shells have it", code, err)
	}
	if _, out, err = ask("west", "sh", "-c", "echo $WISHBONE_ADMIN"); !strings.HasSuffix(strings.TrimSpace(out), "/west.sock") || err != nil {
		t.Errorf("the admin socket on west: %q, %v", out, err)
	}
	if _, _, err = ask("nohost", "true"); err == nil || !strings.Contains(err.Error(), `no host "nohost"`) {
		t.Errorf("a host that is not there: %v", err)
	}
	if _, _, err = ask("client", "no-such-command"); err == nil || !strings.Contains(err.Error(), "command not found") {
		t.Errorf("a command that is not there: %v", err)
	}
}

// TestExecEndsWithItsAsker: a command whose asker has gone does not stay.
func TestExecEndsWithItsAsker(t *testing.T) {
	l := newLab(t)
	dir := filepath.Join(t.TempDir(), "lab")
	ln, err := lab.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go l.Serve(ln) // ends with the listener
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: lab.Socket(dir), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	body := `{"host":"client","args":["sh","-c","echo started; exec cat"],"env":["PATH=/usr/bin:/bin"],"dir":"/"}`
	// Its input never ends by itself: the writing end is ours.
	in, stays, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stays.Close()
	fds := []int{int(in.Fd()), int(w.Fd()), int(w.Fd())}
	if _, _, err := conn.WriteMsgUnix([]byte(body), unix.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
	w.Close()
	in.Close()
	if _, err := io.ReadFull(r, make([]byte, len("started\n"))); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if err := r.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the command's output goes on: %v, want its end", err)
	}
}

// TestNoLab: without a lab there is an error to act on, and a socket that a
// killed lab left behind is replaced.
func TestNoLab(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "lab")
	if _, err := lab.Exec(dir, "client", []string{"true"}, os.Stdin, os.Stdout, os.Stderr); err == nil || !strings.Contains(err.Error(), "no lab is running") {
		t.Errorf("without a lab: %v", err)
	}
	first, err := lab.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Listen(dir); err == nil {
		t.Error("two labs at once")
	}
	first.SetUnlinkOnClose(false)
	first.Close()
	second, err := lab.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Listen(dir); err == nil || !strings.Contains(err.Error(), "not a directory of this user alone") {
		t.Errorf("a directory that others may enter: %v", err)
	}
}
