package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"wishbone/config"
)

// maxScrapes bounds those that read metrics at once: each asks the rules, which takes
// programs with iptables.
const maxScrapes = 4

// webServer answers HTTP on one listener.
type webServer struct {
	server http.Server
	done   chan struct{}
}

// serveHTTP begins to answer on ln. The server is the caller's, who stops it.
func (d *Daemon) serveHTTP(ln net.Listener, h http.Handler) {
	w := &webServer{
		server: http.Server{
			Handler: h, ReadHeaderTimeout: 5 * time.Second,
			// Who asks has no body to send, and reads what it asked for.
			ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
			ErrorLog: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn), ConnContext: withCaller,
		},
		done: make(chan struct{}),
	}
	go func() { // ends with the server; later waits for it
		defer close(w.done)
		if err := w.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			d.log.Error("http server", "address", ln.Addr().String(), "error", err)
		}
	}()
	d.later(func() error {
		err := w.server.Close()
		<-w.done
		return err
	})
}

// openWeb serves metrics, readiness and the admin socket. They come up before
// the rules, so that what is wrong can be seen from the start.
func (d *Daemon) openWeb(_ context.Context, cfg *config.Config) error {
	ready := http.NewServeMux()
	ready.HandleFunc("GET /healthz/ready", d.answerReady)
	ready.HandleFunc("GET /healthz/live", d.answerLive)
	metrics := http.NewServeMux()
	metrics.Handle("GET /metrics", promhttp.HandlerFor(d.registry(), promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	for _, s := range []struct {
		what string
		at   netip.AddrPort
		h    http.Handler
	}{{"readiness", cfg.Listen.Ready, ready}, {"metrics", cfg.Listen.Metrics, metrics}} {
		if !s.at.IsValid() {
			continue
		}
		ln, err := net.Listen("tcp", s.at.String())
		if err != nil {
			return listenError(fmt.Errorf("serve %s: %w", s.what, err), s.at.Port())
		}
		d.serveHTTP(ln, s.h)
	}
	if cfg.Listen.Admin == "" {
		return nil
	}
	return d.openAdmin(cfg.Listen.Admin)
}

// notReady says why the gateway should get no traffic, or is empty.
func (d *Daemon) notReady() string {
	if d.draining.Load() {
		return "draining"
	}
	if !d.serving.Load() {
		return "starting"
	}
	if _, err := d.own(); err != nil {
		return err.Error()
	}
	if d.rules != nil {
		if missing := d.rules.state().missing; missing != "" {
			return "somebody has taken away " + missing
		}
	}
	return ""
}

func (d *Daemon) answerReady(w http.ResponseWriter, _ *http.Request) {
	if why := d.notReady(); why != "" {
		http.Error(w, why, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ready")
}

func (d *Daemon) answerLive(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "alive") }
