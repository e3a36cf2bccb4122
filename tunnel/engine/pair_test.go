package engine_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/intercept"
	"wishbone/tunnel/engine"
	"wishbone/tunnel/hbone"
	"wishbone/tunnel/record"
)

// pair is two loops in one process, joined by one tunnel over loopback. A
// connection to its address comes out at its target.
type pair struct {
	address    string
	target     netip.AddrPort
	west, east *engine.Loop
	tunnel     *engine.Tunnel // west's end
	server     *engine.Tunnel // east's end
	ends       chan ended
	refusals   chan hbone.Refusal
	lost       chan error

	budget *hbone.Budget // of both tunnels

	requested func(*engine.Flow) // on the east loop, after a connection attempt has begun
	// decide is called in place of the attempt, which it may begin later.
	decide func(f *engine.Flow, connect func())
	again  bool               // what the peer has not acted on is asked for once more
	closed func(*engine.Flow) // on the west loop, as a flow ends

	latest *engine.Flow // west's
	rec    record.Conn  // east's
	near   record.Conn  // west's

	begun, over atomic.Int64 // flows, of both sides
	running     sync.WaitGroup
}

// settled waits until every flow has ended, on both loops, and has given back
// the credit that was reserved for it.
func (p *pair) settled(tb testing.TB) {
	tb.Helper()
	eventually(tb, "all flows end", func() bool { return p.begun.Load() == p.over.Load() })
	eventually(tb, "no credit is reserved", func() bool { return p.budget.Used() == 0 })
}

type ended struct {
	inbound bool
	end     engine.End
}

// newPair brings a pair up in front of target. Everything ends with the test.
func newPair(tb testing.TB, target string) *pair {
	tb.Helper()
	return newPairOf(tb, target, hbone.Config{})
}

// newPairOf is newPair with other limits.
func newPairOf(tb testing.TB, target string, cfg hbone.Config) *pair {
	tb.Helper()
	p := &pair{
		ends:     make(chan ended, 4096),
		refusals: make(chan hbone.Refusal, 16),
		lost:     make(chan error, 1024),
		budget:   hbone.NewBudget(1 << 40),
	}
	for _, l := range []**engine.Loop{&p.west, &p.east} {
		loop, err := engine.NewLoop()
		if err != nil {
			tb.Fatal(err)
		}
		*l = loop
		p.running.Go(func() {
			if err := loop.Run(); err != nil {
				tb.Error(err)
			}
		})
	}
	cfg.Budget = p.budget
	westCfg, eastCfg := cfg, cfg
	westCfg.Role, eastCfg.Role = hbone.Client, hbone.Server
	client, server := sessions(tb)
	p.rec, p.near = server, client
	p.on(p.west, func() {
		p.tunnel = must(p.west.AddTunnel(client, westCfg, &westEnd{p}))
	})
	p.on(p.east, func() {
		p.server = must(p.east.AddTunnel(server, eastCfg, &eastEnd{p, tb}))
	})
	tb.Cleanup(func() {
		p.on(p.west, func() { p.tunnel.Close(nil) })
		p.on(p.east, func() { p.server.Close(nil) })
		p.stop()
	})
	p.listen(tb, netip.MustParseAddrPort(target))
	return p
}

// traffic is what the west's latest socket has given and taken.
func (p *pair) traffic() (sent, received uint64) {
	p.on(p.west, func() { sent, received = p.latest.Traffic() })
	return sent, received
}

// stop ends the loops, whatever is on them.
func (p *pair) stop() {
	p.west.Post(p.west.Stop)
	p.east.Post(p.east.Stop)
	p.running.Wait()
}

// on runs f on a loop and waits for it, unless the loop has ended.
func (p *pair) on(l *engine.Loop, f func()) {
	done := make(chan struct{})
	if l.Post(func() { f(); close(done) }) {
		<-done
	}
}

// hold stops a loop where it is until the result is called.
func (p *pair) hold(l *engine.Loop) (release func()) {
	held, block := make(chan struct{}), make(chan struct{})
	l.Post(func() { close(held); <-block })
	<-held
	return func() { close(block) }
}

