package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"wishbone/config"
	"wishbone/intercept/rules"
)

// firewall is the rules of a running gateway. It tells them again and again that
// the gateway is there.
type firewall struct {
	log  *slog.Logger
	stop chan struct{}
	wg   sync.WaitGroup
	told atomic.Pointer[rules.Plan] // the present plan, for who must not wait for mu
	seen atomic.Pointer[condition]  // what mend has seen last, likewise; nil for nothing

	mu      sync.Mutex
	backend rules.Backend // guarded by mu, but for its name
	plan    rules.Plan    // guarded by mu
	kept    bool          // guarded by mu; wishbone rules apply has installed them
	left    bool          // guarded by mu; a gateway that died has left rules, and we do not serve yet
}

// condition is how the rules stand.
type condition struct {
	missing string // what somebody has taken away
	mended  uint64 // how often they were installed again
}

// Backend opens the kind of firewall that a configuration asks for.
func Backend(kind config.Firewall) (rules.Backend, error) {
	switch kind {
	case config.IPTables:
		return rules.IPTables()
	case config.NFTables:
		return rules.NFTables()
	}
	b, err := rules.NFTables()
	if err == nil {
		return b, nil
	}
	other, otherErr := rules.IPTables()
	if otherErr != nil {
		return nil, errors.Join(err, otherErr)
	}
	return other, nil
}

// install applies a plan. The caller ends it with remove, also after an error.
func (f *firewall) install(p rules.Plan) error {
	if err := f.apply(p); err != nil {
		return err
	}
	f.log.Info("rules installed", "firewall", f.backend.Name())
	f.stop = make(chan struct{})
	f.wg.Go(func() { f.every(f.mend) }) // remove waits for them
	f.wg.Go(func() { f.every(f.tell) })
	return nil
}

// apply puts a plan in place of the present one, which stays if that fails.
func (f *firewall) apply(p rules.Plan) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.plan
	err := f.change(p)
	if err != nil && f.stop != nil { // there was one; where it cannot be put back, mend tries on
		err = errors.Join(err, f.change(before))
	}
	return err
}

// change puts a plan in force. f.mu is held.
func (f *firewall) change(p rules.Plan) error {
	f.plan = p
	f.told.Store(&p)
	if err := f.backend.Apply(p); err != nil {
		return fmt.Errorf("install rules: %w", err)
	}
	kept, err := rules.Kept(p.Routing)
	if err == nil {
		f.kept = kept != 0
	}
	if err == nil && f.kept { // then as what they are now
		err = rules.Keep(p)
	}
	if err != nil {
		return fmt.Errorf("install rules: %w", err)
	}
	return f.backend.Live(p)
}

// every looks after the rules again and again.
func (f *firewall) every(look func()) {
	tick := time.NewTicker(rules.LiveFor / 3)
	defer tick.Stop()
	for {
		select {
		case <-f.stop:
			return
		case <-tick.C:
			look()
		}
	}
}

// tell refreshes what runs out without us. It waits for nobody: to look at the rules
// may take longer than that lasts, where others hold the lock of iptables.
func (f *firewall) tell() {
	if err := f.backend.Live(*f.told.Load()); err != nil {
		f.log.Error("tell the rules that the gateway is there", "error", err)
	}
}

// mend sees that the rules stand, and puts them back where somebody has taken them
// away (a firewall that was reloaded, a flush).
func (f *firewall) mend() {
	f.mu.Lock()
	defer f.mu.Unlock()
	keepErr := f.keep()
	now := f.state()
	what, err := f.backend.Missing(f.plan.Routing)
	if err == nil && what != "" {
		f.log.Error("rules were taken away: until they are back, connections to peers are not captured, and may go in the clear", "missing", what)
		now.missing = what
		f.seen.Store(&now)
		err = f.restore()
	}
	if err == nil && now.missing != "" {
		f.seen.Store(&condition{mended: now.mended + 1}) // now is shared already
		f.log.Warn("rules are back")
	}
	if err = errors.Join(err, keepErr); err != nil {
		f.log.Error("keep the rules", "error", err)
	}
}

