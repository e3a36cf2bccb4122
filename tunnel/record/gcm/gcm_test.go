package gcm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// pair is AES-GCM under one key twice: this package's and crypto/cipher's.
type pair struct {
	ours, theirs cipher.AEAD
}

func newPair(tb testing.TB, key []byte) pair {
	tb.Helper()
	ours, err := New(key)
	if err != nil {
		tb.Fatal(err)
	}
	return pair{ours, standard(tb, key)}
}

func standard(tb testing.TB, key []byte) cipher.AEAD {
	tb.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		tb.Fatal(err)
	}
	a, err := cipher.NewGCM(block)
	if err != nil {
		tb.Fatal(err)
	}
	return a
}

// noise is a source of bytes that is the same in each run.
type noise struct{ *rand.ChaCha8 }

func newNoise() noise { return noise{rand.NewChaCha8([32]byte{'g', 'c', 'm'})} }

func (s noise) bytes(n int) []byte {
	b := make([]byte, n)
	s.Read(b) // never fails
	return b
}

// testKeys runs f with a key of each size.
func testKeys(t *testing.T, f func(t *testing.T, p pair, source noise)) {
	for _, size := range []int{16, 32} {
		t.Run(fmt.Sprintf("AES-%d", 8*size), func(t *testing.T) {
			source := newNoise()
			f(t, newPair(t, source.bytes(size)), source)
		})
	}
}

// place says where a message lies: src and dst are offsets from a boundary of 64
// bytes, as far as allocations are aligned; in place only dst counts.
type place struct {
	src, dst int
	inPlace  bool
}

const (
	filler = 0xa5
	margin = 96
)

// arena is memory for n bytes at an offset, with filler around them.
func arena(offset, n int) []byte {
	return bytes.Repeat([]byte{filler}, offset+n+margin)
}

// untouched fails the test if there is anything but filler.
func untouched(t testing.TB, where string, b []byte) {
	t.Helper()
	if !bytes.Equal(b, bytes.Repeat([]byte{filler}, len(b))) {
		t.Fatalf("memory %s was written to", where)
	}
}

// compare seals a message, opens it, and wants the same of both.
func (p pair) compare(t testing.TB, at place, nonce, plain, ad []byte) {
	t.Helper()
	sealed := p.theirs.Seal(nil, nonce, plain, ad)
	got := p.run(t, at, plain, len(sealed), func(dst, src []byte) []byte { return p.ours.Seal(dst, nonce, src, ad) })
	if !bytes.Equal(got, sealed) {
		t.Fatalf("%d bytes, %d of additional data, %+v: sealed differently", len(plain), len(ad), at)
	}
	got = p.run(t, at, sealed, len(plain), func(dst, src []byte) []byte {
		opened, err := p.ours.Open(dst, nonce, src, ad)
		if err != nil {
			t.Fatalf("%d bytes, %d of additional data, %+v: %v", len(plain), len(ad), at, err)
		}
		return opened
	})
	if !bytes.Equal(got, plain) {
		t.Fatalf("%d bytes, %d of additional data, %+v: opened differently", len(plain), len(ad), at)
	}
}

// run puts src and the result, of n bytes, at their places, and looks after what is
// around them.
func (p pair) run(t testing.TB, at place, src []byte, n int, f func(dst, src []byte) []byte) []byte {
	t.Helper()
	memory := arena(at.dst, max(n, len(src)))
	dst, end := memory[at.dst:at.dst], at.dst+n
	if at.inPlace {
		end = at.dst + max(n, len(src))
		src = memory[at.dst : at.dst+copy(memory[at.dst:], src)]
	} else {
		apart := arena(at.src, len(src))
		src = apart[at.src : at.src+copy(apart[at.src:], src)]
		before := bytes.Clone(apart)
		defer func() {
			if !bytes.Equal(apart, before) {
				t.Fatal("the source was written to")
			}
		}()
	}
	got := f(dst, src)
	if len(got) > 0 && &got[0] != &memory[at.dst] {
		t.Fatal("memory was allocated, though there was enough")
	}
	untouched(t, "before the result", memory[:at.dst])
	untouched(t, "behind the result", memory[end:])
	return got
}

