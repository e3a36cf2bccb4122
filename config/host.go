package config

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
)

// host is what defaults depend on.
type host struct {
	name  string
	cores int
	root  string                // the root of its file system
	asked func() (int64, error) // its memory, once; nil where it is asked each time
}

// thisHost is the one that we run on. It is asked once: a running gateway gives the
// scheduler more than there are, and a reload must take neither that nor a balloon, a
// cgroup's new limit or a new name from DHCP for a change of the file.
var thisHost = sync.OnceValue(func() host { return hostAt("/") })

// hostAt is the one with a root. cores is how many processors we have, cgroups
// considered.
func hostAt(root string) host {
	name, err := os.Hostname()
	if err != nil {
		name = "" // fitName has a name for it
	}
	h := host{name: fitName(name), cores: runtime.GOMAXPROCS(0), root: root}
	h.asked = sync.OnceValues(h.memory)
	return h
}

// fitName makes a host's name fit for ours.
func fitName(name string) string {
	name = strings.Map(func(c rune) rune {
		if !nameRune(c) {
			return '-'
		}
		return c
	}, strings.ToLower(name))
	name = strings.TrimLeft(name, "-_.")
	if name == "" {
		return "gateway"
	}
	return name[:min(len(name), maxName)]
}

// memory is that of the machine, or less where a cgroup allows less. Only
// cgroup v2 is asked.
func (h host) memory() (int64, error) {
	if h.asked != nil {
		return h.asked()
	}
	total, err := h.machineMemory()
	if err != nil {
		return 0, err
	}
	limit, err := h.cgroupMemory()
	return min(total, limit), err
}

// machineMemory reads MemTotal (proc_meminfo(5)).
func (h host) machineMemory() (int64, error) {
	data, err := os.ReadFile(filepath.Join(h.root, "proc/meminfo"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, found := strings.CutPrefix(line, "MemTotal:"); found {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 48)
			return n * kib, err
		}
	}
	return 0, errors.New("no MemTotal in /proc/meminfo")
}

// cgroupMemory is the least memory.max of our cgroup and those above it, for
// each of them binds us (cgroups(7), Documentation/admin-guide/cgroup-v2.rst).
func (h host) cgroupMemory() (int64, error) {
	data, err := os.ReadFile(filepath.Join(h.root, "proc/self/cgroup"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	limit := int64(math.MaxInt64)
	for line := range strings.Lines(string(data)) {
		path, found := strings.CutPrefix(strings.TrimSpace(line), "0::") // of v2
		for found {
			here, err := h.memoryMax(path)
			if err != nil {
				return 0, err
			}
			limit = min(limit, here)
			found = filepath.Clean("/"+path) != "/"
			path = filepath.Dir(path)
		}
	}
	return limit, nil
}

// memoryMax is that of one cgroup; there is none at the root, nor where the
// memory controller is off.
func (h host) memoryMax(cgroup string) (int64, error) {
	data, err := os.ReadFile(filepath.Join(h.root, "sys/fs/cgroup", filepath.Clean("/"+cgroup), "memory.max"))
	text := strings.TrimSpace(string(data))
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && text == "max":
		return math.MaxInt64, nil
	case err != nil:
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("memory.max of cgroup %s: %w", cgroup, err)
	}
	return n, nil
}
