package e2e

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
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"wishbone/e2e/netlab"
)

// TestTLSFloods: what TLS allows after the handshake and nobody needs ends the
// tunnel, and stops nothing else (CVE-2026-56862, CVE-2026-32283).
func TestTLSFloods(t *testing.T) {
	for _, r := range []struct {
		name string
		open func(*siege) *hostile
	}{{"client", (*siege).tlsClient}, {"server", (*siege).tlsServer}} {
		t.Run(r.name, func(t *testing.T) {
			s := newSiege(t)
			honest := s.newBystanders(listen(t, s.Server, netip.AddrPortFrom(netlab.Server4, 8081)), 2)
			for _, f := range []struct {
				name string
				once func(*sealer) []byte
			}{
				{"key updates", func(s *sealer) []byte { return s.keyUpdate(1) }},
				{"several key updates in a record", func(s *sealer) []byte { return s.keyUpdate(3) }},
				{"empty records", func(s *sealer) []byte { return s.seal(23, nil) }},
				{"handshake messages of 0 bytes", func(s *sealer) []byte { return s.seal(22, nil) }},
				{"a handshake message that has no end", func(s *sealer) []byte { return s.seal(22, append([]byte{24, 0xff, 0xff, 0xff}, make([]byte, 1000)...)) }},
				{"a new session for us", func(s *sealer) []byte { return s.seal(22, []byte{1, 0, 0, 1, 0}) }},
			} {
				t.Run(f.name, func(t *testing.T) {
					h := r.open(s.during(t))
					was, before := h.cuts("tls"), peak(t, h.gateway)
					out := newSealer(h)
					for range 1000 {
						if _, err := h.raw.Write(f.once(out)); err != nil {
							break // it has had enough
						}
					}
					eventually(t, "it is counted", func() bool { return h.cuts("tls") == was+1 })
					awaitLog(t, h.gateway, "tunnel down", fmt.Sprintf("peer=m%d", h.peer), "reason=tls")
					if more := peak(t, h.gateway) - before; more > mostMemory {
						t.Errorf("it has cost %d KiB, want %d at most", more>>10, mostMemory>>10)
					}
					honest.rounds(f.name)
				})
			}
		})
	}
}

// sealer is the record protection of one direction (RFC 8446 §5.2, §7.3), for
// what crypto/tls never says.
type sealer struct {
	hash   crypto.Hash
	keyLen int
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

// newSealer takes over what a hostile sends, which has not sent anything since the
// handshake.
func newSealer(h *hostile) *sealer {
	h.t.Helper()
	s := &sealer{hash: crypto.SHA256, keyLen: 16}
	label := "SERVER_TRAFFIC_SECRET_0"
	if h.client {
		label = "CLIENT_TRAFFIC_SECRET_0"
	}
	for line := range strings.Lines(h.secrets.String()) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == label {
			var err error
			s.secret, err = hex.DecodeString(f[2])
			h.check(err)
		}
	}
	switch suite := h.conn.ConnectionState().CipherSuite; suite {
	case tls.TLS_AES_128_GCM_SHA256:
	case tls.TLS_AES_256_GCM_SHA384:
		s.hash, s.keyLen = crypto.SHA384, 32
	default:
		h.t.Fatalf("nobody knows %s here", tls.CipherSuiteName(suite))
	}
	h.check(s.derive())
	return s
}

// derive makes the keys of the present secret.
func (s *sealer) derive() error {
	block, err := aes.NewCipher(s.expand("key", s.keyLen))
	if err == nil {
		s.aead, err = cipher.NewGCM(block)
	}
	s.iv, s.seq = s.expand("iv", 12), 0
	return err
}

// expand is HKDF-Expand-Label without a context (RFC 8446 §7.1).
func (s *sealer) expand(label string, n int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(len("tls13 "+label)))
	info = append(info, "tls13 "+label+"\x00"...)
	out, err := hkdf.Expand(s.hash.New, s.secret, string(info), n)
	if err != nil {
		panic(err) // n is far below what there is
	}
	return out
}

// seal makes one record.
func (s *sealer) seal(typ byte, data []byte) []byte {
	nonce := bytes.Clone(s.iv)
	for i, b := range binary.BigEndian.AppendUint64(nil, s.seq) {
		nonce[4+i] ^= b
	}
	s.seq++
	rec := binary.BigEndian.AppendUint16([]byte{23, 3, 3}, uint16(len(data)+1+s.aead.Overhead()))
	return s.aead.Seal(rec, nonce, append(bytes.Clone(data), typ), rec)
}

// keyUpdate is a record of n KeyUpdates that ask for an answer (RFC 8446 §4.6.3);
// the next is under the next keys.
func (s *sealer) keyUpdate(n int) []byte {
	rec := s.seal(22, bytes.Repeat([]byte{24, 0, 0, 1, 1}, n))
	s.secret = s.expand("traffic upd", s.hash.Size())
	if err := s.derive(); err != nil {
		panic(err) // the keys are as long as before
	}
	return rec
}

// flood asks for n connections that cannot be understood.
func (h *hostile) flood(n int) {
	for range n {
		h.request("nowhere")
	}
	h.flush()
}

// TestUnread: who makes a gateway answer and does not read is cut while little
// waits for it.
func TestUnread(t *testing.T) {
	s := newSiege(t)
	honest := s.newBystanders(listen(t, s.Server, netip.AddrPortFrom(netlab.Server4, 8081)), 2)
	s.client().flood(2000) // what it takes to refuse and to log, once
	h := s.tlsClient()
	was, before := h.cuts("unread"), peak(t, s.east)
	h.write([]byte(http2.ClientPreface))
	h.check(h.framer.WriteSettings())
	// Slower than the allowance of requests that cannot be served, so that nothing
	// but the queue grows.
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	h.stream--
	for n := 1; n%25 > 0 || h.cuts("unread") == was; n++ {
		if n == 1000 {
			t.Fatal("it is not cut")
		}
		h.flood(90)
		<-tick.C
	}
	if n := h.cuts("unread"); n != was+1 {
		t.Errorf("cut %v times", n-was)
	}
	awaitLog(t, s.east, "tunnel down", fmt.Sprintf("peer=m%d", h.peer), "reason=unread")
	if more := peak(t, s.east) - before; more > mostMemory {
		t.Errorf("it has cost %d KiB, want %d at most", more>>10, mostMemory>>10)
	}
	honest.rounds("a peer that does not read")
	go h.listen()
	h.await("the verdict waits for who reads at last", func(s heard) bool {
		return strings.HasPrefix(s.goaway, "ENHANCE_YOUR_CALM unread: ")
	})
}
