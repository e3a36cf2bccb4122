#include "go_asm.h"
#include "textflag.h"

// AES-GCM as NIST SP 800-38D §7 has it, sixteen blocks at a time.
//
// Encryption. The counter blocks (§6.5) go through AES by VAESENC, which is one round
// (FIPS 197 §5.1) on the four blocks of a 512-bit register. Four such registers are
// under way together, so that no round waits for the one before.
//
// Authentication. GHASH (§6.4) is a polynomial in H = E(K, 0^128) over GF(2^128), whose
// coefficients are the blocks of ciphertext. The standard counts the bits of a block from
// the other end than the processor. RFC 8452, appendix A, shows a way round that: reverse
// the bytes of every block, let x·reverse(H) be H, and multiply by
//
//	dot(a, b) = a·b·x^-128 mod Q    with    Q = x^128 + x^127 + x^126 + x^121 + 1
//
// Powers of H are meant under dot from here on. For n blocks at once
//
//	hash = dot(hash + X1, H^n) + dot(X2, H^(n-1)) + … + dot(Xn, H)
//
// A dot is a product without carries and a reduction. Both are linear, so that the products
// of many blocks are summed up and the sum is reduced once. A product takes four
// VPCLMULQDQ, one for each half with each. The reduction is Montgomery's, as Gueron
// brought it to GCM ("AES-GCM for efficient authenticated encryption", 2013): let t be the
// low 64 bits of the sum. As Q ends in 1, the low 64 bits of the sum + t·Q are 0, and what is
// left is the sum·x^-64 mod Q. Twice that is x^-128. The next 64 bits of Q are fold, then
// comes the 1 of x^128, so that t·Q takes one VPCLMULQDQ and a swap of halves.
//
// An aead has the powers from H^64 to H in order of their use: whatever number of blocks is to be
// hashed together, theirs are those at the end. So up to four batches of sixteen blocks share a
// reduction. The multiplications stand between the rounds of AES, as the processor does
// both at the same time: when opening of the same batch, when sealing of the one before,
// whose ciphertext is there already.
//
// What no batch is left for goes by four blocks, the last ones under a mask: no byte
// beyond a slice is read or written. Nothing branches on, or is looked up by, anything
// but lengths, the size of the key and the direction.
//
//	Z0-Z3    blocks on their way through AES
//	Z4-Z7    blocks to be hashed, their bytes reversed
//	Z8-Z10   the sum of products: low, middle and high
//	Z11-Z12  scratch
//	Z13      the hash, if it is not in a sum yet, in the first of four blocks; or 0
//	Z14      reverse
//	Z15      the next four counter blocks, their bytes reversed
//	Z16-Z29  the keys of rounds 0 to 13, of AES-128 to 9
//	Z30      the key of the last round
//	Z31      4 in each block
//	K1       which bytes of 64 there are
//
//	AX  a                             R8   ad
//	BX  how many bytes of 64          R9   bytes of ad left; then of batches to be hashed
//	CX  scratch                       R10  the powers for what is hashed next
//	DX  bytes of src left             R11  the end of the powers
//	SI  src                           R12  opening
//	DI  dst                           R13  scratch

// What VPSHUFB reverses the bytes of a block by.
DATA reverse<>+0(SB)/8, $0x08090a0b0c0d0e0f
DATA reverse<>+8(SB)/8, $0x0001020304050607
GLOBL reverse<>(SB), (NOPTR+RODATA), $16

// How far the first counter blocks of text are from that of the tag.
DATA ahead<>+0(SB)/8, $1
DATA ahead<>+8(SB)/8, $0
DATA ahead<>+16(SB)/8, $2
DATA ahead<>+24(SB)/8, $0
DATA ahead<>+32(SB)/8, $3
DATA ahead<>+40(SB)/8, $0
DATA ahead<>+48(SB)/8, $4
DATA ahead<>+56(SB)/8, $0
GLOBL ahead<>(SB), (NOPTR+RODATA), $64

