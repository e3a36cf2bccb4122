package gcm

import (
	"crypto/fips140"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestChoice: where the processor has the instructions they are used, and not in
// FIPS 140 mode, nor when they are switched off.
func TestChoice(t *testing.T) {
	const asked = "WISHBONE_GCM_CHOICE"
	a, err := New(make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	_, used := a.(*aead)
	if os.Getenv(asked) != "" {
		fmt.Printf("used=%t\n", used)
		return
	}
	if has := instructions(t); used != (has && wide() && !fips140.Enabled()) {
		t.Errorf("used %t, but the processor has the instructions: %t", used, has)
	}
	for _, debug := range []string{"cpu.avx512f=off", "cpu.avx2=off", "cpu.all=off", "fips140=on"} {
		cmd := exec.Command(os.Args[0], "-test.run=^TestChoice$")
		cmd.Env = append(os.Environ(), asked+"=1", "GODEBUG="+debug)
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "used=false\n") {
			t.Errorf("GODEBUG=%s: %v, %s", debug, err, out)
		}
	}
}

// instructions asks the kernel, which lists what it has enabled too.
func instructions(t *testing.T) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	flags, _, _ := strings.Cut(string(text[strings.Index(string(text), "flags"):]), "\n")
	for _, want := range []string{"aes", "avx2", "avx512f", "avx512bw", "vaes", "vpclmulqdq"} {
		if !strings.Contains(flags+" ", " "+want+" ") {
			return false
		}
	}
	return true
}

// TestExpand: the last round's keys of FIPS 197, appendices A.1 and A.3.
func TestExpand(t *testing.T) {
	for key, want := range map[string]string{
		"2b7e151628aed2a6abf7158809cf4f3c":                                 "d014f9a8c9ee2589e13f0cc8b6630ca6",
		"603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4": "fe4890d1e6188d0b046df344706c631e",
	} {
		var a aead
		a.expand(unhex(t, key))
		last := unsafe.Slice((*byte)(unsafe.Pointer(&a.keys[4*a.rounds])), 16)
		if got := fmt.Sprintf("%x", last); got != want {
			t.Errorf("%s: %s", key, got)
		}
	}
}

// TestDot: against the definition, bit by bit.
func TestDot(t *testing.T) {
	r := rand.New(newNoise())
	for range 1000 {
		x, y := element{r.Uint64(), r.Uint64()}, element{r.Uint64(), r.Uint64()}
		var got element
		dot(&got, &x, &y)
		if want := slowDot(x, y); got != want {
			t.Fatalf("%x times %x: %x, wanted %x", x, y, got, want)
		}
	}
}

// slowDot is x·y·x^-128 mod x^128 + x^127 + x^126 + x^121 + 1 (RFC 8452 §3).
func slowDot(x, y element) (z element) {
	for i := range 128 {
		if y[i/64]>>(i%64)&1 == 1 {
			z[0] ^= x[0]
			z[1] ^= x[1]
		}
		// Divided by x; where that does not go, with the modulus added.
		odd := z[0] & 1
		z[0] = z[0]>>1 ^ z[1]<<63
		z[1] = z[1]>>1 ^ odd*(0xc2<<56>>1|1<<63)
	}
	return z
}

// TestLimits: what the counter does not suffice for is refused before it is touched,
// of which the memory would not bear anything else.
func TestLimits(t *testing.T) {
	memory, err := unix.Mmap(-1, 0, maxText+4096, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Munmap(memory); err != nil {
			t.Error(err)
		}
	}()
	testKeys(t, func(t *testing.T, p pair, source noise) {
		nonce := source.bytes(12)
		if !panics(func() { p.ours.Seal(nil, nonce, memory[:maxText+1], nil) }) {
			t.Error("a text of 2^36 - 31 bytes is sealed")
		}
		if _, err := p.ours.Open(nil, nonce, memory[:maxText+tagSize+1], nil); err == nil {
			t.Error("a text of 2^36 - 31 bytes is opened")
		}
	})
}
