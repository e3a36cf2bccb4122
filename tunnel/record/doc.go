// Package record protects the bytes of an established tunnel connection with
// TLS records, in large batches and without ever blocking.
//
// A [Conn] is made by [Client] or [Server], which run crypto/tls in an ordinary
// goroutine on an ordinary connection; afterwards the descriptor belongs to
// the Conn and is only touched by the loop that owns it. What happens then has two
// makers: one goes on with crypto/tls (standard.go), one protects the records
// itself, with the secrets of crypto/tls's handshake (direct.go).
//
// The package does not verify who the peer is (the tls.Config does), does not
// know HTTP/2, and does not watch descriptors.
package record
