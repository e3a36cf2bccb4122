// Package e2e runs two real gateways in a network of namespaces and looks at
// them from outside, as a user, a client, a server and a wiretapper do. It has no
// code of its own but tests.
//
// The gateways are this very test program, started once more as the command
// line, so that the race detector and the coverage see them too. Every test that
// passes has proof that the tunnel carried the bytes (the gateways' own word,
// compared with both ends), since a lab whose routers know the way would also
// carry them without.
package e2e
