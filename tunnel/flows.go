package tunnel

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/identity/authz"
	"wishbone/tunnel/engine"
	"wishbone/tunnel/hbone"
	"wishbone/tunnel/pool"
)

// Direction is the way a connection was begun.
type Direction string

// The directions.
const (
	OutboundFlow Direction = "outbound" // from a captured client to a peer
	InboundFlow  Direction = "inbound"  // from a peer to a server
)

// State is how far a flow has come.
type State string

const (
	stateConnecting State = "connecting"
	stateOpen       State = "open"
)

// carried is what is known of a live flow.
type carried struct {
	direction      Direction
	client, target netip.AddrPort
	peer           string
	id             spiffeid.ID // zero until the peer is known
	state          State
	serial         string // of the certificate that it was proved with
	cut            string // why it was cut
	denied         bool   // it was refused by a judgement, and did not fail
	rule, dryRun   string // of the policy: what decided, and what would have decided otherwise
	// allowed asks the present routes and policy again.
	allowed func(*Gateway) error
}

// begin registers a flow.
func (w *worker) begin(f *engine.Flow, c *carried) {
	w.flows[f] = c
	w.stats.opened(c.direction)
	w.count(c.direction, 1)
}

// ended takes a flow off the list, counts it and logs it.
func (w *worker) ended(f *engine.Flow, e engine.End, reason string) {
	c := w.flows[f]
	delete(w.flows, f)
	w.stats.ended(c.direction, e, reason)
	w.count(c.direction, -1)
	if c.dryRun != "" {
		w.stats.DryRun[c.dryRun]++
	}
	w.decideEnd(c, e, reason)
	w.log(c, e, cmp.Or(c.cut, reason))
	w.checkIdle()
}

// refusedLine is that of a connection that was not carried.
const refusedLine = "connection refused"

// log writes the one line that a flow leaves behind; of those that a peer may not
// have only some do, if they are many.
func (w *worker) log(c *carried, e engine.End, reason string) {
	level, msg := slog.LevelInfo, "connection closed"
	if e.Why == engine.Unserved {
		level, msg = slog.LevelWarn, refusedLine
	}
	log := w.g.cfg.Log
	if !log.Enabled(context.Background(), level) {
		return
	}
	if c.denied && c.direction == InboundFlow && !w.g.lines.Allow(level, msg, c.peer, reason) {
		return // peers may ask for what they may not have as often as they like
	}
	attrs := make([]slog.Attr, 0, 13)
	attrs = append(attrs,
		slog.String("direction", string(c.direction)),
		slog.String("client", sourceName(c.client)),
		slog.String("target", c.target.String()),
		slog.String("peer", c.peer),
		slog.String("id", c.id.String()),
		slog.Uint64("sent", e.Sent),
		slog.Uint64("received", e.Received),
		slog.Duration("took", e.Took.Round(time.Microsecond)),
		slog.String("why", string(e.Why)))
	if reason != "" {
		attrs = append(attrs, slog.String("reason", reason))
	}
	if c.rule != "" {
		attrs = append(attrs, slog.String("rule", c.rule))
	}
	if c.dryRun != "" {
		attrs = append(attrs, slog.String("dryRun", c.dryRun))
	}
	if e.Err != nil {
		attrs = append(attrs, slog.String("error", e.Err.Error()))
	}
	line := slog.NewRecord(time.Now(), level, msg, 0) // Logger would look for the caller, which costs a sixth of all this
	line.AddAttrs(attrs...)
	_ = log.Handler().Handle(context.Background(), line) // as Logger does: there is nobody to tell
}

// sourceName is a source in words: one whose peer has named none is unknown.
func sourceName(a netip.AddrPort) string {
	if !a.IsValid() {
		return "unknown"
	}
	return a.String()
}

// FlowInfo is one live flow.
type FlowInfo struct {
	Direction      Direction
	Client, Target netip.AddrPort // Client is zero where the peer has named none
	Peer           string
	ID             spiffeid.ID
	State          State
	Sent, Received uint64
	Age            time.Duration
}

// Flows lists the live flows.
func (g *Gateway) Flows() []FlowInfo {
	var all []FlowInfo
	g.each(func(w *worker) {
		for f, c := range w.flows {
			sent, received := f.Traffic()
			all = append(all, FlowInfo{
				Direction: c.direction, Client: c.client, Target: c.target,
				Peer: c.peer, ID: c.id, State: c.state,
				Sent: sent, Received: received, Age: w.loop.Now() - f.Began(),
			})
		}
	})
	return all
}

