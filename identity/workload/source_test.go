package workload_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"

	"wishbone/identity"
	"wishbone/identity/identitytest"
	"wishbone/identity/workload"
	"wishbone/identity/workload/workloadtest"
)

// What the log says.
const (
	noIdentityYet = "no identity yet"
	keepsLast     = "workload API fails, keeping the last identity"
	answersAgain  = "workload API answers again"
	updated       = "identity updated"
)

var _ identity.Source = (*workload.Source)(nil)

func TestFirstSVID(t *testing.T) {
	mesh, other := identitytest.New("mesh.example"), identitytest.New("other.example")
	s := start(t)
	svid := mesh.Issue("/gateway/west")
	give(s, svid, mesh, other)
	src := open(t, workload.Config{Address: s.Address()})
	wantSVID(t, src, svid)
	for _, a := range []*identitytest.Authority{mesh, other} {
		got, err := src.GetX509BundleForTrustDomain(a.Bundle().TrustDomain())
		if err != nil {
			t.Fatal(err)
		}
		if !got.Equal(a.Bundle()) {
			t.Errorf("the bundle of %s is not the one that was given", a.Bundle().TrustDomain())
		}
	}
	stranger := identitytest.New("stranger.example").Bundle().TrustDomain()
	if b, err := src.GetX509BundleForTrustDomain(stranger); err == nil {
		t.Errorf("there is a bundle for a trust domain that nobody gave: %v", b)
	}
	if err := src.Err(); err != nil {
		t.Errorf("all is well, yet Err says %v", err)
	}
}

func TestOpenWaits(t *testing.T) {
	for _, tc := range []struct {
		name    string
		before  func(s *workloadtest.Server)
		problem workload.Problem // what the log says meanwhile
	}{
		{"agent not there", (*workloadtest.Server).Stop, workload.Missing},
		{"agent dead", (*workloadtest.Server).Crash, workload.NotRunning},
		{"no identity issued", (*workloadtest.Server).NoIdentity, workload.NoIdentity},
		{"nonsense", (*workloadtest.Server).GiveNonsense, workload.BadAnswer},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mesh, s, log := identitytest.New("mesh.example"), start(t), newJournal()
			svid := mesh.Issue("/gateway/west")
			tc.before(s)
			go func() {
				if !log.comes(noIdentityYet, tc.problem, 1) {
					t.Errorf("the log does not say %s", tc.problem)
				}
				give(s, svid, mesh)
				// An error means that it has been running all the time.
				_ = s.Start()
			}()
			wantSVID(t, open(t, workload.Config{Address: s.Address(), Log: slog.New(log)}), svid)
		})
	}
}

func TestRotation(t *testing.T) {
	mesh, s := identitytest.New("mesh.example"), start(t)
	give(s, mesh.Issue("/gateway/west"), mesh)
	west, east := open(t, workload.Config{Address: s.Address()}), mesh.Source("/gateway/east")
	if id, _, err := handshake(t, west, east); err != nil || id != mesh.ID("/gateway/west") {
		t.Fatalf("the server sees %s, %v", id, err)
	}

	change := west.Updated()
	next := mesh.Issue("/gateway/next")
	give(s, next, mesh)
	changed(t, change)
	wantSVID(t, west, next)
	if id, _, err := handshake(t, west, east); err != nil || id != next.ID {
		t.Errorf("after the rotation the server sees %s, %v", id, err)
	}
	if _, id, err := handshake(t, east, west); err != nil || id != next.ID {
		t.Errorf("after the rotation the client sees %s, %v", id, err)
	}
}

func TestFederatedPeer(t *testing.T) {
	mesh, other := identitytest.New("mesh.example"), identitytest.New("other.example")
	s := start(t)
	give(s, mesh.Issue("/gateway/west"), mesh, other)
	west := open(t, workload.Config{Address: s.Address()})
	east := identitytest.NewSource(other.Issue("/gateway/east"), mesh)
	if _, id, err := handshake(t, west, east); err != nil || id != other.ID("/gateway/east") {
		t.Errorf("the client sees %s, %v", id, err)
	}
}

func TestBundleWithdrawn(t *testing.T) {
	mesh, other := identitytest.New("mesh.example"), identitytest.New("other.example")
	s, svid := start(t), mesh.Issue("/gateway/west")
	give(s, svid, mesh, other)
	west := open(t, workload.Config{Address: s.Address()})
	east := identitytest.NewSource(other.Issue("/gateway/east"), mesh)
	if _, _, err := handshake(t, west, east); err != nil {
		t.Fatal(err)
	}
	change := west.Updated()
	give(s, svid, mesh)
	changed(t, change)
	if _, _, err := handshake(t, west, east); identity.ReasonOf(err) != identity.WrongDomain {
		t.Errorf("after the bundle was withdrawn: %v, want %s", err, identity.WrongDomain)
	}
}

