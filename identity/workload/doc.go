// Package workload is the identity.Source that the SPIFFE Workload API keeps
// fresh. It blocks until there is a first SVID, keeps the last good one through
// every later error, and reconnects for as long as it is open.
//
// An agent says "no identity issued" for a second while its authority changes
// roots, and is away while it is upgraded; neither takes an identity from us
// that is still valid. What an agent withdraws in an answer, such as the roots
// of a trust domain, is withdrawn at once.
//
// It judges nothing: whether an SVID has expired, and whether a peer is who it
// should be, is identity's affair. It serves no Workload API, asks for no JWT,
// and talks to Unix sockets only, since what it reads is a private key. It is
// the only package of this program that may import gRPC.
package workload
