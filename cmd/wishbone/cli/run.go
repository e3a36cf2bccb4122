package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/config"
)

func (a *app) run() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run",
		Short: "run the gateway in the foreground",
		Long: `Run the gateway in the foreground: install its rules, serve, and drain on SIGTERM or
SIGINT (a second one cuts what is left). SIGHUP reads the configuration again.`,
		Args: usageArgs(cobra.NoArgs),
	}
	path := configFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		cfg, err := load(*path)
		if err != nil {
			return err
		}
		return a.serve(cfg)
	}
	return cmd
}

// logger writes what the configuration asks for.
func logger(w io.Writer, cfg *config.Config) *slog.Logger {
	var level slog.Level
	// The configuration has checked it.
	_ = level.UnmarshalText([]byte(cfg.Log.Level))
	opts := &slog.HandlerOptions{Level: level}
	if cfg.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts)).With("gateway", cfg.Name)
	}
	return slog.New(slog.NewTextHandler(w, opts)).With("gateway", cfg.Name)
}

// serve runs a gateway until a signal ends it.
func (a *app) serve(cfg *config.Config) error {
	// First of all: it starts the program once more.
	restrictions, err := daemon.Harden(cfg)
	if err != nil {
		return err
	}
	// Before anything can be half done: a signal during the start waits for it.
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	defer signal.Stop(signals)

	// Who reads the log may go: a write to standard error would end the process
	// (os/signal, SIGPIPE).
	signal.Ignore(unix.SIGPIPE)
	lines := newLogWriter(a.err)
	defer func() { _ = lines.Close() }() // who does not read the log does not read this
	log := logger(lines, cfg)
	lines.tell(func(n uint64) {
		log.Warn("log lines were dropped: whoever reads the log was too slow, or gone", "lines", n)
	})
	restrictions.Log(log)
	for _, note := range cfg.Notes() {
		log.Warn("configuration", "note", note)
	}
	version, _, _ := revision()
	d, err := daemon.Start(context.Background(), cfg, daemon.Options{Log: log, LogDropped: lines.Dropped, Version: version})
	if err != nil {
		return err
	}
	tell(log, daemon.NotifyReady())
	for s := range signals {
		if s != unix.SIGHUP {
			log.Info("stopping: no new connections, live ones go on", "signal", s.String(), "grace", cfg.Drain.Grace)
			break
		}
		tell(log, daemon.NotifyReloading())
		cfg = reload(d, cfg, log)
		tell(log, daemon.NotifyReady())
	}
	tell(log, daemon.NotifyStopping(cfg.Drain.Grace))
	return stop(d, cfg, signals, log)
}

// tell logs that the service manager could not be told something. The gateway
// goes on: what it carries matters more.
func tell(log *slog.Logger, err error) {
	if err != nil {
		log.Warn("the service manager does not hear", "error", err)
	}
}

// reload reads the configuration again, and returns the one that holds now: a
// mistake changes nothing.
func reload(d *daemon.Daemon, old *config.Config, log *slog.Logger) *config.Config {
	cfg, err := config.Load(old.Path)
	if err == nil {
		err = d.Reload(context.Background(), cfg)
	}
	d.RecordReload(err)
	if err != nil {
		log.Error("reload failed: going on as before", withHint(err)...)
		return old
	}
	return cfg
}

// withHint is an error for the log, with what it advises.
func withHint(err error) []any {
	args := []any{"error", err}
	if hint := daemon.Advice(err); hint != "" {
		args = append(args, "hint", hint)
	}
	return args
}

// stop drains until the grace is over, or until another signal.
func stop(d *daemon.Daemon, cfg *config.Config, signals <-chan os.Signal, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(context.Background(), cfg.Drain.Grace)
	defer cancel()
	go func() { // ends with ctx
		for {
			select {
			case s := <-signals:
				if s != unix.SIGHUP {
					log.Warn("cutting what is left", "signal", s.String())
					cancel()
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	cut, err := d.Stop(ctx)
	log.Info("gateway is down", "cut", cut)
	if err != nil {
		return err
	}
	if cut > 0 {
		return &failure{fmt.Errorf("%s cut", count(cut, "connection")), "a longer drain.grace gives them more time", codeFailed}
	}
	return nil
}

func (a *app) check() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check [FILE]",
		Short: "validate a configuration",
		Args:  usageArgs(cobra.MaximumNArgs(1)),
	}
	path := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			if cmd.Flags().Changed("config") {
				return usage(fmt.Errorf("both %s and -c %s", args[0], *path), "name one file")
			}
			*path = args[0]
		}
		cfg, err := load(*path)
		if err != nil {
			return err
		}
		if err := daemon.CheckFiles(cfg); err != nil {
			return &failure{err, daemon.Advice(err), codeUsage}
		}
		for _, note := range cfg.Notes() {
			fmt.Fprintf(a.out, "%s: note: %s\n", cfg.Path, note)
		}
		fmt.Fprintf(a.out, "%s: ok: gateway %s, %s\n", cfg.Path, cfg.Name, count(len(cfg.Peers), "peer"))
		return nil
	}
	return cmd
}
