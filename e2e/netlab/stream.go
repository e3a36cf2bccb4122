package netlab

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"slices"
)

// stream is one direction of a TCP connection, as segments.
type stream struct {
	flowKey
	whole    bool   // its SYN was seen
	first    uint32 // sequence number of the SYN, or of the first segment seen
	segments []segment
}

// segment is a piece of a stream.
type segment struct {
	offset int // from the stream's first
	data   []byte
}

// startsAt says whether a SYN with this number is the stream's own, sent once more.
func (s *stream) startsAt(seq uint32) bool { return s.whole && s.first == seq }

// add takes in a segment. Its data is the stream's from now on.
func (s *stream) add(p packet, data []byte) {
	if len(data) == 0 {
		return
	}
	offset := int(int32(p.seq - s.first)) // captures are far shorter than the 2 GiB where this wraps
	if p.syn {
		offset++ // a SYN takes one number, RFC 9293 §3.4
	}
	s.segments = append(s.segments, segment{offset, data})
}

// runs puts the segments together: one run of bytes if nothing is missing. The first begins the stream.
func (s *stream) runs() [][]byte {
	slices.SortStableFunc(s.segments, func(a, b segment) int { return cmp.Compare(a.offset, b.offset) })
	var runs [][]byte
	end := 0
	for _, g := range s.segments {
		if len(runs) == 0 || g.offset > end {
			runs = append(runs, nil)
			end = g.offset
		}
		seen := end - g.offset // sent before
		if seen >= len(g.data) {
			continue
		}
		last := len(runs) - 1
		runs[last] = append(runs[last], g.data[seen:]...)
		end += len(g.data) - seen
	}
	return runs
}

// contains searches the stream, and each segment by itself: a retransmission may differ.
func (s *stream) contains(marker []byte) bool {
	has := func(data []byte) bool { return bytes.Contains(data, marker) }
	return slices.ContainsFunc(s.runs(), has) ||
		slices.ContainsFunc(s.segments, func(g segment) bool { return has(g.data) })
}

// notTLS says why the stream is not made of TLS records, "" if it is.
func (s *stream) notTLS() string {
	runs := s.runs()
	switch {
	case len(runs) == 0:
		return ""
	case len(runs) > 1:
		return "segments are missing"
	case s.whole && s.segments[0].offset != 1:
		return "the beginning is missing"
	case s.whole && !records(runs[0]), !s.whole && !recordsWithin(runs[0]):
		return "not TLS records"
	}
	return ""
}

// A TLS record is a type, a version and a length before at most 2^14+256 bytes, RFC 8446 §5.1 and §5.2.
const (
	recordHeader = 5
	recordMax    = 1<<14 + 256
)

// records says whether b is TLS records and nothing else; the last may be incomplete.
func records(b []byte) bool {
	for len(b) > 0 {
		size, ok := recordSize(b)
		if !ok {
			return false
		}
		b = b[min(size, len(b)):]
	}
	return true
}

// recordsWithin says whether b, begun somewhere, is TLS records from some place on. At least one header has
// to show.
func recordsWithin(b []byte) bool {
	for i := range min(len(b), recordMax+1) {
		if len(b)-i >= recordHeader && records(b[i:]) {
			return true
		}
	}
	return false
}

// recordSize reads a record's header, as much as there is of it.
func recordSize(b []byte) (size int, ok bool) {
	if b[0] < 0x14 || b[0] > 0x17 || len(b) > 1 && b[1] != 3 || len(b) > 2 && b[2] > 4 {
		return 0, false
	}
	if len(b) < recordHeader {
		return len(b), true
	}
	length := int(binary.BigEndian.Uint16(b[3:]))
	return recordHeader + length, length > 0 && length <= recordMax
}
