package config

import (
	"math"
	"strconv"
	"strings"
	"time"
)

// duration reads "10s" or "1m30s" between least and most.
func duration(least, most time.Duration) func(string) (time.Duration, *mistake) {
	return func(text string) (time.Duration, *mistake) {
		if bare(text) {
			return 0, wrong("write "+text+"s for seconds", "%s has no unit", text)
		}
		d, err := time.ParseDuration(text)
		switch {
		case err != nil:
			return 0, wrong("write a number with ms, s, m or h, as 10s", "%s is no duration", quote(text))
		case d < least:
			return 0, wrong("write "+short(least)+" or more", "%s is too short", text)
		case d > most:
			return 0, wrong("write "+short(most)+" or less", "%s is too long", text)
		}
		return d, nil
	}
}

// seconds is duration in whole seconds, which is what the kernel takes for
// keepalive (tcp(7), TCP_KEEPIDLE and TCP_KEEPINTVL).
func seconds(least, most time.Duration) func(string) (time.Duration, *mistake) {
	read := duration(least, most)
	return func(text string) (time.Duration, *mistake) {
		d, m := read(text)
		if m == nil && d%time.Second != 0 {
			return 0, wrong("write "+short(d.Round(time.Second)), "%s is not in whole seconds", text)
		}
		return d, m
	}
}

// flowLife is how long the kernel rules remember a connection that is silent
// (the timeout of the flow sets, "inet wishbone").
const flowLife = 5 * time.Minute

// keepaliveIdle must come before the rules forget the connection: they would
// then take its packets for those of a stranger.
func keepaliveIdle(text string) (time.Duration, *mistake) {
	d, m := seconds(time.Second, math.MaxInt64)(text)
	if m == nil && d >= flowLife {
		return 0, wrong("write less than 5m, the default is 180s",
			"%s is too long: the kernel rules forget a connection that is silent for 5m", text)
	}
	return d, m
}

// short writes d as one would: 2m, not 2m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// units of sizes. There are no decimal ones: 64MB is too easily taken for 64MiB.
const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
	tib = 1 << 40
)

// Bounds of limits.memory.
const (
	leastMemory = mib
	mostMemory  = tib
)

// size reads "64MiB", or "25%" of what total gives.
func size(total func() (int64, error)) func(string) (int64, *mistake) {
	return func(text string) (int64, *mistake) {
		if bare(text) {
			return 0, wrong("write "+text+"MiB, or a share of the memory as 25%", "%s has no unit", text)
		}
		n, m := bytesOf(text)
		if percent, found := strings.CutSuffix(text, "%"); found {
			n, m = share(percent, total)
		}
		switch {
		case m != nil:
			return 0, m
		case n < leastMemory:
			return 0, wrong("write 1MiB or more", "%s is too little", text)
		case n > mostMemory:
			return 0, wrong("write 1TiB or less", "%s is too much", text)
		}
		return n, nil
	}
}

// bytesOf reads a whole number with a unit.
func bytesOf(text string) (int64, *mistake) {
	unit := strings.TrimLeft(text, "0123456789")
	digits := strings.TrimSuffix(text, unit)
	factor := map[string]int64{"KiB": kib, "MiB": mib, "GiB": gib, "TiB": tib}[unit]
	n, err := strconv.ParseInt(digits, 10, 64)
	switch {
	case err != nil && digits != "": // out of range
		return math.MaxInt64, nil
	case digits == "", unit != "" && strings.ContainsAny(unit[:1], "._,-"):
		return 0, wrong("write a whole number with KiB, MiB, GiB or TiB, as 64MiB", "%s is no size", quote(text))
	case factor == 0:
		return 0, wrong("write "+digits+likelyUnit(unit), "%s has an unknown unit", quote(text))
	case n > math.MaxInt64/factor:
		return math.MaxInt64, nil
	}
	return n * factor, nil
}

// likelyUnit is what another unit was likely meant for: GiB for "g" or " GB".
func likelyUnit(unit string) string {
	letter := strings.ToUpper(strings.TrimLeft(unit, " "))
	if letter != "" && strings.ContainsAny(letter[:1], "KGT") {
		return letter[:1] + "iB"
	}
	return "MiB"
}

// share takes a percentage of total.
func share(percent string, total func() (int64, error)) (int64, *mistake) {
	p, err := strconv.ParseUint(percent, 10, 8)
	if err != nil || p < 1 || p > 100 {
		return 0, wrong("write 1% to 100%, in whole numbers", "%s is no share", quote(percent+"%"))
	}
	n, err := total()
	if err != nil {
		return 0, wrong("write a size, as 256MiB", "cannot tell what %d%% of the memory is: %v", p, err)
	}
	return n/100*int64(p) + n%100*int64(p)/100, nil // without overflow
}

// bare says whether text is a number without a unit.
func bare(text string) bool {
	return text != "" && strings.Trim(text, "0123456789") == ""
}
