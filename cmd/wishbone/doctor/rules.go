package doctor

import (
	"context"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/config"
	"wishbone/intercept/rules"
)

// standing compares the rules that stand with this configuration, and with whether
// the gateway runs: one without the other carries nothing, and says nothing.
func (e *examination) standing(context.Context) {
	const check = "rules"
	if e.cfg.Capture.Firewall == config.NoFirewall {
		return
	}
	have, err := daemon.CurrentCapabilities()
	if err == nil && !have.Has(daemon.NetAdmin) {
		e.warn(check, "run doctor as root, or with CAP_NET_ADMIN", "without CAP_NET_ADMIN they cannot be looked at")
		return
	}
	b, err := daemon.Backend(e.cfg.Capture.Firewall)
	if err != nil {
		return // firewall has said so
	}
	plan := e.plan
	missing, err := b.Missing(plan.Routing)
	var kept uint32
	if err == nil {
		kept, err = rules.Kept(plan.Routing)
	}
	apply := "wishbone rules apply -c " + e.cfg.Path + ", as root"
	switch {
	case err != nil:
		e.warn(check, "", "they cannot be looked at: %v", err)
	case missing != "" && e.running:
		e.fail(check, "a gateway with CAP_NET_ADMIN puts them back within seconds; else "+apply, "the gateway runs, but somebody has taken away %s: nothing is captured", missing)
	case missing != "" && kept != 0:
		e.fail(check, apply, "wishbone rules apply has installed them, but somebody has taken away %s", missing)
	case missing != "":
		e.remains(check, b, plan.Routing, missing)
	case kept != 0 && kept != plan.Digest():
		e.fail(check, apply+"; then reload a gateway that runs", "those that stand are another configuration's: a gateway that may not change them does not take this one")
	case !e.running && kept == 0:
		e.fail(check, "wishbone run, or wishbone rules remove to let everything pass in the clear",
			"no gateway runs, but the rules of one stand: what is bound for peers is refused")
	case !e.running:
		e.warn(check, "wishbone run", "wishbone rules apply has installed them, and no gateway runs: what is bound for peers is refused")
	default:
		e.ok(check, "they stand")
	}
}

// remains tells what is left of rules, where no gateway runs and something of them
// is missing.
func (e *examination) remains(check string, b rules.Backend, r rules.Routing, missing string) {
	switch what, err := b.Standing(r); {
	case err != nil:
		e.warn(check, "", "they cannot be looked at: %v", err)
	case what != "":
		e.fail(check, "wishbone run, or wishbone rules remove -c "+e.cfg.Path+" takes away the rest", "no gateway runs, but of the rules of one %s stands, without %s", what, missing)
	default:
		e.ok(check, "none stand, and no gateway runs")
	}
}