DATA four<>+0(SB)/8, $4
DATA four<>+8(SB)/8, $0
GLOBL four<>(SB), (NOPTR+RODATA), $16

// x^63 + x^62 + x^57, in each block.
DATA fold<>+0(SB)/8, $0xc200000000000000
DATA fold<>+8(SB)/8, $0
DATA fold<>+16(SB)/8, $0xc200000000000000
DATA fold<>+24(SB)/8, $0
DATA fold<>+32(SB)/8, $0xc200000000000000
DATA fold<>+40(SB)/8, $0
DATA fold<>+48(SB)/8, $0xc200000000000000
DATA fold<>+56(SB)/8, $0
GLOBL fold<>(SB), (NOPTR+RODATA), $64

// H is the last of the powers, END is behind it.
#define H   (aead_powers+1008)
#define END (aead_powers+1024)

// COUNT takes the next sixteen counter blocks (SP 800-38D §6.2), and adds the key of
// round 0.
#define COUNT \
	VPSHUFB Z14, Z15, Z0 \
	VPADDD  Z31, Z15, Z15 \
	VPSHUFB Z14, Z15, Z1 \
	VPADDD  Z31, Z15, Z15 \
	VPSHUFB Z14, Z15, Z2 \
	VPADDD  Z31, Z15, Z15 \
	VPSHUFB Z14, Z15, Z3 \
	VPADDD  Z31, Z15, Z15 \
	VPXORQ  Z16, Z0, Z0  \
	VPXORQ  Z16, Z1, Z1  \
	VPXORQ  Z16, Z2, Z2  \
	VPXORQ  Z16, Z3, Z3

// ROUND is a round of AES for sixteen blocks.
#define ROUND(key) \
	VAESENC key, Z0, Z0 \
	VAESENC key, Z1, Z1 \
	VAESENC key, Z2, Z2 \
	VAESENC key, Z3, Z3

// FINISH does the rounds from 10 on, and what AES gives to the batch of text. With
// a key of 16 bytes there are ten: the jump skips the other four.
#define FINISH(last) \
	CMPQ        aead_rounds(AX), $10 \
	JEQ         last         \
	ROUND(Z26)               \
	ROUND(Z27)               \
	ROUND(Z28)               \
	ROUND(Z29)               \
last:                       \
	VAESENCLAST Z30, Z0, Z0  \
	VAESENCLAST Z30, Z1, Z1  \
	VAESENCLAST Z30, Z2, Z2  \
	VAESENCLAST Z30, Z3, Z3  \
	VPXORQ      (SI), Z0, Z0 \
	VPXORQ      64(SI), Z1, Z1 \
	VPXORQ      128(SI), Z2, Z2 \
	VPXORQ      192(SI), Z3, Z3 \
	VMOVDQU64   Z0, (DI)     \
	VMOVDQU64   Z1, 64(DI)   \
	VMOVDQU64   Z2, 128(DI)  \
	VMOVDQU64   Z3, 192(DI)  \
	ADDQ        $256, SI     \
	ADDQ        $256, DI     \
	SUBQ        $256, DX

// SINGLE does all of AES for the four blocks of Z0.
#define SINGLE(last) \
	VPXORQ      Z16, Z0, Z0 \
	VAESENC     Z17, Z0, Z0 \
	VAESENC     Z18, Z0, Z0 \
	VAESENC     Z19, Z0, Z0 \
	VAESENC     Z20, Z0, Z0 \
	VAESENC     Z21, Z0, Z0 \
	VAESENC     Z22, Z0, Z0 \
	VAESENC     Z23, Z0, Z0 \
	VAESENC     Z24, Z0, Z0 \
	VAESENC     Z25, Z0, Z0 \
	CMPQ        aead_rounds(AX), $10 \
	JEQ         last        \
	VAESENC     Z26, Z0, Z0 \
	VAESENC     Z27, Z0, Z0 \
	VAESENC     Z28, Z0, Z0 \
	VAESENC     Z29, Z0, Z0 \
