package e2e

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"wishbone/audit"
	"wishbone/cmd/wishbone/doctor"
	"wishbone/e2e/netlab"
	"wishbone/identity"
)

// withAudit has both gateways keep a record of their decisions, each in a file of
// its own; east has rules besides.
func withAudit(rules ...string) func(west, east *site) {
	return func(west, east *site) {
		west.audit, east.audit, east.extra = "{file: west.audit}", "{file: east.audit}", policyOf(rules...)
	}
}

// records reads what a gateway has recorded.
func (p *pair) records(name string) []audit.Record {
	p.t.Helper()
	return p.recordsIn(name + ".audit")
}

// recordsIn reads a file of records, whole lines only.
func (p *pair) recordsIn(name string) (all []audit.Record) {
	p.t.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, name))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if !strings.HasSuffix(line, "\n") {
			break // in the making
		}
		all = append(all, parseRecord(p.t, line))
	}
	return all
}

func parseRecord(t *testing.T, line string) (r audit.Record) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return r
}

// awaitRecord waits for a record that has all that want has, and whose time is now;
// it fails if there is more than one.
func (p *pair) awaitRecord(name string, want audit.Record) {
	p.t.Helper()
	var found []audit.Record
	eventually(p.t, fmt.Sprintf("a record of %s like %+v", name, want), func() bool {
		found = nil
		for _, r := range p.records(name) {
			if like(r, want) {
				found = append(found, r)
			}
		}
		return len(found) > 0
	})
	if len(found) > 1 {
		p.t.Errorf("%s has recorded it %d times: %+v", name, len(found), found)
	}
	if r := found[0]; r.Gateway != name || time.Since(r.Time) > time.Minute || r.Time.After(time.Now()) {
		p.t.Errorf("%s has recorded %+v", name, r)
	}
}

// like says whether r has what want has, with nothing where it wants nothing, but
// for what differs from run to run: serial numbers, ports that are 0, and bytes.
func like(r, want audit.Record) bool {
	r.Time, r.Gateway, r.Serial, r.Sent, r.Received = want.Time, want.Gateway, want.Serial, want.Sent, want.Received
	if want.From.Port() == 0 && r.From.IsValid() {
		r.From = netip.AddrPortFrom(r.From.Addr(), 0)
	}
	return r == want
}

// tally counts records by some word of theirs.
func tally(records []audit.Record, event audit.Event, word func(audit.Record) string) map[string]float64 {
	n := map[string]float64{}
	for _, r := range records {
		if r.Event == event {
			n[word(r)]++
		}
	}
	return n
}

func byReason(r audit.Record) string { return r.Reason }
func byRule(r audit.Record) string   { return r.Rule }

// family gives the series of a family that are not zero, by the value of their
// label.
func family(series map[string]float64, name string) map[string]float64 {
	n := map[string]float64{}
	for s, v := range series {
		if rest, found := strings.CutPrefix(s, name+"{"); found && v != 0 {
			_, value, _ := strings.Cut(strings.TrimSuffix(rest, `"}`), `="`)
			n[value] = v
		}
	}
	return n
}

