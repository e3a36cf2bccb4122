package netlab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ForbiddenError says that this machine does not let this user have the namespaces a lab is made of.
type ForbiddenError struct {
	Err  error  // what the kernel said
	Hint string // what to do about it, names the setting where it is known
}

func (e *ForbiddenError) Error() string {
	return fmt.Sprintf("network namespaces are forbidden to this user: %v", e.Err)
}

// Unwrap returns what the kernel said.
func (e *ForbiddenError) Unwrap() error { return e.Err }

// Advice returns the hint.
func (e *ForbiddenError) Advice() string { return e.Hint }

// forbidden wraps the errors that mean "not you", and leaves others as they are.
func forbidden(step string, err error) error {
	for _, no := range []error{unix.EPERM, unix.EACCES, unix.ENOSPC, unix.EUSERS} {
		if errors.Is(err, no) {
			return &ForbiddenError{Err: err, Hint: hint(step, sysctlValue)}
		}
	}
	return err
}

// obstacles are the settings that stand in an ordinary user's way, each with the value that does.
// The first is Ubuntu's since 23.10, the second Debian's and Arch's (linux-hardened), the third everyone's.
var obstacles = []struct{ name, bad, good string }{
	{"kernel.apparmor_restrict_unprivileged_userns", "1", "0"},
	{"kernel.unprivileged_userns_clone", "0", "1"},
	{"user.max_user_namespaces", "0", "15000"},
}

// hint looks for the setting that is to blame.
func hint(step string, value func(name string) string) string {
	var names, remedies []string
	for _, o := range obstacles {
		names = append(names, o.name)
		if value(o.name) == o.bad {
			remedies = append(remedies, fmt.Sprintf("sysctl -w %s=%s", o.name, o.good))
		}
	}
	switch {
	case len(remedies) > 0:
		return "run it as root, or once, as root: " + strings.Join(remedies, "; ")
	case step == "proc":
		return "run it as root or outside this container, which hides parts of /proc (docker: --privileged or --security-opt systempaths=unconfined)"
	default:
		return "run it as root, or outside a container whose seccomp or AppArmor profile forbids it; settings that matter: " + strings.Join(names, ", ")
	}
}

// sysctlValue reads a setting, "" where it does not exist.
func sysctlValue(name string) string {
	data, err := os.ReadFile(sysctlPath(name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// sysctlPath turns net.ipv4.ip_forward into its file.
func sysctlPath(name string) string {
	return filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
}