last:                       \
	VAESENCLAST Z30, Z0, Z0

// ENTER puts the hash into the first block that is to be hashed. Zeros stay in its place,
// so that it does nothing to the other blocks of the same sum.
#define ENTER \
	VPXORQ Z13, Z4, Z4 \
	VPXORQ Z13, Z13, Z13

// MULTIPLY adds four blocks times four powers to the sum.
#define MULTIPLY(blocks, powers) \
	VPCLMULQDQ $0x00, powers, blocks, Z11 \
	VPXORQ     Z11, Z8, Z8                \
	VPCLMULQDQ $0x01, powers, blocks, Z11 \
	VPCLMULQDQ $0x10, powers, blocks, Z12 \
	VPTERNLOGQ $0x96, Z11, Z12, Z9        \
	VPCLMULQDQ $0x11, powers, blocks, Z11 \
	VPXORQ     Z11, Z10, Z10

// EMPTY begins a sum.
#define EMPTY \
	VPXORQ Z8, Z8, Z8    \
	VPXORQ Z9, Z9, Z9    \
	VPXORQ Z10, Z10, Z10

// REDUCE ends a sum, which becomes the hash, and begins the next. The middle is split
// between low and high; low goes into high, 64 bits at a time; and what the four blocks of
// the register have come to is added up.
#define REDUCE \
	VPSLLDQ       $8, Z9, Z11              \
	VPSRLDQ       $8, Z9, Z12              \
	VPXORQ        Z11, Z8, Z8              \
	VPXORQ        Z12, Z10, Z10            \
	VPCLMULQDQ    $0x00, fold<>(SB), Z8, Z11 \
	VPSHUFD       $0x4e, Z8, Z8            \
	VPXORQ        Z11, Z8, Z8              \
	VPCLMULQDQ    $0x00, fold<>(SB), Z8, Z11 \
	VPSHUFD       $0x4e, Z8, Z8            \
	VPTERNLOGQ    $0x96, Z11, Z8, Z10      \
	VEXTRACTI64X4 $1, Z10, Y11             \
	VPXOR         Y11, Y10, Y10            \
	VEXTRACTI128  $1, Y10, X11             \
	VPXOR         X11, X10, X13            \
	EMPTY

// SHARE lets the next batches share a reduction: four, or what there is. The last block of
// the last one is for H.
#define SHARE \
	MOVQ    $1024, CX \
	CMPQ    R9, CX    \
	CMOVQLT R9, CX    \
	MOVQ    R11, R10  \
	SUBQ    CX, R10

// BATCH encrypts sixteen counter blocks, up to round 9, and hashes sixteen blocks.
#define BATCH \
	COUNT                  \
	ENTER                  \
	ROUND(Z17)             \
	MULTIPLY(Z4, (R10))    \
	ROUND(Z18)             \
	ROUND(Z19)             \
	MULTIPLY(Z5, 64(R10))  \
	ROUND(Z20)             \
	ROUND(Z21)             \
	MULTIPLY(Z6, 128(R10)) \
	ROUND(Z22)             \
	ROUND(Z23)             \
	MULTIPLY(Z7, 192(R10)) \
	ROUND(Z24)             \
	ROUND(Z25)

// HASHED goes on after sixteen blocks were hashed.
#define HASHED(done) \
	ADDQ $256, R10 \
	SUBQ $256, R9  \
	CMPQ R10, R11  \
	JNE  done      \
	REDUCE         \
	SHARE          \
done:

// SOME takes up to 64 bytes of those left. BX is how many, K1 has as many ones.
#define SOME(left) \
	MOVQ    $64, BX  \
	CMPQ    left, BX \
	CMOVQLT left, BX \
	SUBQ    BX, left \
	MOVQ    $64, CX  \
	SUBQ    BX, CX   \
	MOVQ    $-1, R13 \
	SHRQ    CX, R13  \
	KMOVQ   R13, K1

