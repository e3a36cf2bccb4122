package record

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
)

// Options are how a Conn is made.
type Options struct {
	// Slots bound the handshakes that compute at once.
	Slots Slots
	// Standard leaves the records to crypto/tls, also where we could protect them
	// ourselves.
	Standard bool
}

// Client does the client's handshake on nc and takes its descriptor over. nc
// is the Conn's, or closed, when it returns. The deadline of ctx bounds it.
//
// The handshake is crypto/tls's. The records after it are protected here, if the
// session is TLS 1.3 with AES-GCM, cfg has no KeyLogWriter and o does not forbid
// it; else by crypto/tls as well.
func Client(ctx context.Context, nc *net.TCPConn, cfg *tls.Config, o Options) (Conn, error) {
	return handshake(ctx, nc, cfg, o, client)
}

// Server does the server's handshake on nc, and gives no session tickets;
// otherwise as Client.
func Server(ctx context.Context, nc *net.TCPConn, cfg *tls.Config, o Options) (Conn, error) {
	return handshake(ctx, nc, cfg, o, server)
}

// role is which end of a session we are.
type role int

const (
	client role = iota
	server
)

func (r role) String() string { return [...]string{"client", "server"}[r] }

func (r role) session(nc net.Conn, cfg *tls.Config) *tls.Conn {
	if r == client {
		return tls.Client(nc, cfg)
	}
	return tls.Server(nc, cfg)
}

func handshake(ctx context.Context, nc *net.TCPConn, cfg *tls.Config, o Options, r role) (Conn, error) {
	w := &wire{TCPConn: nc, slot: slot{slots: o.Slots, ctx: ctx}, fd: -1}
	s := new(secrets)
	if !o.Standard && cfg.KeyLogWriter == nil {
		cfg, w.bounded = s.heard(cfg), true
	}
	session := r.session(w, cfg)
	err := w.slot.during(func() error { return session.HandshakeContext(ctx) })
	if err == nil {
		err = w.detach()
	}
	if err != nil {
		s.wipe()
		// crypto/tls may have closed it already, when ctx was done.
		_ = nc.Close()
		return nil, fmt.Errorf("tls handshake: %w", err)
	}
	if d := newDirect(w, session.ConnectionState(), s, r); d != nil {
		return d, nil
	}
	return &standard{wire: w, tls: session}, nil
}
