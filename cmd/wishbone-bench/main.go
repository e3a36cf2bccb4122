package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/cli"
	"wishbone/e2e/netlab"
)

func main() {
	// The gateways and the relay are this very program, in processes of their own.
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "run":
			os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
		case relayCommand:
			exit(relay(os.Args[2:]))
		}
	}
	var o options
	if err := o.parse(os.Args[1:], os.Stderr); err != nil {
		os.Exit(2) // the flag package has said why
	}
	exit(netlab.Enter())
	exit(bench(o))
}

// exit ends the program after an error.
func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "wishbone-bench: error:", err)
		os.Exit(1)
	}
}

// options are what the command line says.
type options struct {
	only, modes []string
	repeats     int
	window      time.Duration // of a measurement
	warmUp      time.Duration // before it
	idle        int           // connections
	clients     int           // of short connections, in mode conns
	awake       string        // one of awakes
	json        string
	plot, table string
	resume      bool
	congestion  string
	rtt         time.Duration // of the distance between the gateways; 0: a cable
	loss        float64       // percent of packets on it
	early       bool          // wishbone sends early data
	loops       int           // of wishbone's gateways; 0: as many as there are processors
}

func (o *options) parse(args []string, out io.Writer) error {
	f := flag.NewFlagSet("wishbone-bench", flag.ContinueOnError)
	f.SetOutput(out)
	only := f.String("only", "", "candidates, separated by commas: "+strings.Join(names(candidates, func(c candidate) string { return c.name }), ", "))
	which := f.String("modes", "", "modes, separated by commas: "+strings.Join(names(modes, func(m mode) string { return m.name }), ", ")+"; all that fit -rtt and -early-data")
	f.IntVar(&o.repeats, "repeats", 10, "`times` that everything is measured")
	f.DurationVar(&o.window, "window", 1500*time.Millisecond, "how long one measurement takes")
	f.DurationVar(&o.warmUp, "warm-up", 700*time.Millisecond, "how long its load runs before")
	f.IntVar(&o.idle, "idle", 2000, "idle connections in mode idle; their descriptors must fit ulimit -n")
	f.IntVar(&o.clients, "clients", 8, "short connections at a time in mode conns")
	f.StringVar(&o.awake, "awake", awakeSpin, "what keeps processors from halting while latency or short connections are measured: "+strings.Join(awakes, ", ")+" (poll is the kernel's, for root)")
	f.StringVar(&o.json, "json", "", "write all measurements to this `file`, as they are made")
	f.StringVar(&o.plot, "plot", "", "write a plot of the ratios to this `file`, as SVG")
	f.StringVar(&o.table, "table", "", "write a table of medians to this `file`, as Markdown")
	f.BoolVar(&o.resume, "resume", false, "go on with the file of -json where it ends")
	f.StringVar(&o.congestion, "congestion", "reno", "congestion control of all sockets")
	f.DurationVar(&o.rtt, "rtt", 0, "put a distance with this round trip between the gateways, and measure what suffers from it")
	f.Float64Var(&o.loss, "loss", 0, "percentage of packets that the distance loses, by other dice in each repetition")
	f.BoolVar(&o.early, "early-data", false, "wishbone's gateways send early data to each other")
	f.IntVar(&o.loops, "loops", 0, "event loops of each of wishbone's gateways, up to the number of processors, which is what 0 means")
	short := f.Bool("short", false, "once, and for a moment: does it work?")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		fmt.Fprintf(out, "wishbone-bench: error: unexpected argument %q\n", f.Arg(0))
		return flag.ErrHelp
	}
	if *short {
		o.repeats, o.window, o.warmUp, o.idle = 1, 200*time.Millisecond, 100*time.Millisecond, 100
	}
	var err error
	if o.only, err = chosen(*only, candidates, func(c candidate) string { return c.name }); err == nil {
		fitting := slices.DeleteFunc(slices.Clone(modes), func(m mode) bool { return !o.fits(m) })
		o.modes, err = chosen(*which, fitting, func(m mode) string { return m.name })
	}
	if err == nil && !slices.Contains(awakes, o.awake) {
		err = fmt.Errorf("-awake %s: choose among %s", o.awake, strings.Join(awakes, ", "))
	}
	if err != nil {
		fmt.Fprintln(out, "wishbone-bench: error:", err)
	}
	return err
}

// fits says whether a mode makes sense: short connections at a distance are measured
// with early data or without.
func (o *options) fits(m mode) bool {
	return m.far == (o.rtt > 0) && (m.early == o.early || m.name != "first" && !m.early)
}

func names[T any](all []T, name func(T) string) []string {
	var list []string
	for _, v := range all {
		list = append(list, name(v))
	}
	return list
}

// chosen are the names in a list with commas, or all.
func chosen[T any](list string, all []T, name func(T) string) ([]string, error) {
	known := names(all, name)
	if list == "" {
		return known, nil
	}
	picked := strings.Split(list, ",")
	for _, n := range picked {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("there is no %q: choose among %s", n, strings.Join(known, ", "))
		}
	}
	return picked, nil
}

// bench brings everything up, measures, and reports.
func bench(o options) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	results, err := open(o.json, o.resume)
	if err != nil {
		return err
	}
	defer results.close()
	w, err := newWorld(o)
	if err != nil {
		return err
	}
	defer w.close()
	running, err := w.start(ctx, o.only)
	if err != nil {
		return err
	}
	if err := w.measure(ctx, o, running, results); err != nil {
		return err
	}
	report(os.Stdout, machine(), results.all)
	if o.plot != "" {
		err = plot(o.plot, results.all)
	}
	if o.table != "" {
		err = errors.Join(err, table(o.table, results.all))
	}
	return err
}

// measure visits every mode and candidate in turn.
func (w *world) measure(ctx context.Context, o options, running []*gateways, results *results) error {
	for rep := range o.repeats {
		w.roll(o, uint64(rep))
		for _, m := range modes {
			if !slices.Contains(o.modes, m.name) {
				continue
			}
			for _, g := range running {
				if ctx.Err() != nil {
					return fmt.Errorf("interrupted; what was measured is kept")
				}
				if results.has(rep, m.name, g.name) {
					continue
				}
				figures, err := m.run(ctx, w, g, o)
				if err != nil {
					return fmt.Errorf("%s through %s: %w\n%s", m.name, g.name, err, w.logs(g.name))
				}
				if err := results.add(measurement{rep, m.name, g.name, figures}); err != nil {
					return err
				}
			}
			fmt.Fprintf(os.Stderr, "\r%d of %d: %s   ", rep+1, o.repeats, m.name)
		}
	}
	fmt.Fprintln(os.Stderr)
	return nil
}