// WHOLE is n in whole blocks.
#define WHOLE(n, whole) \
	LEAQ 15(n), whole \
	ANDQ $~15, whole

// func crypt(a *aead, tag *[tagSize]byte, dst, src, ad, nonce []byte, opening bool)
TEXT ·crypt(SB), NOSPLIT, $0-113
	MOVQ    a+0(FP), AX
	MOVQ    dst_base+16(FP), DI
	MOVQ    src_base+40(FP), SI
	MOVQ    src_len+48(FP), DX
	MOVQ    ad_base+64(FP), R8
	MOVQ    ad_len+72(FP), R9
	MOVBLZX opening+112(FP), R12
	LEAQ    END(AX), R11

	VBROADCASTI32X4 reverse<>(SB), Z14
	VBROADCASTI32X4 four<>(SB), Z31
	VBROADCASTI32X4 aead_keys(AX), Z16
	VBROADCASTI32X4 (aead_keys+16)(AX), Z17
	VBROADCASTI32X4 (aead_keys+32)(AX), Z18
	VBROADCASTI32X4 (aead_keys+48)(AX), Z19
	VBROADCASTI32X4 (aead_keys+64)(AX), Z20
	VBROADCASTI32X4 (aead_keys+80)(AX), Z21
	VBROADCASTI32X4 (aead_keys+96)(AX), Z22
	VBROADCASTI32X4 (aead_keys+112)(AX), Z23
	VBROADCASTI32X4 (aead_keys+128)(AX), Z24
	VBROADCASTI32X4 (aead_keys+144)(AX), Z25
	VBROADCASTI32X4 (aead_keys+160)(AX), Z26
	VBROADCASTI32X4 (aead_keys+176)(AX), Z27
	VBROADCASTI32X4 (aead_keys+192)(AX), Z28
	VBROADCASTI32X4 (aead_keys+208)(AX), Z29
	MOVQ            aead_rounds(AX), CX
	SHLQ            $4, CX
	VBROADCASTI32X4 aead_keys(AX)(CX*1), Z30

	// The counter block of the tag is the nonce and 1 (§7.1, step 2). Encrypted, it
	// waits in the tag's place for the hash. Three of Z0's four blocks are not used.
	MOVQ       nonce_base+88(FP), CX
	VMOVQ      (CX), X0
	VPINSRD    $2, 8(CX), X0, X0
	MOVL       $0x01000000, CX
	VPINSRD    $3, CX, X0, X0
	VPSHUFB    X14, X0, X15
	VSHUFI64X2 $0, Z15, Z15, Z15
	VPADDD     ahead<>(SB), Z15, Z15
	SINGLE(tagLast)
	MOVQ       tag+8(FP), CX
	VMOVDQU    X0, (CX)

	VPXORQ Z13, Z13, Z13
	EMPTY

ad:
	// Four blocks and a reduction at a time. Fewer have zeros behind them, as their powers
	// have.
	TESTQ R9, R9
	JEQ   text
	SOME(R9)
	WHOLE(BX, CX)
	MOVQ       R11, R10
	SUBQ       CX, R10
	VMOVDQU8.Z (R8), K1, Z4
	VPSHUFB    Z14, Z4, Z4
	ENTER
	MULTIPLY(Z4, (R10))
	REDUCE
	ADDQ       BX, R8
	JMP        ad

text:
	MOVQ  DX, R9
	ANDQ  $~255, R9
	JEQ   rest
	SHARE
	TESTL R12, R12
	JNE   opening

	// When sealing there is nothing to hash beside the first batch; the last is
	// hashed alone.
	COUNT
	ROUND(Z17)
	ROUND(Z18)
	ROUND(Z19)
	ROUND(Z20)
	ROUND(Z21)
	ROUND(Z22)
	ROUND(Z23)
	ROUND(Z24)
	ROUND(Z25)
	FINISH(firstLast)

