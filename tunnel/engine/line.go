package engine

import (
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// line is what the kernel knows of the network between a tunnel's ends.
type line struct {
	measured time.Duration // when
	narrow   bool
}

// measure looks at the line. The state machine is told of the least round trip of the
// last minutes (tcp(7), TCP_INFO; ip-sysctl, tcp_min_rtt_wlen).
func (t *Tunnel) measure() {
	t.line.measured = t.loop.now
	info, err := unix.GetsockoptTCPInfo(t.rec.FD(), unix.SOL_TCP, unix.TCP_INFO)
	if err != nil || info.Min_rtt == math.MaxUint32 {
		return // PINGs have to do
	}
	rtt := time.Duration(info.Min_rtt) * time.Microsecond
	t.h2.SetRTT(rtt)
	t.line.narrow = rtt >= longLine && loses(info)
}

// Narrow reports whether one connection gets less of the line than several do: it is
// long and loses packets, in either direction. TCP sends about a packet for each round
// trip and root of the loss then (RFC 5348 §3.1), whatever the line would bear.
func (t *Tunnel) Narrow() bool { return t.line.narrow }

// Less than a packet in a thousand is not worth another connection, and of less than a
// few nothing is known.
const (
	longLine  = 5 * time.Millisecond // round trip
	perLoss   = 1000                 // packets
	fewLosses = 8
)

func loses(i *unix.TCPInfo) bool {
	lost := uint64(i.Total_retrans) + uint64(i.Rcv_ooopack)
	return lost >= fewLosses && lost*perLoss >= uint64(i.Segs_out)+uint64(i.Segs_in)
}
