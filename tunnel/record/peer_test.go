package record

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// overhead is what a record adds to its plaintext: a header, a byte of type,
// and the tag of the AEAD (RFC 8446 §5.2).
const overhead = headerSize + 1 + tagSize

// peer is the other end of a Conn, after a handshake by crypto/tls, with its
// own record protection: it can say what crypto/tls never says.
//
//	c, p := newPeer(t, end{role: client})     // c is the client
//	p.send(p.out.seal(typeData, []byte("x"))) // as many pieces as one likes
//	typ, data := p.receive()
//
// The two are joined by a socket pair: what is sent has arrived, and sizes of
// buffers are exact.
type peer struct {
	t       testing.TB
	fd      int
	in, out *protection
	opened  int    // records received
	pending []byte // ciphertext received and not opened
}

// newPeer joins a Conn at an end to a peer at the other.
func newPeer(t testing.TB, e end) (Conn, *peer) {
	t.Helper()
	var secrets bytes.Buffer
	p := &peer{t: t}
	var state tls.ConnectionState
	c := join(t, e, func(nc *net.TCPConn) error {
		cfg := peerConfig(t, e)
		cfg.KeyLogWriter = &secrets
		session := e.other(nc, cfg)
		err := session.HandshakeContext(t.Context())
		state = session.ConnectionState()
		return err
	})
	p.in = newProtection(t, state.CipherSuite, secret(t, secrets.String(), "CLIENT_TRAFFIC_SECRET_0"))
	p.out = newProtection(t, state.CipherSuite, secret(t, secrets.String(), "SERVER_TRAFFIC_SECRET_0"))
	if e.role == server {
		p.in, p.out = p.out, p.in
	}
	p.rewire(c)
	return c, p
}

// rewire puts a socket pair in the place of the connection.
func (p *peer) rewire(c Conn) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	check(p.t, err)
	check(p.t, unix.Dup3(fds[0], c.FD(), unix.O_CLOEXEC))
	check(p.t, unix.Close(fds[0]))
	p.fd = fds[1]
	check(p.t, unix.SetNonblock(p.fd, false))
	// A peer that waits in vain fails its test.
	check(p.t, unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}))
	p.t.Cleanup(func() {
		p.close()
		if c.FD() >= 0 {
			c.Close()
		}
	})
}

// close cuts the connection.
func (p *peer) close() {
	if p.fd >= 0 {
		unix.Close(p.fd)
		p.fd = -1
	}
}

func (p *peer) send(b []byte) {
	p.t.Helper()
	if n, err := unix.Write(p.fd, b); err != nil || n != len(b) {
		p.t.Fatalf("peer wrote %d of %d bytes: %v", n, len(b), err)
	}
}

// receive takes the next record; it waits for it.
func (p *peer) receive() (typ contentType, data []byte) {
	p.t.Helper()
	for {
		if n := recordSize(p.pending); n > 0 {
			typ, data, err := p.in.open(p.pending[:n])
			if err != nil {
				p.t.Fatalf("record %d: %v", p.opened, err)
			}
			p.pending = p.pending[n:]
			p.opened++
			return typ, data
		}
		if p.read(64<<10) == 0 {
			p.t.Fatalf("connection ended in record %d", p.opened)
		}
	}
}

// read takes up to n bytes of ciphertext.
func (p *peer) read(n int) int {
	p.t.Helper()
	buf := make([]byte, n)
	n, err := unix.Read(p.fd, buf)
	if err != nil {
		p.t.Fatalf("peer reads: %v", err)
	}
	p.pending = append(p.pending, buf[:n]...)
	return n
}

// want receives a record and compares it.
func (p *peer) want(why string, typ contentType, data []byte) {
	p.t.Helper()
	if gotType, got := p.receive(); gotType != typ || !bytes.Equal(got, data) {
		p.t.Fatalf("%s: got a record of type %d, %x; want type %d, %x", why, gotType, got, typ, data)
	}
}

// recordSize is the size of the complete record that b begins with, or 0.
func recordSize(b []byte) int {
	if len(b) < 5 {
		return 0
	}
	if n := 5 + int(binary.BigEndian.Uint16(b[3:])); n <= len(b) {
		return n
	}
	return 0
}

