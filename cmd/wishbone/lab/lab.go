package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/e2e/netlab"
	"wishbone/identity/identitytest"
)

// domain is the trust domain of the lab.
const domain = "lab.example"

// tunnelPort is where the gateways meet.
const tunnelPort = 15008

// page is the port of the server's page.
const page = 80

// Lab is the network, the two gateways and the server.
type Lab struct {
	World      *netlab.World
	West, East *Gateway
	dir        string
	web        http.Server
	listeners  []net.Listener
	shown      bool // a connection has been shown, and the tunnel is up
}

// site is one side of the lab, as its gateway's configuration has it.
type site struct {
	name, endpoint string
	networks       string
}

var west = site{"west", "192.0.2.10:15008", `[10.1.0.0/16, "fd00:1::/64"]`}
var east = site{"east", "192.0.2.20:15008", `[10.2.0.0/16, "fd00:2::/64"]`}

// configuration is what a user would write for self, with other as its peer.
func configuration(self, other site, dir string) string {
	return fmt.Sprintf(`version: 1
name: %[1]s
identity:
  files: {cert: %[1]s.pem, key: %[1]s.key, bundle: %[1]s.bundle.pem}
networks: %[2]s
listen:
  admin: %[7]s/%[1]s.sock
peers:
  - name: %[3]s
    ids: [spiffe://%[4]s/gateway/%[3]s]
    endpoints: ["%[5]s"]
    networks: %[6]s
drain: {grace: 2s}
`, self.name, self.networks, other.name, domain, other.endpoint, other.networks, dir)
}

// New builds the network and starts everything in it; the program must have
// called netlab.Enter. dir must exist; what is written there lies in memory and
// ends with the program. env is added to the gateways' environment. The caller
// closes the lab.
func New(ctx context.Context, dir string, env ...string) (*Lab, error) {
	// A file system of our own on top: private keys never reach a disk, and
	// nothing has to be cleaned up after a kill.
	if err := unix.Mount("lab", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return nil, fmt.Errorf("lab: mount a file system in memory on %s: %w", dir, err)
	}
	l := &Lab{dir: dir}
	if err := l.build(ctx, env); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// build makes everything in the lab, and waits until the gateways are ready.
func (l *Lab) build(ctx context.Context, env []string) (err error) {
	if l.World, err = netlab.NewWorld(netlab.WorldConfig{}); err != nil {
		return err
	}
	if err := l.serve(); err != nil {
		return err
	}
	authority := identitytest.New(domain)
	if l.West, err = l.start(authority, l.World.West, west, east, env); err != nil {
		return err
	}
	if l.East, err = l.start(authority, l.World.East, east, west, env); err != nil {
		return err
	}
	return errors.Join(l.West.AwaitReady(ctx), l.East.AwaitReady(ctx))
}

// start writes a gateway's files and starts it.
func (l *Lab) start(a *identitytest.Authority, h *netlab.Host, self, other site, env []string) (*Gateway, error) {
	if _, _, _, err := a.WriteFiles(l.dir, self.name, "/gateway/"+self.name); err != nil {
		return nil, fmt.Errorf("lab: write the identity of %s: %w", self.name, err)
	}
	text := configuration(self, other, l.dir)
	if err := os.WriteFile(filepath.Join(l.dir, self.name+".yaml"), []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return StartGateway(h, GatewayConfig{Name: self.name, Dir: l.dir, Env: env})
}

// serve shows a page on the server that says whom the server has seen.
func (l *Lab) serve() error {
	l.web.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s, this is %s\n%s\n", r.RemoteAddr, r.Context().Value(http.LocalAddrContextKey), r.URL.Query().Get("marker"))
	})
	for _, a := range []netip.Addr{netlab.Server4, netlab.Server6} {
		ln, err := l.World.Server.Listen("tcp", netip.AddrPortFrom(a, page).String())
		if err != nil {
			return fmt.Errorf("lab: serve a page: %w", err)
		}
		l.listeners = append(l.listeners, ln)
		go l.web.Serve(ln) // ends with Close; nothing else is to be learned from its error
	}
	return nil
}

// visit is one page fetched: what each end saw.
type visit struct {
	client, server netip.AddrPort // as the client saw them
	seen           netip.AddrPort // the client, as the server saw it
	body           string
}

// fetchTime bounds one page.
const fetchTime = 10 * time.Second

// fetch gets the page from the client host, with a marker that can be searched
// for in packets. while is called with the connection still open.
func (l *Lab) fetch(ctx context.Context, server netip.Addr, marker string, while func() error) (visit, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	var v visit
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := l.World.Client.Dial(ctx, network, address)
			if err == nil {
				v.client = netip.MustParseAddrPort(conn.LocalAddr().String())
				v.server = netip.MustParseAddrPort(conn.RemoteAddr().String())
			}
			return conn, err
		},
	}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet,
		"http://"+netip.AddrPortFrom(server, page).String()+"/?marker="+marker, nil)
	if err != nil {
		return v, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return v, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return v, err
	}
	v.body = string(body)
	var seen string
	if _, err := fmt.Sscanf(v.body, "hello %s this is", &seen); err != nil {
		return v, fmt.Errorf("the page says %q", v.body)
	}
	if v.seen, err = netip.ParseAddrPort(seen[:len(seen)-1]); err != nil {
		return v, err
	}
	return v, while()
}

// Close stops the gateways, the server and the network.
func (l *Lab) Close() error {
	var errs []error
	for _, g := range []*Gateway{l.West, l.East} {
		if g != nil {
			errs = append(errs, g.Kill())
		}
	}
	if l.World != nil {
		errs = append(errs, l.web.Close(), l.World.Close())
	}
	return errors.Join(append(errs, unix.Unmount(l.dir, unix.MNT_DETACH))...)
}
