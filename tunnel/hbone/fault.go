package hbone

// Fault is what a peer did that ended its tunnel, in one word of a closed list. It
// begins the debug text of our GOAWAY, is logged, and used as a metric label. What
// the limits are is in docs/limits.md.
type Fault string

const (
	faultPing        Fault = "ping"             // PINGs, and answers that nobody asked for
	faultSettings    Fault = "settings"         // SETTINGS, or parameters in one
	faultWindow      Fault = "window_update"    // credit in crumbs
	faultEmptyData   Fault = "empty_data"       // DATA with nothing in it
	faultClosed      Fault = "closed_stream"    // frames for streams that are over
	faultRapidReset  Fault = "rapid_reset"      // requests taken back, or streams that had to be reset
	faultRefused     Fault = "refused_requests" // requests that could not be served
	faultOther       Fault = "idle_frames"      // frames that mean nothing here
	faultHeaders     Fault = "headers"          // a header list, or its fragments
	faultUnread      Fault = "unread"           // it makes us answer and does not read
	faultFlowControl Fault = "flow_control"     // more than its credit, or too much of ours
	faultProtocol    Fault = "protocol"         // any other violation of RFC 9113
	faultNoSettings  Fault = "no_settings"      // no preface or no SETTINGS in time
	faultSilent      Fault = "silent"           // no answer to PING
)

// Faults lists every Fault, for metrics with a bounded number of series.
func Faults() []Fault {
	return []Fault{
		faultPing, faultSettings, faultWindow, faultEmptyData, faultClosed, faultRapidReset, faultRefused, faultOther,
		faultHeaders, faultUnread, faultFlowControl, faultProtocol, faultNoSettings, faultSilent,
	}
}
