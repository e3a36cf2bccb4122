package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

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
// It is made if it is not there, and must belong to the user alone.
func SocketDir() (string, error) {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("wishbone-lab-%d", os.Getuid()))
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("lab: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return "", fmt.Errorf("lab: look at %s: %w", dir, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Getuid() || st.Mode&0o077 != 0 {
		return "", fmt.Errorf("lab: %s is not a directory of this user alone; remove it", dir)
	}
	return dir, nil
}

// Socket is the path of the lab's socket in dir.
func Socket(dir string) string { return filepath.Join(dir, "exec.sock") }

// Listen opens the lab's socket. One that a killed lab left behind is replaced.
// The caller closes it, which also removes it.
func Listen(dir string) (*net.UnixListener, error) {
	path := Socket(dir)
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, errors.New("a lab is already running: use it, or end it first")
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

// ErrNoLab says that no lab answers.
var ErrNoLab = errors.New("no lab is running")

// Exec has the lab with its socket in dir run a command on a host, with this
// process's standard streams, and returns its exit code.
func Exec(dir, host string, args []string, stdin, stdout, stderr *os.File) (int, error) {
	addr := &net.UnixAddr{Name: Socket(dir), Net: "unix"}
	conn, err := net.DialUnix("unix", nil, addr)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrNoLab, err)
	}
	defer conn.Close()
	cwd, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	req := request{Host: host, Args: args, Env: os.Environ(), Dir: cwd}
	if term.IsTerminal(int(stdin.Fd())) && term.IsTerminal(int(stdout.Fd())) {
		req.TTY = true
		return onTerminal(conn, req, stdin, stdout)
	}
	if err := send(conn, req, stdin, stdout, stderr); err != nil {
		return 0, err
	}
	return await(conn)
}

func send(conn *net.UnixConn, req request, streams ...*os.File) error {
	body, err := json.Marshal(req)
	if err != nil {
		return err
	}
	if len(body) > maxRequest {
		return errors.New("the environment and the command are too large")
	}
	var fds []int
	for _, f := range streams {
		fds = append(fds, int(f.Fd()))
	}
	n, _, err := conn.WriteMsgUnix(body, unix.UnixRights(fds...), nil)
	if err == nil && n < len(body) {
		_, err = conn.Write(body[n:])
	}
	if err != nil {
		return fmt.Errorf("ask the lab: %w", err)
	}
	return nil
}

// await reads how the command ended.
func await(conn *net.UnixConn) (int, error) {
	var r response
	if err := json.NewDecoder(conn).Decode(&r); err != nil {
		return 0, fmt.Errorf("the lab has gone: %w", err)
	}
	if r.Err != "" {
		return 0, errors.New(r.Err)
	}
	return r.Code, nil
}

// onTerminal runs the command on a pseudo-terminal and copies between that and
// our own.
func onTerminal(conn *net.UnixConn, req request, stdin, stdout *os.File) (int, error) {
	master, slave, err := openPTY()
	if err != nil {
		return 0, err
	}
	defer master.Close()
	resize(stdin, master)
	old, err := term.MakeRaw(int(stdin.Fd()))
	if err != nil {
		return 0, errors.Join(fmt.Errorf("make the terminal raw: %w", err), slave.Close())
	}
	// A terminal left raw is worse than an error nobody can read.
	defer func() { _ = term.Restore(int(stdin.Fd()), old) }()
	err = send(conn, req, slave, slave, slave)
	if err = errors.Join(err, slave.Close()); err != nil {
		return 0, err
	}
	winch := make(chan os.Signal, 1)
	signal.Notify(winch, unix.SIGWINCH)
	defer signal.Stop(winch)
	go func() { // ends with the program
		for range winch {
			resize(stdin, master)
		}
	}()
	shown := make(chan struct{})
	go copyAll(master, stdin, nil) // ends with the program: a terminal cannot be interrupted
	go copyAll(stdout, master, shown)
	code, err := await(conn)
	<-shown // what the command has written last
	return code, err
}

// copyAll copies until there is no more; a pseudo-terminal whose other side is
// closed says EIO. It closes done, if there is one.
func copyAll(dst, src *os.File, done chan<- struct{}) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	if done != nil {
		close(done)
	}
}

// openPTY makes a pseudo-terminal (pts(4)).
func openPTY() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a pseudo-terminal: %w", err)
	}
	if err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("unlock a pseudo-terminal: %w", err), master.Close())
	}
	// The other side without its path, which another mount namespace may not
	// have (ioctl_tty(2), TIOCGPTPEER).
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, master.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, nil, errors.Join(fmt.Errorf("open a pseudo-terminal: %w", errno), master.Close())
	}
	return master, os.NewFile(fd, "pts"), nil
}

// resize gives the pseudo-terminal the size of our own.
func resize(from, to *os.File) {
	ws, err := unix.IoctlGetWinsize(int(from.Fd()), unix.TIOCGWINSZ)
	if err == nil {
		// A wrong size is no reason to stop.
		_ = unix.IoctlSetWinsize(int(to.Fd()), unix.TIOCSWINSZ, ws)
	}
}