// TestLengths: every length of up to 2 KiB, and those around a record's and others,
// apart and in place, wherever they lie.
func TestLengths(t *testing.T) {
	testKeys(t, func(t *testing.T, p pair, source noise) {
		r := rand.New(source)
		text := source.bytes(1<<20 + 300)
		check := func(n int) {
			nonce, ad := source.bytes(12), source.bytes(5)
			p.compare(t, place{src: r.IntN(64), dst: r.IntN(64)}, nonce, text[:n], ad)
			p.compare(t, place{dst: r.IntN(64), inPlace: true}, nonce, text[:n], ad)
		}
		for n := range 2049 {
			check(n)
		}
		for _, middle := range []int{16 << 10, 64 << 10} {
			for n := middle - 40; n <= middle+300; n++ {
				check(n)
			}
		}
		check(1<<20 + 300) // the counter has three bytes
	})
}

// TestAlignments: each place within 64 bytes.
func TestAlignments(t *testing.T) {
	testKeys(t, func(t *testing.T, p pair, source noise) {
		nonce, ad := source.bytes(12), source.bytes(5)
		for _, n := range []int{1, 16, 63, 64, 255, 256, 1029, 1400, 16385} {
			text := source.bytes(n)
			for offset := range 64 {
				p.compare(t, place{src: offset}, nonce, text, ad)
				p.compare(t, place{dst: offset}, nonce, text, ad)
				p.compare(t, place{dst: offset, inPlace: true}, nonce, text, ad)
			}
		}
	})
}

// TestAdditionalData: of any length, before any number of blocks.
func TestAdditionalData(t *testing.T) {
	testKeys(t, func(t *testing.T, p pair, source noise) {
		ad, text, nonce := source.bytes(5001), source.bytes(1300), source.bytes(12)
		for _, n := range []int{0, 1, 16, 17, 64, 240, 255, 256, 300, 1024, 1300} {
			for m := range 200 {
				p.compare(t, place{}, nonce, text[:n], ad[m%7:m])
			}
			p.compare(t, place{}, nonce, text[:n], ad[:4096])
			p.compare(t, place{}, nonce, text[:n], ad[1:])
		}
	})
}

// TestAppend: what is in dst stays, with room behind it and without.
func TestAppend(t *testing.T) {
	testKeys(t, func(t *testing.T, p pair, source noise) {
		nonce, text, ad := source.bytes(12), source.bytes(500), source.bytes(5)
		for _, room := range []int{0, 10, 1000} {
			dst := append(make([]byte, 0, 3+room), "abc"...)
			sealed := p.ours.Seal(dst, nonce, text, ad)
			if want := p.theirs.Seal([]byte("abc"), nonce, text, ad); !bytes.Equal(sealed, want) {
				t.Errorf("with room for %d: sealed differently", room)
			}
			opened, err := p.ours.Open(dst, nonce, sealed[3:], ad)
			if err != nil || string(opened) != "abc"+string(text) {
				t.Errorf("with room for %d: opened differently: %v", room, err)
			}
		}
	})
}

