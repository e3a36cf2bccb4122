package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/cmd/wishbone/lab"
	"wishbone/config"
	"wishbone/e2e/netlab"
)

// applyRules has root install the rules of both gateways beforehand.
func (p *pair) applyRules() {
	p.t.Helper()
	p.write(p.westSite, p.eastSite)
	p.write(p.eastSite, p.westSite)
	p.applyRulesOn(p.West, "west")
	p.applyRulesOn(p.East, "east")
}

func (p *pair) applyRulesOn(h *netlab.Host, name string) {
	p.t.Helper()
	if code, out := runOn(p.t, h, "1", "rules", "apply", "-c", filepath.Join(p.dir, name+".yaml")); code != 0 {
		p.t.Fatalf("rules apply: exit code %d\n%s", code, out)
	}
}

// otherUsers says whether there is any user but our own: not in a user namespace
// made by an ordinary one.
func otherUsers(t *testing.T) bool {
	t.Helper()
	uids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	var inside, outside, count int64
	if _, err := fmt.Sscan(string(uids), &inside, &outside, &count); err != nil {
		t.Fatal(err)
	}
	return count > nobodyID
}

// giveAway makes the files of the pair another user's, if there is one.
func (p *pair) giveAway(uid int) {
	p.t.Helper()
	if err := os.Chmod(filepath.Dir(p.dir), 0o755); err != nil {
		p.t.Fatal(err)
	}
	err := filepath.WalkDir(p.dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Lchown(path, uid, uid))
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

// TestNetRawAlone: where root has installed the rules beforehand, a gateway needs
// no capability but CAP_NET_RAW. It uses them as they are, says so, changes what
// it may, says what to do where it may not, and leaves them standing.
func TestNetRawAlone(t *testing.T) {
	users := []string{"root without powers"}
	if otherUsers(t) {
		users = append(users, "nobody")
	}
	for _, backend := range backends {
		for _, user := range users {
			t.Run(backend+"/"+user, func(t *testing.T) {
				p := newWorld(t, onFirewall(backend))
				before := hostState(t, p.West)
				p.applyRules()
				p.mode = with("1", "net_raw")
				if user == "nobody" {
					p.mode = with("1", "nobody", "net_raw")
					p.giveAway(nobodyID)
				}
				p.west, p.east = p.startAs(p.West, "west"), p.startAs(p.East, "east")
				for _, g := range []*lab.Gateway{p.west, p.east} {
					awaitLog(t, g, "level=INFO", "the rules that wishbone rules apply has installed are used as they are")
					onlyHas(t, g, 1<<unix.CAP_NET_RAW)
				}
				for _, f := range families {
					p.open(listen(t, p.Server, netip.AddrPortFrom(f.server, 8080))).end(t)
				}
				// What goes beyond CAP_NET_RAW is refused, and the reason named.
				for _, beyond := range []struct {
					port          uint16
					reason, cause string
				}{{700, "no_source", "port 700 wants CAP_NET_BIND_SERVICE"}, {15008, "no_port", "in use"}} {
					c, err := connectFrom(t, p.Client, anyAddr(beyond.port), web)
					if err == nil { // else the reset was faster
						err = readEnd(t, c)
					}
					if !isReset(err) {
						t.Errorf("from port %d: %v, want a reset", beyond.port, err)
					}
					mustSay(t, p, web, beyond.reason, beyond.cause)
				}
				mustMatch(t, wishbone(t, p.west, p.West, "status"), `^gateway +west .*, ready`)
				stop(t, p)
				unreachable(t, p.Client, web)
				if code, out := runOn(t, p.West, "1", "rules", "remove", "-c", filepath.Join(p.dir, "west.yaml")); code != 0 {
					t.Errorf("rules remove: exit code %d\n%s", code, out)
				}
				if d := difference(before, hostState(t, p.West)); d != "" {
					t.Errorf("the host is not as it was:\n%s", d)
				}
			})
		}
	}
}

// TestReloadOfStandingRules: a gateway that may not change the rules takes another
// configuration once root has put its rules in place, and not before.
func TestReloadOfStandingRules(t *testing.T) {
	p := newWorld(t)
	p.applyRules()
	p.mode = with("1", "net_raw")
	p.west, p.east = p.startAs(p.West, "west"), p.startAs(p.East, "east")
	live := p.open(listen(t, p.Server, web))
	// What the rules have no part in may change at once.
	p.westSite.extra = "drain: {grace: 1s}"
	p.writeYAML(p.westSite, p.eastSite)
	hangUp(t, p.west)
	awaitLog(t, p.west, "configuration reloaded")

	p.westSite.peerNetworks = `[10.2.0.0/16, "fd00:2::/64", 10.9.0.0/16]`
	p.writeYAML(p.westSite, p.eastSite)
	hangUp(t, p.west)
	awaitLog(t, p.west, "level=ERROR", "reload failed: going on as before",
		"missing capability CAP_NET_ADMIN: the rules that stand are another configuration's, and cannot be replaced",
		`hint="wishbone rules apply, as root, puts this one's in their place"`)
	exchange(t, live.client, live.server)
	p.applyRulesOn(p.West, "west")
	hangUp(t, p.west)
	eventually(t, "both reloads are in the log", func() bool {
		return strings.Count(p.west.Log(), "configuration reloaded") == 2
	})
	exchange(t, live.client, live.server)
}

// TestMissingCapability: what a gateway lacks is named, with how to get it, and
// then nothing has been done.
func TestMissingCapability(t *testing.T) {
	for _, tt := range []struct {
		name  string
		have  []string
		bend  func(west, east *site)
		apply bool                   // the rules beforehand
		then  func(west, east *site) // after that
		want  []string
	}{
		{
			name: "no rules", have: []string{"net_raw"},
			want: []string{"wishbone: error: missing capability CAP_NET_ADMIN: rules cannot be installed\n",
				"hint: run as root, or give the binary what it needs: setcap cap_net_admin,cap_net_raw+ep wishbone; in a unit: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW; " +
					"or have root install the rules beforehand, with wishbone rules apply: then CAP_NET_RAW is enough\n"},
		}, {
			name: "rules and nothing else", apply: true,
			want: []string{"wishbone: error: missing capability CAP_NET_RAW: sockets cannot be transparent, nor marked\n",
				"hint: run as root, or give the binary what it needs: setcap cap_net_raw+ep wishbone; in a unit: AmbientCapabilities=CAP_NET_RAW\n"},
		}, {
			name: "own rules and nothing else", bend: onFirewall("none"),
			want: []string{"wishbone: error: missing capability CAP_NET_RAW: sockets cannot be transparent, nor marked\n"},
		}, {
			name: "rules of another configuration", have: []string{"net_raw"}, apply: true,
			then: func(west, _ *site) { west.networks = `[10.1.0.0/16]` },
			want: []string{"wishbone: error: missing capability CAP_NET_ADMIN: the rules that stand are another configuration's, and cannot be replaced\n",
				"hint: wishbone rules apply, as root, puts this one's in their place\n"},
		}, {
			name: "a peer that passes", have: []string{"net_raw"}, apply: true,
			bend: func(west, _ *site) { west.peerUnavailable = "pass" },
			want: []string{"wishbone: error: missing capability CAP_NET_ADMIN: the rules cannot be told that the gateway is there, as peer east's outbound.unavailable: pass wants\n",
				"hint: set outbound.unavailable: reject, or give the binary what it needs: setcap cap_net_admin,cap_net_raw+ep wishbone; "},
		}, {
			name: "a listener below 1024", have: []string{"net_raw"}, apply: true,
			bend: func(west, _ *site) { west.listen = `tunnel: ["[::]:443"]` },
			want: []string{"listen for peers", ":443: bind: permission denied", "\nhint: ports below 1024 need CAP_NET_BIND_SERVICE\n"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			options := []func(west, east *site){}
			if tt.bend != nil {
				options = append(options, tt.bend)
			}
			p := newWorld(t, options...)
			p.write(p.westSite, p.eastSite)
			if tt.apply {
				p.applyRulesOn(p.West, "west")
			}
			if tt.then != nil {
				tt.then(&p.westSite, &p.eastSite)
				p.writeYAML(p.westSite, p.eastSite)
			}
			before := hostState(t, p.West)
			code, out := runOn(t, p.West, with("1", tt.have...), "run", "-c", filepath.Join(p.dir, "west.yaml"))
			if code != 1 {
				t.Errorf("exit code %d, want 1", code)
			}
			for _, w := range tt.want {
				if !strings.Contains(out, w) {
					t.Errorf("output lacks %q:\n%s", w, out)
				}
			}
			if d := difference(before, hostState(t, p.West)); d != "" {
				t.Errorf("it has changed the host:\n%s", d)
			}
		})
	}
}

// onlyHas fails unless every thread of a gateway has exactly these capabilities,
// can gain none, and is a thread of a process that others cannot look into.
func onlyHas(t *testing.T, g *lab.Gateway, capabilities uint64) {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", g.PID()))
	if err != nil || len(threads) < 2 {
		t.Fatalf("threads of %s: %v, %v", g.Name, threads, err)
	}
	for _, path := range threads {
		status, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // it has ended
		}
		if err != nil {
			t.Fatal(err)
		}
		mustMatch(t, string(status), `^NoNewPrivs:\t1$`,
			fmt.Sprintf(`^CapEff:\t%016x$`, capabilities), fmt.Sprintf(`^CapPrm:\t%016x$`, capabilities))
	}
}

