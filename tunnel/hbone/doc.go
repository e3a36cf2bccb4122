// Package hbone speaks HTTP/2 CONNECT as a pure state machine: bytes and time
// come in, events and bytes go out. One [Conn] is one side of a tunnel
// connection in either role; each [Stream] on it carries one TCP connection to
// the target that its [Request] names.
//
// The package knows frames (RFC 9113), two-level flow control, half-close,
// reset, ping, goaway, header fields, statuses and the limits on all of them.
// It is the only place that knows header names and status codes.
//
// It does not open sockets, start goroutines, read clocks or speak TLS, and it
// decides nothing about who may reach what. A Conn is owned by one goroutine,
// the loop that feeds it; nothing in here is locked. Two of them joined by a
// slice are a whole tunnel in a unit test.
//
// # Flow control
//
// Credit is a reservation: what a peer may send is counted against the
// tunnel's and the process's [Budget] before it is given. Connection credit is
// given back on receipt and stream credit on delivery, so that one stalled
// reader never stalls its neighbours. A stream's window starts small and
// doubles while delivery × round trip asks for it and the budgets have a quarter
// to spare; below that it shrinks again, so that there is room for new streams, and
// where it is too large, so that others need not wait behind it (pace.go).
// What a stream has handed on stays reserved until it is delivered or discarded,
// even when the stream is gone.
//
// # Before the answer
//
// No DATA is sent before the 200. A stream on which it comes nevertheless is
// reset: to forward it would be to act before authorisation, to drop it would
// leave a hole in the bytes, and to hold it was not agreed on.
//
// Unless it was, by [Config.EarlyData]: then a server says so in its SETTINGS, and
// DATA may follow the request at once, as much as the stream's first credit allows;
// there is no more before the answer. Who hears of it holds it. With any answer but
// 200 it is thrown away (CVE-2025-64763 is what comes of forwarding it).
//
// # What is not CONNECT
//
// A server answers it with 405, a few words, and nothing behind them. To its peer it
// is a stream with all that belongs to one; to the Handler it is Malformed.
package hbone
