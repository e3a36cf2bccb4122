package record

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// newDirectPeer joins a Conn of ours to a peer.
func newDirectPeer(t testing.TB, r role) (*direct, *peer) {
	c, p := newPeer(t, end{role: r})
	return c.(*direct), p
}

// unhexed reads hexadecimal digits, with spaces.
func unhexed(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(s), []byte(" "), nil)))
	check(t, err)
	return b
}

// Keys and records are those of RFC 8448 §3, from the traffic secrets on. The
// server's first record there is a ticket.
func TestRFC8448(t *testing.T) {
	payload := unhexed(t, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031")
	for name, c := range map[string]struct {
		secret, iv string
		seq        uint64
		data, end  string
	}{
		"client": {
			"9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5", "5b78923dee08579033e523d9", 0,
			"1703030043 a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a6292a2977014bd1e3deae63aeebb21694915e4",
			"1703030013 c9872760655666b74d7ff1153efd6db6d0b0e3",
		},
		"server": {
			"a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643", "cf782b88dd83549aadf1e984", 1,
			"1703030043 2e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8fcc49c4bf2e5f0a21c0047c2abf332540dd032e167c2955d",
			"1703030013 b58fd67166ebf599d24720cfbe7efa7a8864a9",
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := keys{suite: suites[tls.TLS_AES_128_GCM_SHA256], secret: unhexed(t, c.secret)}
			check(t, k.derive())
			if !bytes.Equal(k.iv[:], unhexed(t, c.iv)) {
				t.Errorf("iv %x", k.iv)
			}
			opener := k
			k.seq, opener.seq = c.seq, c.seq
			for _, r := range []struct {
				inner []byte
				typ   contentType
				rec   string
			}{{payload, typeData, c.data}, {[]byte{1, 0}, typeAlert, c.end}} {
				rec := unhexed(t, r.rec)
				if got := k.seal(nil, append(bytes.Clone(r.inner), byte(r.typ))); !bytes.Equal(got, rec) {
					t.Errorf("sealed %x\nwant   %x", got, rec)
				}
				got, typ, err := opener.open(make([]byte, 100), rec)
				if !bytes.Equal(got, r.inner) || typ != r.typ || err != nil {
					t.Errorf("opened %x, type %d, %v", got, typ, err)
				}
			}
		})
	}
}

