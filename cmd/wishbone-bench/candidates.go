package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"text/template"
	"time"

	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
)

// candidate is something that carries TCP from west to east.
type candidate struct {
	name string
	what string // for the report
	// start starts it on both hosts. Its ports are numbered from port.
	start func(w *world, ctx context.Context, g *gateways, port uint16) error
}

var candidates = []candidate{
	{"direct", "no proxy", (*world).direct},
	{"relay", "two plain relays, without TLS, through a buffer each", (*world).relays},
	{"wishbone", "this", (*world).wishbone},
	{"envoy", "Envoy, HTTP/2 CONNECT over mutual TLS, one worker", (*world).envoy},
	{"haproxy", "HAProxy, TCP over mutual TLS, one thread", (*world).haproxy},
	{"stunnel", "stunnel, TCP over mutual TLS", (*world).stunnel},
	{"nebula", "Nebula, an overlay of layer 3 in user space", (*world).nebula},
}

// gateways is a running candidate.
type gateways struct {
	name       string
	at         netip.AddrPort // where the client connects to
	from       netip.Addr     // and from; not valid: whatever it has
	west, east []process
	start      func(context.Context) error
}

// restart starts the candidate anew.
func (g *gateways) restart(ctx context.Context) error {
	g.stop()
	g.west, g.east = nil, nil
	return g.start(ctx)
}

// process is one that a gateway is made of.
type process interface {
	PID() int
	// Kill ends it and waits.
	Kill() error
}

// program is a process of somebody else's program.
type program struct{ *exec.Cmd }

func (p program) PID() int { return p.Process.Pid }

func (p program) Kill() error {
	err := p.Process.Kill()
	// How it has ended is of no interest.
	_ = p.Wait()
	return err
}

// errMissing says that a candidate is not on this machine.
var errMissing = errors.New("is not installed")

// start starts the candidates that were chosen. Those that are not installed are
// left out, and it is said.
func (w *world) start(ctx context.Context, only []string) ([]*gateways, error) {
	for i, c := range candidates {
		if !slices.Contains(only, c.name) {
			continue
		}
		g := &gateways{name: c.name}
		g.start = func(ctx context.Context) error {
			if err := c.start(w, ctx, g, uint16(10_000+100*i)); err != nil {
				return err
			}
			return w.answers(ctx, g)
		}
		w.running = append(w.running, g)
		err := g.start(ctx)
		if errors.Is(err, errMissing) {
			fmt.Fprintf(os.Stderr, "wishbone-bench: LEFT OUT: %s: %v\n", c.name, err)
			w.running = w.running[:len(w.running)-1]
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("start %s: %w\n%s", c.name, err, w.logs(c.name))
		}
	}
	return w.running, nil
}

// answers waits until a candidate carries.
func (w *world) answers(ctx context.Context, g *gateways) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := w.west.Do(func() error { _, err := roundTrip(g); return err })
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("it does not carry: %w", err)
		case <-tick.C:
		}
	}
}

func (g *gateways) stop() {
	for _, p := range slices.Concat(g.west, g.east) {
		_ = p.Kill() // an error says that it has ended
	}
}

