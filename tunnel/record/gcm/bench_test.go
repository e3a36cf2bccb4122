package gcm

import (
	"crypto/cipher"
	"fmt"
	"testing"
)

// benchmark runs f with ours and crypto/cipher's, the additional data and the place
// in memory being those of a record.
func benchmark(b *testing.B, f func(b *testing.B, a cipher.AEAD, dst, nonce, text, ad []byte)) {
	for _, size := range []int{16, 32} {
		p := newPair(b, make([]byte, size))
		for _, n := range []int{64, 1400, 16384} {
			for _, c := range []struct {
				name string
				aead cipher.AEAD
			}{{"standard", p.theirs}, {"gcm", p.ours}} {
				b.Run(fmt.Sprintf("AES-%d/%d/%s", 8*size, n, c.name), func(b *testing.B) {
					b.SetBytes(int64(n))
					b.ReportAllocs()
					dst := make([]byte, 5, 5+n+16)
					f(b, c.aead, dst, make([]byte, 12), make([]byte, n), dst)
				})
			}
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	benchmark(b, func(b *testing.B, a cipher.AEAD, dst, nonce, text, ad []byte) {
		for b.Loop() {
			a.Seal(dst, nonce, text, ad)
		}
	})
}

func BenchmarkOpen(b *testing.B) {
	benchmark(b, func(b *testing.B, a cipher.AEAD, dst, nonce, text, ad []byte) {
		sealed := a.Seal(nil, nonce, text, ad)
		for b.Loop() {
			if _, err := a.Open(dst, nonce, sealed, ad); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkNew is what a key costs.
func BenchmarkNew(b *testing.B) {
	key := make([]byte, 32)
	b.Run("standard", func(b *testing.B) {
		for b.Loop() {
			standard(b, key)
		}
	})
	b.Run("gcm", func(b *testing.B) {
		for b.Loop() {
			if _, err := New(key); err != nil {
				b.Fatal(err)
			}
		}
	})
}