sealed:
	VPSHUFB Z14, Z0, Z4
	VPSHUFB Z14, Z1, Z5
	VPSHUFB Z14, Z2, Z6
	VPSHUFB Z14, Z3, Z7
	CMPQ    DX, $256
	JLT     lastSealed
	BATCH
	FINISH(sealingLast)
	HASHED(sealedHashed)
	JMP     sealed

lastSealed:
	ENTER
	MULTIPLY(Z4, (R10))
	MULTIPLY(Z5, 64(R10))
	MULTIPLY(Z6, 128(R10))
	MULTIPLY(Z7, 192(R10))
	REDUCE
	JMP rest

opening:
	VMOVDQU64 (SI), Z4
	VMOVDQU64 64(SI), Z5
	VMOVDQU64 128(SI), Z6
	VMOVDQU64 192(SI), Z7
	VPSHUFB   Z14, Z4, Z4
	VPSHUFB   Z14, Z5, Z5
	VPSHUFB   Z14, Z6, Z6
	VPSHUFB   Z14, Z7, Z7
	BATCH
	FINISH(openingLast)
	HASHED(openingHashed)
	CMPQ      DX, $256
	JGE       opening

rest:
	// At most fifteen blocks and a bit, and the block of the lengths, which is for H
	// itself. All of them are one sum.
	WHOLE(DX, CX)
	LEAQ H(AX), R10
	SUBQ CX, R10

next:
	TESTQ      DX, DX
	JEQ        end
	SOME(DX)
	VPSHUFB    Z14, Z15, Z0
	VPADDD     Z31, Z15, Z15
	SINGLE(restLast)
	VMOVDQU8.Z (SI), K1, Z4
	VPXORQ     Z4, Z0, Z0
	VMOVDQU8   Z0, K1, (DI)
	TESTL      R12, R12
	JNE        restOpened
	VMOVDQU8.Z Z0, K1, Z4

restOpened:
	VPSHUFB Z14, Z4, Z4
	ENTER
	MULTIPLY(Z4, (R10))
	ADDQ    $64, R10
	ADDQ    BX, SI
	ADDQ    BX, DI
	JMP     next

end:
	// The lengths in bits (§7.1, step 5), and the tag (step 6).
	MOVQ    src_len+48(FP), CX
	SHLQ    $3, CX
	VMOVQ   CX, X4
	MOVQ    ad_len+72(FP), CX
	SHLQ    $3, CX
	VPINSRQ $1, CX, X4, X4
	ENTER
	MULTIPLY(Z4, H(AX))
	REDUCE
	MOVQ    tag+8(FP), CX
	VPSHUFB X14, X13, X13
	VPXOR   (CX), X13, X13
	VMOVDQU X13, (CX)
	VZEROUPPER
	RET

// func subWord(w uint32) uint32
TEXT ·subWord(SB), NOSPLIT, $0-12
	// The last round of AES substitutes and shifts rows. Where all columns are the
	// same, the shift changes nothing.
	MOVL         w+0(FP), AX
	VMOVD        AX, X0
	VPSHUFD      $0, X0, X0
	VPXOR        X1, X1, X1
	VAESENCLAST  X1, X0, X0
	VMOVD        X0, AX
	MOVL         AX, ret+8(FP)
	RET

// func dot(z, x, y *element)
TEXT ·dot(SB), NOSPLIT, $0-24
	MOVQ    z+0(FP), DI
	MOVQ    x+8(FP), SI
	MOVQ    y+16(FP), DX
	VMOVDQU (SI), X4
	VMOVDQU (DX), X5
	EMPTY
	MULTIPLY(Z4, Z5)
	REDUCE
	VMOVDQU X13, (DI)
	VZEROUPPER
	RET
