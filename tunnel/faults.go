package tunnel

import (
	"errors"

	"wishbone/tunnel/hbone"
	"wishbone/tunnel/record"
)

// faultTLS is the fault of a peer that breaks TLS, or floods us with records that
// carry nothing. The others are hbone's.
const faultTLS = "tls"

// Faults lists every reason that Stats.Cut may hold.
func Faults() []string {
	all := []string{faultTLS}
	for _, f := range hbone.Faults() {
		all = append(all, string(f))
	}
	return all
}

// fault is what a peer did that ended its tunnel with err; "" if it was not that.
func fault(err error) string {
	if e, ok := errors.AsType[*hbone.ConnError](err); ok && !e.Remote {
		return string(e.Fault)
	}
	if errors.Is(err, record.ErrFault) {
		return faultTLS
	}
	return ""
}