// TestForgery: with a bit of anything changed nothing is opened, and nothing of the
// text is left behind.
func TestForgery(t *testing.T) {
	testKeys(t, func(t *testing.T, p pair, source noise) {
		for _, n := range []int{0, 1, 15, 16, 64, 65, 256, 300, 1025} {
			nonce, ad, text := source.bytes(12), source.bytes(21), source.bytes(n)
			sealed := p.ours.Seal(nil, nonce, text, ad)
			refused := func(what string, i int) {
				t.Helper()
				memory := arena(3, n)
				if got, err := p.ours.Open(memory[3:3], nonce, sealed, ad); err == nil || got != nil {
					t.Fatalf("%d bytes, bit %d of the %s is wrong: opened", n, i, what)
				}
				if !bytes.Equal(memory[3:3+n], make([]byte, n)) {
					t.Fatalf("%d bytes, bit %d of the %s is wrong: something is left", n, i, what)
				}
				untouched(t, "around", append(memory[:3:3], memory[3+n:]...))
			}
			flip := func(what string, b []byte, step int) {
				t.Helper()
				for i := 0; i < 8*len(b); i += step {
					b[i/8] ^= 1 << (i % 8)
					refused(what, i)
					b[i/8] ^= 1 << (i % 8)
				}
			}
			flip("tag", sealed[n:], 1)
			flip("ciphertext", sealed[:n], 3)
			flip("nonce", nonce, 1)
			flip("additional data", ad, 1)

			inPlace := bytes.Clone(sealed)
			inPlace[n+15] ^= 0x80
			if _, err := p.ours.Open(inPlace[:0], nonce, inPlace, ad); err == nil || !bytes.Equal(inPlace[:n], make([]byte, n)) {
				t.Fatalf("%d bytes in place: %v, or something is left", n, err)
			}
			if _, err := p.ours.Open(nil, nonce, sealed, ad); err != nil {
				t.Fatalf("%d bytes, nothing is wrong: %v", n, err)
			}
		}
	})
}

// TestShort: what is too short for a tag is refused like any other forgery.
func TestShort(t *testing.T) {
	testKeys(t, func(t *testing.T, p pair, source noise) {
		for n := range 16 {
			if got, err := p.ours.Open(nil, source.bytes(12), source.bytes(n), nil); err == nil || got != nil {
				t.Errorf("%d bytes are opened", n)
			}
		}
	})
}

// TestMisuse: the same panics as crypto/cipher's, before anything is written.
func TestMisuse(t *testing.T) {
	testKeys(t, func(t *testing.T, p pair, source noise) {
		nonce := source.bytes(12)
		for _, c := range []struct {
			name        string
			nonce       int // its length
			dst, src    int // where they begin
			ad, adLen   int
			open, panic bool
		}{
			{name: "apart", nonce: 12, dst: 200, ad: 150, adLen: 10},
			{name: "in place", nonce: 12, dst: 0, ad: 150, adLen: 10},
			{name: "one behind", nonce: 12, dst: 1, ad: 150, adLen: 10, panic: true},
			{name: "one before", nonce: 12, src: 1, ad: 150, adLen: 10, panic: true},
			{name: "touching", nonce: 12, dst: 100, ad: 250, adLen: 10},
			{name: "the last byte", nonce: 12, dst: 99, ad: 250, adLen: 10, panic: true},
			{name: "the tag over the source", nonce: 12, dst: 0, src: 115, ad: 250, adLen: 10, panic: true},
			{name: "the tag before the source", nonce: 12, dst: 0, src: 116, ad: 250, adLen: 10},
			{name: "over additional data", nonce: 12, dst: 200, ad: 191, adLen: 10, panic: true},
			{name: "behind additional data", nonce: 12, dst: 200, ad: 190, adLen: 10},
			{name: "the tag over additional data", nonce: 12, dst: 0, ad: 115, adLen: 10, panic: true},
			{name: "no nonce", nonce: 0, dst: 200, panic: true},
			{name: "short nonce", nonce: 11, dst: 200, panic: true},
			{name: "long nonce", nonce: 13, dst: 200, panic: true},
			{name: "opening one behind", open: true, nonce: 12, dst: 1, ad: 150, adLen: 10, panic: true},
			{name: "opening one before", open: true, nonce: 12, src: 1, ad: 150, adLen: 10, panic: true},
			{name: "opening in place", open: true, nonce: 12, ad: 150, adLen: 10},
			{name: "opening over the tag", open: true, nonce: 12, dst: 99, ad: 250, adLen: 10, panic: true},
			{name: "opening over additional data", open: true, nonce: 12, dst: 200, ad: 283, adLen: 10, panic: true},
			{name: "opening with a short nonce", open: true, nonce: 11, dst: 200, panic: true},
		} {
			for name, a := range map[string]cipher.AEAD{"ours": p.ours, "theirs": p.theirs} {
				memory := make([]byte, 400)
				nonce := append(nonce[:min(c.nonce, 12):12], make([]byte, max(0, c.nonce-12))...)
				dst, src, ad := memory[c.dst:c.dst], memory[c.src:c.src+100], memory[c.ad:c.ad+c.adLen]
				before := bytes.Clone(memory)
				got := panics(func() {
					if c.open {
						a.Open(dst, nonce, src, ad)
					} else {
						a.Seal(dst, nonce, src, ad)
					}
				})
				if got != c.panic {
					t.Errorf("%s, %s: panics %t, wanted %t", c.name, name, got, c.panic)
				}
				if got && !bytes.Equal(memory, before) {
					t.Errorf("%s, %s: something was written", c.name, name)
				}
			}
		}
	})
}

