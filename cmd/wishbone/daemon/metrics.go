package daemon

import (
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"wishbone/identity"
	"wishbone/tunnel"
	"wishbone/tunnel/engine"
)

// registry is what /metrics shows.
func (d *Daemon) registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), (*metrics)(d))
	return r
}

// metrics collects from a Daemon. Every label takes its values from the
// configuration or from a closed list, so the number of series is bounded.
type metrics Daemon

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("wishbone_"+name, help, labels, nil)
}

var (
	descBuild     = describe("build_info", "The running version.", "version", "go")
	descReady     = describe("ready", "1 when the gateway takes traffic.")
	descReload    = describe("reload_failed", "1 while the last reload was refused: the running configuration is not that of the file.")
	descExpiry    = describe("identity_expiry_timestamp_seconds", "When our own certificate ends.")
	descAge       = describe("identity_age_seconds", "How long ago our source last gave another certificate or other roots.")
	descOverdue   = describe("identity_overdue", "1 when our own certificate was not renewed in three quarters of its life.")
	descOpened    = describe("connections_opened_total", "Connections begun.", "direction")
	descActive    = describe("connections_active", "Connections that live.", "direction")
	descClosed    = describe("connections_closed_total", "Connections ended, by why.", "why")
	descRefused   = describe("connections_refused_total", "Connections refused, by reason.", "reason")
	descDryRun    = describe("policy_dry_run_total", "Connections that a rule in dry run would have judged otherwise, by rule.", "rule")
	descBytes     = describe("bytes_total", "Bytes out of (sent) and into (received) local sockets.", "direction", "way")
	descEarly     = describe("early_data_connections_total", "Connections of which bytes went before the answer.", "direction")
	descWasted    = describe("early_data_wasted_bytes_total", "Bytes that went before an answer that was not yes, and were thrown away.", "direction")
	descTunnels   = describe("tunnels", "Tunnels that are up.", "peer", "direction")
	descStreams   = describe("streams", "Streams on the tunnels that we have dialled.", "peer")
	descWaiting   = describe("connections_waiting", "Connections that wait for a tunnel.", "peer")
	descDialError = describe("peer_unreachable", "1 when the last round of dialing a peer failed.", "peer")
	descHandshake = describe("handshakes_refused_total", "Tunnels of peers that were refused, by reason.", "reason")
	descWithdrawn = describe("tunnels_withdrawn_total", "Tunnels that were ended because their peer's identity was withdrawn, by reason.", "reason")
	descCut       = describe("tunnels_cut_total", "Tunnels that were cut for what their peer did, by reason.", "reason")
	descFiles     = describe("identity_files_refused_total", "Changes of certificates, keys, bundles and revocation lists that were not taken, by reason.", "reason")
	descRevoked   = describe("revoked", "What is refused whatever it proves: SPIFFE IDs, serial numbers, and certificates on revocation lists.", "by")
	descStale     = describe("revocation_lists_stale", "Revocation lists that are past their time. They still count.")
	descRules     = describe("rules_packets_total", "Packets that the rules refused, by rule.", "rule")
	descMended    = describe("rules_mended_total", "How often rules that somebody had taken away were put back.")
	descMemory    = describe("credit_bytes", "Memory reserved for what peers may send.")
	descBudget    = describe("credit_budget_bytes", "The most that may be reserved.")
	descAudit     = describe("audit_records_total", "Records of decisions that were written, by event.", "event")
	descDropped   = describe("audit_dropped_total", "Records of decisions that were dropped, since they could not be written in time.")
	descLog       = describe("log_dropped_total", "Lines of the log that were dropped, since they could not be written in time.")
	descPaused    = describe("accept_paused_total", "How often accepting had to rest for want of descriptors.")
)

// Describe leaves it to Collect: the collector is unchecked (Collector.Describe).
func (m *metrics) Describe(chan<- *prometheus.Desc) {}

