package netlab

import (
	"testing"
)

// Records as they may appear on a wire: a ClientHello's beginning, and application data.
var (
	hello = []byte{0x16, 3, 1, 0, 3, 'a', 'b', 'c'}
	data  = []byte{0x17, 3, 3, 0, 2, 'd', 'e'}
)

// streamOf makes a stream of segments given in the order of their arrival; offsets are from the first byte.
func streamOf(whole bool, segments ...segment) *stream {
	const syn = 1<<32 - 3 // numbers wrap soon
	s := &stream{whole: whole, first: syn}
	for _, g := range segments {
		s.add(packet{seq: uint32((syn + 1 + int64(g.offset)) & 0xffffffff)}, g.data)
	}
	return s
}

func TestStreamIsPutTogether(t *testing.T) {
	both := append(append([]byte{}, hello...), data...)
	for _, test := range []struct {
		name     string
		whole    bool
		segments []segment
		want     string
	}{
		{"empty", true, nil, ""},
		{"in order", true, []segment{{0, hello}, {8, data}}, ""},
		{"out of order", true, []segment{{8, data}, {0, hello}}, ""},
		{"sent again, longer", true, []segment{{0, hello}, {0, both}}, ""},
		{"cut in a header", true, []segment{{0, both[:10]}}, ""},
		{"cut in a record", true, []segment{{0, both[:7]}}, ""},
		{"gap", true, []segment{{0, hello}, {9, data}}, "segments are missing"},
		{"no beginning", true, []segment{{8, data}}, "the beginning is missing"},
		{"from within a record", false, []segment{{6, both[6:]}}, ""},
		{"from within, no header in sight", false, []segment{{6, both[6:8]}}, "not TLS records"},
		{"plain", true, []segment{{0, []byte("GET / HTTP/1.1")}}, "not TLS records"},
		{"plain, from within", false, []segment{{0, []byte("GET / HTTP/1.1")}}, "not TLS records"},
		{"plain at the end", true, []segment{{0, hello}, {8, []byte("GET")}}, "not TLS records"},
		{"too long a record", true, []segment{{0, []byte{0x17, 3, 3, 0xff, 0xff, 1}}}, "not TLS records"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := streamOf(test.whole, test.segments...).notTLS(); got != test.want {
				t.Errorf("notTLS() = %q, want %q", got, test.want)
			}
		})
	}
}

func TestMarkerIsFoundAcrossSegments(t *testing.T) {
	s := streamOf(true, segment{4, []byte("case")}, segment{0, []byte("show")})
	if !s.contains([]byte("showcase")) {
		t.Error("a marker in two segments was not found")
	}
	if s.contains([]byte("caseshow")) {
		t.Error("a marker was found that is not there")
	}
}

// What a stranger's packet looks like must not stop a capture.
func FuzzParse(f *testing.F) {
	f.Add([]byte{13: 0})
	f.Add(append([]byte{12: 0x08, 13: 0, 14: 0x45, 17: 40, 23: 6, 46: 0x50, 53: 0}, hello...))
	f.Add(append([]byte{12: 0x86, 13: 0xdd, 14: 0x60, 19: 16, 20: 0, 54: 6, 69: 0}, hello...))
	f.Fuzz(func(t *testing.T, frame []byte) {
		var traffic Traffic
		traffic.add(frame)
		traffic.OnlyTLS(15008)
		traffic.Contains(marker)
	})
}
