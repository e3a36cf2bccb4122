// Package record protects the bytes of an established tunnel connection with
// TLS records, in large batches and without ever blocking.
//
// A [Conn] is made by [Handshake], which runs crypto/tls in an ordinary
// goroutine on an ordinary connection; afterwards the descriptor belongs to
// the Conn and is only touched by the loop that owns it. There is one maker so
// far, on crypto/tls itself; another may stand behind the same interface.
//
// The package does not verify who the peer is (the tls.Config does), does not
// know HTTP/2, and does not watch descriptors.
package record