func TestRootReplaced(t *testing.T) {
	before, after := identitytest.New("mesh.example"), identitytest.New("mesh.example")
	s := start(t)
	give(s, before.Issue("/gateway/west"), before)
	west := open(t, workload.Config{Address: s.Address()})
	change := west.Updated()
	give(s, after.Issue("/gateway/west"), after)
	changed(t, change)
	east := identitytest.NewSource(before.Issue("/gateway/east"), after)
	if _, _, err := handshake(t, west, east); identity.ReasonOf(err) != identity.UnknownAuthority {
		t.Errorf("a peer with a leaf of the withdrawn root: %v, want %s", err, identity.UnknownAuthority)
	}
}

// TestTroubleKeepsTheLast goes through every way in which an agent fails later.
// Each is logged once, however many retries there are, and passes by itself.
func TestTroubleKeepsTheLast(t *testing.T) {
	for _, tc := range []struct {
		name    string
		trouble func(s *workloadtest.Server)
		problem workload.Problem
		calls   bool // the agent is still there to count the retries
	}{
		{"stopped", (*workloadtest.Server).Stop, workload.Missing, false},
		{"killed", (*workloadtest.Server).Crash, workload.NotRunning, false},
		{"no identity issued", (*workloadtest.Server).NoIdentity, workload.NoIdentity, true},
		{"nonsense", (*workloadtest.Server).GiveNonsense, workload.BadAnswer, false},
		{"internal error", fail(codes.Internal), workload.Failed, true},
		{"unavailable", fail(codes.Unavailable), workload.NotAnswering, true},
		// These two end a watch of go-spiffe for good.
		{"canceled", fail(codes.Canceled), workload.Failed, true},
		{"invalid argument", fail(codes.InvalidArgument), workload.NotWorkloadAPI, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mesh, s, log := identitytest.New("mesh.example"), start(t), newJournal()
			svid := mesh.Issue("/gateway/west")
			give(s, svid, mesh)
			src := open(t, workload.Config{Address: s.Address(), Log: slog.New(log)})

			tc.trouble(s)
			log.await(t, keepsLast, tc.problem, 1)
			if tc.calls {
				awaitCalls(t, s, s.Calls()+5)
			}
			wantSVID(t, src, svid)
			wantProblem(t, src.Err(), tc.problem)
			if n := log.count(keepsLast, tc.problem); n != 1 {
				t.Errorf("the log says so %d times", n)
			}

			change := src.Updated()
			next := mesh.Issue("/gateway/west")
			give(s, next, mesh)
			// An error means that it has been running all the time.
			_ = s.Start()
			changed(t, change)
			wantSVID(t, src, next)
			if err := src.Err(); err != nil {
				t.Errorf("after the recovery Err says %v", err)
			}
			log.await(t, answersAgain, "", 1)
			log.await(t, updated, "", 2)
		})
	}
}

func fail(code codes.Code) func(*workloadtest.Server) {
	return func(s *workloadtest.Server) { s.Fail(code, "trouble of the test's making") }
}

// TestSameAgain: an agent that comes back with what we have changes nothing, and
// the next outage is news again.
func TestSameAgain(t *testing.T) {
	mesh, s, log := identitytest.New("mesh.example"), start(t), newJournal()
	give(s, mesh.Issue("/gateway/west"), mesh)
	src := open(t, workload.Config{Address: s.Address(), Log: slog.New(log)})
	change := src.Updated()
	for i := range 2 {
		s.Stop()
		log.await(t, keepsLast, workload.Missing, i+1)
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
		log.await(t, answersAgain, "", i+1)
	}
	select {
	case <-change:
		t.Error("the same answer counts as a change")
	default:
	}
	if n := log.count(updated, ""); n != 1 {
		t.Errorf("the log has %d updates, want the first only", n)
	}
}

func TestChosenID(t *testing.T) {
	mesh, log := identitytest.New("mesh.example"), newJournal()
	s, first, second := start(t), mesh.Issue("/gateway/first"), mesh.Issue("/gateway/second")
	s.Give([]*x509svid.SVID{first, second}, mesh.Bundle())
	wantSVID(t, open(t, workload.Config{Address: s.Address()}), first)
	src := open(t, workload.Config{Address: s.Address(), ID: second.ID, Log: slog.New(log)})
	wantSVID(t, src, second)

	give(s, first, mesh)
	log.await(t, keepsLast, workload.NoSuchID, 1)
	wantSVID(t, src, second)
	e := wantProblem(t, src.Err(), workload.NoSuchID)
	for _, id := range []string{first.ID.String(), second.ID.String()} {
		if !strings.Contains(e.Error(), id) {
			t.Errorf("%v does not name %s", e, id)
		}
	}
}

