package rules

import (
	"encoding/binary"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// kernelSays is a message of type NLMSG_ERROR about the message of that number
// (netlink(7)), with attributes behind it if there are any.
func kernelSays(errno int32, about uint32, attributes ...byte) []byte {
	var flags uint16
	if len(attributes) > 0 {
		flags = 0x200 // NLM_F_ACK_TLVS
	}
	b := binary.NativeEndian.AppendUint32(nil, uint32(headerSize+4+headerSize+len(attributes)))
	b = binary.NativeEndian.AppendUint16(b, unix.NLMSG_ERROR)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, about)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = binary.NativeEndian.AppendUint32(b, uint32(errno))
	return append(append(b, make([]byte, headerSize)...), attributes...)
}

// FuzzAnswers: whatever comes back from the kernel, each error has words and a
// number that is not 0, and what is no answer is none.
func FuzzAnswers(f *testing.F) {
	batch, err := compose(func(c *nftables.Conn) error {
		t := c.AddTable(&nftables.Table{Name: "wishbone", Family: nftables.TableFamilyINet})
		c.AddChain(&nftables.Chain{Name: "pre", Table: t})
		return nil
	})
	if err != nil {
		f.Fatal(err)
	}
	text := append(binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint16(nil, 4+5), 1), "why?\x00\x00\x00\x00"...)
	f.Add([]byte(nil))
	f.Add(kernelSays(0, 1))
	f.Add(kernelSays(-int32(unix.EEXIST), 1))
	f.Add(append(kernelSays(-int32(unix.EPERM), 2, text...), kernelSays(0, 0)...))
	f.Add(kernelSays(-int32(unix.ENOENT), 1<<31, text[:5]...))
	f.Fuzz(func(t *testing.T, b []byte) {
		errs, acked := parseAnswers(b, batch)
		if n := len(b) / (headerSize + 4); len(errs) > n || acked && len(errs) == n {
			t.Errorf("%d errors in %d bytes, acknowledged: %t", len(errs), len(b), acked)
		}
		for _, err := range errs {
			e, ok := err.(*batchError)
			if !ok || e.errno == 0 || e.what == "" || e.Error() == "" {
				t.Errorf("%#v", err)
			}
		}
	})
}
