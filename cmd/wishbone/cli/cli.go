package cli

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/config"
)

// The exit codes.
const (
	codeDone   = 0
	codeFailed = 1
	codeUsage  = 2
)

// app is one run of the program.
type app struct {
	in       io.Reader
	out, err io.Writer
}

// Main runs the program with args (without its name) and returns its exit code.
func Main(args []string, in io.Reader, out, errOut io.Writer) int {
	a := &app{in: in, out: out, err: errOut}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errOut)
	err := root.Execute()
	if err == nil {
		return codeDone
	}
	return a.explain(err)
}

// root is the command that has all others.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "wishbone",
		Short:         "HBONE tunnel gateway: TCP between two sites, encrypted, authenticated and unchanged",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          usageArgs(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(err, "%s --help shows the flags", cmd.CommandPath())
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetHelpCommand(a.help())
	root.Version, _, _ = revision()
	root.SetVersionTemplate("wishbone {{.Version}}\n")
	root.AddCommand(a.run(), a.lab(), a.check(), a.rules(), a.doctor(), a.status(), a.flows(), a.explainCmd(), a.ca(), a.version())
	return root
}

// failure is an error with its exit code and, perhaps, a hint.
type failure struct {
	err  error
	hint string
	code int
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// Advice is the hint.
func (f *failure) Advice() string { return f.hint }

// usage makes err a mistake in the usage.
func usage(err error, hint string, args ...any) error {
	return &failure{err, fmt.Sprintf(hint, args...), codeUsage}
}

// usageArgs makes what a check of arguments finds a mistake in the usage.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if check(cmd, args) == nil {
			return nil
		}
		if cmd.HasSubCommands() {
			return unknownCommand(cmd, args[0])
		}
		path := cmd.CommandPath()
		if _, wants, some := strings.Cut(cmd.Use, " "); some {
			return usage(fmt.Errorf("%s takes %s, and got %s", path, wants, count(len(args), "argument")), howUsed, path)
		}
		return strayArgument(cmd, args[0], fmt.Errorf("%s takes no argument, and got %q", path, args[0]))
	}
}

const howUsed = "%s --help shows how it is used"

// unknownCommand is about a command below cmd that there is not.
func unknownCommand(cmd *cobra.Command, name string) error {
	err := fmt.Errorf("unknown command %q for %q", name, cmd.CommandPath())
	cmd.SuggestionsMinimumDistance = min(2, len(name)/2) // at most half of it is wrong
	if near := cmd.SuggestionsFor(name); len(near) > 0 {
		return usage(err, "did you mean %s?", strings.Join(near, " or "))
	}
	return strayArgument(cmd, name, err)
}

// strayArgument is err with what was meant by arg: most often a configuration.
func strayArgument(cmd *cobra.Command, arg string, err error) error {
	if path := cmd.CommandPath(); cmd.Flag("config") != nil {
		return usage(err, "the configuration is given with -c: %s -c %s", path, arg)
	}
	return usage(err, howUsed, cmd.CommandPath())
}

// help shows how a command is used.
func (a *app) help() *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "show how a command is used",
		RunE: func(cmd *cobra.Command, args []string) error {
			about, rest, err := cmd.Root().Find(args)
			if err != nil {
				return usage(err, howUsed, cmd.Root().CommandPath())
			}
			if len(rest) > 0 {
				return unknownCommand(about, rest[0])
			}
			about.InitDefaultHelpFlag()
			return about.Help()
		},
	}
}

// exitStatus ends the program with a command's own status, without a word.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// explain prints an error as a person needs it and returns the exit code.
func (a *app) explain(err error) int {
	if e, ok := errors.AsType[exitStatus](err); ok {
		return int(e)
	}
	if list, ok := errors.AsType[config.Errors](err); ok {
		for _, e := range list {
			a.say(e.Error(), e.Hint)
		}
		return codeUsage
	}
	code := codeFailed
	if e, ok := errors.AsType[*failure](err); ok {
		code = e.code
	}
	a.say(err.Error(), daemon.Advice(err))
	return code
}

func (a *app) say(msg, hint string) {
	fmt.Fprintf(a.err, "wishbone: error: %s\n", msg)
	if hint != "" {
		fmt.Fprintf(a.err, "hint: %s\n", hint)
	}
}

// configFlag adds -c to a command.
func configFlag(cmd *cobra.Command) *string {
	return cmd.Flags().StringP("config", "c", "/etc/wishbone/wishbone.yaml", "configuration file")
}

// load reads the file that -c names.
func load(path string) (*config.Config, error) {
	cfg, err := config.Load(path)
	if _, mistakes := errors.AsType[config.Errors](err); err != nil && !mistakes {
		return nil, usage(err, "-c FILE says where the configuration is")
	}
	return cfg, err
}

// count is a number of things, in words.
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// format is how a command prints: text or json.
type format string

// formatFlag adds -o to a command.
func formatFlag(cmd *cobra.Command) *format {
	f := format("text")
	cmd.Flags().VarP(&f, "output", "o", "output format: text or json")
	return &f
}

// String, Set and Type make a flag of it, which is a mistake in the usage before
// anything is done.

func (f *format) String() string { return string(*f) }
func (f *format) Type() string   { return "format" }
func (f *format) Set(s string) error {
	if s != "text" && s != "json" {
		return errors.New("want text or json")
	}
	*f = format(s)
	return nil
}

// revision is the version of this build, as the go command stamped it.
func revision() (version, commit, goVersion string) {
	version, commit = "devel", "unknown"
	b, ok := debug.ReadBuildInfo()
	if !ok {
		return version, commit, "unknown"
	}
	if v := b.Main.Version; v != "" && v != "(devel)" {
		version = v
	}
	for _, s := range b.Settings {
		if s.Key == "vcs.revision" {
			commit = s.Value
		}
	}
	return version, commit, b.GoVersion
}

func (a *app) version() *cobra.Command {
	cmd := &cobra.Command{Use: "version", Short: "print version, revision, Go and protocol", Args: usageArgs(cobra.NoArgs)}
	format := formatFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		version, commit, goVersion := revision()
		v := struct {
			Version  string `json:"version"`
			Revision string `json:"revision"`
			Go       string `json:"go"`
			Protocol string `json:"protocol"`
		}{version, commit, goVersion, "HBONE (HTTP/2 CONNECT over mutual TLS 1.3)"}
		return a.print(*format, v, func(w io.Writer) {
			fmt.Fprintf(w, "wishbone %s\nrevision %s\n%s\nprotocol %s\n", v.Version, v.Revision, v.Go, v.Protocol)
		})
	}
	return cmd
}
