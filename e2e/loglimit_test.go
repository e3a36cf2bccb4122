package e2e

import (
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wishbone/audit"
)

// TestLogFloods: what peers and strangers have a gateway refuse hundreds of times
// leaves a few lines in its log, and a number for the others. Each one is counted
// and recorded, and another peer's has its line.
func TestLogFloods(t *testing.T) {
	s := newSiege(t, func(_, east *site) { east.audit = "{file: east.audit}" })
	const many, strangers, visits, visitor = 500, 150, 120, 5
	for _, target := range []string{"nowhere", "10.8.0.1:80"} {
		h := s.client()
		for n := range many {
			h.request(target)
			if n%100 == 0 { // as a peer does that reads its answers
				h.alive("it asks for what it cannot have")
			}
		}
		h.flush()
		h.await("all are answered", func(h heard) bool { return len(h.answers) == many })
		h.conn.Close()
	}
	for n := range strangers { // a few from each address: more would have it rest
		c := s.stranger(source(n % 6))
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		// It ends when the gateway has enough.
		_, _ = io.Copy(io.Discard, c)
	}
	for range visits {
		h := s.clientAs(visitor)
		h.alive("it has come")
		h.conn.Close()
	}
	other := s.client()
	other.request("nowhere")
	other.flush()
	awaitLog(t, s.east, "request refused", "peer=m2", "nowhere")
	other.conn.Close() // else the gateway waits for it at its end

	floods := []struct {
		series, line, peer string
		event              audit.Event
		reason             string
		n                  int
	}{
		{"wishbone_connections_refused_total", "request refused", "m0", audit.Denied, "malformed", many},
		{"wishbone_connections_refused_total", "connection refused", "m1", audit.Denied, "target_not_served", many},
		{"wishbone_handshakes_refused_total", "tunnel refused", "", audit.TunnelRefused, "handshake", strangers},
	}
	counters := scrape(t, s.East)
	for _, f := range floods {
		if n := counters[fmt.Sprintf(`%s{reason="%s"}`, f.series, f.reason)]; int(n) < f.n {
			t.Errorf("%v are counted as %s, want %d", n, f.reason, f.n)
		}
	}
	if err := s.east.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	exitCode(t, s.east)
	for _, line := range []string{"tunnel up", "tunnel down"} {
		written, told := linesOf(t, s.east.Log(), line, "m5", "")
		if written+told != visits || written == 0 || written > visits*3/4 {
			t.Errorf("%s: %d lines are written and %d told of; want %d, and few of them written", line, written, told, visits)
		}
	}
	records := s.records("east")
	for _, f := range floods {
		recorded := 0
		for _, r := range records {
			if r.Event == f.event && r.Reason == f.reason && r.Peer == f.peer {
				recorded++
			}
		}
		written, told := linesOf(t, s.east.Log(), f.line, f.peer, f.reason)
		t.Logf("%s: %d recorded, %d written, %d told of", f.line, recorded, written, told)
		if recorded != f.n || written+told != f.n || written == 0 || written > f.n/2 {
			t.Errorf("%s: %d are recorded, %d written and %d told of; want %d, and few of them written", f.line, recorded, written, told, f.n)
		}
	}
}

var leftOut = regexp.MustCompile(`msg="log lines left out: .* line="(.*)" reason=(\S+) lines=(\d+)(?: peer=(\S+))?\n`)

// linesOf counts the lines of a kind, and those that the log says it left out.
func linesOf(t *testing.T, log, msg, peer, reason string) (written, told int) {
	t.Helper()
	for line := range strings.Lines(log) {
		if m := leftOut.FindStringSubmatch(line); m != nil {
			if m[1] == msg && strings.Trim(m[2], `"`) == reason && m[4] == peer {
				n, err := strconv.Atoi(m[3])
				if err != nil {
					t.Fatal(err)
				}
				told += n
			}
			continue
		}
		if strings.Contains(line, fmt.Sprintf("msg=%q", msg)) && (reason == "" || strings.Contains(line, " reason="+reason+" ")) &&
			(peer == "" || strings.Contains(line, " peer="+peer)) {
			written++
		}
	}
	return written, told
}
