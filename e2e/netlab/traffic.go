package netlab

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
)

// Traffic is what a capture saw, without ARP, neighbour discovery and the like. It is not for use by several
// goroutines at once.
type Traffic struct {
	Lost      int // frames the kernel had no room for; they were not seen
	Forgotten int // frames that were counted but not kept, beyond 64 MiB

	flows   []*Flow // by first packet
	index   map[flowKey]*Flow
	kept    int // bytes
	streams []*stream
	current map[flowKey]*stream // the newest of each tuple
	others  [][]byte            // payloads that are not TCP's
}

// flowKey tells one direction of a conversation.
type flowKey struct {
	proto    Protocol
	src, dst netip.AddrPort
}

// Flow is one direction of a conversation. Ports are zero where the protocol has none; addresses too where
// what crossed was no IP.
type Flow struct {
	Proto    Protocol
	Src, Dst netip.AddrPort
	Packets  int
	Bytes    int // IP headers included

	fragments int
}

func (f Flow) String() string {
	return fmt.Sprintf("%v %v > %v, %d packets, %d bytes", f.Proto, f.Src, f.Dst, f.Packets, f.Bytes)
}

// add takes in a frame, whose memory stays the caller's.
func (t *Traffic) add(frame []byte) {
	p, ok := parse(frame)
	if !ok {
		return
	}
	key := flowKey{p.proto, p.src, p.dst}
	f := t.flow(key)
	f.Packets++
	f.Bytes += p.size
	if p.fragment {
		f.fragments++
	}
	if len(p.payload) == 0 && !p.syn {
		return
	}
	if t.kept+len(p.payload) > captureRoom {
		t.Forgotten++
		return
	}
	t.kept += len(p.payload)
	t.keep(key, p)
}

// flow finds or makes the counters of a flow.
func (t *Traffic) flow(key flowKey) *Flow {
	if f := t.index[key]; f != nil {
		return f
	}
	if t.index == nil {
		t.index, t.current = map[flowKey]*Flow{}, map[flowKey]*stream{}
	}
	f := &Flow{Proto: key.proto, Src: key.src, Dst: key.dst}
	t.index[key] = f
	t.flows = append(t.flows, f)
	return f
}

// keep stores a copy of the payload where searches will find it.
func (t *Traffic) keep(key flowKey, p packet) {
	data := bytes.Clone(p.payload)
	if p.proto != TCP || p.fragment {
		t.others = append(t.others, data)
		return
	}
	s := t.current[key]
	if s == nil || p.syn && !s.startsAt(p.seq) {
		s = &stream{flowKey: key, whole: p.syn, first: p.seq}
		t.current[key] = s
		t.streams = append(t.streams, s)
	}
	s.add(p, data)
}

// Flows lists the conversations' directions in the order of their first packets.
func (t *Traffic) Flows() []Flow {
	var flows []Flow
	for _, f := range t.flows {
		flows = append(flows, *f)
	}
	return flows
}

// Count says how many packets, and bytes with IP headers, of a protocol had the port at either end. Zero
// stands for any.
func (t *Traffic) Count(proto Protocol, port uint16) (packets, bytes int) {
	for _, f := range t.flows {
		if (proto == 0 || f.Proto == proto) && (port == 0 || f.Src.Port() == port || f.Dst.Port() == port) {
			packets += f.Packets
			bytes += f.Bytes
		}
	}
	return packets, bytes
}

// Contains says whether marker was in any packet, or in any TCP stream put together again.
func (t *Traffic) Contains(marker []byte) bool {
	for _, data := range t.others {
		if bytes.Contains(data, marker) {
			return true
		}
	}
	for _, s := range t.streams {
		if s.contains(marker) {
			return true
		}
	}
	return false
}

// Violation is something that crossed and should not have, or could not be judged.
type Violation struct {
	Flow Flow // zero where it is not about one
	What string
}

func (v Violation) String() string {
	if v.Flow.Packets == 0 {
		return v.What
	}
	return v.What + ": " + v.Flow.String()
}

// OnlyTLS returns what contradicts "some TLS crossed to and from this TCP port, and nothing else did". Every
// byte of every stream has to lie in TLS records (RFC 8446 §5.1). Lost and forgotten frames contradict it
// too, since they might have been anything.
func (t *Traffic) OnlyTLS(port uint16) []Violation {
	var found []Violation
	for _, f := range t.flows {
		if what := f.stray(port); what != "" {
			found = append(found, Violation{*f, what})
		}
	}
	for _, s := range t.streams {
		if what := s.notTLS(); what != "" && (s.src.Port() == port || s.dst.Port() == port) {
			found = append(found, Violation{*t.index[s.flowKey], what})
		}
	}
	if packets, _ := t.Count(TCP, port); packets == 0 {
		found = append(found, Violation{What: fmt.Sprintf("nothing crossed to tcp port %d", port)})
	}
	if t.Lost+t.Forgotten > 0 {
		found = append(found, Violation{What: fmt.Sprintf("%d frames lost, %d not kept", t.Lost, t.Forgotten)})
	}
	return found
}

// stray says what is wrong with a flow regardless of its contents, "" for nothing.
func (f *Flow) stray(port uint16) string {
	switch {
	case f.Proto == 0:
		return "not IP, or malformed"
	case f.Proto != TCP:
		return "not TCP"
	case f.fragments > 0:
		return "fragments"
	case f.Src.Port() != port && f.Dst.Port() != port:
		return fmt.Sprintf("not to or from port %d", port)
	}
	return ""
}

// String lists the flows, a line each.
func (t *Traffic) String() string {
	var b strings.Builder
	for _, f := range t.flows {
		fmt.Fprintln(&b, f)
	}
	return b.String()
}
