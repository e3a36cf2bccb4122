package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/config"
	"wishbone/intercept/rules"
)

func (a *app) rules() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "print, apply or remove the firewall rules and policy routing",
		Long: `Print exactly what would be installed, as nftables text and as iptables commands.
rules apply installs it and leaves it standing whatever happens to the gateway (a unit at
boot does that); rules remove takes it away again. What run installs itself, it removes
itself on a clean stop.`,
		Args: usageArgs(cobra.NoArgs),
	}
	path := cmd.PersistentFlags().StringP("config", "c", "/etc/wishbone/wishbone.yaml", "configuration file")
	kind := cmd.Flags().String("firewall", "", "print those of one firewall, nftables or iptables, ready to be loaded: wishbone rules --firewall nftables | nft -f -")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load(*path)
		if err != nil {
			return err
		}
		return a.printRules(cmd.Context(), cfg, config.Firewall(*kind))
	}
	cmd.AddCommand(
		a.rulesAction("apply", "install the rules and leave them standing", path, a.applyRules),
		a.rulesAction("remove", "take the rules away", path, a.removeRules))
	return cmd
}

func (a *app) rulesAction(name, short string, path *string, do func(context.Context, *config.Config) error) *cobra.Command {
	return &cobra.Command{Use: name, Short: short, Args: usageArgs(cobra.NoArgs), RunE: func(cmd *cobra.Command, _ []string) error {
		cfg, err := load(*path)
		if err != nil {
			return err
		}
		return do(cmd.Context(), cfg)
	}}
}

// printRules prints the texts of the backends that the configuration may use, or
// that of one, as its own program reads it.
func (a *app) printRules(ctx context.Context, cfg *config.Config, only config.Firewall) error {
	plan := daemon.Plan(ctx, cfg)
	switch only {
	case config.NFTables:
		fmt.Fprint(a.out, rules.Text(plan))
		return nil
	case config.IPTables:
		fmt.Fprint(a.out, rules.IPTablesText(plan))
		return nil
	case "":
	default:
		return usage(fmt.Errorf("unknown firewall %q", only), "use --firewall nftables or --firewall iptables")
	}
	if kind := cfg.Capture.Firewall; kind != config.IPTables {
		fmt.Fprintf(a.out, "# ---- nftables: wishbone rules --firewall nftables | nft -f - (after the ip commands)\n%s", rules.Text(plan))
	}
	if kind := cfg.Capture.Firewall; kind != config.NFTables {
		fmt.Fprintf(a.out, "# ---- iptables: wishbone rules --firewall iptables | sh\n%s", rules.IPTablesText(plan))
	}
	return nil
}

func (a *app) applyRules(ctx context.Context, cfg *config.Config) error {
	b, err := backendOf(cfg)
	if err != nil {
		return err
	}
	plan := daemon.Plan(ctx, cfg)
	if err := b.Apply(plan); err != nil {
		return fmt.Errorf("install rules: %w", err)
	}
	if err := rules.Keep(plan); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "rules installed (%s); they stay until wishbone rules remove\n", b.Name())
	return nil
}

// removeRules takes the rules away, but not from under a gateway.
func (a *app) removeRules(ctx context.Context, cfg *config.Config) error {
	b, err := backendOf(cfg)
	if err != nil {
		return err
	}
	if a.isRunning(ctx, cfg) {
		return &failure{fmt.Errorf("gateway %s is running: without its rules, what it carries would go in the clear", cfg.Name),
			"stop it first; it takes away what it has installed itself", codeFailed}
	}
	if err := b.Remove(daemon.Plan(ctx, cfg).Routing); err != nil {
		return fmt.Errorf("remove rules: %w", err)
	}
	fmt.Fprintf(a.out, "rules removed (%s)\n", b.Name())
	return nil
}

func backendOf(cfg *config.Config) (rules.Backend, error) {
	if cfg.Capture.Firewall == config.NoFirewall {
		return nil, usage(errors.New("firewall: none: the rules are yours"), "wishbone rules prints what has to be there")
	}
	return daemon.Backend(cfg.Capture.Firewall)
}
