package workloadtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Server is a Workload API. Its answer can be changed at any time and from any
// goroutine, whether it is running or not, and reaches the streams that are open
// at once. At first it hangs: it takes requests and does not answer.
type Server struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	path string

	mu     sync.Mutex
	run    *run          // guarded by mu; nil while stopped
	answer answer        // guarded by mu
	change chan struct{} // guarded by mu; closed at each change of answer or calls
	calls  int           // guarded by mu
}

// run is the time between a start and a stop.
type run struct {
	server   *grpc.Server
	listener *net.UnixListener
	done     chan struct{} // closed when it serves no more
}

// answer is what every stream is told: an error, which ends it, a response, or
// nothing at all.
type answer struct {
	err      error
	response *workload.X509SVIDResponse
}

// Start listens on a Unix socket at path. The caller stops the server.
func Start(path string) (*Server, error) {
	s := &Server{path: path, change: make(chan struct{})}
	return s, s.Start()
}

// Address is where the server listens, as a client wants it.
func (s *Server) Address() string { return "unix://" + s.path }

// Start listens again after Stop or Crash, on the same path and with the answer
// of before.
func (s *Server) Start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run != nil {
		return errors.New("start workload API: it is running")
	}
	// What a crash has left, as an agent does.
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("start workload API: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.path})
	if err != nil {
		return fmt.Errorf("start workload API: %w", err)
	}
	r := &run{server: grpc.NewServer(), listener: l, done: make(chan struct{})}
	workload.RegisterSpiffeWorkloadAPIServer(r.server, s)
	s.run = r
	go r.serve() // stop waits for it
	return nil
}

func (r *run) serve() {
	defer close(r.done)
	// Its error is that the listener was closed, by stop.
	_ = r.server.Serve(r.listener)
}

// Stop ends all connections and removes the socket. It may be called more than
// once.
func (s *Server) Stop() { s.stop(true) }

// Crash ends all connections and leaves the socket behind, as a kill does.
func (s *Server) Crash() { s.stop(false) }

func (s *Server) stop(unlink bool) {
	s.mu.Lock()
	r := s.run
	s.run = nil
	s.mu.Unlock()
	if r == nil {
		return
	}
	r.listener.SetUnlinkOnClose(unlink)
	r.server.Stop()
	<-r.done
}

// Give answers with SVIDs, the first of which is the default one, and bundles:
// those of the SVIDs' own trust domains, and federated ones.
func (s *Server) Give(svids []*x509svid.SVID, bundles ...*x509bundle.Bundle) {
	r := &workload.X509SVIDResponse{FederatedBundles: make(map[string][]byte)}
	for _, b := range bundles {
		r.FederatedBundles[b.TrustDomain().IDString()] = der(b)
	}
	own := x509bundle.NewSet(bundles...)
	for _, svid := range svids {
		r.Svids = append(r.Svids, message(svid, own))
		delete(r.FederatedBundles, svid.ID.TrustDomain().IDString())
	}
	s.set(answer{response: r})
}

// GiveNonsense answers with something that is no SVID.
func (s *Server) GiveNonsense() {
	s.set(answer{response: &workload.X509SVIDResponse{Svids: []*workload.X509SVID{{X509Svid: []byte("no DER")}}}})
}

// NoIdentity answers as an agent does that has no entry for the caller.
func (s *Server) NoIdentity() { s.Fail(codes.PermissionDenied, "no identity issued") }

// Fail ends every stream with a status.
func (s *Server) Fail(code codes.Code, message string) {
	s.set(answer{err: status.Error(code, message)})
}

// Hang answers no more. Streams stay open.
func (s *Server) Hang() { s.set(answer{}) }

// AwaitCalls waits until there have been so many requests for an SVID since the
// first start.
func (s *Server) AwaitCalls(ctx context.Context, n int) error {
	for {
		_, calls, change := s.state()
		if calls >= n {
			return nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return fmt.Errorf("%d requests for an SVID instead of %d: %w", calls, n, context.Cause(ctx))
		}
	}
}

// Calls is how many requests for an SVID there have been since the first start.
func (s *Server) Calls() int {
	_, calls, _ := s.state()
	return calls
}

// FetchX509SVID serves one stream until its caller leaves or it is to fail.
func (s *Server) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	// SPIFFE Workload Endpoint §6.
	md, _ := metadata.FromIncomingContext(stream.Context())
	if v := md.Get("workload.spiffe.io"); len(v) != 1 || v[0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	s.called()
	var sent *workload.X509SVIDResponse
	for {
		now, _, change := s.state()
		if now.err != nil {
			return now.err
		}
		if now.response != nil && now.response != sent {
			if err := stream.Send(now.response); err != nil {
				return err
			}
			sent = now.response
		}
		select {
		case <-change:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (s *Server) set(a answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = a
	s.changed()
}

func (s *Server) called() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	s.changed()
}

// changed wakes whoever waits. The caller holds mu.
func (s *Server) changed() {
	close(s.change)
	s.change = make(chan struct{})
}

func (s *Server) state() (answer, int, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answer, s.calls, s.change
}

// message is an SVID on the wire. Its trust domain may lack a bundle.
func message(svid *x509svid.SVID, bundles *x509bundle.Set) *workload.X509SVID {
	cert, key, err := svid.MarshalRaw()
	must(err)
	m := &workload.X509SVID{SpiffeId: svid.ID.String(), X509Svid: cert, X509SvidKey: key, Hint: svid.Hint}
	if b, ok := bundles.Get(svid.ID.TrustDomain()); ok {
		m.Bundle = der(b)
	}
	return m
}

// der is a bundle on the wire: its certificates, one after the other.
func der(b *x509bundle.Bundle) (raw []byte) {
	for _, c := range b.X509Authorities() {
		raw = append(raw, c.Raw...)
	}
	return raw
}

// must panics: what can fail here is a mistake of the test.
func must(err error) {
	if err != nil {
		panic("workloadtest: " + err.Error())
	}
}
