package config

import (
	"os"
	"path/filepath"
	"testing"
)

// testHost is called west, and has 8 cores and 1 GiB of memory.
func testHost(t testing.TB) host {
	t.Helper()
	return hostWith(t, map[string]string{"proc/meminfo": "MemTotal:        1048576 kB\nMemFree: 1 kB\n"})
}

// hostWith is a host with these files.
func hostWith(t testing.TB, files map[string]string) host {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return host{name: "west", cores: 8, root: root}
}

func TestMemory(t *testing.T) {
	const meminfo = "MemTotal:        1048576 kB\n"
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  int64 // 0 means an error
	}{
		{"no cgroups", map[string]string{"proc/meminfo": meminfo}, gib},
		{"a limit on ours", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/system.slice/wishbone.service\n",
			"sys/fs/cgroup/system.slice/wishbone.service/memory.max": "104857600\n"}, 100 * mib},
		{"a limit above ours", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/system.slice/wishbone.service\n",
			"sys/fs/cgroup/system.slice/wishbone.service/memory.max": "max\n",
			"sys/fs/cgroup/system.slice/memory.max":                  "52428800\n"}, 50 * mib},
		{"in a container, where ours is the root", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "52428800\n"}, 50 * mib},
		{"outside of the namespace's root", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/../other\n", "sys/fs/cgroup/other/memory.max": "52428800\n"}, 50 * mib},
		{"a limit beyond the machine", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "9223372036854771712\n"}, gib},
		{"version 1 only, which is not asked", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "4:memory:/a\n"}, gib},
		{"no meminfo", nil, 0},
		{"meminfo without a total", map[string]string{"proc/meminfo": "MemFree: 1 kB\n"}, 0},
		{"a limit that is no number", map[string]string{
			"proc/meminfo": meminfo, "proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "lots\n"}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := hostWith(t, tc.files).memory()
			if (err != nil) != (tc.want == 0) || err == nil && got != tc.want {
				t.Errorf("%d, %v; want %d", got, err, tc.want)
			}
		})
	}
}

func TestThisHost(t *testing.T) {
	h := thisHost()
	if n, err := h.memory(); err != nil || n < mib {
		t.Errorf("memory %d, %v", n, err)
	}
	if _, m := name(h.name); m != nil || h.cores < 1 {
		t.Errorf("%+v, %v", h, m)
	}
}

func TestFitName(t *testing.T) {
	for from, want := range map[string]string{
		"west": "west", "West.Example": "west.example", "wüst": "w-st", "-a": "a", "": "gateway", "...": "gateway",
		string(make([]byte, 200)): "gateway",
	} {
		if got := fitName(from); got != want {
			t.Errorf("%q fits as %q, want %q", from, got, want)
		}
	}
}

// TestHostAskedOnce: a reload does not take a balloon, or another memory.max, for a
// change of the file.
func TestHostAskedOnce(t *testing.T) {
	root := hostWith(t, map[string]string{"proc/meminfo": "MemTotal: 8000000 kB\n"}).root
	h := hostAt(root)
	before, err := h.memory()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "proc/meminfo"), []byte("MemTotal: 7900000 kB\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if after, err := h.memory(); after != before || err != nil {
		t.Errorf("%d, then %d, %v", before, after, err)
	}
}
