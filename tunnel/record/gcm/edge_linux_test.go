package gcm

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
)

// guarded is memory between pages that may not be touched.
func guarded(t *testing.T, size int) []byte {
	t.Helper()
	page := unix.Getpagesize()
	size = (size + page - 1) / page * page
	memory, err := unix.Mmap(-1, 0, size+2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Munmap(memory); err != nil {
			t.Error(err)
		}
	})
	for _, guard := range [][]byte{memory[:page], memory[page+size:]} {
		if err := unix.Mprotect(guard, unix.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	return memory[page : page+size : page+size]
}

// TestEdges: nothing beyond a slice is touched, not even to throw it away. Every
// slice has a page beside it that kills the program.
func TestEdges(t *testing.T) {
	testKeys(t, func(t *testing.T, p pair, source noise) {
		const most = 1100
		srcs, dsts, ads, nonces := guarded(t, most+16), guarded(t, most+16), guarded(t, 200), guarded(t, 12)
		for _, side := range []struct {
			name string
			cut  func(memory []byte, n int) []byte
		}{
			{"end", func(m []byte, n int) []byte { return m[len(m)-n:] }},
			{"start", func(m []byte, n int) []byte { return m[:n:n] }},
		} {
			for n := range most + 1 {
				ad, nonce := side.cut(ads, n%200), side.cut(nonces, 12)
				text := source.bytes(n)
				source.Read(ad)
				source.Read(nonce)
				want := p.theirs.Seal(nil, nonce, text, ad)

				src, dst := side.cut(srcs, n), side.cut(dsts, n+16)
				copy(src, text)
				if p.ours.Seal(dst[:0], nonce, src, ad); !bytes.Equal(dst, want) {
					t.Fatalf("%s: %d bytes are sealed differently", side.name, n)
				}
				src, dst = side.cut(srcs, n+16), side.cut(dsts, n)
				copy(src, want)
				if _, err := p.ours.Open(dst[:0], nonce, src, ad); err != nil || !bytes.Equal(dst, text) {
					t.Fatalf("%s: %d bytes are opened differently: %v", side.name, n, err)
				}
				if got, err := p.ours.Open(src[:0], nonce, src, ad); err != nil || !bytes.Equal(got, text) {
					t.Fatalf("%s: %d bytes are opened differently in place: %v", side.name, n, err)
				}
			}
		}
	})
}
