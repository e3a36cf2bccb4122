package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/e2e/netlab"
)

// Gateway is a gateway in a process of its own, on a host.
type Gateway struct {
	Name  string
	host  *netlab.Host
	dir   string
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process has ended and state is set
}

// GatewayConfig says what to start.
type GatewayConfig struct {
	Name string
	// Dir is where the configuration NAME.yaml lies, and where NAME.log and
	// the admin socket NAME.sock go: listen.admin has to say so.
	Dir string
	// Env is added to this process's environment.
	Env []string
}

// StartGateway starts this very program as "run -c DIR/NAME.yaml" on a host. The
// caller stops or kills it; the end of the host kills it too.
func StartGateway(h *netlab.Host, cfg GatewayConfig) (*Gateway, error) {
	g := &Gateway{Name: cfg.Name, host: h, dir: cfg.Dir, ended: make(chan struct{})}
	log, err := os.OpenFile(g.LogPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("start gateway %s: %w", cfg.Name, err)
	}
	defer log.Close()
	g.cmd = exec.Command("/proc/self/exe", "run", "-c", filepath.Join(cfg.Dir, cfg.Name+".yaml"))
	g.cmd.Args[0] = "wishbone"
	g.cmd.Env = append(os.Environ(), cfg.Env...)
	g.cmd.Stdout, g.cmd.Stderr = log, log
	if err := h.Start(g.cmd); err != nil {
		return nil, fmt.Errorf("start gateway %s: %w", cfg.Name, err)
	}
	go func() { // ends with the process
		// How it ended is in ProcessState.
		_ = g.cmd.Wait()
		close(g.ended)
	}()
	return g, nil
}

// LogPath is the file that the gateway logs to.
func (g *Gateway) LogPath() string { return filepath.Join(g.dir, g.Name+".log") }

// AdminPath is the gateway's admin socket.
func (g *Gateway) AdminPath() string { return filepath.Join(g.dir, g.Name+".sock") }

// Log is what the gateway has logged so far, for errors.
func (g *Gateway) Log() string {
	b, err := os.ReadFile(g.LogPath())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// poll is how often something is looked at that does not tell by itself.
const poll = 5 * time.Millisecond

// AwaitReady waits until the gateway takes traffic, or has ended.
func (g *Gateway) AwaitReady(ctx context.Context) error {
	tick := time.NewTicker(poll)
	defer tick.Stop()
	var last error
	for {
		var s daemon.Status
		if last = g.Ask(ctx, "/status", &s); last == nil && s.State == "ready" {
			return nil
		}
		select {
		case <-g.ended:
			return fmt.Errorf("gateway %s has ended (%s):\n%s", g.Name, g.cmd.ProcessState, g.Log())
		case <-ctx.Done():
			return fmt.Errorf("gateway %s is not ready (%s, %v):\n%s", g.Name, s.State, last, g.Log())
		case <-tick.C:
		}
	}
}

// Ask gets an answer over the admin socket.
func (g *Gateway) Ask(ctx context.Context, path string, answer any) error {
	if err := daemon.Ask(ctx, g.AdminPath(), path, answer); err != nil {
		return fmt.Errorf("ask gateway %s: %w", g.Name, err)
	}
	return nil
}

// Signal sends the process a signal.
func (g *Gateway) Signal(s os.Signal) error { return g.cmd.Process.Signal(s) }

// Wait waits for the end of the process and returns its exit code, -1 after a
// signal.
func (g *Gateway) Wait(ctx context.Context) (int, error) {
	select {
	case <-g.ended:
		return g.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("gateway %s does not end:\n%s", g.Name, g.Log())
	}
}

// Kill ends the process at once (kill -9) and waits until it is gone.
func (g *Gateway) Kill() error {
	err := g.cmd.Process.Kill()
	<-g.ended
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// PID is the process's number.
func (g *Gateway) PID() int { return g.cmd.Process.Pid }