// TestFaults: what breaks the rules of TLS ends the session for good, nothing of
// it is handed on, and the peer is told why.
func TestFaults(t *testing.T) {
	raw := func(typ byte, n int) []byte {
		return append([]byte{typ, 3, 3, byte(n >> 8), byte(n)}, make([]byte, n)...)
	}
	faults := map[string]struct {
		alert alert
		send  func(p *peer) []byte
	}{
		"tampered": {badRecordMAC, func(p *peer) []byte {
			rec := p.out.seal(typeData, []byte("x"))
			rec[headerSize] ^= 1
			return rec
		}},
		"tampered version": {protocolVersion, func(p *peer) []byte {
			rec := p.out.seal(typeData, []byte("x"))
			rec[1] = 4
			return rec
		}},
		"tampered tag": {badRecordMAC, func(p *peer) []byte {
			rec := p.out.seal(typeData, []byte("x"))
			rec[len(rec)-1] ^= 0x80
			return rec
		}},
		"without its last byte": {badRecordMAC, func(p *peer) []byte {
			rec := p.out.seal(typeData, []byte("xyz"))
			rec[4]--
			return rec[:len(rec)-1]
		}},
		"shorter than a tag": {badRecordMAC, func(*peer) []byte { return raw(23, tagSize-1) }},
		"empty":              {badRecordMAC, func(*peer) []byte { return raw(23, 0) }},
		"one is missing": {badRecordMAC, func(p *peer) []byte {
			p.out.seal(typeData, []byte("x"))
			return p.out.seal(typeData, []byte("y"))
		}},
		"in another order": {badRecordMAC, func(p *peer) []byte {
			first := p.out.seal(typeData, []byte("x"))
			return append(p.out.seal(typeData, []byte("y")), first...)
		}},
		"under the old key": {badRecordMAC, func(p *peer) []byte {
			old := *p.out
			rec := p.out.keyUpdate(0)
			old.seq++
			return append(rec, old.seal(typeData, []byte("x"))...)
		}},
		"in the clear":            {unexpectedMessage, func(*peer) []byte { return append([]byte{22, 3, 3, 0, 5}, 24, 0, 0, 1, 0) }},
		"a change of cipher spec": {unexpectedMessage, func(*peer) []byte { return []byte{20, 3, 3, 0, 1, 1} }},
		"an alert in the clear":   {unexpectedMessage, func(*peer) []byte { return []byte{21, 3, 3, 0, 2, 1, 0} }},
		"HTTP":                    {unexpectedMessage, func(*peer) []byte { return []byte("GET / HTTP/1.1\r\n\r\n") }},
		"too long for a record":   {recordOverflow, func(*peer) []byte { return raw(23, maxCiphertext+1) }},
		"too much in a record":    {recordOverflow, func(p *peer) []byte { return p.out.seal(typeData, make([]byte, maxPlaintext+1)) }},
		"too much padding": {recordOverflow, func(p *peer) []byte {
			return p.out.seal(0, append([]byte{'x', byte(typeData)}, make([]byte, maxPlaintext)...))
		}},
		"only padding":           {unexpectedMessage, func(p *peer) []byte { return p.out.seal(0, make([]byte, 10)) }},
		"unknown content type":   {unexpectedMessage, func(p *peer) []byte { return p.out.seal(99, []byte("x")) }},
		"a sealed cipher spec":   {unexpectedMessage, func(p *peer) []byte { return p.out.seal(20, []byte{1}) }},
		"a short alert":          {decodeError, func(p *peer) []byte { return p.out.seal(typeAlert, []byte{1}) }},
		"an empty alert":         {unexpectedMessage, func(p *peer) []byte { return p.out.seal(typeAlert, nil) }},
		"a long alert":           {decodeError, func(p *peer) []byte { return p.out.seal(typeAlert, []byte{1, 0, 0}) }},
		"an empty handshake":     {unexpectedMessage, func(p *peer) []byte { return p.out.seal(typeHandshake, nil) }},
		"an unknown message":     {unexpectedMessage, func(p *peer) []byte { return p.out.seal(typeHandshake, []byte{99, 0, 0, 0}) }},
		"a hello":                {unexpectedMessage, func(p *peer) []byte { return p.out.seal(typeHandshake, []byte{1, 0, 0, 1, 0}) }},
		"a certificate request":  {unexpectedMessage, func(p *peer) []byte { return p.out.seal(typeHandshake, []byte{13, 0, 0, 1, 0}) }},
		"a huge message":         {decodeError, func(p *peer) []byte { return p.out.seal(typeHandshake, []byte{newSessionTicket, 1, 0, 1}) }},
		"a short key update":     {decodeError, func(p *peer) []byte { return p.out.seal(typeHandshake, []byte{keyUpdate, 0, 0, 0}) }},
		"a long key update":      {decodeError, func(p *peer) []byte { return p.out.seal(typeHandshake, []byte{keyUpdate, 0, 0, 2, 0, 0}) }},
		"a key update with 2":    {illegalParameter, func(p *peer) []byte { return p.out.seal(typeHandshake, []byte{keyUpdate, 0, 0, 1, 2}) }},
		"two key updates in one": {unexpectedMessage, func(p *peer) []byte { return p.out.seal(typeHandshake, bytes.Repeat([]byte{keyUpdate, 0, 0, 1, 0}, 2)) }},
		"a key update and more":  {unexpectedMessage, func(p *peer) []byte { return p.out.seal(typeHandshake, []byte{keyUpdate, 0, 0, 1, 0, keyUpdate}) }},
		"data within a message": {unexpectedMessage, func(p *peer) []byte {
			return append(p.out.seal(typeHandshake, []byte{keyUpdate, 0}), p.out.seal(typeData, []byte("x"))...)
		}},
		"an alert within a message": {unexpectedMessage, func(p *peer) []byte {
			return append(p.out.seal(typeHandshake, []byte{keyUpdate, 0}), p.out.seal(typeAlert, []byte{1, 0})...)
		}},
	}
	for name, f := range faults {
		t.Run(name, func(t *testing.T) {
			testEnds(t, ours, func(t *testing.T, e end) {
				c, p := newDirectPeer(t, e.role)
				p.send(f.send(p))
				got, err := readAll(c, 2*maxPlaintext)
				var what *fault
				if len(got) > 0 || !errors.As(err, &what) || what.alert != f.alert {
					t.Errorf("read %d bytes, %v", len(got), err)
				}
				if c.in.in != nil || c.in.part != nil {
					t.Error("what is not read any more is kept")
				}
				if again := c.Seal([]byte("x")); again != err {
					t.Errorf("sealing after it: %v", again)
				}
				if _, again := c.Read(make([]byte, 10)); again != err {
					t.Errorf("reading after it: %v", again)
				}
				if done, err := c.Flush(); !done || err != nil {
					t.Fatal(done, err)
				}
				p.want("the peer is told", typeAlert, []byte{2, byte(f.alert)})
			})
		})
	}
}

