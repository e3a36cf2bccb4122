package daemon

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// door is who may use the admin socket. Its mode says the same to connect(2);
// that it is asked for again holds when a mode was changed, or a descriptor
// handed on.
type door struct{ owner, group uint32 }

// caller is the process at the other end of a Unix socket, as it was when it
// connected (unix(7), SO_PEERCRED and SO_PEERGROUPS).
type caller struct {
	uid    uint32
	groups []uint32
}

// mayChange is for root and the gateway's own user.
func (d door) mayChange(c caller) bool { return c.uid == 0 || c.uid == d.owner }

// mayAsk is for the socket's group too.
func (d door) mayAsk(c caller) bool { return d.mayChange(c) || slices.Contains(c.groups, d.group) }

// guard refuses those who may not.
func (d door) guard(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, known := r.Context().Value(callerKey{}).(caller)
		asks := r.Method == http.MethodGet || r.Method == http.MethodHead
		switch {
		case known && d.mayChange(c), known && asks && d.mayAsk(c):
			h.ServeHTTP(w, r)
		case known && d.mayAsk(c):
			http.Error(w, fmt.Sprintf("user %d may ask, but change nothing: that is for root and user %d", c.uid, d.owner), http.StatusForbidden)
		default:
			http.Error(w, fmt.Sprintf("user %d may not ask: that is for root, user %d and group %d", c.uid, d.owner, d.group), http.StatusForbidden)
		}
	})
}

type callerKey struct{}

// withCaller notes who has connected, where it can be known.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	who, err := callerOf(u)
	if err != nil { // then guard lets nobody in
		return ctx
	}
	return context.WithValue(ctx, callerKey{}, who)
}

func callerOf(u *net.UnixConn) (c caller, err error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return c, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		var cred *unix.Ucred
		if cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
			return
		}
		c.uid = cred.Uid
		c.groups, err = peerGroups(fd)
		c.groups = append(c.groups, cred.Gid)
	})
	if controlErr != nil {
		return c, controlErr
	}
	return c, err
}

// peerGroups are the supplementary groups. The kernel says how many there are
// when there is no room for them.
func peerGroups(fd uintptr) ([]uint32, error) {
	groups := make([]uint32, 64)
	for {
		size := uint32(len(groups)) * 4
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch errno {
		case 0:
			return groups[:size/4], nil
		case unix.ERANGE:
			groups = make([]uint32, size/4)
		default:
			return nil, errno
		}
	}
}
