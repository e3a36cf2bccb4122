package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/audit"
	"wishbone/config"
	"wishbone/identity"
	"wishbone/identity/authz"
	"wishbone/intercept"
	"wishbone/tunnel"
	"wishbone/tunnel/hbone"
	"wishbone/tunnel/record"
	"wishbone/tunnel/route"
)

// Options are what is not in the configuration file.
type Options struct {
	// Log gets everything. Required.
	Log *slog.Logger
	// LogDropped is how many lines of it were dropped so far. Nil says none.
	LogDropped func() uint64
	// Version is what Status reports.
	Version string
}

// Daemon is a running gateway.
type Daemon struct {
	log     *slog.Logger
	opts    Options
	began   time.Time
	current atomic.Pointer[snapshot]
	budget  *hbone.Budget

	reload   sync.Mutex // one at a time
	addrs    *hostAddrs
	audit    *audit.Log // nil where there is none
	source   *source
	identity *follow
	crls     *identity.CRLs
	captured [][]int // transparent listeners of each family
	loops    int
	cpus     []int // one for each loop to keep to; nil: they go anywhere
	tunnels  *tunnels
	rules    *firewall // nil where they are not ours
	standing bool      // the rules are root's, and stay as they are
	gateway  *tunnel.Gateway
	serving  atomic.Bool // everything above is there
	draining atomic.Bool
	undo     []func() error // takes down what is up, in reverse

	refusedReload atomic.Pointer[ReloadStatus] // nil unless the last one was refused
}

// Start brings a gateway up and returns when it serves, or an error with nothing
// left behind. The caller ends it with Stop.
func Start(ctx context.Context, cfg *config.Config, opts Options) (*Daemon, error) {
	d := &Daemon{log: opts.Log, opts: opts, began: time.Now(), budget: hbone.NewBudget(cfg.Limits.Memory)}
	for _, step := range []func(context.Context, *config.Config) error{
		d.prepare, d.openAudit, d.openIdentity, d.openRevoked, d.openSockets, d.openWeb, d.installRules, d.run,
	} {
		if err := step(ctx, cfg); err != nil {
			return nil, errors.Join(err, d.takeDown())
		}
	}
	if d.rules != nil {
		d.rules.serves()
	}
	d.log.Info("gateway is up", "peers", len(cfg.Peers), "tunnel", cfg.Listen.Tunnel)
	return d, nil
}

// later notes how to undo a step that has been done.
func (d *Daemon) later(f func() error) { d.undo = append(d.undo, f) }

// takeDown undoes everything, the last step first.
func (d *Daemon) takeDown() error {
	var errs []error
	for _, f := range slices.Backward(d.undo) {
		errs = append(errs, f())
	}
	d.undo = nil
	return errors.Join(errs...)
}

// prepare sees that this process and this host are fit, and makes the snapshot.
func (d *Daemon) prepare(ctx context.Context, cfg *config.Config) error {
	if err := CheckCapabilities(ctx, cfg); err != nil {
		return err
	}
	d.raiseFileLimit()
	var err error
	if d.addrs, err = watchAddrs(d.log); err != nil {
		return err
	}
	d.later(func() error { d.addrs.close(); return nil })
	s, err := newSnapshot(cfg, d.addrs.has)
	if err != nil {
		return err
	}
	d.current.Store(s)
	return nil
}

// raiseFileLimit takes as many descriptors as this process may have: a flow
// needs one (setrlimit(2)).
func (d *Daemon) raiseFileLimit() {
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit)
	if err == nil && limit.Cur < limit.Max {
		limit.Cur = limit.Max
		err = unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	}
	if err != nil {
		d.log.Warn("raise the limit of open files", "error", err)
		return
	}
	d.log.Debug("open files", "limit", limit.Cur)
}

func (d *Daemon) openIdentity(_ context.Context, cfg *config.Config) error {
	d.source = newSource(d.log, d.audit)
	d.later(d.source.close)
	if err := d.source.begin(cfg); err != nil {
		return err
	}
	d.identity = &follow{source: d.source, roots: d.roots, log: d.log, hint: whereToLook(cfg.Identity)}
	return nil
}

// openSockets binds every listener; nothing is accepted yet.
func (d *Daemon) openSockets(_ context.Context, cfg *config.Config) error {
	sockets := socketOptions(cfg)
	d.loops = loops()
	d.cpus = processors(d.loops)
	for _, a := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		fds, err := transparent(netip.AddrPortFrom(a, cfg.Listen.Transparent), sockets, d.cpus)
		if a.Is6() && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
			d.log.Warn("this host has no IPv6: only IPv4 is captured")
			continue
		}
		if err != nil {
			return listenError(err, cfg.Listen.Transparent)
		}
		if len(d.captured) == 0 {
			d.later(d.closeCaptured)
		}
		d.captured = append(d.captured, fds)
	}
	d.tunnels = &tunnels{
		source: d.source, snapshot: d.current.Load, crls: d.crls, sockets: sockets,
		records: record.Options{Slots: record.NewSlots(cfg.Limits.Handshakes), Standard: cfg.TLS == config.TLSStandard}, handshake: cfg.Timeouts.Handshake, log: d.log, lines: tunnel.NewLogLimit(d.log), audit: d.audit,
	}
	if err := d.tunnels.listen(cfg.Listen.Tunnel); err != nil {
		return err
	}
	d.later(func() error { d.tunnels.close(); return nil })
	return nil
}

// closeCaptured closes the transparent listeners, once.
func (d *Daemon) closeCaptured() error {
	var errs []error
	for _, fd := range slices.Concat(d.captured...) {
		errs = append(errs, unix.Close(fd))
	}
	d.captured = nil
	return errors.Join(errs...)
}

