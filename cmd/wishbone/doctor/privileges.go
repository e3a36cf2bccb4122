package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/config"
	"wishbone/intercept"
	"wishbone/intercept/rules"
)

// capabilities goes through those that a gateway can use: what each is for, and
// what goes without it. They are this process's; the gateway has the same if it
// is started by the same user in the same way.
func (e *examination) capabilities(ctx context.Context) {
	const check = "capabilities"
	have, err := daemon.CurrentCapabilities()
	if err != nil {
		e.warn(check, "", "%v", err)
		return
	}
	if err := e.trySocket(); err != nil {
		e.fail(check, or(hintOf(err), "before Linux 5.17 marks want CAP_NET_ADMIN: "+daemon.HowToGive("NET_ADMIN")), "%v", err)
	} else {
		e.ok(check, "CAP_NET_RAW: a transparent socket with a mark can be made")
	}
	switch err := daemon.CheckRules(ctx, e.cfg); {
	case err != nil:
		e.fail(check, hintOf(err), "%v", err)
	case have.Has(daemon.NetAdmin):
		e.ok(check, "CAP_NET_ADMIN: rules can be installed, and a client's port may be one that a listener here has")
	default:
		e.warn(check, daemon.HowToGive("NET_ADMIN", "NET_RAW"),
			"no CAP_NET_ADMIN: the rules that stand can be used; a connection from a client's port that a listener here has is refused (no_port)")
	}
	if have.Has(daemon.NetBindService) {
		e.ok(check, "CAP_NET_BIND_SERVICE: ports below 1024 are open to clients and listeners")
		return
	}
	e.warn(check, daemon.HowToGive("NET_BIND_SERVICE", "NET_RAW"),
		"no CAP_NET_BIND_SERVICE: a connection from a client's port below 1024 is refused, and so is a listener on one")
}

// trySocket makes what every connection takes.
func (e *examination) trySocket() error {
	if err := daemon.CheckSockets(); err != nil {
		return err
	}
	at := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	fd, err := intercept.Listen(at, intercept.Options{Mark: e.cfg.Routing.Mask &^ e.cfg.Routing.Mark})
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (e *examination) landlock(context.Context) {
	const check = "landlock"
	if v := daemon.LandlockVersion(); v > 0 {
		e.ok(check, "version %d: the gateway closes the file system to itself", v)
		return
	}
	e.warn(check, "a kernel since 5.13 with CONFIG_SECURITY_LANDLOCK, and landlock in lsm= on its command line",
		"not in this kernel: the gateway can get at whatever its user can")
}

// userNamespaces tells whether the lab works without root. The gateway does not
// ask for them.
func (e *examination) userNamespaces(context.Context) {
	const check = "user namespaces"
	for _, off := range []struct{ name, value, remedy string }{
		{"user.max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=10000"},
		{"kernel.unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"},
		{"kernel.apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
	} {
		if sysctl(off.name) == off.value {
			e.ok(check, "not for ordinary users (%s is %s); only wishbone lab without root wants them: %s", off.name, off.value, off.remedy)
			return
		}
	}
	e.ok(check, "open to ordinary users: wishbone lab works without root")
}

// firewall has the kernel take the very rules, in an empty network namespace.
func (e *examination) firewall(ctx context.Context) {
	const check = "firewall"
	have, err := daemon.CurrentCapabilities()
	switch {
	case err != nil:
		e.warn(check, "", "%v", err)
		return
	case e.cfg.Capture.Firewall == config.NoFirewall:
		e.warn(check, "wishbone rules prints what has to be there", "firewall: none: the rules are yours")
		return
	case !have.Has(daemon.NetAdmin): // CheckRules has had its say
		if daemon.CheckRules(ctx, e.cfg) == nil {
			e.ok(check, "wishbone rules apply has installed this configuration's rules; whether another tool has flushed them since, only root can see")
		}
		return
	}
	name, err := tryRules(e.cfg.Capture.Firewall, e.plan)
	switch {
	case errors.Is(err, errUntried):
		e.ok(check, "%s can be used (whether the kernel has all that it takes, root can try)", name)
	case err != nil:
		e.fail(check, hintOf(err), "%v", err)
	default:
		e.ok(check, "%s can be used: this kernel takes the rules", name)
	}
}

var errUntried = errors.New("no network namespace to try in")

// tryRules installs a plan's rules in a network namespace that goes with
// the thread that makes it, and names the backend.
func tryRules(kind config.Firewall, plan rules.Plan) (name string, err error) {
	done := make(chan struct{})
	go func() { // ends when the kernel has answered
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread is thrown away
		unshared := unix.Unshare(unix.CLONE_NEWNET)
		if unshared == nil {
			unshared = netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1, Name: "lo"}})
		}
		b, openErr := daemon.Backend(kind)
		switch {
		case openErr != nil:
			err = openErr
			return
		case unshared != nil:
			err = fmt.Errorf("%w: %w", errUntried, unshared)
		default:
			err = b.Apply(plan)
		}
		name = b.Name()
	}()
	<-done
	return name, err
}
