package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A benchmark that overlooks wrong bytes measures nothing.
func TestCheckerFindsWrongBytes(t *testing.T) {
	right := func() []byte { return bytes.Clone(append(bytes.Clone(pattern[:period]), pattern[:1000]...)) }
	for name, bend := range map[string]func([]byte) []byte{
		"right":   func(b []byte) []byte { return b },
		"changed": func(b []byte) []byte { b[period+10] ^= 1; return b },
		"lost":    func(b []byte) []byte { return append(b[:100], b[101:]...) },
		"doubled": func(b []byte) []byte { return append(b[:100:100], b[99:]...) },
		"moved":   func(b []byte) []byte { b[7], b[8] = b[8], b[7]; return b },
	} {
		t.Run(name, func(t *testing.T) {
			var count atomic.Int64
			err := (&checker{count: &count}).check(bytes.NewReader(bend(right())))
			if wrong := errors.Is(err, errWrong); wrong != (name != "right") || !wrong && (err != io.EOF || count.Load() != period+1000) {
				t.Errorf("%v, after %d bytes", err, count.Load())
			}
		})
	}
}

// An interrupted run goes on where it ended, even within a line.
func TestResume(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results")
	r, err := open(path, false)
	check(t, err)
	check(t, r.add(measurement{0, "up1", "direct", figures{"MiB/s": 2}}))
	check(t, r.add(measurement{0, "up1", "envoy", figures{"MiB/s": 1}}))
	check(t, r.close())
	text, err := os.ReadFile(path)
	check(t, err)
	check(t, os.WriteFile(path, text[:len(text)-5], 0o600))
	r, err = open(path, true)
	check(t, err)
	if !r.has(0, "up1", "direct") || r.has(0, "up1", "envoy") || r.has(1, "up1", "direct") {
		t.Errorf("%+v", r.all)
	}
	check(t, r.add(measurement{0, "up1", "envoy", figures{"MiB/s": 1}}))
	check(t, r.close())
	again, err := os.ReadFile(path)
	check(t, err)
	if !bytes.Equal(text, again) {
		t.Errorf("%s", again)
	}
	if _, err := open("", true); err == nil {
		t.Error("there is nothing to go on with")
	}
	check(t, os.WriteFile(path, []byte("no results\n"), 0o600))
	if _, err := open(path, true); err == nil {
		t.Error("what is no result is taken")
	}
}

// Ratios are of the same repetition, and their median counts.
func TestReport(t *testing.T) {
	var all []measurement
	for rep, v := range []struct{ ours, envoy float64 }{{1, 2}, {8, 10}, {3, 4}} {
		all = append(all, measurement{rep, "up1", "wishbone", figures{"cpu-s/GiB": v.ours}}, measurement{rep, "up1", "envoy", figures{"cpu-s/GiB": v.envoy}})
	}
	all = append(all, measurement{3, "up1", "wishbone", figures{"cpu-s/GiB": 1000}}) // envoy's is missing
	var out strings.Builder
	report(&out, "a machine", all)
	for _, want := range []string{"1.00/5.50/1000  × 0.50/0.75/0.80", "CPU per GiB to envoy's, 1 upload  0.50/0.75/0.80  ≤ 0.80  met"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	for rep := 3; rep < 6; rep++ {
		all = append(all, measurement{rep, "up1", "envoy", figures{"cpu-s/GiB": 1}}, measurement{rep, "up1", "wishbone", figures{"cpu-s/GiB": 9}})
	}
	out.Reset()
	report(&out, "a machine", all)
	if !strings.Contains(out.String(), "NOT MET") {
		t.Error(out.String())
	}
	check(t, plot(filepath.Join(t.TempDir(), "plot.svg"), all))
}

func TestOptions(t *testing.T) {
	var o options
	if err := o.parse([]string{"-only", "direct,relay"}, io.Discard); err != nil || len(o.only) != 2 || len(o.modes) == 0 {
		t.Errorf("%v, %+v", err, o)
	}
	near := len(o.modes)
	if err := o.parse([]string{"-rtt", "50ms"}, io.Discard); err != nil || len(o.modes) == near || o.rtt != 50*time.Millisecond {
		t.Errorf("%v, %+v", err, o)
	}
	for _, args := range [][]string{{"-only", "squid"}, {"-modes", "far1"}, {"-rtt", "50ms", "-modes", "up1"}, {"extra"}, {"-repeats", "x"}} {
		var out strings.Builder
		if err := new(options).parse(args, &out); err == nil || out.Len() == 0 {
			t.Errorf("%v: %v, %q", args, err, out.String())
		}
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
