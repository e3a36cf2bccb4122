package gcm

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"math/bits"
	"unsafe"

	"golang.org/x/sys/cpu"
)

const (
	blockSize = 16
	nonceSize = 12
	tagSize   = 16
	maxText   = (1<<32 - 2) * blockSize // what the counter allows (SP 800-38D §5.2.1.1)
)

// element is one of GF(2^128), as gcm_amd64.s multiplies them; the low half comes first.
type element [2]uint64

// aead is AES-GCM under one key. It does not change once it is made. The assembly
// knows where its fields are.
type aead struct {
	powers [64]element // of H, from H^64 to H
	_      [3]element  // zeros, for the last powers are read by four
	keys   [60]uint32  // of the rounds of AES, four words each
	rounds int         // 10 or 14; there is one key more
}

// wide reports whether the processor has the instructions that crypt is made of, and
// the system keeps the registers. Those on registers of 128 and 256 bits are of AVX2, so
// that AVX512VL is not needed.
func wide() bool {
	x := &cpu.X86
	return x.HasAES && x.HasAVX2 && x.HasAVX512F && x.HasAVX512BW && x.HasAVX512VAES && x.HasAVX512VPCLMULQDQ
}

// newAEAD is AES-GCM under a key, whose AES for single blocks is block.
func newAEAD(key []byte, block cipher.Block) cipher.AEAD {
	a := &aead{}
	a.expand(key)
	var h [blockSize]byte
	block.Encrypt(h[:], h[:])
	a.raise(&h)
	return a
}

// expand makes the keys of the rounds (FIPS 197 §5.2). The words of the standard are
// big-endian, these are as memory has them.
func (a *aead) expand(key []byte) {
	n := len(key) / 4
	a.rounds = n + 6
	for i := range n {
		a.keys[i] = binary.LittleEndian.Uint32(key[4*i:])
	}
	constant := uint32(1)
	for i := n; i < 4*(a.rounds+1); i++ {
		w := a.keys[i-1]
		switch {
		case i%n == 0:
			w = subWord(bits.RotateLeft32(w, -8)) ^ constant
			constant = constant<<1 ^ constant>>7*0x11b
		case n == 8 && i%n == 4:
			w = subWord(w)
		}
		a.keys[i] = a.keys[i-n] ^ w
	}
}

// raise makes the powers of H, which is x·reverse(h) (RFC 8452, appendix A).
func (a *aead) raise(h *[blockSize]byte) {
	high, low := binary.BigEndian.Uint64(h[:]), binary.BigEndian.Uint64(h[8:])
	over := high >> 63 // x^128 is Q's other terms
	last := len(a.powers) - 1
	a.powers[last] = element{low<<1 ^ over, high<<1 ^ low>>63 ^ over*0xc2<<56}
	for i := last - 1; i >= 0; i-- {
		dot(&a.powers[i], &a.powers[i+1], &a.powers[last])
	}
}

func (a *aead) NonceSize() int { return nonceSize }
func (a *aead) Overhead() int  { return tagSize }

// Seal is cipher.AEAD's.
func (a *aead) Seal(dst, nonce, plaintext, additionalData []byte) []byte {
	checkNonce(nonce)
	n := len(plaintext)
	if n > maxText {
		panic("gcm: message is too long")
	}
	all, out := extend(dst, n+tagSize)
	checkOverlap(out, plaintext, additionalData)
	crypt(a, (*[tagSize]byte)(out[n:]), out[:n], plaintext, additionalData, nonce, false)
	return all
}

var errOpen = errors.New("gcm: message cannot be authenticated")

// Open is cipher.AEAD's. Where it fails, what it would have appended is zeroed.
func (a *aead) Open(dst, nonce, ciphertext, additionalData []byte) ([]byte, error) {
	checkNonce(nonce)
	n := len(ciphertext) - tagSize
	if n < 0 || n > maxText {
		return nil, errOpen
	}
	all, out := extend(dst, n)
	checkOverlap(out, ciphertext, additionalData)
	var tag [tagSize]byte
	crypt(a, &tag, out, ciphertext[:n], additionalData, nonce, true)
	if subtle.ConstantTimeCompare(tag[:], ciphertext[n:]) != 1 {
		clear(out)
		return nil, errOpen
	}
	return all, nil
}

func checkNonce(nonce []byte) {
	if len(nonce) != nonceSize {
		panic("gcm: nonce is not of 12 bytes")
	}
}

// extend appends n bytes, whose contents do not matter, to dst.
func extend(dst []byte, n int) (all, out []byte) {
	total := len(dst) + n
	if total <= cap(dst) {
		all = dst[:total]
	} else {
		all = make([]byte, total)
		copy(all, dst)
	}
	return all, all[len(dst):]
}

// checkOverlap panics where cipher.AEAD forbids that slices share memory.
func checkOverlap(out, in, additionalData []byte) {
	if overlap(out, in) && &out[0] != &in[0] {
		panic("gcm: output overlaps input, and not exactly")
	}
	if overlap(out, additionalData) {
		panic("gcm: output overlaps additional data")
	}
}

func overlap(x, y []byte) bool {
	if len(x) == 0 || len(y) == 0 {
		return false
	}
	a, b := uintptr(unsafe.Pointer(&x[0])), uintptr(unsafe.Pointer(&y[0]))
	return a < b+uintptr(len(y)) && b < a+uintptr(len(x))
}

// crypt seals or opens src to dst, which is as long and either the same memory or
// none of it, and writes the tag that belongs to it. Comparing tags is the caller's.
// When opening it reads src twice: nobody may change it meanwhile. It is not preempted, so a
// collection may have to wait for it: microseconds for a record.
//
//go:noescape
func crypt(a *aead, tag *[tagSize]byte, dst, src, ad, nonce []byte, opening bool)

// subWord substitutes the bytes of a word (FIPS 197 §5.2).
//
//go:noescape
func subWord(w uint32) uint32

// dot is the product of x and y.
//
//go:noescape
func dot(z, x, y *element)