func socketOptions(cfg *config.Config) intercept.Options {
	return intercept.Options{
		Mark: ownMark(cfg),
		Idle: cfg.Keepalive.Idle, Interval: cfg.Keepalive.Interval, Count: cfg.Keepalive.Count,
	}
}

// run puts both directions to work.
func (d *Daemon) run(_ context.Context, cfg *config.Config) (err error) {
	d.gateway, err = tunnel.New(tunnel.Config{
		Loops:     d.loops,
		CPUs:      d.cpus,
		Routes:    func() *route.Table { return d.current.Load().routes },
		Policy:    func() *authz.Policy { return d.current.Load().policy },
		Dial:      d.tunnels.dial,
		Withdrawn: d.tunnels.withdrawn,
		Grace:     cfg.Identity.Grace,
		Hold:      d.source.missing,
		OwnTarget: func(t netip.AddrPort) bool { return d.current.Load().loops(t, d.addrs.has) },
		Sockets:   d.tunnels.sockets,
		Tunnel: hbone.Config{
			MaxStreams: cfg.Limits.StreamsPerTunnel, Budget: d.budget, RequestTimeout: cfg.Timeouts.Request, SettingsTimeout: cfg.Timeouts.Handshake,
			EarlyData: cfg.EarlyData,
		},
		DialTimeout:    cfg.Timeouts.Handshake,
		WaitTimeout:    waitTimeout(cfg),
		ConnectTimeout: cfg.Timeouts.Connect,
		Decided:        d.decided,
		Log:            d.log,
	})
	if err != nil {
		return err
	}
	d.gateway.Run()
	d.later(func() error { d.gateway.Close(context.Background()); return nil })
	d.identity.renewed = func() { d.recordIdentity("certificate"); d.gateway.Renewed() }
	d.identity.judge = func() { d.recordIdentity("roots"); d.gateway.Judge() }
	d.later(d.identity.start())
	d.later(d.followCRLs())
	for _, fds := range d.captured {
		if err := d.gateway.Capture(fds...); err != nil {
			return err
		}
	}
	d.tunnels.serve(d.gateway.AcceptTunnel)
	d.serving.Store(true)
	return nil
}

// waitTimeout is how long a captured connection waits for a tunnel.
func waitTimeout(cfg *config.Config) time.Duration { return 2 * cfg.Timeouts.Handshake }

// Reload puts another configuration in place of the present one. What it cannot
// change while running is an error, and then nothing has changed.
func (d *Daemon) Reload(ctx context.Context, cfg *config.Config) error {
	d.reload.Lock()
	defer d.reload.Unlock()
	if err := reloadable(d.current.Load().cfg, cfg); err != nil {
		return err
	}
	s, err := newSnapshot(cfg, d.addrs.has)
	if err != nil {
		return err
	}
	if err := d.source.checkDomains(cfg); err != nil {
		return err
	}
	useBundles, err := d.source.others.Read(cfg.Identity.Bundles())
	if err != nil {
		return BundleError(err)
	}
	useCRLs, err := d.readCRLs(s)
	if err != nil {
		return err
	}
	if err := d.changeRules(Plan(ctx, cfg)); err != nil {
		return err
	}
	d.current.Store(s)
	useBundles()
	useCRLs()
	d.gateway.Reload()
	d.log.Info("configuration reloaded", "peers", len(cfg.Peers))
	return nil
}

// fixed is what only a restart can change, and whether it is the same.
type fixed struct {
	key  string
	same bool
}

func fixedParts(old, now *config.Config) []fixed {
	return []fixed{
		{"name", old.Name == now.Name},
		{"identity", sameIdentity(old.Identity, now.Identity)},
		{"listen", slices.Equal(old.Listen.Tunnel, now.Listen.Tunnel) && old.Listen.Transparent == now.Listen.Transparent &&
			old.Listen.Metrics == now.Listen.Metrics && old.Listen.Ready == now.Listen.Ready && old.Listen.Admin == now.Listen.Admin},
		{"capture.firewall", old.Capture.Firewall == now.Capture.Firewall},
		{"routing", old.Routing == now.Routing},
		{"timeouts", old.Timeouts == now.Timeouts},
		{"keepalive", old.Keepalive == now.Keepalive},
		{"limits", old.Limits == now.Limits},
		{"earlyData", old.EarlyData == now.EarlyData},
		{"tls", old.TLS == now.TLS},
		{"log", old.Log == now.Log},
		{"audit", old.Audit == now.Audit},
	}
}

// reloadable names the first thing that only a restart can change.
func reloadable(old, now *config.Config) error {
	for _, c := range fixedParts(old, now) {
		if !c.same {
			return hinted(fmt.Errorf("reload: %s cannot change while running; nothing was changed", c.key), "restart the gateway")
		}
	}
	return nil
}

func sameIdentity(a, b config.Identity) bool {
	if (a.Files == nil) != (b.Files == nil) {
		return false
	}
	return a.WorkloadAPI == b.WorkloadAPI && a.Grace == b.Grace && (a.Files == nil || *a.Files == *b.Files)
}

// Stop takes no new connections, lets those that exist run on until ctx is done,
// cuts the rest, and takes everything down. It returns how many were cut, about a
// second after ctx is done at the latest.
func (d *Daemon) Stop(ctx context.Context) (cut int, err error) {
	d.draining.Store(true)
	d.tunnels.stop()
	d.gateway.Uncapture()
	err = d.closeCaptured()
	d.log.Info("draining: the listeners are closed")
	cut = d.gateway.Drain(ctx)
	if cut > 0 {
		d.log.Warn("connections were cut at the end of the drain", "count", cut)
	}
	d.gateway.Close(ctx) // the first thing to take down, and the one that may take time
	return cut, errors.Join(err, d.takeDown())
}