// launch starts a program on a host, with its output in a file.
func (w *world) launch(h *netlab.Host, name, what string, args ...string) (*exec.Cmd, error) {
	path, err := exec.LookPath(what)
	if err != nil {
		return nil, fmt.Errorf("%s %w", what, errMissing)
	}
	log, err := os.OpenFile(w.path(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = w.dir, log, log
	return cmd, h.Start(cmd)
}

// both starts a program on both hosts; args has its arguments on each.
func (w *world) both(g *gateways, what string, args func(side string) []string) error {
	for _, s := range []struct {
		side string
		host *netlab.Host
		all  *[]process
	}{{"east", w.east, &g.east}, {"west", w.west, &g.west}} {
		cmd, err := w.launch(s.host, g.name+"-"+s.side, what, args(s.side)...)
		if err != nil {
			return err
		}
		*s.all = append(*s.all, program{cmd})
	}
	return nil
}

// logs is what a candidate's programs have said.
func (w *world) logs(name string) string {
	var all bytes.Buffer
	for _, side := range []string{"west", "east"} {
		file := name + "-" + side
		if name == "wishbone" {
			file = side
		}
		if b, err := os.ReadFile(w.path(file + ".log")); err == nil {
			fmt.Fprintf(&all, "%s:\n%s", side, b[max(0, len(b)-20000):])
		}
	}
	return all.String()
}

// config writes a configuration out of a template.
func (w *world) config(name, text string, data any) (path string, err error) {
	t, err := template.New(name).Parse(text)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, data); err != nil {
		return "", err
	}
	path = w.path(name)
	return path, os.WriteFile(path, out.Bytes(), 0o600)
}

// setup is what the templates of configurations have.
type setup struct {
	Dir, Domain          string
	Local, Remote        netip.AddrPort // where the client connects to, where the gateways meet
	Target               netip.AddrPort
	WestOuter, EastOuter netip.Addr
}

func (w *world) setup(port uint16) setup {
	return setup{w.dir, domain, netip.AddrPortFrom(westOuter, port), netip.AddrPortFrom(eastOuter, port+1),
		netip.AddrPortFrom(eastOuter, loadPort), westOuter, eastOuter}
}

func (w *world) direct(_ context.Context, g *gateways, _ uint16) error {
	g.at = netip.AddrPortFrom(eastOuter, loadPort)
	return nil
}

func (w *world) relays(_ context.Context, g *gateways, port uint16) error {
	s := w.setup(port)
	g.at = s.Local
	return w.both(g, "/proc/self/exe", func(side string) []string {
		if side == "west" {
			return []string{relayCommand, s.Local.String(), s.Remote.String()}
		}
		return []string{relayCommand, s.Remote.String(), s.Target.String()}
	})
}

// wishbone is as a user has it: rules, policy, metrics and the log of connections
// are on.
func (w *world) wishbone(ctx context.Context, g *gateways, port uint16) error {
	g.at, g.from = netip.AddrPortFrom(eastInner, loadPort), westInner
	early := ""
	if w.early {
		early = "earlyData: true\n"
	}
	for _, s := range []struct {
		side, other           string
		own, peer, at, peerAt netip.Addr
		host                  *netlab.Host
	}{
		{"east", "west", eastInner, westInner, eastOuter, westOuter, w.east},
		{"west", "east", westInner, eastInner, westOuter, eastOuter, w.west},
	} {
		text := fmt.Sprintf(`version: 1
name: %[1]s
identity: {files: {cert: %[1]s.pem, key: %[1]s.key, bundle: %[1]s.bundle.pem}}
networks: [%[3]s]
listen: {admin: %[5]s/%[1]s.sock}
%[9]speers:
  - name: %[2]s
    ids: [spiffe://%[6]s/gateway/%[2]s]
    endpoints: ["%[7]s:15008"]
    networks: [%[4]s]
policy:
  - {name: load, action: allow, from: {ids: ["spiffe://%[6]s/gateway/*"]}, to: {ports: [%[8]d]}}
`, s.side, s.other, network(s.own), network(s.peer), w.dir, domain, s.peerAt, loadPort, early)
		if err := os.WriteFile(w.path(s.side+".yaml"), []byte(text), 0o600); err != nil {
			return err
		}
		gw, err := lab.StartGateway(s.host, lab.GatewayConfig{Name: s.side, Dir: w.dir, Env: w.env})
		if err != nil {
			return err
		}
		if s.side == "west" {
			g.west = []process{gw}
		} else {
			g.east = []process{gw}
		}
		if err := gw.AwaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// network is the one that a site owns.
func network(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, 16).Masked() }

func (w *world) envoy(_ context.Context, g *gateways, port uint16) error {
	s := w.setup(port)
	g.at = s.Local
	return w.configured(g, cmp.Or(os.Getenv("WISHBONE_ENVOY"), "envoy"), s, envoyWest, envoyEast, func(side, file string) []string {
		id := strconv.Itoa(int(port))
		return []string{"-c", file, "--concurrency", "1", "--log-level", "error", "--disable-hot-restart", "--service-node", side + id}
	})
}

func (w *world) haproxy(_ context.Context, g *gateways, port uint16) error {
	s := w.setup(port)
	g.at = s.Local
	return w.configured(g, "haproxy", s, haproxyWest, haproxyEast, func(_, file string) []string { return []string{"-db", "-f", file} })
}

func (w *world) stunnel(_ context.Context, g *gateways, port uint16) error {
	s := w.setup(port)
	g.at = s.Local
	return w.configured(g, "stunnel", s, stunnelWest, stunnelEast, func(_, file string) []string { return []string{file} })
}

// configured starts a program on both hosts, each with its configuration. Some of
// them want the name of YAML for YAML, and the others do not mind.
func (w *world) configured(g *gateways, what string, s setup, west, east string, args func(side, file string) []string) error {
	files := map[string]string{}
	for side, text := range map[string]string{"west": west, "east": east} {
		file, err := w.config(g.name+"-"+side+".yaml", text, s)
		if err != nil {
			return err
		}
		files[side] = file
	}
	return w.both(g, what, func(side string) []string { return args(side, files[side]) })
}

// nebula has a network of its own, 10.9.0.0/24, through which the client reaches
// the server at its other address.
func (w *world) nebula(_ context.Context, g *gateways, port uint16) error {
	g.at = netip.MustParseAddrPort("10.9.0.2:" + strconv.Itoa(loadPort))
	if _, err := os.Stat(w.path("nebula-ca.crt")); err != nil { // else they are there from the first start
		if err := w.nebulaIdentities(); err != nil {
			return err
		}
	}
	s := w.setup(port)
	return w.configured(g, "nebula", s, nebulaWest, nebulaEast, func(_, file string) []string { return []string{"-config", file} })
}

func (w *world) nebulaIdentities() error {
	if _, err := exec.LookPath("nebula-cert"); err != nil {
		return fmt.Errorf("nebula %w", errMissing)
	}
	for _, args := range [][]string{
		{"ca", "-name", "bench", "-out-crt", "nebula-ca.crt", "-out-key", "nebula-ca.key"},
		{"sign", "-ca-crt", "nebula-ca.crt", "-ca-key", "nebula-ca.key", "-name", "west", "-ip", "10.9.0.1/24", "-out-crt", "nebula-west.crt", "-out-key", "nebula-west.key"},
		{"sign", "-ca-crt", "nebula-ca.crt", "-ca-key", "nebula-ca.key", "-name", "east", "-ip", "10.9.0.2/24", "-out-crt", "nebula-east.crt", "-out-key", "nebula-east.key"},
	} {
		cmd := exec.Command("nebula-cert", args...)
		cmd.Dir = w.dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nebula-cert: %w: %s", err, out)
		}
	}
	return nil
}

// relayCommand is how this program is called to be a relay.
const relayCommand = "plain-relay"

// relay copies between the connections that it accepts and those it makes for them.
func relay(args []string) error {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // what the others' listeners do not do either
	ln, err := lc.Listen(context.Background(), "tcp", args[0])
	if err != nil {
		return err
	}
	for {
		near, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() { // ends with the connections
			defer near.Close()
			far, err := net.Dial("tcp", args[1])
			if err != nil {
				return
			}
			defer far.Close()
			done := make(chan struct{})
			go func() {
				pass(far.(*net.TCPConn), near.(*net.TCPConn))
				close(done)
			}()
			pass(near.(*net.TCPConn), far.(*net.TCPConn))
			<-done
		}()
	}
}

// pass copies one direction through a buffer, as a relay that looks at its bytes
// has to.
func pass(to, from *net.TCPConn) {
	buf := make([]byte, chunk)
	for {
		n, err := from.Read(buf)
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			// Whatever it was, the other side hears of an end.
			_ = to.CloseWrite()
			return
		}
	}
}