// restore applies the plan once more, and tells the rules that the gateway is there. A
// cgroup that has gone meanwhile (a unit that has stopped) holds nobody, and must not
// keep the rules away. f.mu is held.
func (f *firewall) restore() error {
	p := f.plan
	err := f.backend.Apply(p)
	there := rules.StandingCgroups(p.Exclude.Cgroups)
	if err != nil && len(there) < len(p.Exclude.Cgroups) {
		f.log.Warn("the rules come back without cgroups that are gone: reload when they are there again", "error", err)
		p.Exclude.Cgroups = there
		err = f.backend.Apply(p)
	}
	if err != nil {
		return err
	}
	return f.backend.Live(p)
}

// keep puts the mark of kept rules back, which whoever empties our routing table takes
// along: without it a clean stop would take the rules away. Where nothing of ours is
// left, somebody meant that (wishbone rules remove). f.mu is held.
func (f *firewall) keep() error {
	if !f.kept {
		return nil
	}
	kept, err := rules.Kept(f.plan.Routing)
	if err != nil || kept != 0 {
		return err
	}
	standing, err := f.backend.Standing(f.plan.Routing)
	if err != nil {
		return err
	}
	if f.kept = standing != ""; !f.kept {
		return nil
	}
	f.log.Warn("the mark that keeps the rules was taken away, and is put back")
	return rules.Keep(f.plan)
}

// state is how the rules stand. It does not wait for those who look, whom other programs
// keep waiting that hold the lock of iptables.
func (f *firewall) state() condition {
	if now := f.seen.Load(); now != nil {
		return *now
	}
	return condition{}
}

// counters are those of the rules.
func (f *firewall) counters() (map[string]uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.backend.Counters()
}

// serves notes that the gateway has come up: the rules are its own from now on.
func (f *firewall) serves() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = false
}

// remove takes the rules away, unless somebody wants them to stay (wishbone
// rules apply), or a gateway has died and this one does not come up: they keep
// the host closed.
func (f *firewall) remove() error {
	if f.stop != nil {
		close(f.stop)
		f.wg.Wait()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	kept, err := rules.Kept(f.plan.Routing)
	if err != nil {
		return fmt.Errorf("remove rules: %w", err)
	}
	if kept != 0 {
		f.log.Info("the rules stay: wishbone rules apply has installed them")
		return nil
	}
	if f.left {
		f.log.Warn("the rules stay, and refuse what they captured: a gateway that died has left them, and this one does not come up; wishbone rules remove lets everything pass in the clear")
		return nil
	}
	if err := f.backend.Remove(f.plan.Routing); err != nil {
		return fmt.Errorf("remove rules: %w", err)
	}
	f.log.Info("rules removed")
	return nil
}

// installRules makes the kernel send us connections. Sockets are there by then,
// so that none meets a closed door.
func (d *Daemon) installRules(ctx context.Context, cfg *config.Config) error {
	if cfg.Capture.Firewall == config.NoFirewall {
		d.log.Warn("firewall: none: no rules were installed; wishbone rules prints what has to be there")
		return nil
	}
	have, err := CurrentCapabilities()
	if err != nil {
		return err
	}
	if !have.Has(NetAdmin) { // CheckCapabilities has seen that they stand
		d.standing = true
		d.log.Info("the rules that wishbone rules apply has installed are used as they are: without CAP_NET_ADMIN they can neither be changed nor looked at")
		return nil
	}
	b, err := Backend(cfg.Capture.Firewall)
	if err != nil {
		return err
	}
	plan := Plan(ctx, cfg)
	missing, err := b.Missing(plan.Routing)
	if err != nil {
		return err
	}
	kept, err := rules.Kept(plan.Routing)
	if err != nil {
		return err
	}
	left := missing == "" && kept == 0
	if left {
		d.log.Warn("rules stand already and are taken over: a gateway has died here, or another one runs in this network namespace, which can have one only")
	}
	d.rules = &firewall{log: d.log, backend: b, plan: plan, left: left}
	d.later(d.rules.remove)
	return d.rules.install(plan)
}

// changeRules makes the rules those of another plan. Rules that are root's must
// be so already.
func (d *Daemon) changeRules(p rules.Plan) error {
	switch {
	case d.rules != nil:
		return d.rules.apply(p)
	case d.standing:
		return checkStanding(p)
	}
	return nil
}