// TestAudit: each decision leaves one record, with who, what, why and by which
// rule, and no other: they are as many as the metrics count.
func TestAudit(t *testing.T) {
	rules := []string{
		"{name: db, action: allow, from: {peers: [west]}, to: {ports: [5432]}}",
		"{name: no-telnet, action: deny, to: {ports: [23]}}",
		"{name: no-web, action: deny, to: {ports: [8080]}, dryRun: true}",
	}
	p := newPair(t, withAudit(rules...))
	ln := listenAll(t, p, netlab.Server4, 23, 5432, 8080, 8081)
	at := p.rulesAtEast()
	const westID, eastID = "spiffe://mesh.example/gateway/west", "spiffe://mesh.example/gateway/east"
	in := audit.Record{Direction: "inbound", Peer: "west", ID: westID}
	out := audit.Record{Direction: "outbound", Peer: "east", ID: eastID}
	about := func(r audit.Record, e audit.Event, client, target netip.AddrPort, reason, rule string) audit.Record {
		r.Event, r.Client, r.Target, r.Reason, r.Rule, r.RuleAt = e, client, target, reason, rule, at[rule]
		return r
	}

	// Files are read every second, so these come first, and are looked at in the end.
	p.awaitRecord("west", audit.Record{Event: audit.IdentityUpdated, ID: westID, Reason: "certificate"})
	if err := os.WriteFile(filepath.Join(p.dir, "west.pem"), []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.write(p.eastSite, p.westSite)

	// What is carried: by an allow rule, in spite of one in dry run, and otherwise.
	for port, rule := range map[uint16]string{5432: "db", 8080: "", 8081: ""} {
		c := p.connect(t, p.Client, ln[port])
		client, target := addr(c.client.LocalAddr()), addr(ln[port].Addr())
		c.end(t)
		p.awaitRecord("west", about(out, audit.Allowed, client, target, "", ""))
		p.awaitRecord("east", about(in, audit.Allowed, client, target, "", rule))
		if port == 8080 {
			p.awaitRecord("east", about(in, audit.DryRun, client, target, "would_deny", "no-web"))
		}
	}
	// What is not: by a rule, and for want of a server.
	for _, tt := range []struct {
		port               uint16
		event              audit.Event
		east, west, byRule string
	}{{23, audit.Denied, "policy_deny", "denied", "no-telnet"}, {9, audit.Failed, "refused", "refused", ""}} {
		target := netip.AddrPortFrom(netlab.Server4, tt.port)
		client := netip.AddrPortFrom(netlab.Client4, 40000+tt.port)
		if c, err := p.dialFromPort(client, target); err == nil {
			if err := readEnd(t, c); !isReset(err) {
				t.Errorf("port %d: %v, want a reset", tt.port, err)
			}
		}
		p.awaitRecord("east", about(in, tt.event, client, target, tt.east, tt.byRule))
		p.awaitRecord("west", about(out, audit.Failed, client, target, tt.west, ""))
	}
	// A peer that claims what it does not own, and cannot be understood; somebody whom
	// nobody knows; and the peer again, which breaks the protocol. West's address rests
	// then, and the tunnel that it has does not mind.
	r := newRogue(p, "/gateway/west")
	theirs := netip.MustParseAddrPort("10.2.0.9:40000")
	r.connect(web.String(), `for="`+theirs.String()+`"`)
	p.awaitRecord("east", about(in, audit.Denied, theirs, web, "source_not_owned", ""))
	r.connect(web.String(), `for=?`)
	p.awaitRecord("east", about(in, audit.Denied, netip.AddrPort{}, netip.AddrPort{}, "malformed", ""))
	p.stranger(t)
	p.awaitRecord("east", audit.Record{
		Event: audit.TunnelRefused, Direction: "inbound", ID: "spiffe://mesh.example/gateway/stranger",
		From: netip.MustParseAddrPort("192.0.2.10:0"), Reason: "wrong_id",
	})
	r.must(r.framer.WriteRSTStream(999, 0)) // idle: a connection error (RFC 9113 §5.1)
	p.awaitRecord("east", about(in, audit.TunnelCut, netip.AddrPort{}, netip.AddrPort{}, "protocol", ""))
	// What is cut: by a rule, and because the peer is revoked.
	closed, revoked := p.connect(t, p.Client, ln[8081]), p.connect(t, p.Client, ln[5432])
	p.reloadPolicy(append(rules, "{name: closed, action: deny, to: {ports: [8081]}}")...)
	at = p.rulesAtEast()
	mustBreak(t, closed)
	p.awaitRecord("east", about(in, audit.Cut, addr(closed.client.LocalAddr()), addr(ln[8081].Addr()), "policy_deny", "closed"))
	p.awaitRecord("east", audit.Record{Event: audit.Reloaded})
	eventually(t, "east has recorded its next certificate", func() bool {
		return tally(p.records("east"), audit.IdentityUpdated, byReason)["certificate"] == 2
	})
	p.awaitRecord("west", audit.Record{Event: audit.IdentityRefused, Reason: "malformed"})
	p.eastSite.extra += "\nrevoked: {ids: [" + westID + "]}"
	p.writeYAML(p.eastSite, p.westSite)
	hangUp(t, p.east)
	mustBreak(t, revoked)
	p.awaitRecord("east", about(in, audit.Cut, addr(revoked.client.LocalAddr()), addr(ln[5432].Addr()), "revoked", "db"))
	if err := os.WriteFile(filepath.Join(p.dir, "east.yaml"), []byte("version: 2"), 0o600); err != nil {
		t.Fatal(err)
	}
	hangUp(t, p.east)
	p.awaitRecord("east", audit.Record{Event: audit.ReloadRefused})

	for name, h := range map[string]*netlab.Host{"west": p.West, "east": p.East} {
		p.mustTally(t, name, h)
	}
	seen := map[audit.Event]bool{audit.Dropped: true} // another test's
	for _, r := range append(p.records("west"), p.records("east")...) {
		seen[r.Event] = true
	}
	if len(seen) != len(audit.Events()) {
		t.Errorf("of all events only %v were seen", seen)
	}
}

// rulesAtEast is where each rule stands in east's file, as file:line.
func (p *pair) rulesAtEast() map[string]string {
	p.t.Helper()
	path := filepath.Join(p.dir, "east.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		p.t.Fatal(err)
	}
	at := map[string]string{}
	for i, line := range strings.Split(string(text), "\n") {
		if rest, found := strings.CutPrefix(line, "  - {name: "); found {
			name, _, _ := strings.Cut(rest, ",")
			at[name] = fmt.Sprintf("%s:%d", path, i+1)
		}
	}
	return at
}

// mustTally fails unless there are as many records of each kind as the metrics
// count, of decisions and of records; soon, for they are not written at once.
func (p *pair) mustTally(t *testing.T, name string, h *netlab.Host) {
	t.Helper()
	var differs string
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-tick.C {
		if differs = tallies(scrape(t, h), p.records(name)); differs == "" {
			return
		}
	}
	t.Errorf("%s: %s", name, differs)
}

// tallies says where metrics and records differ.
func tallies(series map[string]float64, all []audit.Record) string {
	event := func(r audit.Record) string { return string(r.Event) }
	written := map[string]float64{}
	for _, e := range audit.Events() {
		maps.Copy(written, tally(all, e, event))
	}
	refused := tally(all, audit.Failed, byReason)
	for reason, n := range tally(all, audit.Denied, byReason) {
		refused[reason] += n
	}
	opened := map[string]float64{}
	for _, r := range all {
		if r.Event == audit.Allowed || r.Event == audit.Denied && r.Target.IsValid() {
			opened[r.Direction]++
		}
	}
	fromPeers := map[string]float64{}
	for _, r := range all {
		if r.Event == audit.TunnelRefused && r.Direction == "inbound" {
			fromPeers[r.Reason]++
		}
	}
	for metric, want := range map[string]map[string]float64{
		"audit_records_total":       written,
		"connections_opened_total":  opened,
		"connections_refused_total": refused,
		"policy_dry_run_total":      tally(all, audit.DryRun, byRule),
		"handshakes_refused_total":  fromPeers,
		"tunnels_withdrawn_total":   tally(all, audit.TunnelWithdrawn, byReason),
		"tunnels_cut_total":         tally(all, audit.TunnelCut, byReason),
	} {
		if got := family(series, "wishbone_"+metric); !maps.Equal(got, want) {
			return fmt.Sprintf("%s counts %v, the records say %v", metric, got, want)
		}
	}
	if cut := series[`wishbone_connections_closed_total{why="cut"}`]; cut != written["cut"] {
		return fmt.Sprintf("%v connections were cut, the records say %v", cut, written["cut"])
	}
	if n := series["wishbone_audit_dropped_total"]; n != 0 {
		return fmt.Sprintf("%v records were dropped", n)
	}
	return ""
}

// stranger knocks at east with the identity of nobody's peer.
func (p *pair) stranger(t *testing.T) {
	t.Helper()
	cfg := identity.Client(p.authority.Source("/gateway/stranger"), func(spiffeid.ID) error { return nil })
	c := tls.Client(dial(t, p.West, netip.MustParseAddrPort("192.0.2.20:15008")), cfg)
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	// In TLS 1.3 the client's part is done before the server has judged it.
	err := c.Handshake()
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	if err == nil {
		t.Error("the stranger is let in")
	}
}

// dialFromPort connects from the client's host and a port of its choice.
func (p *pair) dialFromPort(from, to netip.AddrPort) (c net.Conn, err error) {
	err = p.Client.Do(func() (err error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from), Timeout: patience}
		c, err = d.DialContext(p.t.Context(), "tcp", to.String())
		return err
	})
	if err == nil {
		p.t.Cleanup(func() { c.Close() })
		err = c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

// TestAuditRotated: a file that logrotate has renamed is left alone, and its
// successor is there as soon as the gateway is told, or as soon as there is
// something to record; all though the file system is closed to the gateway, which
// has no powers over files of others.
func TestAuditRotated(t *testing.T) {
	p := newWorld(t, withAudit("{name: no-telnet, action: deny, to: {ports: [23]}}"))
	p.mode = with("1", "net_raw", "net_admin", "net_bind_service")
	p.startWest()
	p.startEast()
	path := filepath.Join(p.dir, "east.audit")
	p.awaitRecord("east", audit.Record{Event: audit.IdentityUpdated, ID: "spiffe://mesh.example/gateway/east", Reason: "certificate"})
	ln := listen(t, p.Server, web)
	for i, tell := range []func(){func() { hangUp(t, p.east) }, func() { p.open(ln).end(t) }} {
		if err := os.Rename(path, fmt.Sprintf("%s.%d", path, i)); err != nil {
			t.Fatal(err)
		}
		tell()
		eventually(t, "the next file is there", func() bool {
			data, err := os.ReadFile(path)
			return err == nil && strings.HasSuffix(string(data), "\n")
		})
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if n := len(tally(p.recordsIn("east.audit.0"), audit.IdentityUpdated, byReason)); n != 1 {
		t.Errorf("what was recorded before is not in the old file")
	}
	if got := tally(p.records("east"), audit.Allowed, byReason); got[""] != 1 {
		t.Errorf("in the last file: %v", got)
	}
}

// TestAuditSockets: syslog and the journal get the same records, over their
// sockets.
func TestAuditSockets(t *testing.T) {
	p := newWorld(t, func(west, east *site) { west.audit, east.audit = "{syslog: DIR/syslog}", "{journald: DIR/journal}" })
	for _, s := range []*site{&p.westSite, &p.eastSite} {
		s.audit = strings.Replace(s.audit, "DIR", p.dir, 1)
	}
	syslog, journal := datagrams(t, filepath.Join(p.dir, "syslog")), datagrams(t, filepath.Join(p.dir, "journal"))
	p.startWest()
	p.startEast()
	c := p.open(listen(t, p.Server, web))
	client := c.client.LocalAddr().String()
	c.end(t)
	syslog(" allowed - {", `"client":"`+client+`"`, `"peer":"east"`)
	journal("WISHBONE_EVENT=allowed\n", "WISHBONE_CLIENT="+client+"\n", "WISHBONE_PEER=west\n", "MESSAGE={")
}

// datagrams is a daemon that takes messages, and fails the test unless one of them
// has all parts.
func datagrams(t *testing.T, path string) (await func(parts ...string)) {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return func(parts ...string) {
		t.Helper()
		buf := make([]byte, 1<<16)
		for {
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("no message with %q: %v", parts, err)
			}
			text := string(buf[:n])
			if !slices.ContainsFunc(parts, func(s string) bool { return !strings.Contains(text, s) }) {
				return
			}
		}
	}
}

// TestAuditStalled: connections do not wait for a record that nobody takes. What
// there is no room for is dropped and counted; once it is taken, what is missing is
// told.
func TestAuditStalled(t *testing.T) {
	p := newWorld(t, func(west, _ *site) { west.audit = "{file: pipe}" })
	pipe := filepath.Join(p.dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(pipe, os.O_RDWR, 0) // and does not read
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close() })
	p.startWest()
	p.startEast()
	live := p.open(listen(t, p.Server, web))
	dropped := func() float64 { return scrape(t, p.West)["wishbone_audit_dropped_total"] }
	nobody := netip.AddrPortFrom(netlab.Server4, 9)
	for began := time.Now(); dropped() == 0; {
		if time.Since(began) > time.Minute {
			t.Fatal("nothing is dropped")
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 100 { // two records each
					if c, err := p.Client.Dial(t.Context(), "tcp", nobody.String()); err == nil {
						_, _ = c.Read(make([]byte, 1)) // the reset
						c.Close()
					}
				}
			})
		}
		wg.Wait()
		exchange(t, live.client, live.server)
	}
	p.open(listen(t, p.Server, netip.AddrPortFrom(netlab.Server4, 8081))).end(t)
	live.end(t)
	if s := status(t, p.west); s.Audit == nil || s.Audit.Dropped == 0 || s.State != "ready" {
		t.Errorf("status: %s, audit %+v", s.State, s.Audit)
	}
	told := make(chan uint64)
	go func() { // ends with the record of what is missing, or with the pipe
		defer close(told)
		lines := bufio.NewScanner(reader)
		for lines.Scan() {
			var r audit.Record
			if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
				t.Errorf("%q: %v", lines.Text(), err)
			}
			if r.Event == audit.Dropped {
				told <- r.Dropped
				return
			}
		}
	}()
	select {
	case n := <-told:
		if float64(n) != dropped() {
			t.Errorf("%d are told missing, %v were dropped", n, dropped())
		}
	case <-time.After(patience):
		t.Error("nobody tells what is missing")
	}
}

// TestAuditUnusable: without the place for its record a gateway does not start, and
// the doctor says why.
func TestAuditUnusable(t *testing.T) {
	for what, hint := range map[string]string{"{file: none/audit.log}": "mkdir -p ", "{syslog: /nowhere/log}": "syslog.socket"} {
		p := newWorld(t, func(west, _ *site) { west.audit = what })
		p.write(p.westSite, p.eastSite)
		code, out := runOn(t, p.West, "1", "run", "-c", filepath.Join(p.dir, "west.yaml"))
		if code != 1 || !strings.Contains(out, "wishbone: error: audit: ") || !strings.Contains(out, "hint: the gateway does not run without the record") {
			t.Errorf("%s: exit code %d\n%s", what, code, out)
		}
		_, findings := diagnose(t, p)
		i := slices.IndexFunc(findings, func(f doctor.Finding) bool { return f.Check == "audit" })
		if i < 0 || findings[i].Level != doctor.Fail || !strings.Contains(findings[i].Remedy, hint) {
			t.Errorf("%s: the doctor finds\n%s", what, indented(findings))
		}
	}
}
