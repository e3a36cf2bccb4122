package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// plotted are the figures of the plot.
var plotted = []struct{ title, mode, figure string }{
	{"CPU-s per GiB, 1 upload", "up1", "cpu-s/GiB"},
	{"CPU-s per GiB, 8 uploads", "up8", "cpu-s/GiB"},
	{"CPU-s per GiB, 64 uploads", "up64", "cpu-s/GiB"},
	{"CPU-s per GiB, 1 download", "down1", "cpu-s/GiB"},
	{"CPU-µs per short connection", "conns", "cpu-us/conn"},
	{"64-byte round trip, p50 µs", "pingpong", "p50-us"},
	{"the same beside 4 uploads", "beside4", "p50-us"},
	{"KiB per idle connection, both", "idle", "both-KiB/conn"},
}

// plot draws bars of medians, with a line from the least to the greatest: less is
// better everywhere.
func plot(path string, all []measurement) error {
	const width, left, bar, gap = 860, 110, 16, 34
	var b strings.Builder
	y := 10
	for _, p := range plotted {
		type row struct {
			name string
			s    spread
		}
		var rows []row
		most := 0.0
		for _, c := range candidates {
			if v := values(all, p.mode, c.name, p.figure); len(v) > 0 {
				s := spreadOf(slices.Collect(maps.Values(v)))
				rows, most = append(rows, row{c.name, s}), max(most, s.max)
			}
		}
		if len(rows) == 0 || most <= 0 {
			continue
		}
		y += gap
		fmt.Fprintf(&b, `<text x="10" y="%d" font-weight="bold">%s</text>`+"\n", y-10, p.title)
		x := func(v float64) float64 { return left + max(v, 0)/most*(width-left-70) }
		for _, r := range rows {
			color := "#9aa7b5"
			if r.name == "wishbone" {
				color = "#c2410c"
			}
			fmt.Fprintf(&b, `<text x="10" y="%d">%s</text><rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+
				`<path d="M%.1f %dH%.1f" stroke="#111"/><text x="%.1f" y="%d">%s</text>`+"\n",
				y+bar-4, r.name, left, y, x(r.s.median)-left, bar-3, color,
				x(r.s.min), y+bar/2-1, x(r.s.max), x(r.s.max)+6, y+bar-4, short(r.s.median))
			y += bar
		}
	}
	svg := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="white"/>
%s<text x="10" y="%d" fill="#555">%s; medians, lines from min to max; less is better</text>
</svg>
`, width, y+40, b.String(), y+26, machine())
	return os.WriteFile(path, []byte(svg), 0o644)
}
