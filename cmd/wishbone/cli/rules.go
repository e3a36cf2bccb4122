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
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load(*path)
		if err != nil {
			return err
		}
		a.printRules(cmd.Context(), cfg)
		return nil
	}
	cmd.AddCommand(
		a.rulesAction("apply", "install the rules and leave them standing", path, applyRules),
		a.rulesAction("remove", "take the rules away", path, removeRules))
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

// printRules prints the texts of the backends that the configuration may use.
func (a *app) printRules(ctx context.Context, cfg *config.Config) {
	plan := daemon.Plan(ctx, cfg)
	kind := cfg.Capture.Firewall
	if kind != config.IPTables {
		fmt.Fprint(a.out, rules.Text(plan))
	}
	if kind != config.NFTables {
		fmt.Fprint(a.out, rules.IPTablesText(plan))
	}
}

func applyRules(ctx context.Context, cfg *config.Config) error {
	b, err := backendOf(cfg)
	if err != nil {
		return err
	}
	if err := b.Apply(daemon.Plan(ctx, cfg)); err != nil {
		return fmt.Errorf("install rules: %w", err)
	}
	return b.Keep()
}

func removeRules(ctx context.Context, cfg *config.Config) error {
	b, err := backendOf(cfg)
	if err != nil {
		return err
	}
	if err := b.Remove(daemon.Plan(ctx, cfg).Routing); err != nil {
		return fmt.Errorf("remove rules: %w", err)
	}
	return nil
}

func backendOf(cfg *config.Config) (rules.Backend, error) {
	if cfg.Capture.Firewall == config.NoFirewall {
		return nil, usage(errors.New("firewall: none: the rules are yours"), "wishbone rules prints what has to be there")
	}
	return daemon.Backend(cfg.Capture.Firewall)
}
