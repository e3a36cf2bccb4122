package netlab

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// start starts this test program in a mode of its own, see actors_test.go. Its standard output is the reader.
func start(t *testing.T, mode string, attr *syscall.SysProcAttr) (*exec.Cmd, io.WriteCloser, *bufio.Reader) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), modeVar+"="+mode)
	cmd.SysProcAttr = attr
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, in, bufio.NewReader(out)
}

// wantLine reads a line that begins with prefix, and returns the rest.
func wantLine(t *testing.T, out *bufio.Reader, prefix string) string {
	t.Helper()
	line, err := out.ReadString('\n')
	rest, ok := strings.CutPrefix(line, prefix)
	if !ok {
		t.Fatalf("it said %q (%v), want %q", line, err, prefix)
	}
	return strings.TrimSpace(rest)
}

// wantExit waits for the end.
func wantExit(t *testing.T, cmd *exec.Cmd, status int) {
	t.Helper()
	if cmd.Wait(); cmd.ProcessState.ExitCode() != status {
		t.Errorf("exit status %v, want %d", cmd.ProcessState, status)
	}
}

func TestEnterPassesExitStatusThrough(t *testing.T) {
	cmd, _, _ := start(t, "status", nil)
	wantExit(t, cmd, 7)
}

func TestEnterPassesStreamsThrough(t *testing.T) {
	cmd, in, out := start(t, "cat", nil)
	text := bytes.Repeat(marker, 10_000)
	go func() { in.Write(text); in.Close() }() // the read below waits for it
	got, err := io.ReadAll(out)
	if err != nil || !bytes.Equal(got, text) {
		t.Errorf("%d bytes came back of %d (%v)", len(got), len(text), err)
	}
	wantExit(t, cmd, 0)
}

func TestEnterPassesSignalsThrough(t *testing.T) {
	cmd, _, out := start(t, "signal", nil)
	wantLine(t, out, "ready")
	cmd.Process.Signal(unix.SIGTERM)
	wantLine(t, out, "got terminated")
	wantExit(t, cmd, 0)
}

func TestUncaughtSignalEndsIt(t *testing.T) {
	cmd, _, out := start(t, "hang", nil)
	wantLine(t, out, "ready")
	cmd.Process.Signal(unix.SIGTERM)
	if _, err := io.ReadAll(out); err != nil {
		t.Error(err)
	}
	if cmd.Wait() == nil {
		t.Error("killed, and yet it succeeded")
	}
}

func TestOrdinaryUserHasALab(t *testing.T) {
	if !mayBecome(nobody) {
		return // this very run is the test
	}
	cmd, _, out := start(t, "world", &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: nobody, Gid: nobody},
	})
	wantLine(t, out, "reached the server")
	wantExit(t, cmd, 0)
}

// nobody is an ordinary user.
const nobody = 65534

// mayBecome says whether that user exists in this user namespace.
func mayBecome(uid uint32) bool {
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), modeVar+"=nothing")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd.Run() == nil
}

// Everything that was started in the lab holds its standard output. When nobody does any more, it ends.
func TestNothingIsLeftBehind(t *testing.T) {
	t.Run("kill -9 from outside", func(t *testing.T) {
		cmd, _, out := start(t, "descendants", nil)
		wantLine(t, out, "ready")
		cmd.Process.Kill()
		if _, err := io.ReadAll(out); err != nil {
			t.Error(err)
		}
	})
	t.Run("kill -9 within", func(t *testing.T) {
		cmd, _, out := start(t, "descendants", nil)
		wantLine(t, out, "ready")
		unix.Kill(onlyChild(t, cmd.Process.Pid), unix.SIGKILL)
		if _, err := io.ReadAll(out); err != nil {
			t.Error(err)
		}
		wantExit(t, cmd, 128+9)
	})
	t.Run("ordinary end", func(t *testing.T) {
		cmd, in, out := start(t, "descendants", nil)
		wantLine(t, out, "ready")
		in.Close()
		if _, err := io.ReadAll(out); err != nil {
			t.Error(err)
		}
		wantExit(t, cmd, 0)
	})
}

// onlyChild finds the program inside, whose parent is the one outside.
func onlyChild(t *testing.T, parent int) int {
	t.Helper()
	tasks, err := os.ReadDir("/proc/" + strconv.Itoa(parent) + "/task")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, task := range tasks {
		children, _ := os.ReadFile("/proc/" + strconv.Itoa(parent) + "/task/" + task.Name() + "/children")
		all = append(all, strings.Fields(string(children))...)
	}
	if len(all) != 1 {
		t.Fatalf("children %v, want one", all)
	}
	pid, err := strconv.Atoi(all[0])
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// A user namespace of the test's own, in which limits may be set without hurting the machine.
func ownUsers() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{}
	asRoot(attr)
	return attr
}

func TestEnterSaysWhyItIsForbidden(t *testing.T) {
	cmd, _, out := start(t, "forbidden", ownUsers())
	if hint := wantLine(t, out, "forbidden: "); !strings.Contains(hint, "sysctl -w user.max_user_namespaces=") {
		t.Errorf("the hint %q does not name the setting", hint)
	}
	wantExit(t, cmd, 9)
}

func TestEnterNoticesToothlessNamespaces(t *testing.T) {
	cmd, _, out := start(t, "toothless", nil)
	if hint := wantLine(t, out, "forbidden: "); !strings.Contains(hint, "kernel.apparmor_restrict_unprivileged_userns") {
		t.Errorf("the hint %q does not name the settings", hint)
	}
	wantExit(t, cmd, 9)
}

func TestHintNamesTheSettingToBlame(t *testing.T) {
	for _, o := range obstacles {
		got := hint("lo", func(name string) string {
			if name == o.name {
				return o.bad
			}
			return ""
		})
		if want := "sysctl -w " + o.name + "=" + o.good; !strings.HasSuffix(got, want) {
			t.Errorf("hint %q, want it to end in %q", got, want)
		}
	}
}

func TestForbiddenIsOnlyWhatIs(t *testing.T) {
	if _, ok := errors.AsType[*ForbiddenError](forbidden("lo", unix.ENOENT)); ok {
		t.Error("a missing file is taken for a prohibition")
	}
	if err := forbidden("clone", &os.SyscallError{Err: unix.ENOSPC}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v hides what the kernel said", err)
	}
}
