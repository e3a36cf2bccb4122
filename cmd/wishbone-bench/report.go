package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
)

// spread is the least, the median and the greatest of some values.
type spread struct{ min, median, max float64 }

func spreadOf(v []float64) spread {
	v = slices.Sorted(slices.Values(v))
	return spread{v[0], (v[(len(v)-1)/2] + v[len(v)/2]) / 2, v[len(v)-1]}
}

func (s spread) String() string {
	return fmt.Sprintf("%s/%s/%s", short(s.min), short(s.median), short(s.max))
}

// short is a number with three digits that count.
func short(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// values are those of a figure, by repetition.
func values(all []measurement, mode, candidate, figure string) map[int]float64 {
	v := map[int]float64{}
	for _, m := range all {
		if f, ok := m.Figures[figure]; ok && m.Mode == mode && m.Candidate == candidate {
			v[m.Repeat] = f
		}
	}
	return v
}

// paired are the ratios of two figures in the same repetitions.
func paired(a, b map[int]float64) (ratios []float64) {
	for rep, v := range a {
		if w := b[rep]; w != 0 {
			ratios = append(ratios, v/w)
		}
	}
	return ratios
}

// report prints every figure of every candidate, with its ratio to Envoy's, and the
// goals.
func report(out io.Writer, machine string, all []measurement) {
	fmt.Fprintf(out, "%s\nmin/median/max; the ratio is to envoy in the same repetition\n", machine)
	for _, m := range modes {
		figuresOf := map[string]bool{}
		for _, r := range all {
			if r.Mode == m.name {
				for f := range r.Figures {
					figuresOf[f] = true
				}
			}
		}
		if len(figuresOf) == 0 {
			continue
		}
		fmt.Fprintf(out, "\n%s: %s\n", m.name, m.what)
		t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		for _, f := range slices.Sorted(maps.Keys(figuresOf)) {
			for _, c := range candidates {
				v := values(all, m.name, c.name, f)
				if len(v) == 0 {
					continue
				}
				ratio := ""
				if r := paired(v, values(all, m.name, "envoy", f)); len(r) > 0 && c.name != "envoy" {
					ratio = "× " + spreadOf(r).String()
				}
				fmt.Fprintf(t, "  %s\t%s\t%s\t%s\n", f, c.name, spreadOf(slices.Collect(maps.Values(v))), ratio)
			}
		}
		// Nothing is lost when standard output cannot take it: see -json.
		_ = t.Flush()
	}
	goals(out, all)
}

// goal is what wishbone has set itself.
type goal struct {
	what    string
	must    float64
	atLeast bool
	ratios  func(all []measurement) []float64
}

// against compares a figure of wishbone's with a candidate's.
func against(mode, figure, candidate string) func([]measurement) []float64 {
	return func(all []measurement) []float64 {
		return paired(values(all, mode, "wishbone", figure), values(all, mode, candidate, figure))
	}
}

// added compares what wishbone adds to direct with what a candidate adds.
func added(mode, figure, candidate string) func([]measurement) []float64 {
	return func(all []measurement) []float64 {
		direct := values(all, mode, "direct", figure)
		return paired(less(values(all, mode, "wishbone", figure), direct), less(values(all, mode, candidate, figure), direct))
	}
}

func less(a, b map[int]float64) map[int]float64 {
	d := map[int]float64{}
	for rep, v := range a {
		if w, ok := b[rep]; ok {
			d[rep] = v - w
		}
	}
	return d
}

// floor compares with two plain relays and AES once each way.
func floor(all []measurement) []float64 {
	least := values(all, "up1", "relay", "cpu-s/GiB")
	for rep, aes := range values(all, "up1", "relay", "aes-s/GiB") {
		least[rep] += aes
	}
	return paired(values(all, "up1", "wishbone", "cpu-s/GiB"), least)
}

// own is a figure of wishbone's by itself.
func own(mode, figure string) func([]measurement) []float64 {
	return func(all []measurement) []float64 {
		return slices.Collect(maps.Values(values(all, mode, "wishbone", figure)))
	}
}

var goalsOf = []goal{
	{"CPU per GiB to envoy's, 1 upload", .80, false, against("up1", "cpu-s/GiB", "envoy")},
	{"CPU per GiB to envoy's, 8 uploads", .80, false, against("up8", "cpu-s/GiB", "envoy")},
	{"CPU per GiB to envoy's, 64 uploads", .80, false, against("up64", "cpu-s/GiB", "envoy")},
	{"CPU per GiB to envoy's, 1 download", .80, false, against("down1", "cpu-s/GiB", "envoy")},
	{"CPU per GiB to the floor: two plain relays and AES", 1.35, false, floor},
	{"short connections per second to envoy's", 1.6, true, against("conns", "conns/s", "envoy")},
	{"CPU per short connection to envoy's", .65, false, against("conns", "cpu-us/conn", "envoy")},
	{"what ping-pong's p50 adds to direct, to what envoy adds", .80, false, added("pingpong", "p50-us", "envoy")},
	{"ping-pong's p99 to the plain relays'", 1.15, false, against("pingpong", "p99-us", "relay")},
	{"ping-pong's p50 beside 4 uploads that came after it, to envoy's", .60, false, against("before4", "p50-us", "envoy")},
	{"ping-pong's p50 beside 4 uploads that came before it, to envoy's", .60, false, against("beside4", "p50-us", "envoy")},
	{"KiB of memory per idle connection, west", 3, false, own("idle", "west-KiB/conn")},
	{"KiB of memory per idle connection, east", 3, false, own("idle", "east-KiB/conn")},
	{"time to the answer at a distance, to direct's", 1.05, false, against("first", "p50-ms", "direct")},
	{"the same with early data", .60, false, against("early", "p50-ms", "direct")},
	{"rate of one upload at a distance to direct's", .90, true, against("far1", "MiB/s", "direct")},
	{"rate of 8 uploads at a distance to direct's", .80, true, against("far8", "MiB/s", "direct")},
	{"p99 of short connections beside blocked uploads, times that without", 2, false, own("blocked", "times")},
}

// goals prints how far wishbone is.
func goals(out io.Writer, all []measurement) {
	fmt.Fprintf(out, "\ngoals\n")
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, g := range goalsOf {
		ratios := g.ratios(all)
		if len(ratios) == 0 {
			continue
		}
		s, sign, met := spreadOf(ratios), "≤", "met"
		if c := cmp.Compare(s.median, g.must); g.atLeast && c < 0 || !g.atLeast && c > 0 {
			met = "NOT MET"
		}
		if g.atLeast {
			sign = "≥"
		}
		fmt.Fprintf(t, "  %s\t%s\t%s %s\t%s\n", g.what, s, sign, short(g.must), met)
	}
	_ = t.Flush() // as above
}
