package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"wishbone/audit"
	"wishbone/config"
	"wishbone/identity"
	"wishbone/tunnel"
)

// openAudit opens the record of decisions, where there is to be one. It is opened
// before anything can be decided, and closed after.
func (d *Daemon) openAudit(_ context.Context, cfg *config.Config) (err error) {
	a := cfg.Audit
	if a == (config.Audit{}) {
		return nil
	}
	d.audit, err = audit.Open(audit.Config{File: a.File, Syslog: a.Syslog, Journald: a.Journald, Gateway: cfg.Name, Log: d.log})
	if err != nil {
		return hinted(err, "the gateway does not run without the record that it is told to keep: make the place, or remove audit from the configuration")
	}
	d.later(d.audit.Close)
	return nil
}

// decided records a decision of the tunnels', and has the source of one that was cut
// for a fault rest. It runs on the loops.
func (d *Daemon) decided(t tunnel.Decision) {
	if t.Verdict == tunnel.TunnelCut && t.From.IsValid() {
		d.tunnels.rests.begin(t.From.Addr(), t.Reason, time.Now())
	}
	if d.audit == nil {
		return
	}
	r := audit.Record{
		Event: audit.Event(t.Verdict), Direction: string(t.Direction), Peer: t.Peer, Serial: t.Serial,
		Client: t.Client, Target: t.Target, Reason: t.Reason, Rule: t.Rule, Sent: t.Sent, Received: t.Received,
	}
	if !t.ID.IsZero() {
		r.ID = t.ID.String()
	}
	if t.Rule != "" {
		r.RuleAt = d.current.Load().rulesAt[t.Rule]
	}
	d.audit.Write(r)
}

// rulesAt is where each rule stands, as file:line.
func rulesAt(cfg *config.Config) map[string]string {
	at := make(map[string]string, len(cfg.Policy))
	for _, r := range cfg.Policy {
		at[r.Name] = fmt.Sprintf("%s:%d", cfg.Path, r.Line)
	}
	return at
}

// record records a tunnel that did not come about because of who is at its other
// end, or claims to be.
func (t *tunnels) record(direction tunnel.Direction, s tunnel.Session, from netip.AddrPort, reason string, err error) {
	r := audit.Record{Event: audit.TunnelRefused, Direction: string(direction), Peer: s.Peer, From: from, Reason: reason}
	id := s.ID
	if e, ok := errors.AsType[*identity.VerifyError](err); ok {
		id = e.ID
	}
	if !id.IsZero() {
		r.ID = id.String()
	}
	t.audit.Write(r)
}

// recordIdentity records that our own certificate, or the roots, are others now.
func (d *Daemon) recordIdentity(what string) {
	r := audit.Record{Event: audit.IdentityUpdated, Reason: what}
	if svid, err := d.source.GetX509SVID(); err == nil { // there is one, or nothing had changed
		r.ID, r.Serial = svid.ID.String(), svid.Certificates[0].SerialNumber.Text(16)
	}
	d.audit.Write(r)
}

// AuditStatus is how the record of decisions does.
type AuditStatus struct {
	Written map[string]uint64 `json:"written"` // by event
	Dropped uint64            `json:"dropped"`
	Error   string            `json:"error,omitempty"` // why nothing is written now
}

func auditStatus(s audit.Stats) *AuditStatus {
	st := &AuditStatus{Written: make(map[string]uint64), Dropped: s.Dropped}
	for event, n := range s.Written {
		st.Written[string(event)] = n
	}
	if s.Err != nil {
		st.Error = s.Err.Error()
	}
	return st
}

// RecordReload notes how a reload has ended, nil for well: Status tells of one that
// was refused until another is not. Every reload leaves a record, so that a file which
// was rotated is found again at once.
func (d *Daemon) RecordReload(err error) {
	r := audit.Record{Event: audit.Reloaded}
	if err != nil {
		r.Event = audit.ReloadRefused
	}
	d.refusedReload.Store(refusedReload(d.refusedReload.Load(), err))
	d.audit.Write(r)
}
