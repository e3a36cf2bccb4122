package daemon

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"wishbone/config"
	"wishbone/identity/identitytest"
)

// given is an identity that comes when the test says so.
type given struct {
	svid    atomic.Pointer[x509svid.SVID]
	changed atomic.Pointer[chan struct{}]
}

func newGiven() *given {
	g := &given{}
	c := make(chan struct{})
	g.changed.Store(&c)
	return g
}

func (g *given) give(s *x509svid.SVID) {
	g.svid.Store(s)
	g.change()
}

func (g *given) change() {
	c := make(chan struct{})
	close(*g.changed.Swap(&c))
}

func (g *given) updated() <-chan struct{} { return *g.changed.Load() }

func (g *given) GetX509SVID() (*x509svid.SVID, error) {
	if s := g.svid.Load(); s != nil {
		return s, nil
	}
	return nil, errNoIdentity
}

// journal is what was logged.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// TestFollow: the gateway is told of each new certificate and of each change of
// roots, the metrics how old they are, and the operator, once a certificate, that it
// was not renewed in time.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := identitytest.New("mesh.example")
		leaf := func() *x509svid.SVID {
			return a.Issue("/gateway/west", identitytest.Options{NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)})
		}
		src, log := newGiven(), &journal{}
		var bundles atomic.Pointer[x509bundle.Bundle]
		var renewals, judgements atomic.Int64
		f := &follow{
			source: src, log: slog.New(slog.NewTextHandler(log, nil)),
			hint:    whereToLook(config.Identity{WorkloadAPI: "unix:///run/agent.sock"}),
			renewed: func() { renewals.Add(1) }, judge: func() { judgements.Add(1) },
			roots: func() roots {
				if b := bundles.Load(); b != nil {
					return roots{b.TrustDomain(): b}
				}
				return nil
			},
		}
		stop := f.start()
		wants := func(why string, renewed, judged int64, warnings int, age time.Duration) {
			t.Helper()
			synctest.Wait()
			if renewals.Load() != renewed || judgements.Load() != judged {
				t.Errorf("%s: told of %d renewals and %d judgements, want %d and %d", why, renewals.Load(), judgements.Load(), renewed, judged)
			}
			if n := strings.Count(log.String(), "identity is not renewed"); n != warnings {
				t.Errorf("%s: %d warnings, want %d:\n%s", why, n, warnings, log)
			}
			if r := f.now.Load(); r == nil {
				t.Errorf("%s: there is no identity", why)
			} else if got := time.Since(r.updated); got != age {
				t.Errorf("%s: it is %s old, want %s", why, got, age)
			}
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if f.now.Load() != nil || log.String() != "" {
			t.Errorf("without an identity there is the age of one, or a warning:\n%s", log)
		}
		bundles.Store(a.Bundle())
		src.give(leaf())
		wants("the first", 1, 1, 0, 0)
		time.Sleep(30 * time.Minute)
		wants("half of its life", 1, 1, 0, 30*time.Minute)
		src.give(leaf())
		wants("the second", 2, 1, 0, 0)
		time.Sleep(45*time.Minute - time.Second)
		wants("more than a quarter is left", 2, 1, 0, 45*time.Minute-time.Second)
		time.Sleep(time.Second)
		wants("a quarter is left", 2, 1, 1, 45*time.Minute)
		if !f.now.Load().overdue() {
			t.Error("it is not said to be overdue")
		}
		for _, want := range []string{"level=WARN", "expires=", "unix:///run/agent.sock"} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("the warning lacks %q: %s", want, log)
			}
		}
		bundles.Store(identitytest.New("mesh.example").Bundle())
		src.change()
		wants("only roots are new", 2, 2, 1, 0)
		time.Sleep(time.Hour)
		wants("it is said once", 2, 2, 1, time.Hour)
		src.give(leaf())
		wants("the third", 3, 2, 1, 0)
		if f.now.Load().overdue() {
			t.Error("a new one is overdue")
		}
		src.give(a.Issue("/gateway/west", identitytest.Options{NotBefore: time.Now().Add(-50 * time.Minute), NotAfter: time.Now().Add(10 * time.Minute)}))
		wants("one that is old when it comes", 4, 2, 2, 0)
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}