// TestOpenGivesUp: the error says which socket, what is in the way, and what to
// do; and that it was the context that ended it.
func TestOpenGivesUp(t *testing.T) {
	mesh := identitytest.New("mesh.example")
	for _, tc := range []struct {
		name  string
		setup func(t *testing.T) (address string)
		want  workload.Problem
	}{
		{"socket missing", func(t *testing.T) string { return "unix://" + filepath.Join(t.TempDir(), "agent.sock") }, workload.Missing},
		{"a file above it", func(t *testing.T) string { return "unix://" + filepath.Join(file(t), "agent.sock") }, workload.Missing},
		{"no socket", func(t *testing.T) string { return "unix://" + file(t) }, workload.NotRunning},
		{"killed", served((*workloadtest.Server).Crash), workload.NotRunning},
		{"no identity issued", served((*workloadtest.Server).NoIdentity), workload.NoIdentity},
		{"not served", served(fail(codes.Unimplemented)), workload.NotWorkloadAPI},
		{"no such ID", served(func(s *workloadtest.Server) { give(s, mesh.Issue("/gateway/east"), mesh) }), workload.NoSuchID},
		{"silent", served((*workloadtest.Server).Hang), workload.NotAnswering},
		{"frozen", frozen, workload.NotAnswering},
	} {
		t.Run(tc.name, func(t *testing.T) {
			log, address := newJournal(), tc.setup(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			enough := errors.New("enough")
			if tc.want == workload.NotAnswering {
				time.AfterFunc(10*retry, func() { cancel(enough) }) // silence has no signal to wait for
			} else {
				go func() {
					if !log.comes(noIdentityYet, tc.want, 1) {
						t.Errorf("the log does not say %s", tc.want)
					}
					cancel(enough)
				}()
			}
			src, err := workload.Open(ctx, workload.Config{
				Address: address, ID: mesh.ID("/gateway/west"), Retry: retry, Log: slog.New(log),
			})
			if err == nil {
				src.Close()
				t.Fatal("there is an identity")
			}
			if e := wantProblem(t, err, tc.want); e.Address != address || !strings.Contains(e.Error(), address) {
				t.Errorf("%v does not name %s", e, address)
			}
			if !errors.Is(err, enough) {
				t.Errorf("%v does not say why it was given up", err)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%v is more than one line", err)
			}
		})
	}
}

// TestKeepsDialling: gRPC by itself waits longer and longer between connections,
// up to two minutes; here the tenth would come after one.
func TestKeepsDialling(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	tenth := make(chan struct{})
	go func() {
		for n := 1; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
			if n == 10 {
				close(tenth)
				cancel()
			}
		}
	}()
	src, err := workload.Open(ctx, workload.Config{Address: "unix://" + path, Retry: retry})
	if err == nil {
		src.Close()
		t.Fatal("there is an identity")
	}
	wantProblem(t, err, workload.NotAnswering)
	l.Close()
	select {
	case <-tenth:
	default:
		t.Errorf("fewer than ten connections in %v", patience)
	}
}

func served(then func(*workloadtest.Server)) func(*testing.T) string {
	return func(t *testing.T) string {
		s := start(t)
		then(s)
		return s.Address()
	}
}

// frozen is an agent whose process stands still: the kernel takes connections
// for it, and that is all.
func frozen(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return "unix://" + path
}

func file(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBadAddress(t *testing.T) {
	for _, address := range []string{
		"", "/run/agent.sock", "tcp://127.0.0.1:8081", "unix:agent.sock", "unix://agent.sock", "unix://run/agent.sock",
		"unix:///run/agent.sock?x=1", "unix://", "unix:///\x00",
	} {
		src, err := workload.Open(t.Context(), workload.Config{Address: address})
		if err == nil {
			src.Close()
			t.Errorf("address %q is taken", address)
			continue
		}
		wantProblem(t, err, workload.BadAddress)
	}
}

// TestCloseLeavesNothing: whatever the agent is doing, no goroutine outlives
// Close, and what was read stays readable.
func TestCloseLeavesNothing(t *testing.T) {
	for _, tc := range []struct {
		name string
		then func(*workloadtest.Server)
	}{
		{"serving", func(*workloadtest.Server) {}},
		{"silent", (*workloadtest.Server).Hang},
		{"stopped", (*workloadtest.Server).Stop},
		{"failing", (*workloadtest.Server).NoIdentity},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mesh, s := identitytest.New("mesh.example"), start(t)
			svid := mesh.Issue("/gateway/west")
			give(s, svid, mesh)
			src := open(t, workload.Config{Address: s.Address()})
			tc.then(s)
			if err := src.Close(); err != nil {
				t.Error(err)
			}
			if err := src.Close(); err != nil {
				t.Error("closed again:", err)
			}
			s.Stop()
			wantSVID(t, src, svid)
			noGoroutines(t, "google.golang.org/grpc", "go-spiffe")
		})
	}
}

// noGoroutines waits until no stack holds any of the names: gRPC's transport
// ends its goroutines on its own, shortly after it is closed.
func noGoroutines(t *testing.T, names ...string) {
	t.Helper()
	tick, deadline := time.NewTicker(time.Millisecond), time.After(patience)
	defer tick.Stop()
	for {
		stacks := stacks()
		found := ""
		for _, name := range names {
			if strings.Contains(stacks, name) {
				found = name
			}
		}
		if found == "" {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("goroutines of %s are left:\n%s", found, stacks)
		}
	}
}

func stacks() string {
	buf := make([]byte, 1<<20)
	return string(buf[:runtime.Stack(buf, true)])
}