// TestMessagesInPieces: handshake messages may span records, and records may hold
// several.
func TestMessagesInPieces(t *testing.T) {
	ticket := append([]byte{newSessionTicket, 0, 0x70, 0}, noise(0x7000)...)
	t.Run("key update", func(t *testing.T) {
		testEnds(t, ours, func(t *testing.T, e end) {
			c, p := newDirectPeer(t, e.role)
			for _, b := range []byte{keyUpdate, 0, 0, 1, 0} {
				p.send(p.out.seal(typeHandshake, []byte{b}))
			}
			p.out.update()
			p.send(p.out.seal(typeData, []byte("under the new key")))
			if got, err := readAll(c, 100); string(got) != "under the new key" || err != ErrAgain {
				t.Errorf("read %q, %v", got, err)
			}
		})
	})
	t.Run("ticket", func(t *testing.T) {
		c, p := newDirectPeer(t, client)
		p.send(p.out.seal(typeHandshake, ticket[:maxPlaintext]))
		rest := append(bytes.Clone(ticket[maxPlaintext:]), newSessionTicket, 0, 0, 1, 7)
		p.send(p.out.seal(typeHandshake, append(rest, keyUpdate, 0, 0, 1, 0)))
		p.out.update()
		p.send(p.out.seal(typeData, []byte("hello")))
		if got, err := readAll(c, 100); string(got) != "hello" || err != ErrAgain {
			t.Errorf("read %q, %v", got, err)
		}
		if c.message != nil {
			t.Error("a message that is done is kept")
		}
	})
	t.Run("ticket to a server", func(t *testing.T) {
		c, p := newDirectPeer(t, server)
		p.send(p.out.seal(typeHandshake, []byte{newSessionTicket, 0, 0, 1, 7}))
		var what *fault
		if _, err := readAll(c, 100); !errors.As(err, &what) || what.alert != unexpectedMessage {
			t.Error(err)
		}
	})
}

// TestPadding: records may be padded, up to their limit (RFC 8446 §5.4).
func TestPadding(t *testing.T) {
	testEnds(t, ours, func(t *testing.T, e end) {
		c, p := newDirectPeer(t, e.role)
		for _, n := range []int{1, 100, maxPlaintext - len("hello")} {
			padded := append([]byte("hello"), byte(typeData))
			padded = append(padded, make([]byte, n)...)
			p.send(p.out.seal(0, padded[:len(padded)-1]))
			for _, size := range []int{100, 3, 2 * maxPlaintext} {
				if size != 100 {
					p.send(p.out.seal(0, padded[:len(padded)-1]))
				}
				if got, err := readAll(c, size); string(got) != "hello" || err != ErrAgain {
					t.Errorf("padded by %d: read %q, %v", n, got, err)
				}
			}
		}
	})
}

