package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"wishbone/e2e/netlab"
	"wishbone/identity/workload/workloadtest"
)

// key is a secret in all the forms that a program may let slip: as it is, as PEM,
// as hexadecimal, as base64, as a list of numbers; of a private key the whole, and
// what is secret of it alone.
type key map[string]string // by the name of the form

// add adds the forms of b.
func (k key) add(what string, b []byte) {
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
		k.add(what, b)
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
	p.interview(t, say)
	for name, h := range map[string]*netlab.Host{"west": p.West, "east": p.East} {
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

// interview asks both gateways for all that they tell.
func (p *pair) interview(t *testing.T, say func(what, text string)) {
	t.Helper()
	for name, h := range map[string]*netlab.Host{"west": p.West, "east": p.East} {
		for _, url := range []string{"http://127.0.0.1:15020/metrics", "http://127.0.0.1:15021/healthz/ready", "http://127.0.0.1:15021/healthz/live", "http://127.0.0.1:15020/debug/pprof/heap"} {
			_, body := get(t, h, url)
			say(name+" "+url, body)
		}
		admin := filepath.Join(p.dir, name+".sock")
		for _, args := range [][]string{{"status"}, {"status", "-o", "json"}, {"flows"}, {"flows", "-o", "json"}, {"explain", "10.1.0.2", "10.2.0.2:8080", "-o", "json"}} {
			_, out := runOn(t, h, "1", append(args, "--admin", admin)...)
			say(name+" "+strings.Join(args, " "), out)
		}
	}
}

// TestNoPayloadLeavesTheGateway: what connections carry is in nothing that a
// gateway says or writes, at the level debug, with the record of its decisions on:
// whether they are carried, cut, refused, or reset at once.
func TestNoPayloadLeavesTheGateway(t *testing.T) {
	const deny = "{name: no-telnet, action: deny, to: {ports: [23]}}"
	p := newPair(t, withAudit(deny))
	marker := []byte("the payload's marker, 7f3a9c51e0d2b846, in plain words")
	secret := key{}
	secret.add("marker", marker)
	tell := func(c net.Conn) { _, _ = c.Write(marker) } // one that is refused may be gone
	hear := func(c net.Conn) {
		t.Helper()
		got := make([]byte, len(marker))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != string(marker) {
			t.Fatalf("carried: %q, %v", got, err)
		}
	}
	both := func(c carried) {
		t.Helper()
		tell(c.client)
		hear(c.server)
		tell(c.server)
		hear(c.client)
	}

	ln := listenAll(t, p, netlab.Server4, 23, 8080, 8081)
	live, cut := p.connect(t, p.Client, ln[8080]), p.connect(t, p.Client, ln[8081])
	both(live)
	both(cut)
	both(p.connect(t, p.West, ln[8080]))
	for _, port := range []uint16{23, 9} { // denied, and nobody's
		if c, err := tryDial(t, p.Client, netip.AddrPortFrom(netlab.Server4, port)); err == nil {
			_, err := c.Write(marker)
			if err == nil { // else that was the reset, which is told once
				err = readEnd(t, c)
			}
			if !isReset(err) {
				t.Errorf("port %d: %v, want a reset", port, err)
			}
		}
	}
	early := dial(t, p.Client, web) // gone before it is answered, perhaps
	tell(early)
	if err := resetBy(early); err != nil {
		t.Fatal(err)
	}
	r := newRogue(p, "/gateway/west") // DATA before, and without, an answer
	r.buf.Reset()
	r.must(r.enc.WriteField(hpack.HeaderField{Name: ":method", Value: "CONNECT"}))
	r.must(r.enc.WriteField(hpack.HeaderField{Name: ":authority", Value: "10.2.0.2:23"}))
	r.must(r.enc.WriteField(hpack.HeaderField{Name: "forwarded", Value: `for="10.1.0.2:40000"`}))
	r.must(r.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.buf.Bytes(), EndHeaders: true}))
	r.must(r.framer.WriteData(1, false, marker))
	r.must(r.framer.WriteRawFrame(0xfa, 0, 1, marker)) // of a kind that nobody knows
	r.must(r.framer.WriteGoAway(0, http2.ErrCodeNo, marker))
	awaitLog(t, p.east, "target=10.2.0.2:23", "client=10.1.0.2:40000", "reason=policy_deny")
	// In the clear, where TLS should be.
	clear := dial(t, p.West, netip.MustParseAddrPort("192.0.2.20:15008"))
	tell(clear)
	if err := clear.CloseWrite(); err != nil && !errors.Is(err, unix.ENOTCONN) { // it may be refused already
		t.Fatal(err)
	}
	awaitLog(t, p.east, "tunnel refused")

	var said strings.Builder
	say := func(what, text string) { fmt.Fprintf(&said, "== %s\n%s\n", what, text) }
	p.interview(t, say) // while some live
	p.reloadPolicy(deny, "{name: closed, action: deny, to: {ports: [8081]}}")
	mustBreak(t, cut)
	if err := p.west.Signal(unix.SIGQUIT); err != nil { // the runtime's own dump
		t.Fatal(err)
	}
	exitCode(t, p.west)
	mustMatch(t, p.west.Log(), "^goroutine ")
	r.must(r.conn.NetConn().Close()) // east would wait for its goodbye
	if err := p.east.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	exitCode(t, p.east)
	files := p.filesIn(t, say)
	for _, want := range []string{"west.audit", "east.audit", "west.log", "east.log", "west.yaml"} {
		if !slices.Contains(files, want) {
			t.Errorf("%s is not among the files that were searched: %q", want, files)
		}
	}
	if found := secret.in(said.String()); len(found) > 0 {
		t.Errorf("what was carried has been said: %q", found)
	}
	say("control", fmt.Sprintf("%x", marker))
	if found := secret.in(said.String()); !slices.Equal(found, []string{"marker in hex"}) {
		t.Errorf("what is there is found as %q: the test sees nothing", found)
	}
}

// filesIn says all that is in the gateways' files, and names them.
func (p *pair) filesIn(t *testing.T, say func(what, text string)) (names []string) {
	t.Helper()
	err := filepath.WalkDir(p.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		say(path, string(data))
		names = append(names, d.Name())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
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