// TestCapabilitiesKept: a gateway of root's keeps three capabilities, and two
// where the rules are not its own.
func TestCapabilitiesKept(t *testing.T) {
	for firewall, want := range map[string]uint64{
		"nftables": 1<<unix.CAP_NET_RAW | 1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_NET_ADMIN,
		"iptables": 1<<unix.CAP_NET_RAW | 1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_NET_ADMIN,
		"none":     1<<unix.CAP_NET_RAW | 1<<unix.CAP_NET_BIND_SERVICE,
	} {
		t.Run(firewall, func(t *testing.T) {
			p := newWorld(t, onFirewall(firewall))
			p.startWest()
			onlyHas(t, p.west, want)
			awaitLog(t, p.west, "hardened", "CAP_NET_RAW")
		})
	}
}

// probe is a hardened program in place of a gateway: what becomes of opening
// files, starting programs and so on, from many threads at once, as JSON.
func probe(configuration string, attempts []string) error {
	cfg, err := config.Load(configuration)
	if err != nil {
		return err
	}
	restrictions, err := daemon.Harden(cfg)
	if err != nil {
		return err
	}
	results := map[string]string{"landlock": fmt.Sprint(restrictions.Landlock)}
	var mu sync.Mutex
	var all, ready sync.WaitGroup
	const threads = 64
	ready.Add(threads)
	for range threads {
		all.Go(func() {
			runtime.LockOSThread()
			ready.Done()
			ready.Wait() // every goroutine has a thread of its own now
			for _, a := range attempts {
				result := try(a)
				mu.Lock()
				if old, ok := results[a]; ok && old != result {
					result = old + ", and " + result
				}
				results[a] = result
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return json.NewEncoder(os.Stdout).Encode(results)
}

// try does one thing, "read PATH" say, and tells how it ended.
func try(attempt string) string {
	what, path, _ := strings.Cut(attempt, " ")
	var err error
	switch what {
	case "read":
		_, err = os.ReadFile(path)
	case "list":
		_, err = os.ReadDir(path)
	case "write":
		err = os.WriteFile(path, nil, 0o600)
	case "append":
		var f *os.File
		if f, err = os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			f.Close()
		}
	case "run":
		err = exec.Command(path).Run()
	case "make":
		err = os.Mkdir(path, 0o700)
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	return fmt.Sprint(err)
}

// TestFileSystemIsClosed: no thread of a gateway reaches a file that it does not
// need, though its user may; with iptables, and only then, it runs programs.
func TestFileSystemIsClosed(t *testing.T) {
	program, err := exec.LookPath("true")
	if err != nil {
		t.Fatal(err)
	}
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			p := newWorld(t, onFirewall(backend))
			p.write(p.westSite, p.eastSite)
			secret := filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(secret, []byte("not for gateways"), 0o644); err != nil {
				t.Fatal(err)
			}
			const refused, done = "permission denied", "<nil>"
			runs := map[string]string{"nftables": refused, "iptables": done}[backend]
			want := map[string]string{
				"read " + secret:                             refused,
				"append " + secret:                           refused,
				"write " + secret + "2":                      refused,
				"list " + filepath.Dir(secret):               refused,
				"list /":                                     refused,
				"make " + filepath.Join(p.dir, "new"):        refused,
				"write " + filepath.Join(p.dir, "new.pem"):   refused,
				"append " + filepath.Join(p.dir, "west.key"): refused,
				"append /proc/sys/net/ipv4/ip_forward":       refused,
				"run " + program:                             runs,
				"read " + filepath.Join(p.dir, "west.key"):   done,
				"read " + filepath.Join(p.dir, "west.yaml"):  done,
				"read /etc/passwd":                           done,
				"read /proc/self/status":                     done,
				"append /dev/null":                           done,
			}
			var attempts []string
			for a := range want {
				attempts = append(attempts, a)
			}
			code, out := runOn(t, p.West, "probe", append([]string{filepath.Join(p.dir, "west.yaml")}, attempts...)...)
			got := map[string]string{}
			if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 {
				t.Fatalf("exit code %d, %v\n%s", code, err, out)
			}
			if got["landlock"] == "0" {
				if daemon.LandlockVersion() > 0 {
					t.Fatal("the kernel has Landlock, and the gateway does not use it")
				}
				for a, w := range want { // then nothing is refused that is not a file's own affair
					if w == refused {
						delete(want, a)
					}
				}
			}
			for a, w := range want {
				if got[a] != w {
					t.Errorf("%s: %s, want %s", a, got[a], w)
				}
			}
			// The control: it is not the file that refuses.
			if got := try("read " + secret); got != done {
				t.Errorf("without restrictions: %s", got)
			}
		})
	}
}

// TestSwappedIdentity: an identity that is a mounted volume of Kubernetes', whose
// directory is a link that turns, is followed to where it goes.
func TestSwappedIdentity(t *testing.T) {
	p := newWorld(t)
	ids := filepath.Join(t.TempDir(), "ids")
	put := func(version string) {
		t.Helper()
		p.write(p.westSite, p.eastSite)
		if err := os.MkdirAll(filepath.Join(ids, version), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"west.pem", "west.key", "west.bundle.pem"} {
			if err := os.Rename(filepath.Join(p.dir, name), filepath.Join(ids, version, name)); err != nil {
				t.Fatal(err)
			}
		}
		next := filepath.Join(ids, "..next")
		if err := errors.Join(os.Symlink(version, next), os.Rename(next, filepath.Join(ids, "..data"))); err != nil {
			t.Fatal(err)
		}
	}
	put("..1")
	configuration := filepath.Join(p.dir, "west.yaml")
	text, err := os.ReadFile(configuration)
	if err != nil {
		t.Fatal(err)
	}
	data := strings.NewReplacer("cert: west.pem", "cert: "+ids+"/..data/west.pem", "key: west.key", "key: "+ids+"/..data/west.key",
		"bundle: west.bundle.pem", "bundle: "+ids+"/..data/west.bundle.pem").Replace(string(text))
	if err := os.WriteFile(configuration, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
	p.west = p.startAs(p.West, "west")
	p.startEast()
	ln := listen(t, p.Server, web)
	live := p.open(ln)
	put("..2")
	if err := os.RemoveAll(filepath.Join(ids, "..1")); err != nil {
		t.Fatal(err)
	}
	awaitLog(t, p.west, "identity updated", "gateway/west")
	exchange(t, live.client, live.server)
	p.open(ln).end(t)
}

// TestAdminSocketRefusesOthers: who is neither root, nor the gateway's user, nor
// in its group, gets no answer, even where the socket's mode would let him.
func TestAdminSocketRefusesOthers(t *testing.T) {
	p := newWorld(t)
	p.startWest()
	socket := p.west.AdminPath()
	info, err := os.Stat(socket)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o660 {
		t.Errorf("the socket's mode is %v, want 0660", info.Mode().Perm())
	}
	mustMatch(t, wishbone(t, p.west, p.West, "status"), `^gateway +west`)
	post(t, p.west)
	if !otherUsers(t) {
		return // the rest is in TestDoor of cmd/wishbone/daemon
	}
	if err := errors.Join(os.Chmod(filepath.Dir(p.dir), 0o755), os.Chmod(socket, 0o666)); err != nil {
		t.Fatal(err)
	}
	code, out := runOn(t, p.West, with("1", "nobody"), "status", "--admin", socket)
	if code != 1 || !strings.Contains(out, "gateway: user 65534 may not ask: that is for root, user 0 and group 0") {
		t.Errorf("nobody: exit code %d\n%s", code, out)
	}
	if err := os.Chown(socket, -1, nobodyID); err != nil { // the door has been hung already
		t.Fatal(err)
	}
	if code, _ := runOn(t, p.West, with("1", "nobody"), "status", "--admin", socket); code != 1 {
		t.Errorf("after the socket has changed hands: exit code %d", code)
	}
}

// post sees that nothing is changed over the admin socket: there is nothing yet.
func post(t *testing.T, g *lab.Gateway) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", g.AdminPath())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("POST /status HTTP/1.0\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 64)
	n, err := c.Read(answer)
	if err != nil || !strings.HasPrefix(string(answer[:n]), "HTTP/1.0 405 ") {
		t.Errorf("POST: %q, %v", answer[:n], err)
	}
}

