package daemon

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"wishbone/config"
)

// What a gateway does in the file system (landlock(7)).
const (
	reads    = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	executes = reads | unix.LANDLOCK_ACCESS_FS_EXECUTE
	listens  = unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE
	writes   = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE

	// ofFiles are the rights that a file can have. The others are directories'.
	ofFiles = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_READ_FILE
)

// place is a file, or a directory with all beneath it, and what is done there.
type place struct {
	path   string
	rights uint64
}

// places are what a gateway needs of the file system. runs says that it runs
// programs: iptables.
//
// Directories are granted, not files, wherever something may be put in a file's
// place. That there is a place for connecting to a socket (the Workload API's) is
// not needed: connect(2) is not among the rights that confine takes away.
func places(cfg *config.Config, runs bool) (list []place) {
	grant := func(rights uint64, paths ...string) {
		for _, p := range paths {
			list = append(list, place{p, rights})
		}
	}
	system := uint64(reads) // libraries are loaded late too, by name services and iptables
	if runs {
		system = executes
	}
	grant(system, "/usr", "/lib", "/lib64", "/bin", "/sbin", "/nix/store")
	grant(executes, mapped()...) // this program, to be executed once more
	grant(reads, "/etc", "/proc", "/sys", "/dev/urandom")
	grant(writes, "/dev/null")
	files := []string{cfg.Path, "/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/localtime"}
	if f := cfg.Identity.Files; f != nil {
		files = append(files, f.Cert, f.Key, f.Bundle)
	}
	for _, f := range files {
		grant(reads, directories(f)...)
	}
	if cfg.Listen.Admin != "" {
		directory := filepath.Dir(cfg.Listen.Admin)
		// Without it there is nothing to grant. What is wrong says openAdmin.
		_ = os.MkdirAll(directory, 0o755)
		grant(listens, directory)
	}
	if runs {
		for _, name := range []string{"iptables", "ip6tables"} {
			if path, err := exec.LookPath(name); err == nil {
				grant(executes, directories(path)...)
			}
		}
		grant(writes, iptablesLock())
	}
	return list
}

// iptablesLock is the file that iptables programs lock (iptables(8), --wait). It
// is made if it is not there, since they may not make it any more.
func iptablesLock() string {
	path := os.Getenv("XTABLES_LOCKFILE")
	if path == "" {
		path = "/run/xtables.lock"
	}
	if f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o600); err == nil {
		f.Close()
	}
	return path
}

// mapped are the files that this program is made of: itself and, where it is
// linked so, the loader and its libraries.
func mapped() (files []string) {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return []string{"/proc/self/exe"}
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(maps)) {
		if i := strings.IndexByte(line, '/'); i >= 0 && !seen[line[i:]] {
			seen[line[i:]] = true
			files = append(files, strings.TrimSuffix(line[i:], "\n"))
		}
	}
	return append(files, "/proc/self/exe") // also if its file is gone by now
}

// directories are those in which a file has to be found, also after it was put
// there anew: the one that its path names, the one that it is really in, and
// those of symbolic links that may be turned to another place beside them
// (Kubernetes: ..data).
func directories(path string) (dirs []string) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil
	}
	dirs = append(dirs, filepath.Dir(path))
	at, rest := "/", strings.Split(path, "/")
	for links := 0; len(rest) > 0 && links < 40; {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		link, err := os.Readlink(next)
		if err != nil { // not a link, or not there
			at = next
			continue
		}
		links++
		if filepath.IsLocal(link) && at != "/" {
			dirs = append(dirs, at)
		}
		if filepath.IsAbs(link) {
			at = "/"
		}
		rest = append(strings.Split(link, "/"), rest...)
	}
	return append(dirs, filepath.Dir(at))
}

// LandlockVersion is that of the kernel's ABI, 0 where it has no Landlock, or
// this process is not to know.
func LandlockVersion() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 { // ENOSYS, EOPNOTSUPP, or a sandbox's EPERM
		return 0
	}
	return int(v)
}

// confine takes the file system away from the calling thread and all that it
// starts, but for places, and tells the version of Landlock that does it: 0 if
// there is none. Places that are not there are left out.
func confine(places []place) (version int, err error) {
	version = LandlockVersion()
	if version == 0 {
		return 0, nil
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: handled(version)}
	ruleset, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr.Handled_access_fs), 0)
	if errno != 0 {
		return 0, fmt.Errorf("make a ruleset: %w", errno)
	}
	defer unix.Close(int(ruleset))
	for _, p := range places {
		if err := allow(int(ruleset), p); err != nil {
			return 0, fmt.Errorf("allow %s: %w", p.path, err)
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0, 0); errno != 0 {
		return 0, fmt.Errorf("restrict: %w", errno)
	}
	return version, nil
}

// handled are the rights that are taken away where they are not granted: all
// that a version knows.
func handled(version int) uint64 {
	rights := uint64(unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1)
	for _, later := range []struct {
		version int
		right   uint64
	}{{2, unix.LANDLOCK_ACCESS_FS_REFER}, {3, unix.LANDLOCK_ACCESS_FS_TRUNCATE}, {5, unix.LANDLOCK_ACCESS_FS_IOCTL_DEV}} {
		if version >= later.version {
			rights |= later.right
		}
	}
	return rights
}

// allow adds a place to a ruleset.
func allow(ruleset int, p place) error {
	fd, err := unix.Open(p.path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EACCES) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	rights := p.rights
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		rights &= ofFiles
	}
	attr := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&attr)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// prctlGet is a prctl(2) that answers through a pointer.
func prctlGet(option int, value *int32) error {
	return unix.Prctl(option, uintptr(unsafe.Pointer(value)), 0, 0, 0)
}
