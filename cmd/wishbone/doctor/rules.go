package doctor

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/config"
	"wishbone/intercept/rules"
)

// standing compares the rules that stand with whether the gateway runs: one
// without the other carries nothing, and says nothing.
func (e *examination) standing(ctx context.Context) {
	const check = "rules"
	if e.cfg.Capture.Firewall == config.NoFirewall {
		return
	}
	b, err := daemon.Backend(e.cfg.Capture.Firewall)
	if err != nil {
		return // firewall has said so
	}
	plan := daemon.Plan(ctx, e.cfg)
	missing, err := b.Missing(plan.Routing)
	if errors.Is(err, unix.EPERM) {
		e.warn(check, "run doctor as root, or with CAP_NET_ADMIN", "they cannot be looked at: %v", err)
		return
	}
	if err != nil {
		e.warn(check, "", "%v", err)
		return
	}
	kept, err := rules.Kept(plan.Routing)
	switch {
	case err != nil:
		e.warn(check, "", "%v", err)
	case missing != "" && e.running:
		e.fail(check, "the gateway puts them back within seconds; if not, restart it", "the gateway runs, but somebody has taken away %s: nothing is captured", missing)
	case missing == "" && !e.running && kept == 0:
		e.fail(check, "wishbone run, or wishbone rules remove to let everything pass in the clear",
			"no gateway runs, but the rules of one stand: what is bound for peers is refused")
	case missing == "" && !e.running:
		e.warn(check, "wishbone run", "wishbone rules apply has installed them, and no gateway runs: what is bound for peers is refused")
	case missing == "":
		e.ok(check, "they stand")
	default:
		e.ok(check, "none stand, and no gateway runs")
	}
}
