package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
)

// ErrNotRunning says that no gateway answers on an admin socket.
var ErrNotRunning = errors.New("no gateway answers")

// Ask gets an answer from a running gateway over its admin socket: path is
// /status, /flows or /explain with its query. It takes no longer than ctx.
func Ask(ctx context.Context, socket, path string, answer any) error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://wishbone"+path, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("%w at %s: %w", ErrNotRunning, socket, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read the gateway's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("gateway: %s", strings.TrimSpace(string(body)))
	}
	return json.Unmarshal(body, answer)
}
