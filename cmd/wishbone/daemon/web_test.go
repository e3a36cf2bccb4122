package daemon

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// oneConn is a listener of one connection.
type oneConn struct {
	conn   chan net.Conn // holds it
	closed chan struct{}
}

func (o *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-o.conn:
		return c, nil
	case <-o.closed:
		return nil, net.ErrClosed
	}
}

func (o *oneConn) Close() error   { close(o.closed); return nil }
func (o *oneConn) Addr() net.Addr { return &net.TCPAddr{} }

// TestSlowBody: a client that promises a body and never sends it is not kept for ever.
func TestSlowBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		defer client.Close()
		ln := &oneConn{make(chan net.Conn, 1), make(chan struct{})}
		ln.conn <- server
		d := &Daemon{log: slog.New(slog.DiscardHandler)}
		d.serveHTTP(ln, http.NotFoundHandler())
		began := time.Now()
		if _, err := io.WriteString(client, "GET / HTTP/1.1\r\nHost: west\r\nContent-Length: 10\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if err := client.SetReadDeadline(began.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, client); err != nil {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		if err := d.takeDown(); err != nil {
			t.Error(err)
		}
	})
}
