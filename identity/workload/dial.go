package workload

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
)

const (
	// greeting is how long an agent that has taken the connection may be silent
	// before it counts as frozen.
	greeting = 5 * time.Second
	// keepaliveTime is how often a silent agent is asked for a sign of life: a
	// gRPC server that was not told otherwise allows it every 5 minutes.
	keepaliveTime = 6 * time.Minute
	// keepaliveTimeout is how long the sign may take.
	keepaliveTimeout = 20 * time.Second
)

// socketPath is the file of a Workload API address (SPIFFE Workload Endpoint
// §4). The standard also has tcp, in the clear: a private key does not travel so.
func socketPath(address string) (string, error) {
	if address == "" {
		return "", errors.New("no address")
	}
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	if u.Scheme != "unix" {
		return "", errors.New("not a unix socket")
	}
	if err := workloadapi.ValidateAddress(address); err != nil {
		return "", err
	}
	if u.Host != "" || !filepath.IsAbs(u.Path) {
		return "", fmt.Errorf("the path is not absolute, with three slashes: unix:///%s%s", u.Host, u.Path)
	}
	return u.Path, nil
}

// dialOptions make gRPC try again as often as we do. By itself it would wait up
// to two minutes after an outage.
func (s *Source) dialOptions() []grpc.DialOption {
	every := s.cfg.Retry / 2
	return []grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.dial(ctx) }),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: every, Multiplier: 1, MaxDelay: every},
			MinConnectTimeout: greeting,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
	}
}

// dial connects, and remembers how that ended: gRPC hands on the error's text
// only.
func (s *Source) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", s.path)
	s.dialed.Store(&err)
	return c, err
}
