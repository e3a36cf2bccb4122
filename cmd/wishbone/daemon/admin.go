package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"golang.org/x/sys/unix"

	"wishbone/identity"
	"wishbone/tunnel"
	"wishbone/tunnel/engine"
)

// Status is how a gateway does.
type Status struct {
	Name        string                     `json:"name"`
	Version     string                     `json:"version"`
	State       string                     `json:"state"` // ready, draining, or why it is not ready
	Uptime      time.Duration              `json:"uptime_ns"`
	Identity    IdentityStatus             `json:"identity"`
	Networks    []netip.Prefix             `json:"networks"`
	Firewall    string                     `json:"firewall"`
	Peers       []PeerStatus               `json:"peers"`
	Connections map[string]DirectionStatus `json:"connections"` // inbound, outbound
	Refused     map[string]uint64          `json:"refused"`     // by reason
	DryRun      map[string]uint64          `json:"dry_run"`     // by rule of the policy
	Closed      map[engine.Why]uint64      `json:"closed"`      // by why they ended
	Handshakes  map[string]uint64          `json:"handshakes_refused"`
	Withdrawn   map[string]uint64          `json:"withdrawn"` // tunnels, by reason
	Revoked     RevokedStatus              `json:"revoked"`
	Rules       map[string]uint64          `json:"rules"` // packets refused, by rule
	Memory      MemoryStatus               `json:"memory"`
	Audit       *AuditStatus               `json:"audit,omitempty"` // nil where there is none
	// RefusedReload is nil unless the last reload was refused.
	RefusedReload *ReloadStatus `json:"refused_reload,omitempty"`
}

// ReloadStatus says that the running configuration is not that of the file, and why.
type ReloadStatus struct {
	Since time.Time `json:"since"` // when the first reload was refused that none has made good
	Error string    `json:"error"` // of the last one
	Hint  string    `json:"hint,omitempty"`
}

// refusedReload is what there is to say after a reload; before is what there was.
func refusedReload(before *ReloadStatus, err error) *ReloadStatus {
	if err == nil {
		return nil
	}
	st := &ReloadStatus{Since: time.Now(), Error: err.Error(), Hint: Advice(err)}
	if before != nil {
		st.Since = before.Since
	}
	return st
}

