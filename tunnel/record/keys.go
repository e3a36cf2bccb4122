package record

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"hash"

	"wishbone/tunnel/record/gcm"
)

// Sizes of a record's parts (RFC 8446 §5.1, §5.2), and of the nonce of both
// cipher suites (RFC 8446 §5.3).
const (
	headerSize    = 5
	tagSize       = 16
	nonceSize     = 12
	maxPlaintext  = 1 << 14
	maxCiphertext = maxPlaintext + 256
)

// suite is what a cipher suite is made of (RFC 8446 §B.4).
type suite struct {
	keySize int
	hash    func() hash.Hash
}

// suites are those that we protect records with. Both are AES-GCM, for which
// processors have instructions.
var suites = map[uint16]*suite{
	tls.TLS_AES_128_GCM_SHA256: {keySize: 16, hash: sha256.New},
	tls.TLS_AES_256_GCM_SHA384: {keySize: 32, hash: sha512.New384},
}

// keys protect the records of one direction. Every record has a nonce of its own:
// seq only grows, and starts at 0 with each new key.
type keys struct {
	suite  *suite
	secret []byte
	aead   cipher.AEAD
	iv     [nonceSize]byte
	nonce  [nonceSize]byte // scratch; here, since what is passed to an AEAD is moved to the heap
	seq    uint64          // the number of the next record
}

// derive makes the keys of the present secret (RFC 8446 §7.3).
func (k *keys) derive() error {
	key, err := k.expand("key", k.suite.keySize)
	if err != nil {
		return err
	}
	defer clear(key)
	iv, err := k.expand("iv", nonceSize)
	if err != nil {
		return err
	}
	if k.aead, err = gcm.New(key); err != nil {
		return err
	}
	k.iv, k.nonce, k.seq = [nonceSize]byte(iv), [nonceSize]byte(iv), 0
	return nil
}

// update goes on to the next secret and its keys (RFC 8446 §7.2).
func (k *keys) update() error {
	next, err := k.expand("traffic upd", k.suite.hash().Size())
	if err != nil {
		return err
	}
	clear(k.secret)
	k.secret = next
	return k.derive()
}

// expand is HKDF-Expand-Label without a context (RFC 8446 §7.1).
func (k *keys) expand(label string, n int) ([]byte, error) {
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(len("tls13 ")+len(label)))
	info = append(info, "tls13 "+label...)
	info = append(info, 0)
	return hkdf.Expand(k.suite.hash, k.secret, string(info), n)
}

// next is the nonce of the next record (RFC 8446 §5.3).
func (k *keys) next() []byte {
	binary.BigEndian.PutUint64(k.nonce[4:], binary.BigEndian.Uint64(k.iv[4:])^k.seq)
	k.seq++
	return k.nonce[:]
}

// seal appends the record of inner, which is the content and its type, to dst
// (RFC 8446 §5.2). Inner either is not in dst's memory, or is where it will be.
func (k *keys) seal(dst, inner []byte) []byte {
	at := len(dst)
	dst = append(dst, byte(typeData), 3, 3, 0, 0)
	binary.BigEndian.PutUint16(dst[at+3:], uint16(len(inner)+tagSize))
	return k.aead.Seal(dst, k.next(), inner, dst[at:])
}

// open opens a record into dst's capacity and returns the content and its type,
// without padding. An empty content of type 0 is one without a type.
func (k *keys) open(dst, rec []byte) ([]byte, contentType, error) {
	inner, err := k.aead.Open(dst[:0], k.next(), rec[headerSize:], rec[:headerSize])
	if err != nil {
		return nil, 0, err
	}
	end := len(inner)
	for end > 0 && inner[end-1] == 0 {
		end--
	}
	if end == 0 {
		return nil, 0, nil
	}
	return inner[:end-1], contentType(inner[end-1]), nil
}

// wipe forgets the secret. What the AEAD has made of it is left to the collector.
func (k *keys) wipe() {
	clear(k.secret)
	clear(k.iv[:])
	clear(k.nonce[:])
	k.aead = nil
}
