// Package pool shares tunnels to peer gateways among streams. It decides which
// tunnel to a peer carries the next stream, when to dial another, and when to
// let one go; how a tunnel is dialled and how a stream is opened is its
// caller's affair.
//
// A Pool belongs to one loop and is not locked. It starts no goroutines, reads
// no clock and opens no sockets.
package pool
