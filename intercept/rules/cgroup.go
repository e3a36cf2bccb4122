package rules

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroup is a control group of the second version (cgroups(7)).
type cgroup struct {
	path string // from the root of the hierarchy, without a slash in front
	id   uint64 // as the kernel knows it: the number of the directory's inode
}

// level is how deep below the root the group is.
func (c cgroup) level() int { return strings.Count(c.path, "/") + 1 }

// cgroupRoots is where the hierarchy is mounted: alone, or beside the first
// version's. nft knows only the former.
var cgroupRoots = []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}

// namedCgroup is a group by name only, for text.
func namedCgroup(name string) cgroup {
	return cgroup{path: strings.TrimPrefix(path.Clean("/"+name), "/")}
}

// findCgroups looks the groups up. Rules hold a group by number: one that is
// made anew later is another group, and needs a new Apply.
func findCgroups(names []string) ([]cgroup, error) {
	var groups []cgroup
	for _, name := range names {
		c, err := findCgroup(name)
		if err != nil {
			return nil, fmt.Errorf("exclude cgroup %q: %w", name, err)
		}
		groups = append(groups, c)
	}
	return groups, nil
}

// StandingCgroups are those of some control groups that are there.
func StandingCgroups(names []string) (there []string) {
	for _, name := range names {
		if _, err := findCgroup(name); err == nil {
			there = append(there, name)
		}
	}
	return there
}

func findCgroup(name string) (cgroup, error) {
	c := namedCgroup(name)
	if c.path == "" {
		return c, errors.New("the root cgroup holds every process")
	}
	for _, root := range cgroupRoots {
		var fs unix.Statfs_t
		if err := unix.Statfs(root, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
			continue // not mounted there
		}
		var dir unix.Stat_t
		if err := unix.Stat(filepath.Join(root, c.path), &dir); err != nil {
			return c, &os.PathError{Op: "stat", Path: filepath.Join(root, c.path), Err: err}
		}
		c.id = dir.Ino
		return c, nil
	}
	return c, errors.New("no cgroup v2 hierarchy is mounted at " + strings.Join(cgroupRoots, " or "))
}
