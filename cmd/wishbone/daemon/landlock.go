package daemon

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	llsyscall "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"wishbone/config"
)

// What a gateway does in the file system (landlock(7)).
const (
	reads    = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	executes = reads | unix.LANDLOCK_ACCESS_FS_EXECUTE
	listens  = unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE
	writes   = unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE
	records  = unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_WRITE_FILE

	// ofFiles are the rights that a file can have. The others are directories'.
	ofFiles = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_READ_FILE
)

// place is a file, or a directory with all beneath it, and what is done there.
type place struct {
	path   string
	rights landlock.AccessFSSet
}

// places are what a gateway needs of the file system. runs says that it runs
// programs: iptables.
//
// Directories are granted, not files, wherever something may be put in a file's
// place. That there is a place for connecting to a socket (the Workload API's) is
// not needed: connect(2) is not among the rights that confine takes away.
func places(cfg *config.Config, runs bool) (list []place) {
	grant := func(rights landlock.AccessFSSet, paths ...string) {
		for _, p := range paths {
			list = append(list, place{p, rights})
		}
	}
	system := landlock.AccessFSSet(reads) // libraries are loaded late too, by name services and iptables
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
	for _, f := range cfg.Identity.Federation {
		files = append(files, f.Bundle)
	}
	files = append(files, cfg.Revoked.CRLs...)
	for _, f := range files {
		grant(reads, directories(f)...)
	}
	if cfg.Audit.File != "" {
		grant(records, directories(cfg.Audit.File)...)
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
	v, err := llsyscall.LandlockGetABIVersion()
	if err != nil { // ENOSYS, EOPNOTSUPP, or a sandbox's EPERM
		return 0
	}
	return v
}

// closed are the rights that are taken away where they are not granted: all that
// the kernel knows of these. Version 9 would take connect(2) to sockets as well.
var closed = landlock.Config{HandledAccessFS: landlock.V5.HandledAccessFS}.BestEffort()

// confine takes the file system away from the calling thread and all that it
// starts, but for places, and tells the version of Landlock that does it: 0 if
// there is none. Places that are not there are left out.
func confine(places []place) (version int, err error) {
	ruleset, flags, err := closed.NewRulesetFD(grants(places)...)
	if err != nil {
		return 0, fmt.Errorf("make a ruleset: %w", err)
	}
	if ruleset < 0 { // no Landlock
		return 0, nil
	}
	defer unix.Close(ruleset)
	// Not closed.RestrictPaths: that is for all threads, and before version 8 it
	// takes signals, and C code with cgo. Only this thread executes (see Harden).
	if err := llsyscall.LandlockRestrictSelf(ruleset, flags); err != nil {
		return 0, fmt.Errorf("restrict: %w", err)
	}
	return LandlockVersion(), nil
}

// grants are the rules that open places.
func grants(places []place) (rules []landlock.Rule) {
	for _, p := range places {
		info, err := os.Stat(p.path)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EACCES) {
			continue
		}
		rights := p.rights
		if err == nil && !info.IsDir() { // what else is wrong, opening it will say
			rights &= ofFiles
		}
		rules = append(rules, landlock.PathAccess(rights, p.path).IgnoreIfMissing())
	}
	return rules
}

// prctlGet is a prctl(2) that answers through a pointer.
func prctlGet(option int, value *int32) error {
	return unix.Prctl(option, uintptr(unsafe.Pointer(value)), 0, 0, 0)
}