// IdentityStatus is our own certificate.
type IdentityStatus struct {
	ID      string    `json:"id,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	Updated time.Time `json:"updated,omitzero"`  // when its source last gave something new
	Overdue bool      `json:"overdue,omitempty"` // it should have been renewed long ago
	Error   string    `json:"error,omitempty"`
	// Roots is how many there are of our own trust domain, and of each peer's.
	Roots map[string]int `json:"roots,omitempty"`
}

// PeerStatus is one peer and the tunnels to and from it.
type PeerStatus struct {
	Name     string         `json:"name"`
	IDs      []string       `json:"ids"`
	Networks []netip.Prefix `json:"networks"`
	Endpoint string         `json:"endpoint,omitempty"` // in use
	Tunnels  int            `json:"tunnels"`            // that we have dialled
	Inbound  int            `json:"inbound_tunnels"`    // that it has
	Streams  int            `json:"streams"`
	Waiting  int            `json:"waiting"` // connections without a tunnel
	Error    string         `json:"error,omitempty"`
}

// DirectionStatus sums up the connections of one direction.
type DirectionStatus struct {
	Opened   uint64 `json:"opened"`
	Active   uint64 `json:"active"`
	Sent     uint64 `json:"sent_bytes"` // out of local sockets
	Received uint64 `json:"received_bytes"`
}

// MemoryStatus is the budget of credit given to peers.
type MemoryStatus struct {
	Used   int64 `json:"used_bytes"`
	Budget int64 `json:"budget_bytes"`
}

// Flow is one live connection.
type Flow struct {
	Direction string         `json:"direction"`
	Client    netip.AddrPort `json:"client"`
	Target    netip.AddrPort `json:"target"`
	Peer      string         `json:"peer"`
	ID        string         `json:"id,omitempty"`
	State     string         `json:"state"`
	Sent      uint64         `json:"sent_bytes"`
	Received  uint64         `json:"received_bytes"`
	Age       time.Duration  `json:"age_ns"`
}

// openAdmin serves the admin socket: 0660, of group wishbone where there is one.
// A socket that a killed process left behind is replaced; a living one is not.
func (d *Daemon) openAdmin(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return hinted(fmt.Errorf("make the admin socket's directory: %w", err), "set listen.admin to a path that this user may write, or to off")
	}
	if err := removeStale(path); err != nil {
		return err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return hinted(fmt.Errorf("serve the admin socket: %w", err), "set listen.admin to a path that this user may write, or to off")
	}
	door, err := restrict(path)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, d.Status()) })
	mux.HandleFunc("GET /flows", func(w http.ResponseWriter, _ *http.Request) { answerJSON(w, d.Flows()) })
	mux.HandleFunc("GET /explain", d.answerExplain)
	d.serveHTTP(ln, door.guard(mux))
	return nil
}

// removeStale removes a socket that nobody listens on.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at the admin socket: %w", err)
	case info.Mode()&fs.ModeSocket == 0:
		return fmt.Errorf("admin socket %s: something else is there, and it stays", path)
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		conn.Close()
		return hinted(fmt.Errorf("admin socket %s: another gateway listens there", path), "stop it, or set another listen.admin")
	}
	if !errors.Is(err, unix.ECONNREFUSED) { // one that lives and is busy says EAGAIN (unix(7))
		return fmt.Errorf("look at the admin socket: %w", err)
	}
	return os.Remove(path)
}

// restrict gives the socket to group wishbone, if there is one, and says who may
// use it.
func restrict(path string) (door, error) {
	if gid, ok := adminGroup(); ok {
		if err := os.Chown(path, -1, gid); err != nil {
			return door{}, fmt.Errorf("give the admin socket to group wishbone: %w", err)
		}
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return door{}, fmt.Errorf("restrict the admin socket: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return door{}, fmt.Errorf("look at the admin socket: %w", err)
	}
	return door{owner: st.Uid, group: st.Gid}, nil
}

func answerJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	// Fails only when the client is gone.
	_ = json.NewEncoder(w).Encode(v)
}

// own is our certificate, if it can be shown now.
func (d *Daemon) own() (*x509svid.SVID, error) { return identity.Own(d.source) }

// Status tells how the gateway does.
func (d *Daemon) Status() Status {
	s := d.current.Load()
	st := Status{
		Name: s.cfg.Name, Version: d.opts.Version, State: d.notReady(), Uptime: time.Since(d.began),
		Networks: s.cfg.Networks, Firewall: string(s.cfg.Capture.Firewall),
		Connections: map[string]DirectionStatus{}, Handshakes: d.tunnels.failures.all(), Revoked: d.revokedStatus(s.cfg.Revoked),
		RefusedReload: d.refusedReload.Load(),
	}
	if st.State == "" {
		st.State = "ready"
	}
	if svid, err := d.own(); err != nil {
		st.Identity.Error = err.Error()
	} else {
		st.Identity.ID, st.Identity.Expires = svid.ID.String(), svid.Certificates[0].NotAfter
	}
	st.Identity.Roots = d.countRoots()
	if r := d.identity.now.Load(); r != nil {
		st.Identity.Updated, st.Identity.Overdue = r.updated, r.overdue()
	}
	if d.audit != nil {
		st.Audit = auditStatus(d.audit.Stats())
	}
	if d.serving.Load() {
		if d.rules != nil {
			st.Firewall = d.rules.backend.Name() // what auto has come to
		}
		st.Rules = d.ruleCounters()
		d.addStats(&st, d.gateway.Stats())
	}
	return st
}

// ruleCounters are the counters of the rules; none where they cannot be read,
// which the log says.
func (d *Daemon) ruleCounters() map[string]uint64 {
	if d.rules == nil {
		return nil
	}
	n, err := d.rules.counters()
	if err != nil {
		d.log.Warn("read the counters of the rules", "error", err)
	}
	return n
}

func (d *Daemon) addStats(st *Status, sum tunnel.Stats) {
	for _, dir := range []tunnel.Direction{tunnel.InboundFlow, tunnel.OutboundFlow} {
		st.Connections[string(dir)] = DirectionStatus{sum.Opened[dir], sum.Active[dir], sum.Sent[dir], sum.Received[dir]}
	}
	st.Refused, st.DryRun, st.Closed, st.Withdrawn = sum.Refused, sum.DryRun, sum.Closed, sum.Withdrawn
	st.Memory = MemoryStatus{sum.Memory, d.current.Load().cfg.Limits.Memory}
	for _, p := range d.current.Load().routes.Peers() {
		ps := sum.Peers[p.Name]
		peer := PeerStatus{
			Name: p.Name, Networks: p.Networks, Endpoint: ps.Endpoint,
			Tunnels: ps.Tunnels, Inbound: sum.Inbound[p.Name], Streams: ps.Streams, Waiting: ps.Waiting,
		}
		for _, id := range p.IDs {
			peer.IDs = append(peer.IDs, id.String())
		}
		if ps.Err != nil {
			peer.Error = ps.Err.Error()
		}
		st.Peers = append(st.Peers, peer)
	}
}

// Flows lists the live connections, the oldest first.
func (d *Daemon) Flows() []Flow {
	flows := []Flow{}
	if !d.serving.Load() {
		return flows
	}
	for _, f := range d.gateway.Flows() {
		flow := Flow{
			Direction: string(f.Direction), Client: f.Client, Target: f.Target, Peer: f.Peer,
			State: string(f.State), Sent: f.Sent, Received: f.Received, Age: f.Age,
		}
		if !f.ID.IsZero() {
			flow.ID = f.ID.String()
		}
		flows = append(flows, flow)
	}
	slices.SortFunc(flows, func(a, b Flow) int { return int(b.Age - a.Age) })
	return flows
}

// ParseSource reads an address with or without a port.
func ParseSource(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(a, 0), nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return a, fmt.Errorf("%q is neither an address nor address:port", s)
	}
	return a, nil
}
