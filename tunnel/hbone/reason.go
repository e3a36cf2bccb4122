package hbone

// Reason says why a stream was refused, in one word of a closed list. It is
// sent as the wishbone-reason field, logged on both sides, and used as a
// metric label.
type Reason string

// The reasons. A peer that says anything else is read as [Unknown].
const (
	Denied      Reason = "denied"      // policy said no
	Malformed   Reason = "malformed"   // the request could not be understood
	Refused     Reason = "refused"     // the destination refused the connection
	Unreachable Reason = "unreachable" // no route, or the network said so
	Timeout     Reason = "timeout"     // no answer in time
	NoPort      Reason = "no_port"     // the source address and port are taken
	Overloaded  Reason = "overloaded"  // out of memory budget, descriptors or dials
	Draining    Reason = "draining"    // the gateway is stopping
	NoSource    Reason = "no_source"   // the source could not be kept
	Loop        Reason = "loop"        // the target is the gateway itself
	Failed      Reason = "failed"      // anything else
	Unknown     Reason = "unknown"     // the peer gave none that we know
)

// status is the HTTP status that carries a reason: 401 as Istio's ambient mesh
// has it for a denial, 400 for what is malformed, 503 for what failed.
func (r Reason) status() string {
	switch r {
	case Denied:
		return "401"
	case Malformed:
		return "400"
	}
	return "503"
}

// reasonOf reads the peer's answer: its own word if that is one of ours, else
// what the status alone tells (other HBONE servers send no reason).
func reasonOf(status, word string) Reason {
	switch r := Reason(word); r {
	case Denied, Malformed, Refused, Unreachable, Timeout, NoPort,
		Overloaded, Draining, NoSource, Loop, Failed:
		return r
	}
	switch status {
	case "401", "403":
		return Denied
	case "400":
		return Malformed
	}
	return Unknown
}

// Reasons lists every reason, for metrics with a bounded number of series.
func Reasons() []Reason {
	return []Reason{Denied, Malformed, Refused, Unreachable, Timeout, NoPort,
		Overloaded, Draining, NoSource, Loop, Failed, Unknown}
}
