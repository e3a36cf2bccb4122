package hbone

import (
	"encoding/binary"

	"golang.org/x/net/http2"
)

// frameHeader is a frame header as received (RFC 9113 §4.1).
type frameHeader struct {
	length int
	kind   http2.FrameType
	flags  http2.Flags
	stream uint32
}

func parseFrameHeader(p []byte) frameHeader {
	return frameHeader{
		length: int(p[0])<<16 | int(p[1])<<8 | int(p[2]),
		kind:   http2.FrameType(p[3]),
		flags:  http2.Flags(p[4]),
		stream: binary.BigEndian.Uint32(p[5:]) & (1<<31 - 1), // the reserved bit is ignored
	}
}

func putFrameHeader(p *[FrameHeader]byte, n int, kind http2.FrameType, flags http2.Flags, stream uint32) {
	p[0], p[1], p[2] = byte(n>>16), byte(n>>8), byte(n)
	p[3], p[4] = byte(kind), byte(flags)
	binary.BigEndian.PutUint32(p[5:], stream)
}

func appendFrameHeader(dst []byte, n int, kind http2.FrameType, flags http2.Flags, stream uint32) []byte {
	var p [FrameHeader]byte
	putFrameHeader(&p, n, kind, flags, stream)
	return append(dst, p[:]...)
}

// appendWindowUpdate queues credit for a stream, or for the connection (0).
func (c *Conn) appendWindowUpdate(stream uint32, n int) {
	if n <= 0 {
		return
	}
	c.out = appendFrameHeader(c.out, 4, http2.FrameWindowUpdate, 0, stream)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(n))
}

func (c *Conn) appendReset(stream uint32, code http2.ErrCode) {
	c.out = appendFrameHeader(c.out, 4, http2.FrameRSTStream, 0, stream)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(code))
}

func (c *Conn) appendGoAway(last uint32, code http2.ErrCode, debug string) {
	c.out = appendFrameHeader(c.out, 8+len(debug), http2.FrameGoAway, 0, 0)
	c.out = binary.BigEndian.AppendUint32(c.out, last)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(code))
	c.out = append(c.out, debug...)
}

func (c *Conn) appendPing(flags http2.Flags, data [8]byte) {
	c.out = appendFrameHeader(c.out, 8, http2.FramePing, flags, 0)
	c.out = append(c.out, data[:]...)
}