func panics(f func()) (yes bool) {
	defer func() { yes = recover() != nil }()
	f()
	return
}

// TestAllocations: there are none, if dst has room.
func TestAllocations(t *testing.T) {
	testKeys(t, func(t *testing.T, p pair, source noise) {
		nonce, ad, text := source.bytes(12), source.bytes(5), source.bytes(16385)
		sealed, dst := p.ours.Seal(nil, nonce, text, ad), make([]byte, 0, 17000)
		wrong := bytes.Clone(sealed)
		wrong[0]++
		for name, f := range map[string]func(){
			"seal":   func() { p.ours.Seal(dst, nonce, text, ad) },
			"open":   func() { p.ours.Open(dst, nonce, sealed, ad) },
			"refuse": func() { p.ours.Open(dst, nonce, wrong, ad) },
		} {
			if n := testing.AllocsPerRun(100, f); n != 0 {
				t.Errorf("%s: %v allocations", name, n)
			}
		}
	})
}

// TestTogether: many goroutines use one AEAD, while the collector stops and scans them.
func TestTogether(t *testing.T) {
	testKeys(t, func(t *testing.T, p pair, source noise) {
		nonce, ad, text := source.bytes(12), source.bytes(5), source.bytes(16385)
		sealed := p.theirs.Seal(nil, nonce, text, ad)
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				for range 100 {
					if !bytes.Equal(p.ours.Seal(nil, nonce, text, ad), sealed) {
						t.Error("sealed differently")
					}
					if opened, err := p.ours.Open(nil, nonce, sealed, ad); err != nil || !bytes.Equal(opened, text) {
						t.Error("opened differently")
					}
				}
			})
		}
		for range 10 {
			runtime.GC()
		}
		group.Wait()
	})
}

// TestKeySizes: those of AES, and no others.
func TestKeySizes(t *testing.T) {
	for n := range 40 {
		a, err := New(make([]byte, n))
		if good := n == 16 || n == 24 || n == 32; good != (err == nil) {
			t.Errorf("key of %d bytes: %v", n, err)
		}
		if err == nil && (a.NonceSize() != 12 || a.Overhead() != 16) {
			t.Errorf("key of %d bytes: nonces of %d, %d more", n, a.NonceSize(), a.Overhead())
		}
	}
}

// TestKeyIsCopied: what happens to the key afterwards does not matter.
func TestKeyIsCopied(t *testing.T) {
	key := []byte("sixteen letters.")
	p := newPair(t, key)
	clear(key)
	p.compare(t, place{}, make([]byte, 12), []byte("text"), nil)
}

