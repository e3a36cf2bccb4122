package cli

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/cmd/wishbone/doctor"
	"wishbone/config"
)

func (a *app) doctor() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "find what would break, or is breaking, on this host, each with its remedy",
		Long: `Look at this host in the light of a configuration, and at the peers' doors. Nothing is
changed: what must change is printed as a command. Exit code 1 if something fails.`,
		Args: usageArgs(cobra.NoArgs),
	}
	path, format := configFlag(cmd), formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load(*path)
		if err != nil {
			return err
		}
		findings := doctor.Examine(cmd.Context(), cfg, a.isRunning(cmd.Context(), cfg))
		if err := a.print(*format, findings, func(w io.Writer) { writeFindings(w, findings) }); err != nil {
			return err
		}
		if slices.ContainsFunc(findings, func(f doctor.Finding) bool { return f.Level == doctor.Fail }) {
			return exitStatus(codeFailed)
		}
		return nil
	}
	return cmd
}

// isRunning says whether the gateway of a configuration answers.
func (a *app) isRunning(ctx context.Context, cfg *config.Config) bool {
	var s daemon.Status
	return cfg.Listen.Admin != "" && ask(ctx, cfg.Listen.Admin, "/status", &s) == nil
}

func writeFindings(w io.Writer, findings []doctor.Finding) {
	for _, f := range findings {
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Level, f.Check, f.What)
		if f.Remedy != "" {
			fmt.Fprintf(w, "\t\t  → %s\n", f.Remedy)
		}
	}
}
