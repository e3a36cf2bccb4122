package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

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
