package tunnel

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"wishbone/e2e/netlab"
	"wishbone/identity/authz"
	"wishbone/intercept"
	"wishbone/tunnel/record"
	"wishbone/tunnel/route"
)

func TestMain(m *testing.M) {
	if err := netlab.Enter(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := addresses(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// patience bounds every wait; none takes long unless something is broken.
const patience = 20 * time.Second

var (
	clients = netip.MustParsePrefix("10.1.0.0/16")
	servers = netip.MustParsePrefix("10.2.0.0/16")
	client  = netip.MustParseAddrPort("10.1.0.2:40000")
	target  = netip.MustParseAddrPort("10.2.0.2:8080")
)

// addresses makes all clients and all servers local to this host, so that no rules
// and no routers are needed: the servers' side is where the program itself is, and
// each clients' side is a host of its own, where the captured sockets live.
func addresses() error {
	for _, p := range []netip.Prefix{clients, servers} {
		dst, err := netlink.ParseIPNet(p.String())
		if err != nil {
			return err
		}
		r := &netlink.Route{Dst: dst, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST, LinkIndex: 1, Table: unix.RT_TABLE_LOCAL}
		if err := netlink.RouteAdd(r); err != nil {
			return fmt.Errorf("make %s local: %w", p, err)
		}
	}
	return nil
}

// end is a gateway and what it asks for.
type end struct {
	*Gateway
	t      *testing.T
	routes atomic.Pointer[route.Table]
	policy atomic.Pointer[authz.Policy]
}

// newEnd starts a gateway that ends with the test.
func newEnd(t *testing.T, cfg Config) *end {
	t.Helper()
	e := &end{t: t}
	e.setRoutes("east")
	e.setPolicy("west")
	cfg.Loops, cfg.Routes, cfg.Policy = cmp.Or(cfg.Loops, 2), e.routes.Load, e.policy.Load
	var err error
	if e.Gateway, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	e.Run()
	t.Cleanup(func() {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		e.Close(now)
	})
	return e
}

// setRoutes makes a peer the owner of the servers.
func (e *end) setRoutes(owner string) { e.setPeer(owner, idOf(owner)) }

// setPeer makes a peer with an ID the owner of the servers.
func (e *end) setPeer(owner string, id spiffeid.ID) {
	e.t.Helper()
	table, err := route.New(route.Config{Peers: []route.Peer{{
		Name: owner, IDs: []spiffeid.ID{id}, Endpoints: []string{owner}, Networks: []netip.Prefix{servers},
	}}})
	if err != nil {
		e.t.Fatal(err)
	}
	e.routes.Store(table)
}

// setPolicy makes a peer the owner of the clients.
func (e *end) setPolicy(owner string) { e.policy.Store(owns(e.t, owner)) }

// pair is a gateway for clients and one for servers.
type pair struct {
	t          *testing.T
	west, east *end
	peer       atomic.Pointer[end] // that west's next tunnel goes to
	dials      atomic.Int64
}

func newPair(t *testing.T, westCfg, eastCfg Config) *pair {
	t.Helper()
	p := &pair{t: t}
	p.east = newEnd(t, eastCfg)
	p.peer.Store(p.east)
	if westCfg.Dial == nil {
		westCfg.Dial = func(ctx context.Context, _ *route.Peer, _ string) (Session, error) {
			p.dials.Add(1)
			return join(t, ctx, "west", p.peer.Load())
		}
	}
	p.west = newEnd(t, westCfg)
	return p
}

// join opens a tunnel to a gateway as a peer, and returns the near end of it. Bend
// changes what is known of both ends.
func join(t *testing.T, ctx context.Context, as string, to *end, bend ...func(*Session)) (Session, error) {
	near, far, err := tcp()
	if err != nil {
		return Session{}, err
	}
	result := make(chan error, 1)
	go func() { // ends with the handshake
		c, err := record.Server(ctx, far, serverTLS(t), record.Options{})
		if err == nil {
			err = to.AcceptTunnel(bent(Session{Conn: c, ID: idOf(as), Peer: as}, bend))
		}
		result <- err
	}()
	c, err := record.Client(ctx, near, clientTLS(), record.Options{})
	return bent(Session{Conn: c, ID: idOf("east"), Peer: "east"}, bend), errors.Join(err, <-result)
}

func bent(s Session, bend []func(*Session)) Session {
	for _, b := range bend {
		b(&s)
	}
	return s
}

// tcp is the two ends of a connection over loopback.
func tcp() (near, far *net.TCPConn, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	a, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return nil, nil, err
	}
	b, err := ln.Accept()
	if err != nil {
		return nil, nil, err
	}
	return a.(*net.TCPConn), b.(*net.TCPConn), nil
}

func clientTLS() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true}
}

// selfSigned is a certificate for all tests: who the peer is they say themselves.
var selfSigned = sync.OnceValues(func() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
})

