package daemon

import (
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wishbone/intercept/rules"
)

// fakeRules are rules of which a test says what becomes of them.
type fakeRules struct {
	rules.Backend
	refuse  func(rules.Plan) error // what Apply says; nil: nothing
	missing func() (string, error) // nil: nothing
	live    func(rules.Plan) error // nil: nothing
	applied []rules.Plan
	removed bool
}

func (f *fakeRules) Name() string { return "fake" }

func (f *fakeRules) Apply(p rules.Plan) error {
	if f.refuse != nil {
		if err := f.refuse(p); err != nil {
			return err
		}
	}
	f.applied = append(f.applied, p)
	return nil
}

func (f *fakeRules) Missing(rules.Routing) (string, error) {
	if f.missing == nil {
		return "", nil
	}
	return f.missing()
}

func (f *fakeRules) Standing(rules.Routing) (string, error) { return "table inet wishbone", nil }

func (f *fakeRules) Live(p rules.Plan) error {
	if f.live == nil {
		return nil
	}
	return f.live(p)
}

func (f *fakeRules) Remove(rules.Routing) error { f.removed = true; return nil }

func (f *fakeRules) firewall() *firewall {
	return &firewall{log: slog.New(slog.DiscardHandler), backend: f, plan: rules.Plan{Routing: rules.DefaultRouting}}
}

// TestLiveMeanwhile: rules hear again and again that the gateway is there, also while they
// are looked at, which may take long and come to nothing.
func TestLiveMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var last time.Time
		var gap time.Duration
		f := &fakeRules{
			missing: func() (string, error) {
				<-time.After(time.Minute)
				return "", errors.New("somebody holds the lock")
			},
			live: func(rules.Plan) error {
				mu.Lock()
				defer mu.Unlock()
				if now := time.Now(); !last.IsZero() {
					gap = max(gap, now.Sub(last))
				}
				last = time.Now()
				return nil
			},
		}
		w := f.firewall()
		if err := w.install(w.plan); err != nil {
			t.Fatal(err)
		}
		<-time.After(5 * time.Minute)
		mu.Lock()
		if gap == 0 || gap >= rules.LiveFor {
			t.Errorf("not told for %v", gap)
		}
		mu.Unlock()
		if err := w.remove(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestStateMeanwhile: how the rules stand is known without waiting for those who look.
func TestStateMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		finds, goOn := "the table", make(chan struct{})
		f := &fakeRules{
			missing: func() (string, error) { <-goOn; return finds, nil },
			refuse:  func(rules.Plan) error { <-goOn; return nil },
		}
		w := f.firewall()
		wantState := func(when string, want condition) {
			t.Helper()
			synctest.Wait()
			if got := w.state(); got != want {
				t.Errorf("%s: %+v, want %+v", when, got, want)
			}
		}
		go w.mend() // ends after two steps
		wantState("looking", condition{})
		goOn <- struct{}{}
		wantState("putting them back", condition{missing: "the table"})
		goOn <- struct{}{}
		wantState("they are back", condition{mended: 1})
		finds = ""
		go w.mend() // ends after one
		wantState("looking again", condition{mended: 1})
		goOn <- struct{}{}
		wantState("all is there", condition{mended: 1})
	})
}

// TestRefusedChange: a change that fails leaves the rules as they were.
func TestRefusedChange(t *testing.T) {
	const old, refused = 1, 2
	f := &fakeRules{
		missing: func() (string, error) { return "the table", nil },
		live: func(p rules.Plan) error {
			if p.Transparent == refused {
				return errors.New("no")
			}
			return nil
		},
	}
	w := f.firewall()
	if err := w.install(rules.Plan{Transparent: old, Routing: rules.DefaultRouting}); err != nil {
		t.Fatal(err)
	}
	if err := w.apply(rules.Plan{Transparent: refused, Routing: rules.DefaultRouting}); err == nil {
		t.Fatal("no error")
	}
	inForce := func(when string) {
		t.Helper()
		if last := f.applied[len(f.applied)-1]; last.Transparent != old {
			t.Errorf("%s: the rules are those of the refused configuration", when)
		}
	}
	inForce("refused")
	w.mend()
	inForce("mended")
	if err := w.remove(); err != nil {
		t.Fatal(err)
	}
}

// TestMendWithoutCgroup: rules come back also where an excluded unit has stopped.
func TestMendWithoutCgroup(t *testing.T) {
	f := &fakeRules{missing: func() (string, error) { return "the table", nil }}
	f.refuse = func(p rules.Plan) error {
		if len(p.Exclude.Cgroups) > 0 {
			return unix.ENOENT
		}
		return nil
	}
	w := f.firewall()
	w.plan.Exclude.Cgroups = []string{"system.slice/no-such.service"}
	w.mend()
	if len(f.applied) != 1 {
		t.Error("they stay away")
	}
	if len(w.plan.Exclude.Cgroups) != 1 {
		t.Error("the group is forgotten")
	}
}

// TestKeptAfterFlush: rules of wishbone rules apply stay, also where somebody has
// emptied our routing table (a network manager that starts anew).
func TestKeptAfterFlush(t *testing.T) {
	f := new(fakeRules)
	w := f.firewall()
	if err := rules.Keep(w.plan); err != nil {
		t.Fatal(err)
	}
	if err := w.install(w.plan); err != nil {
		t.Fatal(err)
	}
	all, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: w.plan.Routing.Table}, netlink.RT_FILTER_TABLE)
	if err != nil || len(all) == 0 {
		t.Fatalf("%d routes, %v", len(all), err)
	}
	for _, r := range all {
		if err := netlink.RouteDel(&r); err != nil {
			t.Fatal(err)
		}
	}
	w.mend()
	if kept, err := rules.Kept(w.plan.Routing); err != nil || kept == 0 {
		t.Errorf("kept %d, %v", kept, err)
	}
	if err := w.remove(); err != nil || f.removed {
		t.Errorf("a clean stop takes them away: %v, %v", f.removed, err)
	}
}
