// Package gcm is AES-GCM with the widest instructions that a processor has for it.
//
// Go's crypto/cipher uses those that encrypt one block (AES-NI); processors since Ice Lake
// and Zen 4 have some that encrypt four (VAES and VPCLMULQDQ on the registers of AVX-512), with which
// records are sealed and opened more than twice as fast. What is done with them, and
// how, is in gcm_amd64.s.
//
// The package has no AES of its own without such a processor, and none for FIPS 140: it hands out
// crypto/cipher's then. It chooses no nonces.
package gcm
