package workloadtest_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"wishbone/identity/identitytest"
	"wishbone/identity/workload/workloadtest"
)

// TestServer is the manual: what a plain client of go-spiffe gets.
func TestServer(t *testing.T) {
	mesh, other := identitytest.New("mesh.example"), identitytest.New("other.example")
	path := filepath.Join(t.TempDir(), "agent.sock")
	s, err := workloadtest.Start(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	if err := s.Start(); err == nil {
		t.Error("it starts twice")
	}

	first, second := mesh.Issue("/first"), mesh.Issue("/second")
	first.Hint, second.Hint = "one", "two"
	s.Give([]*x509svid.SVID{first, second}, mesh.Bundle(), other.Bundle())
	got, err := workloadapi.FetchX509Context(t.Context(), workloadapi.WithAddr(s.Address()))
	if err != nil {
		t.Fatal(err)
	}
	if len(got.SVIDs) != 2 || got.SVIDs[0].ID != first.ID || got.SVIDs[0].Hint != "one" || got.SVIDs[1].ID != second.ID {
		t.Errorf("SVIDs %+v", got.SVIDs)
	}
	if b := got.Bundles.Bundles(); len(b) != 2 || !b[0].Equal(mesh.Bundle()) || !b[1].Equal(other.Bundle()) {
		t.Errorf("%d bundles, or not those that were given", len(b))
	}
	if n := s.Calls(); n != 1 {
		t.Errorf("%d calls, want 1", n)
	}

	s.NoIdentity()
	wantCode(t, fetch(t, s), codes.PermissionDenied)
	s.GiveNonsense()
	if err := fetch(t, s); err == nil {
		t.Error("nonsense is an SVID")
	}

	s.Crash()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("a crash takes the socket away: %v", err)
	}
	wantCode(t, fetch(t, s), codes.Unavailable)
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	s.Stop()
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Stop the socket is there: %v", err)
	}
}

// TestSecurityHeader: the standard has a server refuse requests without it.
func TestSecurityHeader(t *testing.T) {
	s, err := workloadtest.Start(filepath.Join(t.TempDir(), "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	s.NoIdentity()
	conn, err := grpc.NewClient(s.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(t.Context(), &workload.X509SVIDRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, err, codes.InvalidArgument)
}

func fetch(t *testing.T, s *workloadtest.Server) error {
	_, err := workloadapi.FetchX509SVID(t.Context(), workloadapi.WithAddr(s.Address()))
	return err
}

func wantCode(t *testing.T, err error, want codes.Code) {
	t.Helper()
	if got := status.Code(err); got != want {
		t.Errorf("%v, want %v", err, want)
	}
}
