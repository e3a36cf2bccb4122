package gcm

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/fips140"
)

// New is AES-GCM (NIST SP 800-38D) under a key of 16 or 32 bytes, with nonces of 12 bytes
// and tags of 16. The AEAD may be used by many goroutines at once. It keeps what it
// makes of the key, which stays the caller's.
//
// Where the processor lacks the instructions, in FIPS 140 mode, and for a key of
// 24 bytes, it is crypto/cipher's. So it is with GODEBUG=cpu.avx512f=off in the environment.
func New(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	if wide() && !fips140.Enabled() && len(key) != 24 {
		return newAEAD(key, block), nil
	}
	return cipher.NewGCM(block)
}
