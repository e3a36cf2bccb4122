package rules

import "testing"

// TestKept: the mark that rules are meant to stay outlives their replacement,
// and goes with them.
func TestKept(t *testing.T) {
	for _, b := range []struct {
		name    string
		program string
		open    func() (Backend, error)
	}{{"nftables", "", NFTables}, {"iptables", "iptables", IPTables}} {
		t.Run(b.name, func(t *testing.T) {
			if b.program != "" && !have(t, b.program) {
				return
			}
			t.Setenv("XTABLES_LOCKFILE", t.TempDir()+"/lock")
			h := newHost(t)
			var backend Backend
			on(t, h, func() (err error) {
				backend, err = b.open()
				return err
			})
			kept := func(when string, want bool) {
				t.Helper()
				on(t, h, func() error {
					got, err := backend.Kept()
					if got != want {
						t.Errorf("%s: kept is %t, want %t", when, got, want)
					}
					return err
				})
			}
			kept("without any rules", false)
			on(t, h, func() error { return backend.Apply(westPlan()) })
			kept("after Apply", false)
			on(t, h, backend.Keep)
			on(t, h, backend.Keep)
			kept("after Keep", true)
			on(t, h, func() error { return backend.Apply(westPlan()) })
			kept("after another Apply", true)
			on(t, h, func() error { return backend.Remove(DefaultRouting) })
			kept("after Remove", false)
		})
	}
}
