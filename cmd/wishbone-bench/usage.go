package main

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// usage is what gateways have used so far, and what was done with it.
type usage struct {
	at         time.Time
	west, east float64 // seconds of CPU, user and system
	count      int64   // bytes or connections
}

// usage is that of now.
func (g *gateways) usage(count int64) (u usage, err error) {
	u = usage{at: time.Now(), count: count}
	if u.west, err = cpu(g.west); err == nil {
		u.east, err = cpu(g.east)
	}
	return u, err
}

// since is what passed between two usages of a bulk mode.
func (u usage) since(b usage) figures {
	gib := float64(u.count-b.count) / (1 << 30)
	f := figures{"MiB/s": 1024 * gib / u.at.Sub(b.at).Seconds()}
	if cpu := u.west + u.east - b.west - b.east; cpu > 0 {
		f["cpu-s/GiB"], f["west-s/GiB"], f["east-s/GiB"] = cpu/gib, (u.west-b.west)/gib, (u.east-b.east)/gib
	}
	return f
}

// ticks is the unit of times in /proc/PID/stat, the same on every Linux that Go
// runs on (proc_pid_stat(5), USER_HZ).
const ticks = 100

// cpu is the time that processes have used, in seconds.
func cpu(all []process) (sum float64, err error) {
	for _, p := range all {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
		if err != nil {
			return 0, err
		}
		// Behind the name in brackets, which may hold anything, utime and stime are the
		// 12th and 13th (proc_pid_stat(5)).
		f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
		for _, field := range f[11:13] {
			n, err := strconv.ParseFloat(string(field), 64)
			if err != nil {
				return 0, err
			}
			sum += n / ticks
		}
	}
	return sum, nil
}

// memory is the resident memory of each side, in bytes.
func (g *gateways) memory() (sides [2]float64, err error) {
	for i, side := range [][]process{g.west, g.east} {
		for _, p := range side {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.PID()))
			if err != nil {
				return sides, err
			}
			f := bytes.Fields(b)
			pages, err := strconv.ParseFloat(string(f[1]), 64)
			if err != nil {
				return sides, err
			}
			sides[i] += pages * float64(os.Getpagesize())
		}
	}
	return sides, nil
}

// aes128 is the AEAD of most sessions.

func aes128() cipher.AEAD {
	block, err := aes.NewCipher(make([]byte, 16))
	if err == nil {
		var aead cipher.AEAD
		if aead, err = cipher.NewGCM(block); err == nil {
			return aead
		}
	}
	panic(err) // the key has the right size
}

// aesCost is what Go's AES-128-GCM takes to seal and open a GiB in records of 16
// KiB, in seconds of CPU.
func aesCost() float64 {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	aead := aes128()
	const size, n = 16 << 10, 4096
	nonce := make([]byte, aead.NonceSize())
	buf := make([]byte, size, size+aead.Overhead())
	began := threadCPU()
	for range n {
		sealed := aead.Seal(buf[:0], nonce, buf, nil)
		if _, err := aead.Open(sealed[:0], nonce, sealed, nil); err != nil {
			panic(err)
		}
	}
	return (threadCPU() - began) / (n * size) * (1 << 30)
}

func threadCPU() float64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		panic(err) // every Linux has it
	}
	return float64(ts.Nano()) / 1e9
}
