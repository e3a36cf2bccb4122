package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
)

// lineSize is what exchange sends each way.
const lineSize = uint64(len("a line of text\n"))

// get asks a web server from within its host.
func get(t *testing.T, h *netlab.Host, url string) (code int, body string) {
	t.Helper()
	client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return h.Dial(ctx, network, address)
		}}}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// scrape reads the metrics of a gateway: values by series, as they are written.
func scrape(t *testing.T, h *netlab.Host) map[string]float64 {
	t.Helper()
	code, body := get(t, h, "http://127.0.0.1:15020/metrics")
	if code != http.StatusOK {
		t.Fatalf("metrics: status %d\n%s", code, body)
	}
	series := map[string]float64{}
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		line = strings.TrimSpace(line)
		i := strings.LastIndex(line, " ")
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			t.Fatalf("metrics: %q: %v", line, err)
		}
		series[line[:i]] = v
	}
	return series
}

// wishbone runs the command line about a gateway, and fails unless it is done.
func wishbone(t *testing.T, g *lab.Gateway, h *netlab.Host, args ...string) string {
	t.Helper()
	code, out := runOn(t, h, "1", append(args, "--admin", g.AdminPath())...)
	if code != 0 {
		t.Fatalf("wishbone %s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// wishboneJSON is wishbone with -o json.
func wishboneJSON[T any](t *testing.T, g *lab.Gateway, h *netlab.Host, args ...string) (answer T) {
	t.Helper()
	out := wishbone(t, g, h, append(args, "-o", "json")...)
	d := json.NewDecoder(strings.NewReader(out))
	d.DisallowUnknownFields()
	if err := d.Decode(&answer); err != nil {
		t.Fatalf("wishbone %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return answer
}

// mustMatch fails unless text has a line like each of those.
func mustMatch(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !regexp.MustCompile("(?m)" + l).MatchString(text) {
			t.Errorf("no line like %q in\n%s", l, text)
		}
	}
}

// TestStatusAndFlows: what a person and a script are told of a gateway, and of
// the connections that live on it.
func TestStatusAndFlows(t *testing.T) {
	p := newPair(t)
	live := p.connect(t, p.Client, listen(t, p.Server, web))
	refused(t, p.Client, netip.AddrPortFrom(netlab.Server4, 9))
	client := regexp.QuoteMeta(live.client.LocalAddr().String())

	mustMatch(t, wishbone(t, p.west, p.West, "status"),
		`^gateway +west \(wishbone \S+\), ready, up \d+s$`,
		`^identity +spiffe://mesh.example/gateway/west, until 20\d\d-`,
		`^networks +10\.1\.0\.0/16 fd00:1::/64 192\.0\.2\.10/32 2001:db8::10/128$`,
		`^outbound +1 live, 2 in all, 15 B sent, 15 B received$`,
		`^inbound +0 live, 0 in all, 0 B sent, 0 B received$`,
		`^refused +refused 1$`,
		`^east +[12] out, 0 in +1 +0 +192\.0\.2\.20:15008 +10\.2\.0\.0/16 .* -$`)
	mustMatch(t, wishbone(t, p.east, p.East, "status"),
		`^inbound +1 live, 2 in all, 15 B sent, 15 B received$`,
		`^west +0 out, [12] in +0 +0 +- `)
	s := wishboneJSON[daemon.Status](t, p.west, p.West, "status")
	if s.State != "ready" || s.Firewall != "nftables" || s.Connections["outbound"].Active != 1 || s.Refused["refused"] != 1 || len(s.Peers) != 1 ||
		s.Identity.ID != "spiffe://mesh.example/gateway/west" || time.Until(s.Identity.Expires) < time.Minute {
		t.Errorf("status: %+v", s)
	}

	mustMatch(t, wishbone(t, p.west, p.West, "flows"),
		`^direction +client +target +peer +state +sent +received +age +id$`,
		`^outbound +`+client+` +10\.2\.0\.2:8080 +east +open +15 B +15 B +\d+s +spiffe://mesh\.example/gateway/east$`)
	mustMatch(t, wishbone(t, p.east, p.East, "flows"),
		`^inbound +`+client+` +10\.2\.0\.2:8080 +west +open +15 B +15 B +\d+s +spiffe://mesh\.example/gateway/west$`)
	if f := wishboneJSON[[]daemon.Flow](t, p.east, p.East, "flows"); len(f) != 1 || f[0].Client != addr(live.client.LocalAddr()) || f[0].Target != web || f[0].Sent != lineSize || f[0].Age <= 0 {
		t.Errorf("flows: %+v", f)
	}
	live.end(t)
	eventually(t, "no flow is left", func() bool { return len(wishboneJSON[[]daemon.Flow](t, p.east, p.East, "flows")) == 0 })
}

// TestExplain: what would become of a connection, at either gateway, is what
// becomes of it.
func TestExplain(t *testing.T) {
	p := newPair(t, func(west, east *site) {
		west.capture, east.capture = "exclude: {ports: [8081]}", "exclude: {ports: [8081]}"
	})
	for _, tt := range []struct {
		gateway        *lab.Gateway
		source, target string
		verdict, why   string
	}{
		{p.west, "10.1.0.2", "10.2.0.2:8080", "carried to east", "10.2.0.2 is in the networks of peer east"},
		{p.west, "[fd00:1::2]:4000", "[fd00:2::2]:8080", "carried to east", "captured"},
		{p.west, "10.1.0.2", "10.2.0.2:8081", "left alone", "capture.exclude.ports"},
		{p.west, "198.51.100.1", "10.2.0.2:8080", "left alone", "not in capture.sources"},
		{p.west, "10.1.0.2", "203.0.113.1:80", "left alone", "no peer owns 203.0.113.1"},
		{p.west, "10.1.0.2", "192.0.2.20:15008", "left alone", "peer's endpoint"},
		{p.west, "10.1.0.2", "10.1.0.1:15020", "left alone", "this gateway itself"},
		{p.east, "10.1.0.2", "10.2.0.2:8080", "delivered to 10.2.0.2:8080", "source: preserve"},
		{p.east, "198.51.100.1", "10.2.0.2:8080", "left alone", "belongs to no peer"},
		{p.east, "10.1.0.2", "192.0.2.20:15008", "closed as a loop", "this gateway itself"},
	} {
		t.Run(tt.gateway.Name+" "+tt.source+" "+tt.target, func(t *testing.T) {
			host := map[*lab.Gateway]*netlab.Host{p.west: p.West, p.east: p.East}[tt.gateway]
			e := wishboneJSON[daemon.Explanation](t, tt.gateway, host, "explain", tt.source, tt.target)
			if e.Verdict != tt.verdict || !strings.Contains(strings.Join(e.Steps, "\n"), tt.why) {
				t.Errorf("%+v, want %s: %s", e, tt.verdict, tt.why)
			}
			mustMatch(t, wishbone(t, tt.gateway, host, "explain", tt.source, tt.target),
				"^"+regexp.QuoteMeta(tt.source+" to "+tt.target+": "+tt.verdict)+"$", "^- .*"+regexp.QuoteMeta(tt.why))
		})
	}
	// A tunnel of somebody's own to the peer is no captured connection.
	dial(t, p.Client, netip.MustParseAddrPort("192.0.2.20:15008"))
	if n := status(t, p.west).Connections["outbound"].Opened; n != 0 {
		t.Errorf("west has captured %d connections to a peer's endpoint", n)
	}
	p.goes(t, p.Client, netlab.Client4, p.Server, netip.MustParseAddrPort("10.2.0.2:8080"), throughTunnel)
	p.goes(t, p.Client, netlab.Client4, p.Server, netip.MustParseAddrPort("10.2.0.2:8081"), inTheClear)
}

// families of metrics that there must be, with the labels of each.
var metricFamilies = map[string][]string{
	"wishbone_build_info":                        {"version", "go"},
	"wishbone_ready":                             nil,
	"wishbone_reload_failed":                     nil,
	"wishbone_identity_expiry_timestamp_seconds": nil,
	"wishbone_identity_age_seconds":              nil,
	"wishbone_identity_overdue":                  nil,
	"wishbone_connections_opened_total":          {"direction"},
	"wishbone_connections_active":                {"direction"},
	"wishbone_connections_closed_total":          {"why"},
	"wishbone_connections_refused_total":         {"reason"},
	"wishbone_bytes_total":                       {"direction", "way"},
	"wishbone_early_data_connections_total":      {"direction"},
	"wishbone_early_data_wasted_bytes_total":     {"direction"},
	"wishbone_tunnels":                           {"peer", "direction"},
	"wishbone_streams":                           {"peer"},
	"wishbone_connections_waiting":               {"peer"},
	"wishbone_peer_unreachable":                  {"peer"},
	"wishbone_handshakes_refused_total":          {"reason"},
	"wishbone_identity_files_refused_total":      {"reason"},
	"wishbone_rules_packets_total":               {"rule"},
	"wishbone_rules_mended_total":                nil,
	"wishbone_tunnels_withdrawn_total":           {"reason"},
	"wishbone_tunnels_cut_total":                 {"reason"},
	"wishbone_revoked":                           {"by"},
	"wishbone_revocation_lists_stale":            nil,
	"wishbone_credit_bytes":                      nil,
	"wishbone_credit_budget_bytes":               nil,
	"wishbone_accept_paused_total":               nil,
	"wishbone_audit_records_total":               {"event"},
	"wishbone_audit_dropped_total":               nil,
	"wishbone_log_dropped_total":                 nil,
	"go_goroutines":                              nil,
	"process_open_fds":                           nil,
}

// labelName is the name of a label in a series.
var labelName = regexp.MustCompile(`([a-z_]+)="`)

// TestMetrics: the families are there, with no labels but those of a closed
// list; connections move counters and make no series; and what is counted is
// what happened.
func TestMetrics(t *testing.T) {
	p := newPair(t)
	ln := listen(t, p.Server, web)
	p.connect(t, p.Client, ln).end(t) // so that there is a tunnel
	before := map[string]map[string]float64{"west": scrape(t, p.West), "east": scrape(t, p.East)}
	mustHaveFamilies(t, before["west"])

	const ended, reset, refusals = 20, 10, 20
	for i := range ended {
		from := []place{atClient, atWest}[i%2]
		c := carried{client: dialFrom(t, from.host(p), from.addr[0], web)}
		c.server = accept(t, ln)
		exchange(t, c.client, c.server)
		c.end(t)
	}
	for range reset {
		c := carried{client: dial(t, p.Client, web)}
		c.server = accept(t, ln)
		exchange(t, c.client, c.server)
		if err := resetBy(c.client); err != nil {
			t.Fatal(err)
		}
		if err := readEnd(t, c.server); !isReset(err) {
			t.Errorf("the server is told %v", err)
		}
	}
	for i := range refusals {
		refused(t, p.Client, netip.AddrPortFrom(netlab.Server4, uint16(1+i)))
	}
	const both = (ended + reset) * float64(lineSize)
	for _, side := range []struct {
		name, direction string
		host            *netlab.Host
	}{{"west", "outbound", p.West}, {"east", "inbound", p.East}} {
		want := map[string]float64{
			`wishbone_connections_opened_total{direction="` + side.direction + `"}`:   ended + reset + refusals,
			`wishbone_connections_active{direction="` + side.direction + `"}`:         0,
			`wishbone_bytes_total{direction="` + side.direction + `",way="sent"}`:     both,
			`wishbone_bytes_total{direction="` + side.direction + `",way="received"}`: both,
			`wishbone_connections_closed_total{why="closed"}`:                         ended,
			`wishbone_connections_closed_total{why="client_reset"}`:                   reset,
			`wishbone_connections_closed_total{why="refused"}`:                        refusals,
			`wishbone_connections_refused_total{reason="refused"}`:                    refusals,
		}
		var grown map[string]float64
		// Connections end after their ends have closed.
		eventually(t, side.name+" has counted", func() bool {
			grown = growth(before[side.name], scrape(t, side.host))
			return grown[`wishbone_connections_active{direction="`+side.direction+`"}`] == 0
		})
		counted := func(series string) bool {
			return strings.HasPrefix(series, "wishbone_connections_") || strings.HasPrefix(series, "wishbone_bytes_")
		}
		for series, n := range grown {
			if counted(series) && n != want[series] {
				t.Errorf("%s: %s has grown by %v, want %v", side.name, series, n, want[series])
			}
		}
		after := scrape(t, side.host)
		if d := difference(list(before[side.name]), list(after)); d != "" {
			t.Errorf("%s: there are other series now:\n%s", side.name, d)
		}
		for series := range want {
			if _, ok := after[series]; !ok {
				t.Errorf("%s: %s is not there", side.name, series)
			}
		}
	}
	if n := scrape(t, p.West)[`wishbone_tunnels{direction="outbound",peer="east"}`]; n < 1 || n != float64(status(t, p.west).Peers[0].Tunnels) {
		t.Errorf("west counts %v tunnels, status says %+v", n, status(t, p.west).Peers)
	}
	if n := scrape(t, p.East)[`wishbone_tunnels{direction="inbound",peer="west"}`]; n < 1 || n != float64(status(t, p.east).Peers[0].Inbound) {
		t.Errorf("east counts %v tunnels, status says %+v", n, status(t, p.east).Peers)
	}
}

// mustHaveFamilies holds series against metricFamilies.
func mustHaveFamilies(t *testing.T, series map[string]float64) {
	t.Helper()
	seen := map[string]bool{}
	for s := range series {
		family, labels, _ := strings.Cut(s, "{")
		want, known := metricFamilies[family]
		seen[family] = true
		if !known {
			if strings.HasPrefix(family, "wishbone_") {
				t.Errorf("%s is not among the families that this test knows", family)
			}
			continue
		}
		var names []string
		for _, m := range labelName.FindAllStringSubmatch(labels, -1) {
			names = append(names, m[1])
		}
		slices.Sort(names)
		if !slices.Equal(names, slices.Sorted(slices.Values(want))) {
			t.Errorf("%s has labels %v, want %v", s, names, want)
		}
	}
	for family := range metricFamilies {
		if !seen[family] {
			t.Errorf("there is no %s", family)
		}
	}
}

// growth is by how much each series has grown.
func growth(before, after map[string]float64) map[string]float64 {
	grown := map[string]float64{}
	for s, v := range after {
		grown[s] = v - before[s]
	}
	return grown
}

// list gives the names of series, a line each.
func list(series map[string]float64) string {
	return strings.Join(slices.Sorted(maps.Keys(series)), "\n")
}

// TestHealth: readiness and liveness answer on their own port, and nothing else
// does.
func TestHealth(t *testing.T) {
	p := newPair(t)
	for _, tt := range []struct {
		url  string
		code int
		body string
	}{
		{"http://127.0.0.1:15021/healthz/ready", 200, "ready\n"},
		{"http://127.0.0.1:15021/healthz/live", 200, "alive\n"},
		{"http://127.0.0.1:15021/metrics", 404, ""},
		{"http://127.0.0.1:15021/flows", 404, ""},
		{"http://127.0.0.1:15020/flows", 404, ""},
		{"http://127.0.0.1:15020/healthz/ready", 404, ""},
	} {
		code, body := get(t, p.West, tt.url)
		if code != tt.code || code == 200 && body != tt.body {
			t.Errorf("%s: %d %q", tt.url, code, body)
		}
	}
}

// logLines are the lines of a log in JSON.
func logLines(t *testing.T, g *lab.Gateway) (lines []map[string]any) {
	t.Helper()
	s := bufio.NewScanner(strings.NewReader(g.Log()))
	for s.Scan() {
		line := map[string]any{}
		if err := json.Unmarshal(s.Bytes(), &line); err != nil {
			t.Fatalf("the log has a line that is not JSON: %q: %v", s.Text(), err)
		}
		lines = append(lines, line)
	}
	return lines
}

// TestLog: a finished connection leaves one line in each gateway's log, in
// either format, with all that is known of it.
func TestLog(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			p := newPair(t, func(west, east *site) {
				west.log = "{level: info, format: " + format + "}"
				east.log = west.log
			})
			live := p.connect(t, p.Client, listen(t, p.Server, web))
			client := live.client.LocalAddr().String()
			live.end(t)
			for _, side := range []struct {
				g                     *lab.Gateway
				direction, peer, name string
			}{{p.west, "outbound", "east", "west"}, {p.east, "inbound", "west", "east"}} {
				awaitLog(t, side.g, "connection closed")
				want := map[string]any{
					"level": "INFO", "msg": "connection closed", "gateway": side.name,
					"direction": side.direction, "client": client, "target": web.String(),
					"peer": side.peer, "id": "spiffe://mesh.example/gateway/" + side.peer,
					"sent": float64(lineSize), "received": float64(lineSize), "why": "closed",
				}
				if format == "json" {
					mustLogJSON(t, side.g, want)
				} else {
					mustLogText(t, side.g, want)
				}
			}
		})
	}
}

// mustLogJSON fails unless one line, and no other about a connection, says just that.
func mustLogJSON(t *testing.T, g *lab.Gateway, want map[string]any) {
	t.Helper()
	var found []map[string]any
	for _, line := range logLines(t, g) {
		if _, about := line["client"]; about {
			found = append(found, line)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s: %d lines about the connection, want 1: %v", g.Name, len(found), found)
	}
	took, ok := found[0]["took"].(float64)
	if _, err := time.Parse(time.RFC3339, fmt.Sprint(found[0]["time"])); err != nil || !ok || took <= 0 {
		t.Errorf("%s: %v", g.Name, found[0])
	}
	delete(found[0], "took")
	delete(found[0], "time")
	if !maps.Equal(found[0], want) {
		t.Errorf("%s has logged %v, want %v", g.Name, found[0], want)
	}
}

// mustLogText is mustLogJSON for the other format.
func mustLogText(t *testing.T, g *lab.Gateway, want map[string]any) {
	t.Helper()
	var found []string
	for line := range strings.Lines(g.Log()) {
		if strings.Contains(line, " client=") {
			found = append(found, line)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s: %d lines about the connection, want 1:\n%s", g.Name, len(found), strings.Join(found, ""))
	}
	for key, v := range want {
		text := fmt.Sprintf("%s=%v", key, v)
		if key == "msg" {
			text = fmt.Sprintf("%s=%q", key, v)
		}
		if !strings.Contains(found[0], text+" ") && !strings.HasSuffix(found[0], text+"\n") {
			t.Errorf("%s: no %s in %s", g.Name, text, found[0])
		}
	}
	mustMatch(t, found[0], `^time=20\S+ .* took=[0-9.]+(µs|ms|s) `)
}

// TestLogLevel: the log has what its level says and nothing below.
func TestLogLevel(t *testing.T) {
	for _, tt := range []struct {
		level    string
		has, not []string
	}{
		{"debug", []string{"level=DEBUG", "level=INFO", "level=WARN"}, nil},
		{"info", []string{"level=INFO", "level=WARN"}, []string{"level=DEBUG"}},
		{"warn", []string{"level=WARN"}, []string{"level=DEBUG", "level=INFO"}},
		{"error", nil, []string{"level=DEBUG", "level=INFO", "level=WARN"}},
	} {
		t.Run(tt.level, func(t *testing.T) {
			p := newPair(t, func(west, _ *site) { west.log = "{level: " + tt.level + "}" })
			p.connect(t, p.Client, listen(t, p.Server, web)).end(t)
			refused(t, p.Client, netip.AddrPortFrom(netlab.Server4, 9))
			eventually(t, "west has done with both", func() bool {
				s := status(t, p.west)
				return s.Connections["outbound"].Active == 0 && s.Closed["closed"] == 1 && s.Refused["refused"] == 1
			})
			for _, s := range tt.has {
				awaitLog(t, p.west, s)
			}
			log := p.west.Log()
			for _, s := range tt.not {
				if strings.Contains(log, s) {
					t.Errorf("at level %s the log has %s:\n%s", tt.level, s, log)
				}
			}
		})
	}
}

// descriptors are the numbers of those that a gateway has open.
func descriptors(t *testing.T, g *lab.Gateway) (numbers []int) {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", g.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		numbers = append(numbers, n)
	}
	return numbers
}

// tunnelsOf is how many tunnels a gateway has, of either direction.
func tunnelsOf(t *testing.T, g *lab.Gateway) int {
	t.Helper()
	p := status(t, g).Peers[0]
	return p.Tunnels + p.Inbound
}

// TestDescriptors: a connection costs each gateway one descriptor, and gives it
// back.
func TestDescriptors(t *testing.T) {
	p := newPair(t)
	ln := listen(t, p.Server, web)
	p.connect(t, p.Client, ln).end(t)
	gateways := []*lab.Gateway{p.west, p.east}
	eventually(t, "the first connection is over", func() bool { return len(flows(t, p.west))+len(flows(t, p.east)) == 0 })
	before := map[*lab.Gateway]int{}
	for _, g := range gateways {
		before[g] = len(descriptors(t, g)) - tunnelsOf(t, g)
	}
	const n = 20
	var live []carried
	for range n {
		live = append(live, p.connect(t, p.Client, ln))
	}
	for _, g := range gateways {
		// The connection that asked last may still be there for a moment.
		eventually(t, fmt.Sprintf("%s has %d descriptors more than before", g.Name, n), func() bool {
			return len(descriptors(t, g))-tunnelsOf(t, g)-before[g] == n
		})
	}
	for _, c := range live {
		c.end(t)
	}
	for _, g := range gateways {
		eventually(t, g.Name+" has as many descriptors as before", func() bool {
			return len(descriptors(t, g))-tunnelsOf(t, g) == before[g]
		})
	}
}

// leave lets a gateway open only so many more descriptors. The result puts the
// limit back.
func leave(t *testing.T, g *lab.Gateway, n int) (restore func()) {
	t.Helper()
	open := descriptors(t, g)
	slices.Sort(open)
	// The limit is one on numbers, and the lowest that is free is taken
	// (getrlimit(2), open(2)).
	limit := 0
	for ; n > 0 || slices.Contains(open, limit); limit++ {
		if !slices.Contains(open, limit) {
			n--
		}
	}
	limit = max(limit, 1)
	var old unix.Rlimit
	if err := unix.Prlimit(g.PID(), unix.RLIMIT_NOFILE, nil, &old); err != nil {
		t.Fatal(err)
	}
	set := func(cur uint64) {
		if err := unix.Prlimit(g.PID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: cur, Max: old.Max}, nil); err != nil {
			t.Fatal(err)
		}
	}
	set(uint64(limit))
	return func() { set(old.Cur) }
}

// TestOutOfDescriptors: a gateway that has no descriptor left for another client
// says so and lets it wait, while those that it has go on, and so does what
// serves them: tunnels, and answers to those who ask how it does. As connections
// end, the waiting ones are carried. Nobody is turned away.
func TestOutOfDescriptors(t *testing.T) {
	p := newPair(t)
	ln := listen(t, p.Server, web)
	first := p.connect(t, p.Client, ln)
	leave(t, p.west, 40)
	const n = 60
	var clients []*net.TCPConn
	for range n {
		clients = append(clients, dial(t, p.Client, web))
	}
	awaitLog(t, p.west, "level=WARN", "not accepting for a moment", "too many open files", "LimitNOFILE=")
	if s := status(t, p.west); s.Connections["outbound"].Active == 0 || s.Connections["outbound"].Active >= n {
		t.Errorf("with its descriptors used up: %+v", s.Connections)
	}
	if n := scrape(t, p.West)["wishbone_accept_paused_total"]; n < 1 {
		t.Errorf("accepting has rested %v times, says the counter", n)
	}
	exchange(t, first.client, first.server)
	first.end(t)
	for range n {
		server := accept(t, ln)
		i := slices.IndexFunc(clients, func(c *net.TCPConn) bool { return c.LocalAddr().String() == server.RemoteAddr().String() })
		if i < 0 {
			t.Fatalf("the server sees %s, who is none of the clients", server.RemoteAddr())
		}
		exchange(t, clients[i], server)
		carried{clients[i], server}.end(t)
	}
	eventually(t, "all have ended", func() bool { return status(t, p.west).Closed["closed"] == n+1 })
	mustMatch(t, wishbone(t, p.west, p.West, "status"), `^gateway +west .*, ready`)
	p.connect(t, p.Client, ln).end(t)
}

// TestPeerOutOfDescriptors: a gateway that has none left for a delivery refuses
// it, as overloaded, and both say so; then it serves again.
func TestPeerOutOfDescriptors(t *testing.T) {
	p := newPair(t)
	ln := listen(t, p.Server, web)
	live := p.connect(t, p.Client, ln)
	restore := leave(t, p.east, 0)
	refused(t, p.Client, web)
	mustSay(t, p, web, "overloaded", "too many open files")
	exchange(t, live.client, live.server)
	restore()
	p.connect(t, p.Client, ln).end(t)
	live.end(t)
}