// round waits until a loop has seen all that has happened before.
func (p *pair) round(l *engine.Loop) {
	p.on(l, func() {})
	p.on(l, func() {})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// listen accepts ordinary connections at the west and sends them to target.
func (p *pair) listen(tb testing.TB, target netip.AddrPort) {
	p.target = target
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // as intercept.Listen
	ln, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p.address = ln.Addr().String()
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		tb.Fatal(err)
	}
	fd := int(file.Fd())
	if err := errors.Join(unix.SetNonblock(fd, true), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)); err != nil {
		tb.Fatal(err)
	}
	var l *engine.Listener
	p.on(p.west, func() {
		l = must(p.west.Listen(fd, func() error {
			in, err := intercept.Accept(fd)
			if err != nil {
				return err
			}
			h := p.flow(tb, false)
			f := must(p.west.NewFlow(in.FD, h))
			p.latest = f
			if err := f.Open(p.tunnel, hbone.Request{Client: in.Client, Target: target}); err != nil {
				f.Abort(engine.Unserved, err)
			}
			return nil
		}))
	})
	tb.Cleanup(func() {
		p.on(p.west, l.Close)
		file.Close()
		ln.Close()
	})
}

type westEnd struct{ p *pair }

func (w *westEnd) Request(f *engine.Flow, _ hbone.Request)  { f.Refuse(hbone.Malformed, nil) }
func (w *westEnd) Malformed(*engine.Tunnel, string)         {}
func (w *westEnd) Overloaded(*engine.Tunnel, hbone.Request) {}
func (w *westEnd) Room(*engine.Tunnel)                      {}
func (w *westEnd) Parted(*engine.Tunnel)                    {}
func (w *westEnd) Closed(_ *engine.Tunnel, err error)       { w.p.lost <- err }

type eastEnd struct {
	p  *pair
	tb testing.TB
}

func (e *eastEnd) Request(f *engine.Flow, r hbone.Request) {
	f.Serve(e.p.flow(e.tb, true))
	connect := func() { e.connect(f, r) }
	if e.p.decide != nil {
		e.p.decide(f, connect)
		return
	}
	connect()
}

func (e *eastEnd) connect(f *engine.Flow, r hbone.Request) {
	fd, err := intercept.Connect(netip.AddrPort{}, r.Target, intercept.Options{})
	if err == nil {
		err = f.Connect(fd)
	}
	if err != nil {
		f.Refuse(hbone.Failed, err)
	}
	if e.p.requested != nil {
		e.p.requested(f)
	}
}
func (e *eastEnd) Malformed(*engine.Tunnel, string)         {}
func (e *eastEnd) Overloaded(*engine.Tunnel, hbone.Request) {}
func (e *eastEnd) Room(*engine.Tunnel)                      {}
func (e *eastEnd) Parted(*engine.Tunnel)                    {}
func (e *eastEnd) Closed(_ *engine.Tunnel, err error)       { e.p.lost <- err }

type flowEnd struct {
	p       *pair
	tb      testing.TB
	inbound bool
	over    bool
}

func (p *pair) flow(tb testing.TB, inbound bool) *flowEnd {
	p.begun.Add(1)
	return &flowEnd{p: p, tb: tb, inbound: inbound}
}

func (h *flowEnd) Answered(f *engine.Flow, r *hbone.Refusal) {
	if r != nil && r.Retry && h.p.again {
		h.p.again = false
		if err := f.Open(h.p.tunnel, hbone.Request{Target: h.p.target}); err != nil {
			h.tb.Error(err)
		}
		return
	}
	if r != nil {
		h.p.refusals <- *r
		f.Abort(engine.Unserved, errors.New(string(r.Reason)))
	}
}

func (h *flowEnd) Connected(f *engine.Flow, err error) {
	switch {
	case errors.Is(err, unix.ECONNREFUSED):
		f.Refuse(hbone.Refused, err)
	case err != nil:
		f.Refuse(hbone.Failed, err)
	default:
		f.Accept()
	}
}

func (h *flowEnd) Ended(f *engine.Flow, e engine.End) {
	if !h.inbound && h.p.closed != nil {
		h.p.closed(f)
	}
	if h.over {
		h.tb.Error("a flow has ended twice")
	}
	h.over = true
	h.p.over.Add(1)
	select {
	case h.p.ends <- ended{h.inbound, e}:
	default:
	}
}

// sessions does a TLS handshake over loopback.
func sessions(tb testing.TB) (client, server record.Conn) {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cert := selfSigned(tb)
	var wg sync.WaitGroup
	wg.Go(func() {
		nc, err := ln.Accept()
		if err == nil {
			server, err = record.Server(ctx, nc.(*net.TCPConn), &tls.Config{
				Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true,
			}, record.Options{})
		}
		if err != nil {
			tb.Error(err)
		}
	})
	nc, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	client, err = record.Client(ctx, nc.(*net.TCPConn), &tls.Config{
		InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true,
	}, record.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	wg.Wait()
	return client, server
}

func selfSigned(tb testing.TB) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