// TestDoctorOnPrivileges: the doctor goes through the capabilities, what each is
// for, and how to get those that are missing.
func TestDoctorOnPrivileges(t *testing.T) {
	p := newWorld(t, longLived)
	p.applyRules()
	p.startEast()
	ask := func(capabilities ...string) string {
		t.Helper()
		code, out := runOn(t, p.West, with("1", capabilities...), "doctor", "-c", filepath.Join(p.dir, "west.yaml"))
		if want := len(capabilities) == 0; (code == 1) != want {
			t.Errorf("with %v: exit code %d\n%s", capabilities, code, out)
		}
		return out
	}
	mustMatch(t, ask("net_raw", "net_admin", "net_bind_service"), `^ok +capabilities +CAP_NET_RAW: a transparent socket`,
		`^ok +capabilities +CAP_NET_ADMIN: rules can be installed`, `^ok +capabilities +CAP_NET_BIND_SERVICE: ports below 1024`,
		`^(ok|warn) +landlock +`, `^ok +user namespaces +`, `^ok +firewall +nftables can be used`)
	mustMatch(t, ask("net_raw"), `^ok +capabilities +CAP_NET_RAW`,
		`^warn +capabilities +no CAP_NET_ADMIN: the rules that stand can be used`, `→ setcap cap_net_admin,cap_net_raw\+ep wishbone; in a unit: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW`,
		`^warn +capabilities +no CAP_NET_BIND_SERVICE`, `→ setcap cap_net_bind_service,cap_net_raw\+ep`,
		`^ok +firewall +wishbone rules apply has installed`, `^ok +peer east `)
	mustMatch(t, ask(), `^fail +capabilities +missing capability CAP_NET_RAW`, `→ run as root, or give the binary what it needs: setcap cap_net_raw\+ep`)
	if code, out := runOn(t, p.West, "1", "rules", "remove", "-c", filepath.Join(p.dir, "west.yaml")); code != 0 {
		t.Fatalf("rules remove: exit code %d\n%s", code, out)
	}
	code, out := runOn(t, p.West, with("1", "net_raw"), "doctor", "-c", filepath.Join(p.dir, "west.yaml"))
	if code != 1 {
		t.Errorf("without rules: exit code %d", code)
	}
	mustMatch(t, out, `^fail +capabilities +missing capability CAP_NET_ADMIN: rules cannot be installed`, `→ run as root, .*wishbone rules apply`)
}