// TestAlerts: every alert but two ends the session as an error, and is not
// answered.
func TestAlerts(t *testing.T) {
	c, p := newDirectPeer(t, client)
	p.send(p.out.seal(typeAlert, []byte{1, userCanceled}))
	p.send(p.out.seal(typeData, []byte("x")))
	p.send(p.out.seal(typeAlert, []byte{1, 40})) // whatever its level says
	got, err := readAll(c, 100)
	var told tls.AlertError
	if string(got) != "x" || !errors.As(err, &told) || told != 40 {
		t.Errorf("read %q, %v", got, err)
	}
	if c.Queued() > 0 {
		t.Errorf("%d bytes are queued", c.Queued())
	}
}

// TestRekeys: a key is changed long before its limit, in the middle of what is
// sealed at once.
func TestRekeys(t *testing.T) {
	testEnds(t, ours, func(t *testing.T, e end) {
		c, p := newDirectPeer(t, e.role)
		c.sealer.seq, p.in.seq = rekeyAfter-1, rekeyAfter-1
		plain := noise(maxPlaintext + 5)
		old := c.sealer.secret
		check(t, c.Seal(bytes.Clone(plain)))
		if !slices.Equal(old, make([]byte, len(old))) {
			t.Error("the old secret is not wiped")
		}
		if done, err := c.Flush(); !done || err != nil {
			t.Fatal(done, err)
		}
		p.want("the last under the old key", typeData, plain[:maxPlaintext])
		p.want("the new key", typeHandshake, []byte{keyUpdate, 0, 0, 1, 0})
		p.in.update()
		p.want("the first under it", typeData, plain[maxPlaintext:])
		if c.Records() != 1 {
			t.Errorf("%d records under the new key", c.Records())
		}
	})
}

// TestAsksForAnotherKey: the peer's key is bounded too, if it does not see to that
// itself. It is asked once.
func TestAsksForAnotherKey(t *testing.T) {
	testEnds(t, ours, func(t *testing.T, e end) {
		c, p := newDirectPeer(t, e.role)
		for range 2 {
			c.opener.seq, p.out.seq = rekeyAfter-1, rekeyAfter-1
			p.send(p.out.seal(typeData, []byte("x")))
			p.send(p.out.seal(typeData, []byte("y")))
			if got, err := readAll(c, 100); string(got) != "xy" || err != ErrAgain {
				t.Fatalf("read %q, %v", got, err)
			}
			if c.Records() < rekeyAfter {
				t.Errorf("%d records under a key", c.Records())
			}
			if done, err := c.Flush(); !done || err != nil {
				t.Fatal(done, err)
			}
			p.want("a new key, and the wish for one", typeHandshake, []byte{keyUpdate, 0, 0, 1, 1})
			p.in.update()
			if c.Queued() > 0 || len(p.pending) > 0 {
				t.Error("it asks again")
			}
			p.send(p.out.keyUpdate(0))
			if _, err := readAll(c, 100); err != ErrAgain || c.Records() > 0 {
				t.Fatal(c.Records(), err)
			}
		}
	})
}

// TestSealLends: the byte behind what is sealed is as before, and nothing beyond
// the capacity is touched.
func TestSealLends(t *testing.T) {
	c, p := newDirectPeer(t, client)
	memory := noise(3 * maxPlaintext)
	want := bytes.Clone(memory)
	for _, part := range [][]byte{
		memory[5:maxPlaintext], memory[: maxPlaintext+7 : maxPlaintext+7], memory[9 : 2*maxPlaintext : 2*maxPlaintext+1], memory[:0:0],
	} {
		check(t, c.Seal(part))
		if !bytes.Equal(memory, want) {
			t.Fatal("memory has changed")
		}
		for rest := part; len(rest) > 0; {
			if _, err := c.Flush(); err != nil {
				t.Fatal(err)
			}
			n := min(len(rest), maxPlaintext)
			p.want("what was sealed", typeData, rest[:n])
			rest = rest[n:]
		}
	}
}

