package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/e2e/netlab"
)

// A Go process has many threads and cannot enter a user namespace (setns(2)), so
// a command from outside is started by the lab's own process, which is inside.
// The one who asks sends the request over a Unix socket, and with it the
// descriptors that the command is to have as its standard streams (unix(7),
// SCM_RIGHTS); no byte of theirs is copied. A terminal cannot be shared between
// two sessions (credentials(7)), so for one the asker makes a pseudo-terminal,
// sends its slave side, and copies.

// request is a command to be run.
type request struct {
	Host string   `json:"host"`
	Args []string `json:"args"`
	Env  []string `json:"env"`
	Dir  string   `json:"dir"`
	TTY  bool     `json:"tty"` // the streams are a pseudo-terminal of its own
}

// response is how it ended.
type response struct {
	Code int    `json:"code"`
	Err  string `json:"error,omitempty"` // it could not be started
}

// maxRequest bounds a request: an environment is large.
const maxRequest = 1 << 20

// SocketDir is where the lab of the present user has its socket and its files.
func SocketDir() string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("wishbone-lab-%d", os.Getuid()))
}

// makeSocketDir makes it if it is not there. Others may write to where it lies,
// so it must belong to the user alone.
func makeSocketDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("lab: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("lab: look at %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Getuid() || st.Mode&0o077 != 0 {
		return fmt.Errorf("lab: %s is not a directory of this user alone; remove it, or set TMPDIR to another place", dir)
	}
	return nil
}

// Socket is the path of the lab's socket in dir.
func Socket(dir string) string { return filepath.Join(dir, "exec.sock") }

// Listen opens the lab's socket, in a directory that it makes if need be. One that a killed lab left behind is replaced.
// The caller closes it, which also removes it.
func Listen(dir string) (*net.UnixListener, error) {
	if err := makeSocketDir(dir); err != nil {
		return nil, err
	}
	path := Socket(dir)
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("a lab is already running (%s): use it with lab exec, or end it with Ctrl-C where it runs", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("lab: %w", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("lab: open its socket: %w", err)
	}
	return ln, nil
}

// Serve runs commands for whoever asks on ln, until it is closed.
func (l *Lab) Serve(ln *net.UnixListener) {
	for {
		conn, err := ln.AcceptUnix()
		if err != nil {
			return
		}
		go func() { // ends with its command, or with the asker
			defer conn.Close()
			code, err := l.runFor(conn)
			answer := response{Code: code}
			if err != nil {
				answer.Err = err.Error()
			}
			// The asker may be gone, and then nobody wants to know.
			_ = json.NewEncoder(conn).Encode(answer)
		}()
	}
}

// runFor runs one command and returns its exit code.
func (l *Lab) runFor(conn *net.UnixConn) (int, error) {
	req, files, err := receive(conn)
	if err != nil {
		return 0, err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	host := l.host(req.Host)
	if host == nil {
		return 0, fmt.Errorf("there is no host %q: there are client, west, east and server", req.Host)
	}
	if g := l.gateway(req.Host); g != nil {
		req.Env = append(req.Env, "WISHBONE_ADMIN="+g.AdminPath())
	}
	cmd, err := command(req, files)
	if err != nil {
		return 0, err
	}
	if err := host.Start(cmd); err != nil {
		return 0, err
	}
	for _, f := range files { // the command has its own now
		f.Close()
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the command
	gone := make(chan struct{})
	go func() { // ends with the connection
		// The asker sends nothing more; what ends the read is its end.
		_, _ = conn.Read(make([]byte, 1))
		close(gone)
	}()
	select {
	case err = <-ended:
	case <-gone:
		// The asker has gone, and with it whoever the command is for.
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		err = <-ended
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return status(exit), nil
	}
	return 0, err
}

// status is a shell's: 128+n for signal n.
func status(e *exec.ExitError) int {
	if ws, ok := e.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return e.ExitCode()
}

// host finds a host by name, or nil.
func (l *Lab) host(name string) *netlab.Host {
	hosts := []*netlab.Host{l.World.Client, l.World.West, l.World.East, l.World.Server}
	i := slices.IndexFunc(hosts, func(h *netlab.Host) bool { return h.Name() == name })
	if i < 0 {
		return nil
	}
	return hosts[i]
}

// gateway is the one on a host, or nil.
func (l *Lab) gateway(host string) *Gateway {
	switch host {
	case west.name:
		return l.West
	case east.name:
		return l.East
	}
	return nil
}

// receive reads a request and its three descriptors.
func receive(conn *net.UnixConn) (request, []*os.File, error) {
	buf, oob := make([]byte, maxRequest), make([]byte, unix.CmsgSpace(3*4))
	var req request
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return req, nil, err
	}
	n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return req, nil, fmt.Errorf("read the request: %w", err)
	}
	files, err := descriptors(oob[:oobn])
	if err != nil {
		return req, nil, err
	}
	for !json.Valid(buf[:n]) && n < len(buf) {
		more, err := conn.Read(buf[n:])
		if err != nil {
			return req, files, fmt.Errorf("read the request: %w", err)
		}
		n += more
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return req, files, err
	}
	if err := json.Unmarshal(buf[:n], &req); err != nil {
		return req, files, fmt.Errorf("read the request: %w", err)
	}
	if len(files) != 3 || len(req.Args) == 0 {
		return req, files, errors.New("read the request: want a command and three descriptors")
	}
	return req, files, nil
}

// descriptors takes those that came with a message. They are the caller's.
func descriptors(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("read the request: want descriptors with it (%v)", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, fmt.Errorf("read the request: %w", err)
	}
	var files []*os.File
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		files = append(files, os.NewFile(uintptr(fd), "stream"))
	}
	return files, nil
}

// command is what the request asks for, in a session of its own: on a
// pseudo-terminal it gets that as its controlling terminal.
func command(req request, files []*os.File) (*exec.Cmd, error) {
	path, err := lookPath(req)
	if err != nil {
		return nil, err
	}
	cmd := &exec.Cmd{Path: path, Args: req.Args, Env: req.Env, Dir: req.Dir}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = files[0], files[1], files[2]
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: req.TTY}
	return cmd, nil
}

// lookPath finds the command as the asker's shell would, with its PATH.
func lookPath(req request) (string, error) {
	name := req.Args[0]
	if name == "wishbone" {
		return "/proc/self/exe", nil // this very program, wherever it lies
	}
	if filepath.Base(name) != name {
		if filepath.IsAbs(name) {
			return name, nil
		}
		return filepath.Join(req.Dir, name), nil
	}
	for _, v := range req.Env {
		if len(v) > 5 && v[:5] == "PATH=" {
			for _, dir := range filepath.SplitList(v[5:]) {
				p := filepath.Join(dir, name)
				if unix.Access(p, unix.X_OK) == nil {
					return p, nil
				}
			}
		}
	}
	return "", fmt.Errorf("%s: command not found", name)
}
