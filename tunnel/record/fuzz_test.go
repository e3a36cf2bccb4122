package record

import (
	"bytes"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzDirect: whatever a peer that has the keys sends, our own records mean to us
// what they mean to crypto/tls: the same bytes, and an end of the same kind.
func FuzzDirect(f *testing.F) {
	f.Add(false, []byte{0, 5, 1, 0, 200, 2, 3, 0, 7, 4})
	f.Add(true, []byte{2, 2, 0, 90, 5, 6, 5, 24, 0, 0, 1, 1, 0, 9})
	f.Add(false, []byte{6, 2, 24, 0, 6, 3, 0, 1, 0, 0, 4, 8, 3, 7, 20})
	f.Add(true, []byte{9, 21, 2, 1, 0})
	f.Add(false, []byte{10, 3, 23, 3, 3, 11, 255, 0, 3})
	f.Fuzz(func(t *testing.T, server bool, script []byte) {
		r := client
		if server {
			r = 1
		}
		theirs, p := newPeer(t, end{r, true})
		ours, q := newPeer(t, end{r, false})
		for _, p := range []*peer{p, q} {
			check(t, unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20))
		}
		for junk := false; len(script) > 0; {
			junk = junk || script[0]%12 == 10
			rest := act(p, script)
			act(q, script)
			script = rest
			got, err := readAll(theirs, 1+len(script)*100)
			same, our := readAll(ours, 1+len(script)*100)
			if junk && kind(err) == "again" && kind(our) == "fatal" {
				return // crypto/tls looks at a record only when it is whole
			}
			if kind(err) == "again" && our != nil && strings.Contains(our.Error(), "handshake message of ") {
				return // it waits for the end of a certificate of 256 KiB, which neither would take here
			}
			if !bytes.Equal(got, same) || kind(err) != kind(our) {
				t.Fatalf("crypto/tls: %d bytes, %v; we: %d bytes, %v", len(got), err, len(same), our)
			}
			if err != ErrAgain {
				return
			}
			if theirs.Queued() != ours.Queued() {
				t.Fatalf("crypto/tls answers with %d bytes, we with %d", theirs.Queued(), ours.Queued())
			}
		}
	})
}

// kind is what an end of reading means to a loop.
func kind(err error) string {
	switch err {
	case ErrAgain:
		return "again"
	case ErrClosed:
		return "closed"
	}
	return "fatal"
}

// act has a peer send what a script begins with, and returns the rest of it.
func act(p *peer, script []byte) []byte {
	op, arg := script[0]%12, 0
	rest := script[1:]
	if len(rest) > 0 {
		arg, rest = int(rest[0]), rest[1:]
	}
	some := rest[:min(arg, len(rest))]
	switch op {
	case 0:
		p.send(p.out.seal(typeData, noise(arg*arg%(maxPlaintext+1))))
	case 1, 2:
		p.send(p.out.keyUpdate(op - 1))
		return script[1:]
	case 3:
		p.send(p.out.seal(typeData, nil))
		return script[1:]
	case 4:
		p.send(p.out.seal(typeAlert, []byte{1, 0}))
	case 5:
		p.send(p.out.seal(typeAlert, []byte{byte(arg), 90}))
	case 6:
		// But for what crypto/tls reads of a ticket, and we do not.
		if len(some) > 0 && some[0] == newSessionTicket {
			some = some[1:]
		}
		p.send(p.out.seal(typeHandshake, some))
		return rest[len(some):]
	case 7: // padded
		p.send(p.out.seal(0, append([]byte{'x', byte(typeData)}, make([]byte, arg*arg)...)))
	case 8: // tampered
		rec := p.out.seal(typeData, noise(40))
		rec[headerSize+arg%(len(rec)-headerSize)] ^= 1
		p.send(rec)
	case 9:
		p.send(p.out.seal(contentType(arg), some))
		return rest[len(some):]
	case 10: // not a cipher spec, which crypto/tls overlooks even now
		if len(some) > 0 && some[0] == 20 {
			return nil
		}
		p.send(some)
		return rest[len(some):]
	case 11:
		p.send(p.out.seal(typeData, noise(maxPlaintext+1-arg)))
	}
	return rest
}
