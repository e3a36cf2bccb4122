package hbone

// Header blocks of ours stand alone: no field is remembered, by us or for the peer, and
// none is worth its Huffman code. Those of peers are read by x/net's decoder.

// Names of HPACK's static table (RFC 7541, appendix A).
const (
	staticAuthority = 1
	staticMethod    = 2
	staticStatus    = 8
)

const (
	indexedOK = 0x80 | 8 // ":status: 200" (RFC 7541 §6.1)
	noTable   = 0x20     // the dynamic table has no room, whatever the peer's has (§6.3)
)

// appendStatic appends a field with a name of the static table, without indexing (RFC 7541
// §6.2.2).
func appendStatic[T string | []byte](b []byte, name byte, value T) []byte {
	return appendText(append(b, name), value)
}

// appendField appends a field with a name of its own.
func appendField[T string | []byte](b []byte, name string, value T) []byte {
	return appendText(appendText(append(b, 0), name), value)
}

// appendText appends a string as it is (RFC 7541 §5.2); its length is an integer with a
// prefix of seven bits (§5.1).
func appendText[T string | []byte](b []byte, s T) []byte {
	const prefix = 1<<7 - 1
	n := len(s)
	if n < prefix {
		return append(append(b, byte(n)), s...)
	}
	b = append(b, prefix)
	for n -= prefix; n >= 1<<7; n >>= 7 {
		b = append(b, byte(n)|1<<7)
	}
	return append(append(b, byte(n)), s...)
}
