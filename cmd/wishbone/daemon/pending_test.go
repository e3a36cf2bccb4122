package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wishbone/identity"
	"wishbone/tunnel"
	"wishbone/tunnel/engine"
)

// TestPending: one source has its share, the oldest makes room for the newest, and
// whoever leaves leaves a place.
func TestPending(t *testing.T) {
	var p pending
	ended := map[string]bool{}
	enter := func(a string, n int) (func(), bool) {
		name := fmt.Sprint(a, " ", n)
		b := p.enter(netip.MustParseAddr(a), func(err error) { ended[name] = err == errCrowded })
		if b == nil {
			return nil, false
		}
		return b.leave, true
	}
	var leave func()
	for n := range maxPendingFrom {
		l, ok := enter("192.0.2.1", n)
		if !ok {
			t.Fatalf("handshake %d of a source is refused", n)
		}
		leave = l
	}
	if _, ok := enter("::ffff:192.0.2.1", 0); ok {
		t.Error("one more is taken")
	}
	leave()
	if _, ok := enter("192.0.2.1", maxPendingFrom); !ok {
		t.Error("one that has left has left no place")
	}
	for n := range maxPendingFrom {
		enter(fmt.Sprintf("2001:db8::%x", n), n)
	}
	if _, ok := enter("2001:db8::ffff", 0); ok {
		t.Error("a /64 has more than its share")
	}
	if _, ok := enter("fe80::1%eth0", 0); !ok {
		t.Error("an address with a zone is refused")
	}
	for n := range maxPending - 2*maxPendingFrom - 1 {
		if _, ok := enter(fmt.Sprintf("10.0.%d.%d", n>>8, n&255), 0); !ok {
			t.Fatalf("place %d is refused", n)
		}
	}
	if len(ended) > 0 {
		t.Errorf("ended before all places were taken: %v", ended)
	}
	if _, ok := enter("198.51.100.1", 0); !ok || !ended["192.0.2.1 0"] || len(ended) != 1 {
		t.Errorf("a new one when all are taken: %v; ended: %v", ok, ended)
	}
	if p.order.Len() != maxPending {
		t.Errorf("%d are under way", p.order.Len())
	}
	if _, ok := enter("192.0.2.1", 0); !ok {
		t.Error("the place of one that was ended is not its source's again")
	}
	leave() // it has left before
	if got := p.from[sourceOf(netip.MustParseAddr("192.0.2.1"))].places; got > maxPendingFrom {
		t.Errorf("the source has %d", got)
	}
}

// TestTurns: so many handshakes of a source are answered at once, and then as many as
// end, or as many a second; other sources do not wait for them.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pending
		var answered, inVain atomic.Int32
		ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
		defer cancel()
		begin := func(from string) *begun {
			b := p.enter(netip.MustParseAddr(from), func(error) {})
			go func() { // ends with ctx
				switch err := b.turn(ctx); err {
				case nil:
					answered.Add(1)
				case errTurn:
					inVain.Add(1)
				default:
					t.Error(err)
				}
			}()
			return b
		}
		want := func(when string, n, vain int32) {
			t.Helper()
			synctest.Wait()
			if a, v := answered.Load(), inVain.Load(); a != n || v != vain {
				t.Errorf("%s: %d are answered and %d wait no more, want %d and %d", when, a, v, n, vain)
			}
		}
		var first []*begun
		for range maxTurns {
			first = append(first, begin("192.0.2.1"))
		}
		want("at once", maxTurns, 0)
		for range maxPendingFrom - maxTurns {
			begin("192.0.2.1")
		}
		want("and others", maxTurns, 0)
		begin("192.0.2.2")
		want("another source's", maxTurns+1, 0)
		for _, b := range first[:5] {
			b.leave()
		}
		want("five have ended", maxTurns+1+5, 0)
		<-time.After(turnLasts)
		want("a turn later", 2*maxTurns+1+5, 0)
		first[5].leave() // whose turn is over already
		want("an old one has ended", 2*maxTurns+1+5, 0)
		<-time.After(turnLasts)
		want("two turns later", 3*maxTurns+1+5, 0)
		<-ctx.Done()
		want("at last", 3*maxTurns+1+5, maxPendingFrom-3*maxTurns-5)
		<-time.After(turnLasts) // the turns of all end
	})
}

