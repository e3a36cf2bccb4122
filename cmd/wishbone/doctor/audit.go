package doctor

import (
	"context"
	"errors"
	"net"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// audit tells whether the record of decisions can be written, as this user.
func (e *examination) audit(context.Context) {
	const check = "audit"
	a := e.cfg.Audit
	switch {
	case a.File != "":
		e.auditFile(check, a.File)
	case a.Syslog != "":
		e.auditSocket(check, a.Syslog, "systemctl status syslog.socket, or set audit.syslog to the daemon's socket")
	case a.Journald != "":
		e.auditSocket(check, a.Journald, "systemctl status systemd-journald.socket, or set audit.journald to its socket")
	}
}

// auditFile looks at the file, and at its directory: once rotated the file has to
// be made anew there.
func (e *examination) auditFile(check, path string) {
	directory := filepath.Dir(path)
	switch err := access(path, unix.W_OK); {
	case err == nil:
	case !errors.Is(err, unix.ENOENT):
		e.fail(check, fileRemedy(err, "set another audit.file"), "%s cannot be written: %v", path, err)
		return
	case access(directory, unix.W_OK|unix.X_OK) != nil:
		e.fail(check, "mkdir -p "+directory+", and chown it to the gateway's user", "%s is not there, and cannot be made", path)
		return
	}
	if access(directory, unix.W_OK|unix.X_OK) != nil {
		e.warn(check, "chown "+directory+" to the gateway's user, or have logrotate create the file", "%s can be written, but not made anew when it is rotated", path)
		return
	}
	e.ok(check, "%s can be written", path)
}

func (e *examination) auditSocket(check, path, remedy string) {
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		e.fail(check, remedy, "%v", err)
		return
	}
	c.Close()
	e.ok(check, "%s takes messages", path)
}
