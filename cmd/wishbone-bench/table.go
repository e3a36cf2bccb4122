package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// tabled are the rows of the table.
var tabled = []struct{ title, mode, figure string }{
	{"CPU-s per GiB, 1 upload", "up1", "cpu-s/GiB"},
	{"8 uploads", "up8", "cpu-s/GiB"},
	{"64 uploads", "up64", "cpu-s/GiB"},
	{"1 download", "down1", "cpu-s/GiB"},
	{"MiB/s, 1 upload", "up1", "MiB/s"},
	{"64 uploads", "up64", "MiB/s"},
	{"short connections per second", "conns", "conns/s"},
	{"CPU-µs for each", "conns", "cpu-us/conn"},
	{"64-byte round trip, p50 µs", "pingpong", "p50-us"},
	{"p99 µs", "pingpong", "p99-us"},
	{"beside 4 uploads that came after it, p50 µs", "before4", "p50-us"},
	{"that came before it, p50 µs", "beside4", "p50-us"},
	{"KiB per idle connection, both gateways", "idle", "both-KiB/conn"},
	{"short connections beside ten uploads that nobody reads: p99 µs", "blocked", "p99-us"},
	{"at a distance: time to the answer of a short connection, ms", "first", "p50-ms"},
	{"the same with early data, ms", "early", "p50-ms"},
	{"MiB/s of one upload there", "far1", "MiB/s"},
	{"of 8 uploads", "far8", "MiB/s"},
}

// table writes medians of what was measured, and wishbone's ratios to Envoy, or to
// direct where there is no Envoy.
func table(path string, all []measurement) error {
	var b strings.Builder
	measured := slices.DeleteFunc(slices.Clone(candidates), func(c candidate) bool {
		return !slices.ContainsFunc(all, func(m measurement) bool { return m.Candidate == c.name })
	})
	b.WriteString("| |")
	for _, c := range measured {
		fmt.Fprintf(&b, " %s |", c.name)
	}
	fmt.Fprintf(&b, " wishbone : envoy |\n|---|%s---|\n", strings.Repeat("---|", len(measured)))
	for _, r := range tabled {
		if len(values(all, r.mode, "wishbone", r.figure)) > 0 {
			fmt.Fprintf(&b, "| %s |", r.title)
			for _, c := range measured {
				fmt.Fprintf(&b, " %s |", median(values(all, r.mode, c.name, r.figure)))
			}
			fmt.Fprintf(&b, " %s |\n", ratio(all, r.mode, r.figure))
		}
	}
	return os.WriteFile(path, []byte(b.String()), 0o644)
}

func median(v map[int]float64) string {
	if len(v) == 0 {
		return "–"
	}
	return short(spreadOf(slices.Collect(maps.Values(v))).median)
}

func ratio(all []measurement, mode, figure string) string {
	own := values(all, mode, "wishbone", figure)
	for _, c := range []string{"envoy", "direct"} {
		if r := paired(own, values(all, mode, c, figure)); len(r) > 0 {
			s := spreadOf(r)
			text := fmt.Sprintf("%s / **%s** / %s", short(s.min), short(s.median), short(s.max))
			if c == "direct" {
				text += " (: direct)"
			}
			return text
		}
	}
	return "–"
}
