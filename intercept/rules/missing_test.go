package rules

import (
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestIPTablesMisses: what was taken away is named, also with the chains that it
// led to.
func TestIPTablesMisses(t *testing.T) {
	eachIPTables(t, func(t *testing.T, b *iptablesBackend) {
		h := newHost(t)
		for _, tt := range []struct{ take, missing string }{
			{"true", ""},
			{"ip6tables -t mangle -D OUTPUT -p tcp -j WISHBONE_OUT", "ip6tables rule OUTPUT"},
			{"iptables -t mangle -F", "iptables rule PREROUTING"},
			{"iptables -F OUTPUT", "iptables rule OUTPUT -j WISHBONE_LOCAL"}, // as people do, who mean their own
			{"ip6tables -F INPUT", "ip6tables rule INPUT"},
			{"iptables -F FORWARD", "iptables rule FORWARD"},
			{"iptables -t mangle -F; iptables -t mangle -X", "iptables rule PREROUTING"},
			{"ip -6 rule del pref 1509", "IPv6 policy rule 1509"},
		} {
			applyWith(t, h, b, westPlan())
			script(t, h, tt.take)
			var missing string
			on(t, h, func() (err error) {
				missing, err = b.Missing(DefaultRouting)
				return err
			})
			if !strings.HasPrefix(missing, tt.missing) || missing != "" && tt.missing == "" {
				t.Errorf("after %s: %q is missing, want %q", tt.take, missing, tt.missing)
			}
		}
	})
}

// TestIPTablesCannotLook: who may not look at rules does not take them for gone.
func TestIPTablesCannotLook(t *testing.T) {
	eachIPTables(t, func(t *testing.T, b *iptablesBackend) {
		h := newHost(t)
		applyWith(t, h, b, westPlan())
		var missing string
		err := asOrdinaryUser(func() error {
			return h.Do(func() (err error) {
				missing, err = b.Missing(DefaultRouting)
				return err
			})
		})
		if missing != "" || err == nil || !strings.Contains(err.Error(), "Permission denied") {
			t.Errorf("%q is missing, %v; want an error", missing, err)
		}
	})
}

// asOrdinaryUser runs f on a thread whose programs have no capabilities, though
// they are root's (capabilities(7), SECBIT_NOROOT).
func asOrdinaryUser(f func() error) error {
	result := make(chan error)
	go func() { // ends when f has
		runtime.LockOSThread() // never unlocked: the thread is thrown away
		const noroot = 1
		err := unix.Prctl(unix.PR_SET_SECUREBITS, noroot, 0, 0, 0)
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}

// TestMissingWithoutIPv6: where IPv6 is switched off, what cannot be there is not
// missing.
func TestMissingWithoutIPv6(t *testing.T) {
	for _, device := range []string{"lo", "all"} {
		h := newHost(t)
		if err := h.Sysctl("net.ipv6.conf."+device+".disable_ipv6", "1"); err != nil {
			t.Fatal(err)
		}
		apply(t, h, westPlan())
		on(t, h, func() error {
			what, err := nft(t).Missing(westPlan().Routing)
			if what != "" {
				t.Errorf("without IPv6 for %s: %q is missing", device, what)
			}
			return err
		})
	}
}