// TestDirectAllocates nothing while bytes pass.
func TestDirectAllocates(t *testing.T) {
	near, far := newPair(t, false)
	check(t, unix.SetsockoptInt(near.FD(), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	plain, buf := noise(100_000), make([]byte, batch)
	pass := func() { carry(t, near, far, plain, buf) }
	pass()
	if n := testing.AllocsPerRun(100, pass); n >= 1 && !racing {
		t.Errorf("%v allocations for seven records", n)
	}
}

// TestSecretsEndWithTheSession: what could open the session's records is wiped.
func TestSecretsEndWithTheSession(t *testing.T) {
	testEnds(t, ours, func(t *testing.T, e end) {
		c, _ := newDirectPeer(t, e.role)
		secrets := [][]byte{c.sealer.secret, c.opener.secret}
		check(t, c.Close())
		for _, s := range secrets {
			if len(s) == 0 || !slices.Equal(s, make([]byte, len(s))) {
				t.Errorf("a secret is left: %x", s)
			}
		}
		if c.State().HandshakeComplete {
			t.Error("the secret of exporters is left")
		}
		if c.sealer.aead != nil || c.opener.aead != nil || c.sealer.iv != [nonceSize]byte{} {
			t.Error("a key is left")
		}
	})
}

// TestSecretsOfAFailedHandshake: are wiped too.
func TestSecretsOfAFailedHandshake(t *testing.T) {
	var s secrets
	for _, label := range []string{"CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0", "EXPORTER_SECRET"} {
		if _, err := fmt.Fprintf(&s, "%s %x %x\n", label, noise(32), noise(48)); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(s.client, noise(48)) || !bytes.Equal(s.server, noise(48)) {
		t.Fatalf("%x %x", s.client, s.server)
	}
	kept := s.client
	s.wipe()
	if !bytes.Equal(kept, make([]byte, 48)) {
		t.Error("a secret is left")
	}
	if _, err := s.Write([]byte("CLIENT_TRAFFIC_SECRET_0 00 xy\n")); err == nil {
		t.Error("a secret that is none is taken")
	}
}

// TestKeyLogMeansStandard: who logs secrets gets crypto/tls, and all its secrets.
func TestKeyLogMeansStandard(t *testing.T) {
	near, far := tcp(t)
	var log bytes.Buffer
	cfg := clientConfig()
	cfg.KeyLogWriter = &log
	result := begin(timeout(t), t, server, far, serverConfig(t), nil)
	c, err := Client(timeout(t), near, cfg, Options{})
	check(t, err)
	check(t, <-result)
	defer c.Close()
	if _, ok := c.(*standard); !ok || !bytes.Contains(log.Bytes(), []byte("CLIENT_TRAFFIC_SECRET_0")) {
		t.Errorf("a %T, and a log of %d bytes", c, log.Len())
	}
}

// TestHandshakeLeavesTheRest: the handshake takes whole records and none of those
// behind it, in whatever pieces they come.
func TestHandshakeLeavesTheRest(t *testing.T) {
	near, far := tcp(t)
	result := make(chan error, 1)
	go func() { // ends with the session; received from below
		session := tls.Client(drip{far}, clientConfig())
		_, err := session.Write(noise(40_000))
		result <- err
	}()
	c, err := Server(timeout(t), near, serverConfig(t), Options{})
	check(t, err)
	defer c.Close()
	var got []byte
	buf := make([]byte, batch)
	for len(got) < 40_000 {
		wait(t, c.FD(), unix.POLLIN)
		n, err := c.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil && err != ErrAgain {
			t.Fatal(err)
		}
	}
	check(t, <-result)
	if !bytes.Equal(got, noise(40_000)) {
		t.Error("other bytes")
	}
}

// drip writes a few bytes at a time.
type drip struct{ *net.TCPConn }

func (d drip) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = d.TCPConn.Write(p[n:min(len(p), n+11)])
		n += m
	}
	return n, err
}

// TestRecordsAreTheSame: what we seal is what crypto/tls seals of the same.
func TestRecordsAreTheSame(t *testing.T) {
	c, _ := newDirectPeer(t, client)
	for _, n := range []int{0, 1, 100, maxPlaintext, maxPlaintext + 1, 100_000} {
		before := len(c.out.out)
		check(t, c.Seal(noise(n)))
		for rest := c.out.out[before:]; len(rest) > 0; {
			if rest[0] != byte(typeData) || binary.BigEndian.Uint16(rest[1:]) != tls.VersionTLS12 {
				t.Errorf("header %x", rest[:headerSize])
			}
			rest = rest[recordSize(rest):]
		}
	}
}