func serverTLS(t *testing.T) *tls.Config {
	cert, err := selfSigned()
	if err != nil {
		t.Error(err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13,
		SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
	}
}

// side is a host of clients. Whoever connects to a server there is captured.
type side struct {
	t    *testing.T
	host *netlab.Host
}

// newSide makes a host whose connections to target a gateway captures.
func newSide(t *testing.T, by *end) *side {
	t.Helper()
	return newSideOn(t, by, func() ([]int, error) {
		fd, err := intercept.Listen(target, intercept.Options{})
		return []int{fd}, err
	})
}

// newSideOn opens the listeners with listen.
func newSideOn(t *testing.T, by *end, listen func() ([]int, error)) *side {
	t.Helper()
	lab := netlab.New()
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	h, err := lab.Host("clients")
	if err != nil {
		t.Fatal(err)
	}
	var fds []int
	err = h.Do(func() (err error) {
		if err := addresses(); err != nil {
			return err
		}
		fds, err = listen()
		return err
	})
	if err == nil {
		err = by.Capture(fds...)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		by.Uncapture()
		for _, fd := range fds {
			unix.Close(fd)
		}
	})
	return &side{t, h}
}

// dial connects to target from client, or from another port of its if port is 0.
func (s *side) dial(port uint16) *net.TCPConn {
	s.t.Helper()
	c, err := s.try(port)
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

// wantReset connects likewise, and sees a reset, which may be there before connect
// has returned.
func (s *side) wantReset(port uint16) {
	s.t.Helper()
	switch c, err := s.try(port); {
	case err == nil:
		wantReset(s.t, c)
	case !errors.Is(err, unix.ECONNRESET):
		s.t.Error(err)
	}
}

func (s *side) try(port uint16) (*net.TCPConn, error) {
	var c net.Conn
	err := s.host.Do(func() (err error) {
		d := net.Dialer{
			LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(client.Addr(), port)),
			Timeout:   patience,
			Control: func(_, _ string, c syscall.RawConn) error {
				return c.Control(func(fd uintptr) {
					// A failure shows at bind.
					_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
				})
			},
		}
		c, err = d.Dial("tcp", target.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(patience))
	s.t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn), nil
}

// serve listens at target, where the servers are, and echoes until the client
// ends. It returns whom the server has seen.
func serve(t *testing.T) (seen func() []netip.AddrPort) {
	t.Helper()
	ln, err := net.Listen("tcp", target.String())
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var from []netip.AddrPort
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			from = append(from, netip.MustParseAddrPort(c.RemoteAddr().String()))
			mu.Unlock()
			running.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(patience))
				// A reset by the client is its own affair.
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		running.Wait()
	})
	return func() []netip.AddrPort {
		mu.Lock()
		defer mu.Unlock()
		return append([]netip.AddrPort(nil), from...)
	}
}

// exchange sends a word and reads its echo.
func exchange(t *testing.T, c net.Conn, word string) {
	t.Helper()
	if _, err := io.WriteString(c, word); err != nil {
		t.Fatalf("send %q: %v", word, err)
	}
	got := make([]byte, len(word))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != word {
		t.Fatalf("got %q (%v), want %q", got, err, word)
	}
}

// wantReset reads until the connection ends, which must be by a reset.
func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the connection ended with %v, want a reset", err)
	}
}

// eventually polls until ok holds, for what no event tells.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); time.Now().Before(end); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}

// scripted is a peer that has opened a tunnel, and says on it what the test says.
type scripted struct {
	*http2.Framer
	t    *testing.T
	conn *net.TCPConn
}

func newScripted(t *testing.T, to *end) *scripted {
	t.Helper()
	near, far, err := tcp()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close() })
	near.SetDeadline(time.Now().Add(patience))
	result := make(chan error, 1)
	go func() { // ends with the handshake
		c, err := record.Server(t.Context(), far, serverTLS(t), record.Options{})
		if err == nil {
			err = to.AcceptTunnel(Session{Conn: c, ID: idOf("west"), Peer: "west"})
		}
		result <- err
	}()
	c := tls.Client(near, clientTLS())
	p := &scripted{http2.NewFramer(c, c), t, near}
	p.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_, err = io.WriteString(c, http2.ClientPreface)
	p.do(errors.Join(err, <-result, p.WriteSettings(), p.WriteSettingsAck()))
	next[*http2.SettingsFrame](p)
	return p
}

func (p *scripted) do(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// ask asks for a connection to target.
func (p *scripted) ask(stream uint32) {
	p.t.Helper()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: "CONNECT"},
		{Name: ":authority", Value: target.String()},
		{Name: "forwarded", Value: fmt.Sprintf("for=%q", client)},
	} {
		p.do(enc.WriteField(f))
	}
	p.do(p.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true}))
}

// next reads until a frame of a kind comes.
func next[F http2.Frame](p *scripted) F {
	p.t.Helper()
	for {
		f, err := p.ReadFrame()
		p.do(err)
		if f, ok := f.(F); ok {
			return f
		}
	}
}
