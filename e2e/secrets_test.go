package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/sys/unix"

	"wishbone/e2e/netlab"
	"wishbone/identity/workload/workloadtest"
)

// key is a private key in all the forms that a program may let slip: as it is, as
// PEM, as hexadecimal, as base64, as a list of numbers; whole, and what is secret
// of it alone.
type key map[string]string // by the name of the form

func formsOf(t *testing.T, pkcs8 []byte) key {
	t.Helper()
	parsed, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := parsed.(*ecdsa.PrivateKey).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	k := key{}
	for what, b := range map[string][]byte{"key": pkcs8, "scalar": scalar} {
		k[what+" as it is"] = string(b)
		k[what+" in hex"] = hex.EncodeToString(b)
		k[what+" in hex with colons"] = strings.ReplaceAll(fmt.Sprintf("% x", b), " ", ":")
		k[what+" as numbers"] = strings.Trim(fmt.Sprint(b), "[]")
		k[what+" as a big number"] = new(big.Int).SetBytes(b).String()
		// Base64 of a part of something else has three forms; a part of each will do.
		for offset := range 3 {
			text := base64.RawStdEncoding.EncodeToString(b[offset:])
			k[fmt.Sprintf("%s in base64, %d off", what, offset)] = text[4 : len(text)-4]
			k[fmt.Sprintf("%s in base64 for URLs, %d off", what, offset)] = strings.NewReplacer("+", "-", "/", "_").Replace(text[4 : len(text)-4])
		}
	}
	lines := strings.Split(strings.TrimSpace(string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))), "\n")
	for i, line := range lines[1 : len(lines)-1] {
		k[fmt.Sprintf("line %d of the PEM", i+1)] = line
	}
	return k
}

// keyIn reads the private key in a file.
func keyIn(t *testing.T, path string) key {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	return formsOf(t, block.Bytes)
}

// in names the forms of a key that are in a text, in letters of either size.
func (k key) in(text string) (found []string) {
	lower := strings.ToLower(text)
	for name, form := range k {
		if strings.Contains(text, form) || strings.Contains(name, "hex") && strings.Contains(lower, form) {
			found = append(found, name)
		}
	}
	return found
}

// TestNoKeyLeavesTheGateway: a private key is in nothing that a gateway says, at
// the level debug, to whomever, in good times and bad.
func TestNoKeyLeavesTheGateway(t *testing.T) {
	p := newWorld(t, longLived)
	socket := filepath.Join(p.dir, "agent.sock")
	p.eastSite.workloadAPI = "unix://" + socket
	agent, err := workloadtest.Start(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(agent.Stop)
	svid := p.authority.Issue("/gateway/east")
	_, der, err := svid.MarshalRaw()
	if err != nil {
		t.Fatal(err)
	}
	agent.Give([]*x509svid.SVID{svid}, p.authority.Bundle())
	p.startWest()
	p.startEast()
	keys := []key{keyIn(t, filepath.Join(p.dir, "west.key")), formsOf(t, der)}

	ln := listen(t, p.Server, web)
	p.open(ln).end(t)
	refused(t, p.Client, netip.AddrPortFrom(netlab.Server4, 8081)) // no listener
	var said strings.Builder
	say := func(what, text string) { fmt.Fprintf(&said, "== %s\n%s\n", what, text) }
	for name, h := range map[string]*netlab.Host{"west": p.West, "east": p.East} {
		for _, url := range []string{"http://127.0.0.1:15020/metrics", "http://127.0.0.1:15021/healthz/ready", "http://127.0.0.1:15021/healthz/live", "http://127.0.0.1:15020/debug/pprof/heap"} {
			_, body := get(t, h, url)
			say(name+" "+url, body)
		}
		admin := filepath.Join(p.dir, name+".sock")
		for _, args := range [][]string{{"status"}, {"status", "-o", "json"}, {"flows", "-o", "json"}, {"explain", "10.1.0.2", "10.2.0.2:8080", "-o", "json"}} {
			_, out := runOn(t, h, "1", append(args, "--admin", admin)...)
			say(name+" "+strings.Join(args, " "), out)
		}
		for _, args := range [][]string{{"doctor"}, {"check"}, {"rules"}} {
			_, out := runOn(t, h, "1", append(args, "-c", filepath.Join(p.dir, name+".yaml"))...)
			say(name+" "+args[0], out)
		}
	}
	// Bad times: another key, one that does not fit, and one where none belongs.
	p.write(p.westSite, p.eastSite)
	keys = append(keys, keyIn(t, filepath.Join(p.dir, "west.key")))
	awaitLog(t, p.west, "identity updated")
	good, err := os.ReadFile(filepath.Join(p.dir, "west.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.dir, "west.pem"), good, 0o600); err != nil {
		t.Fatal(err)
	}
	awaitLog(t, p.west, "identity files not taken")
	code, out := runOn(t, p.West, "1", "doctor", "-c", filepath.Join(p.dir, "west.yaml"))
	if code != 1 {
		t.Errorf("doctor, with a key in place of the certificate: exit code %d", code)
	}
	say("doctor in bad times", out)
	if err := os.WriteFile(filepath.Join(p.dir, "west.yaml"), good, 0o600); err != nil {
		t.Fatal(err)
	}
	hangUp(t, p.west)
	awaitLog(t, p.west, "reload failed")
	if err := p.east.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	exitCode(t, p.east)
	if err := p.west.Signal(unix.SIGQUIT); err != nil { // the runtime's own dump
		t.Fatal(err)
	}
	exitCode(t, p.west)
	if !strings.Contains(p.west.Log(), "goroutine ") {
		t.Error("SIGQUIT has dumped nothing")
	}
	say("log of west", p.west.Log())
	say("log of east", p.east.Log())
	for i, k := range keys {
		if len(k.in(string(good))) == 0 && i == len(keys)-1 {
			t.Error("the key is not found in its own file: the test sees nothing")
		}
		if found := k.in(said.String()); len(found) > 0 {
			t.Errorf("key %d has been said: %q", i, found)
		}
	}
}

// TestMemoryIsClosed: another process of the same user with the same capabilities
// can look into neither a gateway's memory nor its environment.
func TestMemoryIsClosed(t *testing.T) {
	p := newWorld(t)
	p.startWest()
	capabilities := []string{"net_raw", "net_admin", "net_bind_service"}
	looks := func(pid int, file string) bool {
		t.Helper()
		code, out := runOn(t, p.West, with("open", capabilities...), fmt.Sprintf("/proc/%d/%s", pid, file))
		if code != 0 && !strings.Contains(out, "permission denied") {
			t.Fatalf("open %s: exit code %d\n%s", file, code, out)
		}
		return code == 0
	}
	other := p.stay(with("stay", capabilities...))
	// ptrace(2), "Ptrace access mode checking": reading asks for less than memory.
	for _, file := range []string{"environ", "maps", "mem"} {
		if looks(p.west.PID(), file) {
			t.Errorf("a gateway's %s can be opened", file)
		}
	}
	if !looks(other, "environ") {
		t.Error("that of an ordinary process cannot be opened either: the test sees nothing")
	}
}

// stay starts a process on west that does nothing until the test ends.
func (p *pair) stay(mode string) (pid int) {
	p.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), runVar+"="+mode)
	in, err := cmd.StdinPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.West.Start(cmd); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			p.t.Error(err)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "here\n" {
		p.t.Fatalf("it says %q, %v", line, err)
	}
	return cmd.Process.Pid
}