// Collect is called at each scrape.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	d := (*Daemon)(m)
	version := ""
	if b, ok := debug.ReadBuildInfo(); ok {
		version = b.GoVersion
	}
	gauge(ch, descBuild, 1, d.opts.Version, version)
	gauge(ch, descReady, truth(d.notReady() == ""))
	gauge(ch, descReload, truth(d.refusedReload.Load() != nil))
	if svid, err := d.source.GetX509SVID(); err == nil {
		gauge(ch, descExpiry, float64(svid.Certificates[0].NotAfter.Unix()))
	}
	if r := d.identity.now.Load(); r != nil {
		gauge(ch, descAge, time.Since(r.updated).Seconds())
		gauge(ch, descOverdue, truth(r.overdue()))
	}
	d.collectHandshakes(ch)
	records := d.audit.Stats()
	for event, n := range records.Written {
		counter(ch, descAudit, n, string(event))
	}
	counter(ch, descDropped, records.Dropped)
	if dropped := d.opts.LogDropped; dropped != nil {
		counter(ch, descLog, dropped())
	}
	files := d.source.refused.all()
	for _, r := range identity.Reasons() {
		counter(ch, descFiles, files[string(r)], string(r))
	}
	revoked := d.revokedStatus(d.current.Load().cfg.Revoked)
	gauge(ch, descRevoked, float64(revoked.IDs), "id")
	gauge(ch, descRevoked, float64(revoked.Serials), "serial")
	gauge(ch, descRevoked, float64(revoked.Listed), "list")
	gauge(ch, descStale, float64(revoked.Stale))
	if d.serving.Load() {
		for rule, v := range d.ruleCounters() {
			counter(ch, descRules, v, rule)
		}
		if d.rules != nil {
			counter(ch, descMended, d.rules.state().mended)
		}
		d.collectStats(ch, d.gateway.Stats())
	}
}

func (d *Daemon) collectHandshakes(ch chan<- prometheus.Metric) {
	n := d.tunnels.failures.all()
	for _, r := range identity.Reasons() {
		counter(ch, descHandshake, n[string(r)], string(r))
	}
	for _, r := range handshakeReasons {
		counter(ch, descHandshake, n[r], r)
	}
}

func (d *Daemon) collectStats(ch chan<- prometheus.Metric, s tunnel.Stats) {
	for _, dir := range []tunnel.Direction{tunnel.InboundFlow, tunnel.OutboundFlow} {
		counter(ch, descOpened, s.Opened[dir], string(dir))
		gauge(ch, descActive, float64(s.Active[dir]), string(dir))
		counter(ch, descBytes, s.Sent[dir], string(dir), "sent")
		counter(ch, descBytes, s.Received[dir], string(dir), "received")
		counter(ch, descEarly, s.Early[dir], string(dir))
		counter(ch, descWasted, s.Wasted[dir], string(dir))
	}
	for _, why := range engine.Whys() {
		counter(ch, descClosed, s.Closed[why], string(why))
	}
	for _, reason := range tunnel.Reasons() {
		counter(ch, descRefused, s.Refused[reason], reason)
	}
	for _, reason := range withdrawals {
		counter(ch, descWithdrawn, s.Withdrawn[reason], reason)
	}
	for _, r := range d.current.Load().cfg.Policy {
		if r.DryRun {
			counter(ch, descDryRun, s.DryRun[r.Name], r.Name)
		}
	}
	for _, f := range tunnel.Faults() {
		counter(ch, descCut, s.Cut[f], f)
	}
	for _, p := range d.current.Load().routes.Peers() {
		ps := s.Peers[p.Name]
		gauge(ch, descTunnels, float64(ps.Tunnels), p.Name, "outbound")
		gauge(ch, descTunnels, float64(s.Inbound[p.Name]), p.Name, "inbound")
		gauge(ch, descStreams, float64(ps.Streams), p.Name)
		gauge(ch, descWaiting, float64(ps.Waiting), p.Name)
		gauge(ch, descDialError, truth(ps.Err != nil), p.Name)
	}
	gauge(ch, descMemory, float64(s.Memory))
	gauge(ch, descBudget, float64(d.current.Load().cfg.Limits.Memory))
	counter(ch, descPaused, s.AcceptPaused)
}

// handshakeReasons are those of refusing a tunnel besides identity's.
var handshakeReasons = []string{reasonHandshake, reasonOverloaded, reasonResting, reasonSource, reasonTooMany}

// withdrawals are the reasons of tunnel.Withdrawal.
var withdrawals = []string{string(identity.Revoked), string(identity.RootWithdrawn), tunnel.ReasonIdentityExpired}

func gauge(ch chan<- prometheus.Metric, desc *prometheus.Desc, v float64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, labels...)
}

func counter(ch chan<- prometheus.Metric, desc *prometheus.Desc, v uint64, labels ...string) {
	ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), labels...)
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