// TestWycheproof: the vectors in testdata.
func TestWycheproof(t *testing.T) {
	text, err := os.ReadFile("testdata/wycheproof.txt")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if f[0] == "#" {
			continue
		}
		seen++
		var v [6][]byte
		for i := range v {
			v[i] = unhex(t, strings.TrimPrefix(f[2+i], "-"))
		}
		key, nonce, ad, plain, sealed := v[0], v[1], v[2], v[3], append(v[4], v[5]...)
		p := newPair(t, key)
		opened, err := p.ours.Open(nil, nonce, sealed, ad)
		switch valid := f[1] == "valid"; {
		case valid != (err == nil):
			t.Errorf("%s: %s, but: %v", f[0], f[1], err)
		case valid && !bytes.Equal(opened, plain):
			t.Errorf("%s: opened differently", f[0])
		case valid && !bytes.Equal(p.ours.Seal(nil, nonce, plain, ad), sealed):
			t.Errorf("%s: sealed differently", f[0])
		}
	}
	if seen != 133 {
		t.Errorf("%d vectors", seen)
	}
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestSpecification: the test cases of "The Galois/Counter Mode of Operation" (McGrew
// and Viega, appendix B), those with nonces of 96 bits.
func TestSpecification(t *testing.T) {
	const (
		zeros = "00000000000000000000000000000000"
		key   = "feffe9928665731c6d6a8f9467308308"
		iv    = "cafebabefacedbaddecaf888"
		ad    = "feedfacedeadbeeffeedfacedeadbeefabaddad2"
		plain = "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72" +
			"1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
		cipher128 = "42831ec2217774244b7221b784d0d49ce3aa212f2c02a4e035c17e2329aca12e" +
			"21d514b25466931c7d8f6a5aac84aa051ba30b396a0aac973d58e091473f5985"
		cipher256 = "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa" +
			"8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662898015ad"
	)
	for _, c := range []struct{ number, key, iv, ad, plain, sealed string }{
		{"1", zeros, zeros[:24], "", "", "58e2fccefa7e3061367f1d57a4e7455a"},
		{"2", zeros, zeros[:24], "", zeros, "0388dace60b6a392f328c2b971b2fe78ab6e47d42cec13bdf53a67b21257bddf"},
		{"3", key, iv, "", plain, cipher128 + "4d5c2af327cd64a62cf35abd2ba6fab4"},
		{"4", key, iv, ad, plain[:120], cipher128[:120] + "5bc94fbc3221a5db94fae95ae7121a47"},
		{"13", zeros + zeros, zeros[:24], "", "", "530f8afbc74536b9a963b4f1c4cb738b"},
		{"14", zeros + zeros, zeros[:24], "", zeros, "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"},
		{"15", key + key, iv, "", plain, cipher256 + "b094dac5d93471bdec1a502270e3cc6c"},
		{"16", key + key, iv, ad, plain[:120], cipher256[:120] + "76fc6ece0f4e1768cddf8853bb2d551b"},
	} {
		p := newPair(t, unhex(t, c.key))
		got := p.ours.Seal(nil, unhex(t, c.iv), unhex(t, c.plain), unhex(t, c.ad))
		if hex.EncodeToString(got) != c.sealed {
			t.Errorf("test case %s: %x", c.number, got)
		}
		p.compare(t, place{}, unhex(t, c.iv), unhex(t, c.plain), unhex(t, c.ad))
	}
}

// FuzzGCM: whatever is sealed, opened or made up, crypto/cipher makes the same of it.
func FuzzGCM(f *testing.F) {
	f.Add([]byte("a key"), []byte("a nonce"), []byte("text"), []byte("additional data"), uint8(5), uint8(0), true)
	f.Add([]byte("a longer key, of 32 bytes"), []byte{}, bytes.Repeat([]byte("text"), 300), []byte{}, uint8(0), uint8(63), false)
	f.Fuzz(func(t *testing.T, key, nonce, text, ad []byte, src, dst uint8, inPlace bool) {
		size := 16
		if len(key) > size {
			size = 32
		}
		p := newPair(t, append(key, make([]byte, size)...)[:size])
		nonce = append(nonce, make([]byte, 12)...)[:12]
		p.compare(t, place{int(src), int(dst), inPlace}, nonce, text, ad)
		ours, err := p.ours.Open(nil, nonce, text, ad)
		theirs, same := p.theirs.Open(nil, nonce, text, ad)
		if !bytes.Equal(ours, theirs) || (err == nil) != (same == nil) {
			t.Fatalf("opened differently: %v and %v", err, same)
		}
	})
}
