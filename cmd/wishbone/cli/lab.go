package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
)

// labDirVar tells the program inside where the lab of the user outside lies.
const labDirVar = "WISHBONE_LAB_DIR"

// labTime bounds building the lab with its proof.
const labTime = time.Minute

func (a *app) lab() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "two gateways on this machine, without root: see one connection carried, then try your own",
		Long: `Build client - west = underlay = east - server out of network namespaces, with two
gateways in processes of their own, carry a page through them over IPv4 and IPv6, and show
what each side saw. The lab stays until Ctrl-C; wishbone lab exec HOST -- CMD runs commands
on its hosts from another terminal. Needs no root where user namespaces are allowed.`,
		Args: usageArgs(cobra.NoArgs),
	}
	check := cmd.Flags().Bool("check", false, "run the proof, with a gateway killed as negative control, and exit 0 or 1")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		// Inside, everybody is root, and nobody knows for whom.
		if os.Getenv(labDirVar) == "" {
			os.Setenv(labDirVar, lab.SocketDir())
		}
		if err := netlab.Enter(); err != nil {
			return err
		}
		if *check {
			return a.checkLab(cmd.Context())
		}
		return a.stayInLab(cmd.Context())
	}
	cmd.AddCommand(a.labExec())
	return cmd
}

// withLab builds a lab with its files in dir, and ends it after f.
func withLab(ctx context.Context, dir string, f func(*lab.Lab) error) error {
	build, cancel := context.WithTimeout(ctx, labTime)
	defer cancel()
	l, err := lab.New(build, dir)
	if err != nil {
		return err
	}
	return errors.Join(f(l), l.Close())
}

// checkLab runs the proof in a lab of its own.
func (a *app) checkLab(ctx context.Context) error {
	dir, err := os.MkdirTemp("", "wishbone-lab-check-")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, labTime)
	defer cancel()
	err = withLab(ctx, dir, func(l *lab.Lab) error {
		if err := l.Prove(ctx, a.out); err != nil {
			return err
		}
		fmt.Fprintln(a.out)
		return l.ProveRefusal(ctx, a.out)
	})
	if err = errors.Join(err, os.Remove(dir)); err != nil {
		return err
	}
	fmt.Fprintln(a.out, "\nok: the source was preserved, only TLS crossed, and without the gateway nothing does")
	return nil
}

// stayInLab shows the proof and keeps the lab until a signal.
func (a *app) stayInLab(ctx context.Context) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	dir := os.Getenv(labDirVar)
	ln, err := lab.Listen(dir)
	if err != nil {
		return err
	}
	files := filepath.Join(dir, "files")
	if err := os.Mkdir(files, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return errors.Join(err, ln.Close())
	}
	fmt.Fprint(a.out, `
   client ────── west ══════ underlay ══════ east ────── server
  10.1.0.2     gateway      192.0.2.0/24    gateway    10.2.0.2
 fd00:1::2                  2001:db8::/64             fd00:2::2
`)
	err = withLab(ctx, files, func(l *lab.Lab) error {
		if err := l.Prove(ctx, a.out); err != nil {
			return err
		}
		go l.Serve(ln) // ends with the listener
		fmt.Fprintf(a.out, `
The lab is yours until Ctrl-C. From another terminal:
  %[1]s lab exec client -- curl -s http://10.2.0.2/
  %[1]s lab exec client -- curl -s 'http://[fd00:2::2]/'
  %[1]s lab exec west -- wishbone status
  %[1]s lab exec server -- sh
Configurations and logs of the gateways: %[1]s lab exec west -- ls %[2]s
`, invocation(), files)
		<-signals
		return nil
	})
	// The socket is removed with its listener; the directories are empty now.
	return errors.Join(err, ln.Close(), os.Remove(files), os.Remove(dir))
}

// invocation is how the user has called this program, to be typed again.
func invocation() string {
	if strings.Contains(os.Args[0], "/go-build") {
		return "go run ./cmd/wishbone"
	}
	return os.Args[0]
}

func (a *app) labExec() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "exec HOST -- COMMAND [ARG...]",
		Short:   "run a command on a host of the running lab: client, west, east or server",
		Example: "  wishbone lab exec client -- curl http://10.2.0.2/",
		Args: usageArgs(func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return errors.New("want a host and a command")
			}
			return nil
		}),
	}
	// What follows the host is the command's, with or without "--".
	cmd.Flags().SetInterspersed(false)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		host, command := args[0], args[1:]
		if command[0] == "--" {
			command = command[1:]
		}
		if len(command) == 0 {
			return usage(errors.New("no command"), "%s --help shows an example", cmd.CommandPath())
		}
		code, err := lab.Exec(lab.SocketDir(), host, command, os.Stdin, os.Stdout, os.Stderr)
		switch {
		case errors.Is(err, lab.ErrNoLab):
			return &failure{err, "start one in another terminal: wishbone lab", codeFailed}
		case err != nil:
			return err
		case code != 0:
			return exitStatus(code)
		}
		return nil
	}
	return cmd
}
