package daemon

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
)

// TestDoor: root and the gateway's user may do anything, its group may ask, and
// nobody else gets past; nor does who is not known.
func TestDoor(t *testing.T) {
	d := door{owner: 71, group: 72}
	h := d.guard(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "inside") }))
	for _, tt := range []struct {
		name string
		who  any
		asks bool // what GET gets
		acts bool // what POST gets
	}{
		{"root", caller{uid: 0, groups: []uint32{0}}, true, true},
		{"owner", caller{uid: 71, groups: []uint32{1}}, true, true},
		{"group", caller{uid: 5, groups: []uint32{72}}, true, false},
		{"supplementary group", caller{uid: 5, groups: []uint32{9, 72, 5}}, true, false},
		{"root's group", caller{uid: 5, groups: []uint32{0}}, false, false},
		{"another", caller{uid: 5, groups: []uint32{5, 71}}, false, false},
		{"not known", nil, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for method, want := range map[string]bool{"GET": tt.asks, "HEAD": tt.asks, "POST": tt.acts, "PUT": tt.acts, "DELETE": tt.acts, "get": tt.acts} {
				r := httptest.NewRequest(method, "/status", nil)
				if tt.who != nil {
					r = r.WithContext(context.WithValue(r.Context(), callerKey{}, tt.who))
				}
				w := httptest.NewRecorder()
				h.ServeHTTP(w, r)
				if got := w.Body.String() == "inside"; got != want || (w.Code == http.StatusForbidden) == want {
					t.Errorf("%s: %d %q, want in: %t", method, w.Code, w.Body, want)
				}
			}
		})
	}
}

// TestCaller: the kernel says who is at the other end of a Unix socket, and of
// others nobody is known.
func TestCaller(t *testing.T) {
	for network, address := range map[string]string{"unix": filepath.Join(t.TempDir(), "s"), "tcp": "127.0.0.1:0"} {
		ln, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		client, err := net.Dial(network, ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		server, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		c, known := withCaller(t.Context(), server).Value(callerKey{}).(caller)
		if known != (network == "unix") {
			t.Errorf("%s: known is %t", network, known)
		}
		if !known {
			continue
		}
		if int(c.uid) != os.Getuid() {
			t.Errorf("user %d, want %d", c.uid, os.Getuid())
		}
		groups, err := os.Getgroups()
		if err != nil {
			t.Fatal(err)
		}
		for _, g := range append(groups, os.Getgid()) {
			if !slices.Contains(c.groups, uint32(g)) {
				t.Errorf("groups %v lack %d", c.groups, g)
			}
		}
	}
}

// TestDirectories: what has to be readable for a file to be found, also when a
// link to it was turned.
func TestDirectories(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"ids/..1", "etc/releases/7", "other"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"ids/..data": "..1", "ids/key": "..data/key",
		"etc/current": "releases/7", "etc/releases/7/key": filepath.Join(dir, "other/key"),
		"etc/out": "../other", "round": "round",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"other/key":       "other other",
		"ids/key":         "ids ids ids ids/..1",
		"ids/..data/key":  "ids/..data ids ids/..1",
		"etc/current/key": "etc/current etc other",
		"etc/out/key":     "etc/out other", // not everything beside a link that leads away
		"absent/key":      "absent absent",
	} {
		var got []string
		for _, d := range directories(filepath.Join(dir, path)) {
			got = append(got, strings.TrimPrefix(d, dir+"/"))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	if got := directories(filepath.Join(dir, "round")); len(got) == 0 { // and it has ended
		t.Error("nothing for a link to itself")
	}
	for _, d := range directories("/etc/resolv.conf") {
		if d == "/" {
			t.Error("all of the file system for one file of it")
		}
	}
}

// TestGrants: what is not there, and what is a file where a directory was meant,
// keeps no ruleset from being made.
func TestGrants(t *testing.T) {
	dir := t.TempDir()
	file, shut := filepath.Join(dir, "file"), filepath.Join(dir, "shut")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Mkdir(shut, 0)); err != nil {
		t.Fatal(err)
	}
	var all []place
	for _, path := range []string{dir, file, "/proc/self/exe", "/dev/null", dir + "/absent", file + "/beneath", shut + "/beneath"} {
		for _, rights := range []landlock.AccessFSSet{reads, executes, listens, writes, records} {
			all = append(all, place{path, rights})
		}
	}
	rules := grants(all)
	if len(rules) != 4*5 {
		t.Errorf("%d rules, want those of the four paths that are there", len(rules))
	}
	ruleset, _, err := closed.NewRulesetFD(rules...)
	if err != nil {
		t.Fatal(err)
	}
	if (ruleset < 0) != (LandlockVersion() == 0) {
		t.Errorf("ruleset %d, and version %d", ruleset, LandlockVersion())
	}
	if ruleset >= 0 {
		unix.Close(ruleset)
	}
}

// TestClosed: the Workload API's socket is connected to, whatever the kernel.
func TestClosed(t *testing.T) {
	if got := closed.HandledAccessFS; got != 0xffff {
		t.Errorf("%v is taken away", got)
	}
}
