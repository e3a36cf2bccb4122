package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"wishbone/config"
	"wishbone/intercept/rules"
)

// Capabilities is a set of capabilities(7), bit by bit.
type Capabilities uint64

// The capabilities that a gateway can use.
const (
	// NetRaw is for transparent sockets, and since Linux 5.17 for marks.
	NetRaw Capabilities = 1 << unix.CAP_NET_RAW
	// NetAdmin is for rules, and for deliveries from a port that a listener has.
	NetAdmin Capabilities = 1 << unix.CAP_NET_ADMIN
	// NetBindService is for ports below 1024, those of clients too.
	NetBindService Capabilities = 1 << unix.CAP_NET_BIND_SERVICE
)

// String lists the capabilities by name; those that no gateway uses are a number.
func (c Capabilities) String() string {
	var names []string
	for _, n := range []struct {
		bit  Capabilities
		name string
	}{{NetRaw, "CAP_NET_RAW"}, {NetAdmin, "CAP_NET_ADMIN"}, {NetBindService, "CAP_NET_BIND_SERVICE"}} {
		if c.Has(n.bit) {
			names = append(names, n.name)
			c &^= n.bit
		}
	}
	if c != 0 {
		names = append(names, fmt.Sprintf("%#x", uint64(c)))
	}
	if names == nil {
		return "none"
	}
	return strings.Join(names, " ")
}

// Has says whether all of want are there.
func (c Capabilities) Has(want Capabilities) bool { return c&want == want }

// CurrentCapabilities are those that this thread may use now.
func CurrentCapabilities() (Capabilities, error) {
	effective, _, err := capget()
	return effective, err
}

func capget() (effective, permitted Capabilities, err error) {
	var data [2]unix.CapUserData
	if err := unix.Capget(capVersion(), &data[0]); err != nil {
		return 0, 0, fmt.Errorf("read this process's capabilities: %w", err)
	}
	return Capabilities(data[0].Effective) | Capabilities(data[1].Effective)<<32,
		Capabilities(data[0].Permitted) | Capabilities(data[1].Permitted)<<32, nil
}

func capVersion() *unix.CapUserHeader {
	return &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
}

// HowToGive says how a process gets capabilities, named as in capabilities(7)
// without CAP_.
func HowToGive(names ...string) string {
	var files, unit []string
	for _, n := range names {
		files = append(files, "cap_"+strings.ToLower(n))
		unit = append(unit, "CAP_"+n)
	}
	return fmt.Sprintf("setcap %s+ep wishbone; in a unit: AmbientCapabilities=%s", strings.Join(files, ","), strings.Join(unit, " "))
}

// CheckCapabilities sees that this process may do what is ahead. The error is an
// *Error.
func CheckCapabilities(ctx context.Context, cfg *config.Config) error {
	if err := CheckRules(ctx, cfg); err != nil {
		return err
	}
	return CheckSockets()
}

// CheckRules sees that this process may install rules, or that those of this
// configuration stand already. The error is an *Error.
func CheckRules(ctx context.Context, cfg *config.Config) error {
	have, err := CurrentCapabilities()
	if err != nil || have.Has(NetAdmin) || cfg.Capture.Firewall == config.NoFirewall {
		return err
	}
	return checkStanding(Plan(ctx, cfg))
}

// CheckSockets sees that this process may make transparent sockets and mark
// them: CAP_NET_RAW is for that, and CAP_NET_ADMIN too. The error is an *Error.
func CheckSockets() error {
	have, err := CurrentCapabilities()
	if err != nil || have&(NetAdmin|NetRaw) != 0 {
		return err
	}
	return hinted(errors.New("missing capability CAP_NET_RAW: sockets cannot be transparent, nor marked"),
		"run as root, or give the binary what it needs: %s", HowToGive("NET_RAW"))
}

// checkStanding sees that the rules which stand are a plan's, for a process that
// may not change them, nor tell them anything.
func checkStanding(p rules.Plan) error {
	const missing = "missing capability CAP_NET_ADMIN: "
	kept, err := rules.Kept(p.Routing)
	switch {
	case err != nil:
		return err
	case kept == 0:
		return hinted(errors.New(missing+"rules cannot be installed"),
			"run as root, or give the binary what it needs: %s; or have root install the rules beforehand, with wishbone rules apply: then CAP_NET_RAW is enough",
			HowToGive("NET_ADMIN", "NET_RAW"))
	case kept != p.Digest():
		return hinted(errors.New(missing+"the rules that stand are another configuration's, and cannot be replaced"),
			"wishbone rules apply, as root, puts this one's in their place")
	}
	for _, peer := range p.Peers {
		if peer.PassUnavailable {
			return hinted(fmt.Errorf(missing+"the rules cannot be told that the gateway is there, as peer %s's outbound.unavailable: pass wants", peer.Name),
				"set outbound.unavailable: reject, or give the binary what it needs: %s", HowToGive("NET_ADMIN", "NET_RAW"))
		}
	}
	return nil
}