// protection is the keys of one direction (RFC 8446 §7.3).
type protection struct {
	hash   crypto.Hash
	keyLen int
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

func newProtection(t testing.TB, suite uint16, secret []byte) *protection {
	p := &protection{hash: crypto.SHA256, keyLen: 16, secret: secret}
	switch suite {
	case tls.TLS_AES_128_GCM_SHA256:
	case tls.TLS_AES_256_GCM_SHA384:
		p.hash, p.keyLen = crypto.SHA384, 32
	default:
		t.Fatalf("the test peer does not know %s", tls.CipherSuiteName(suite))
	}
	p.derive()
	return p
}

// derive makes the keys of the present secret.
func (p *protection) derive() {
	block, err := aes.NewCipher(p.expand("key", p.keyLen))
	if err != nil {
		panic(err)
	}
	if p.aead, err = cipher.NewGCM(block); err != nil {
		panic(err)
	}
	p.iv, p.seq = p.expand("iv", 12), 0
}

// update goes on to the next secret (RFC 8446 §7.2).
func (p *protection) update() {
	p.secret = p.expand("traffic upd", p.hash.Size())
	p.derive()
}

// expand is HKDF-Expand-Label without a context (RFC 8446 §7.1).
func (p *protection) expand(label string, n int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(len("tls13 "+label)))
	info = append(info, "tls13 "+label...)
	info = append(info, 0)
	out, err := hkdf.Expand(p.hash.New, p.secret, string(info), n)
	if err != nil {
		panic(err)
	}
	return out
}

// nonce is that of the next record (RFC 8446 §5.3).
func (p *protection) nonce() []byte {
	n := bytes.Clone(p.iv)
	var seq [8]byte
	binary.BigEndian.PutUint64(seq[:], p.seq)
	for i, b := range seq {
		n[4+i] ^= b
	}
	p.seq++
	return n
}

// seal makes one record (RFC 8446 §5.2).
func (p *protection) seal(typ contentType, data []byte) []byte {
	rec := []byte{byte(typeData), 3, 3}
	rec = binary.BigEndian.AppendUint16(rec, uint16(len(data)+1+p.aead.Overhead()))
	return p.aead.Seal(rec, p.nonce(), append(bytes.Clone(data), byte(typ)), rec)
}

func (p *protection) open(rec []byte) (typ contentType, data []byte, err error) {
	data, err = p.aead.Open(nil, p.nonce(), rec[5:], rec[:5])
	data = bytes.TrimRight(data, "\x00")
	if err != nil || len(data) == 0 {
		return 0, nil, fmt.Errorf("cannot open record: %w", err)
	}
	return contentType(data[len(data)-1]), data[:len(data)-1], nil
}

// keyUpdate is a KeyUpdate under the present keys; the next record is under the
// next ones (RFC 8446 §4.6.3).
func (p *protection) keyUpdate(request byte) []byte {
	rec := p.seal(typeHandshake, []byte{keyUpdate, 0, 0, 1, request})
	p.update()
	return rec
}

// secret finds a secret in a key log.
func secret(t testing.TB, log, label string) []byte {
	t.Helper()
	for line := range strings.Lines(log) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == label {
			s, err := hex.DecodeString(f[2])
			check(t, err)
			return s
		}
	}
	t.Fatalf("no %s in the key log", label)
	return nil
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// readAll reads c until it has no more, n bytes at a time, and returns what
// ended it.
func readAll(c Conn, n int) ([]byte, error) {
	var all []byte
	buf := make([]byte, n)
	for {
		n, err := c.Read(buf)
		all = append(all, buf[:n]...)
		if err != nil {
			return all, err
		}
		if n == 0 {
			return all, io.ErrNoProgress
		}
	}
}

func TestPeer(t *testing.T) {
	testEnds(t, ends, func(t *testing.T, e end) {
		c, p := newPeer(t, e)
		p.send(p.out.seal(typeData, []byte("hello")))
		if got, err := readAll(c, 100); string(got) != "hello" || err != ErrAgain {
			t.Errorf("read %q, %v", got, err)
		}
		check(t, c.Seal([]byte("world")))
		if done, err := c.Flush(); !done || err != nil {
			t.Errorf("flush: %v, %v", done, err)
		}
		p.want("what was sealed", typeData, []byte("world"))
	})
}