// rowsOf are the first cells of a table of a page, and the whole rows. The table is the
// first one below a heading.
func rowsOf(t *testing.T, page, heading string) (first, rows []string) {
	t.Helper()
	b, err := os.ReadFile("../../../docs/" + page)
	if err != nil {
		t.Fatal(err)
	}
	_, below, found := strings.Cut(string(b), "\n"+heading+"\n")
	if !found {
		t.Fatalf("%s has no %q", page, heading)
	}
	for line := range strings.Lines(below) {
		switch {
		case strings.HasPrefix(line, "| `"):
			first, rows = append(first, strings.Split(line, "`")[1]), append(rows, line)
		case strings.HasPrefix(line, "#"):
			return first, rows
		}
	}
	return first, rows
}

// TestMetricsPage: docs/metrics.md has each metric with its labels and what it means,
// and each word that may stand in them, and no other.
func TestMetricsPage(t *testing.T) {
	const page = "metrics.md"
	source, err := os.ReadFile("metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	metrics, rows := rowsOf(t, page, "## Metrics")
	var described []string
	for _, m := range regexp.MustCompile(`describe\("(\w+)", ("[^"]*")(?:, (".*"))?\)`).FindAllStringSubmatch(string(source), -1) {
		name, help, labels := "wishbone_"+m[1], strings.Trim(m[2], `"`), strings.ReplaceAll(m[3], `"`, "`")
		described = append(described, name)
		want := fmt.Sprintf("| `%s` | %s | %s |", name, labels, help)
		if labels == "" {
			want = fmt.Sprintf("| `%s` | | %s |", name, help)
		}
		if !slices.ContainsFunc(rows, func(r string) bool { return strings.HasPrefix(r, want) }) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if len(described) != strings.Count(string(source), "= describe(") {
		t.Errorf("this test has found %d metrics of %d", len(described), strings.Count(string(source), "= describe("))
	}
	must := func(what string, got, want []string) {
		t.Helper()
		got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
		if want = slices.Compact(want); !slices.Equal(got, want) {
			t.Errorf("%s: the page has\n%v, the program\n%v", what, got, want)
		}
	}
	must("metrics", metrics, described)
	whys, _ := rowsOf(t, page, "## Why a connection has ended")
	must("whys", whys, texts(engine.Whys()))
	reasons, _ := rowsOf(t, page, "## Why a connection is refused")
	must("reasons of connections", reasons, tunnel.Reasons())
	reasons, _ = rowsOf(t, page, "## Why a tunnel is refused, or withdrawn")
	must("reasons of tunnels", reasons, slices.Concat(texts(identity.Reasons()), handshakeReasons, withdrawals))
}

// TestRestartKeys: docs/configuration.md names what only a restart changes, and no more.
func TestRestartKeys(t *testing.T) {
	cfg := parse(t, text)
	var want []string
	for _, f := range fixedParts(cfg, cfg) {
		want = append(want, f.key)
	}
	slices.Sort(want)
	if got, _ := rowsOf(t, "configuration.md", "## Changing it while the gateway runs"); !slices.Equal(got, want) {
		t.Errorf("the page has\n%v, the program\n%v", got, want)
	}
}

func texts[T ~string](list []T) (all []string) {
	for _, w := range list {
		all = append(all, string(w))
	}
	return all
}

// spaced is how the page writes seconds.
func spaced(d time.Duration) string { return strings.Replace(d.String(), "s", " s", 1) }

// TestLimitsPage: docs/limits.md has the counters and the reasons for refusing a
// handshake that are limits.
func TestLimitsPage(t *testing.T) {
	b, err := os.ReadFile("../../../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"wishbone_handshakes_refused_total", "wishbone_tunnels_cut_total", "wishbone_connections_refused_total",
		fmt.Sprintf("| `%s` | %d handshakes under way from one IPv4 address or IPv6 /64 |", reasonSource, maxPendingFrom),
		fmt.Sprintf("Of each source %d handshakes are answered at a time", maxTurns), fmt.Sprintf("for %v;", spaced(turnLasts)),
		fmt.Sprintf("| `%s` | none within %v after a tunnel from the same source was cut for a fault (`%s` aside), then %v, and so on up to %v while that goes on; a minute without is forgotten; %d sources; the same after %d handshakes from a source that came to nothing, or to one tunnel `%s`, of which %d a second are forgiven |",
			reasonResting, spaced(firstRest), strings.Join(blameless, "` and `"), spaced(2*firstRest), spaced(longestRest), maxRests, missBurst, reasonTooMany, missRate),
		fmt.Sprintf("| `%s` | %d handshakes under way |", reasonOverloaded, maxPending),
		"| `" + reasonHandshake + "` |", "| `" + reasonTooMany + "` |", "| `too_large` |",
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}