// Stats counts what has happened since the start.
type Stats struct {
	Opened   map[Direction]uint64
	Active   map[Direction]uint64
	Sent     map[Direction]uint64 // bytes out of local sockets
	Received map[Direction]uint64 // bytes into them
	Early    map[Direction]uint64 // flows of which bytes went before the answer
	Wasted   map[Direction]uint64 // bytes of theirs, where the answer was not yes
	Closed   map[engine.Why]uint64
	Refused  map[string]uint64 // by reason
	// DryRun counts what a rule in dry run would have judged otherwise, by rule.
	DryRun map[string]uint64
	// Withdrawn counts tunnels that were ended because of whom they led to, by
	// Withdrawal.Reason.
	Withdrawn map[string]uint64
	// Cut counts tunnels that were cut for what their peer did, by one of Faults.
	Cut map[string]uint64
	// AcceptPaused is how often accepting had to rest for want of descriptors.
	AcceptPaused uint64
	Peers        map[string]pool.Status
	// Inbound is how many tunnels peers have open to us, by peer.
	Inbound map[string]int
	Memory  int64 // bytes of credit given now
}

func (s *Stats) init() {
	s.Opened = map[Direction]uint64{}
	s.Active = map[Direction]uint64{}
	s.Sent = map[Direction]uint64{}
	s.Received = map[Direction]uint64{}
	s.Early = map[Direction]uint64{}
	s.Wasted = map[Direction]uint64{}
	s.Closed = map[engine.Why]uint64{}
	s.Refused = map[string]uint64{}
	s.DryRun = map[string]uint64{}
	s.Withdrawn = map[string]uint64{}
	s.Cut = map[string]uint64{}
	s.Peers = map[string]pool.Status{}
	s.Inbound = map[string]int{}
}

func (s *Stats) opened(d Direction) {
	s.Opened[d]++
	s.Active[d]++
}

func (s *Stats) ended(d Direction, e engine.End, reason string) {
	s.Active[d]--
	s.Sent[d] += e.Sent
	s.Received[d] += e.Received
	if e.Early > 0 {
		s.Early[d]++
	}
	s.Wasted[d] += e.Wasted
	s.Closed[e.Why]++
	if reason != "" {
		s.Refused[reason]++
	}
}

// Stats adds up the loops.
func (g *Gateway) Stats() Stats {
	var sum Stats
	sum.init()
	g.each(sum.add)
	sum.Memory = g.cfg.Tunnel.Budget.Used()
	return sum
}

func (s *Stats) add(w *worker) {
	addAll(s.Opened, w.stats.Opened)
	addAll(s.Active, w.stats.Active)
	addAll(s.Sent, w.stats.Sent)
	addAll(s.Received, w.stats.Received)
	addAll(s.Early, w.stats.Early)
	addAll(s.Wasted, w.stats.Wasted)
	addAll(s.Closed, w.stats.Closed)
	addAll(s.Refused, w.stats.Refused)
	addAll(s.DryRun, w.stats.DryRun)
	addAll(s.Withdrawn, w.stats.Withdrawn)
	addAll(s.Cut, w.stats.Cut)
	s.AcceptPaused += w.stats.AcceptPaused
	for f, c := range w.flows { // live ones have not been counted yet
		sent, received := f.Traffic()
		s.Sent[c.direction] += sent
		s.Received[c.direction] += received
	}
	for _, p := range w.g.cfg.Routes().Peers() {
		s.Peers[p.Name] = merge(s.Peers[p.Name], w.out.pool.Status(p.Name))
	}
	for _, t := range w.in.tunnels {
		s.Inbound[t.peer]++
	}
}

func addAll[K comparable](dst, src map[K]uint64) {
	for k, v := range src {
		dst[k] += v
	}
}

func merge(a, b pool.Status) pool.Status {
	a.Tunnels += b.Tunnels
	a.Streams += b.Streams
	a.Waiting += b.Waiting
	a.Dialing += b.Dialing
	if b.Endpoint != "" {
		a.Endpoint = b.Endpoint
	}
	if b.Err != nil {
		a.Err = b.Err
	}
	return a
}

// Reasons for refusals that are this side's own; the others are hbone's.
const (
	reasonNoRoute = "no_route"
	// ReasonPeerDown says that there is no tunnel to the peer, and none came in time.
	ReasonPeerDown = "peer_down"
)

// Reasons lists every reason that Stats.Refused may hold.
func Reasons() []string {
	all := []string{reasonNoRoute, ReasonPeerDown, ReasonIdentityExpired}
	for _, r := range authz.Reasons() {
		all = append(all, string(r))
	}
	for _, r := range hbone.Reasons() {
		all = append(all, string(r))
	}
	slices.Sort(all)
	return slices.Compact(all)
}
