package workload_test

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"wishbone/identity"
	"wishbone/identity/identitytest"
	"wishbone/identity/workload"
	"wishbone/identity/workload/workloadtest"
)

// patience bounds every wait; none takes long unless something is broken.
const patience = 20 * time.Second

// retry keeps the tests fast.
const retry = 10 * time.Millisecond

// start is a Workload API that hangs until it is told otherwise.
func start(t *testing.T) *workloadtest.Server {
	t.Helper()
	s, err := workloadtest.Start(filepath.Join(t.TempDir(), "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// open opens a Source that must come to have an SVID.
func open(t *testing.T, cfg workload.Config) *workload.Source {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if cfg.Retry == 0 {
		cfg.Retry = retry
	}
	src, err := workload.Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

// give answers with one SVID and the roots of authorities.
func give(s *workloadtest.Server, svid *x509svid.SVID, roots ...*identitytest.Authority) {
	s.Give([]*x509svid.SVID{svid}, bundles(roots...)...)
}

func bundles(roots ...*identitytest.Authority) (list []*x509bundle.Bundle) {
	for _, a := range roots {
		list = append(list, a.Bundle())
	}
	return list
}

// changed waits for the change that src.Updated, asked before it, tells of.
func changed(t *testing.T, updated <-chan struct{}) {
	t.Helper()
	select {
	case <-updated:
	case <-time.After(patience):
		t.Fatal("the source did not change")
	}
}

func awaitCalls(t *testing.T, s *workloadtest.Server, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := s.AwaitCalls(ctx, n); err != nil {
		t.Fatal(err)
	}
}

// wantSVID compares certificates: each has its own serial number.
func wantSVID(t *testing.T, src *workload.Source, want *x509svid.SVID) {
	t.Helper()
	got, err := src.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if got.ID != want.ID || !got.Certificates[0].Equal(want.Certificates[0]) {
		t.Errorf("the source gives %s serial %s, want %s serial %s",
			got.ID, got.Certificates[0].SerialNumber, want.ID, want.Certificates[0].SerialNumber)
	}
}

func wantProblem(t *testing.T, err error, want workload.Problem) *workload.Error {
	t.Helper()
	e, ok := errors.AsType[*workload.Error](err)
	if !ok {
		t.Fatalf("error %v, want one of problem %s", err, want)
	}
	if e.Problem != want {
		t.Errorf("error %v, want one of problem %s", err, want)
	}
	if e.Hint == "" {
		t.Errorf("%v comes without a hint", e)
	}
	return e
}

func anyone(spiffeid.ID) error { return nil }

// handshake joins a client and a server by one handshake and gives the SPIFFE
// IDs that each proved to the other.
func handshake(t *testing.T, client, server identity.Source) (clientID, serverID spiffeid.ID, err error) {
	t.Helper()
	a, b := net.Pipe()
	c, s := tls.Client(a, identity.Client(client, anyone)), tls.Server(b, identity.Server(server, anyone))
	served := make(chan error, 1)
	go func() {
		defer b.Close()
		err := s.HandshakeContext(t.Context())
		if err == nil {
			_, err = s.Write([]byte{1})
		}
		served <- err
	}()
	err = c.HandshakeContext(t.Context())
	if err == nil {
		// In TLS 1.3 a client hears of a refusal only when it reads.
		_, err = c.Read(make([]byte, 1))
	}
	a.Close()
	if err = errors.Join(err, <-served); err != nil {
		return spiffeid.ID{}, spiffeid.ID{}, err
	}
	return peer(t, s), peer(t, c), nil
}

func peer(t *testing.T, c *tls.Conn) spiffeid.ID {
	t.Helper()
	state := c.ConnectionState()
	id, err := identity.Peer(&state)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// journal is a log handler that tests can read and wait for.
type journal struct {
	mu      sync.Mutex
	records []slog.Record // guarded by mu
	more    chan struct{} // guarded by mu; closed at each record
}

func newJournal() *journal { return &journal{more: make(chan struct{})} }

func (j *journal) Enabled(context.Context, slog.Level) bool { return true }
func (j *journal) WithAttrs([]slog.Attr) slog.Handler       { return j }
func (j *journal) WithGroup(string) slog.Handler            { return j }

func (j *journal) Handle(_ context.Context, r slog.Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.records = append(j.records, r)
	close(j.more)
	j.more = make(chan struct{})
	return nil
}

// count is how many records have this message, and this problem if it is given.
func (j *journal) count(message string, problem workload.Problem) (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, r := range j.records {
		if r.Message == message && (problem == "" || attr(r, "problem") == string(problem)) {
			n++
		}
	}
	return n
}

// await waits until there are n such records.
func (j *journal) await(t *testing.T, message string, problem workload.Problem, n int) {
	t.Helper()
	if !j.comes(message, problem, n) {
		t.Fatalf("the log has not %d times %q %s", n, message, problem)
	}
}

// comes is await for goroutines that are not the test's own.
func (j *journal) comes(message string, problem workload.Problem, n int) bool {
	deadline := time.After(patience)
	for {
		j.mu.Lock()
		more := j.more
		j.mu.Unlock()
		if j.count(message, problem) >= n {
			return true
		}
		select {
		case <-more:
		case <-deadline:
			return false
		}
	}
}

func attr(r slog.Record, key string) (value string) {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == key {
			value = a.Value.String()
		}
		return value == ""
	})
	return value
}
