// Package identity says who we are and who the peer is. It turns a source of
// X.509-SVIDs into the two tls.Configs of a gateway, and a finished handshake
// into a SPIFFE ID. Files is a Source kept in step with three files; Federation has
// the bundles of other trust domains.
//
// Both configurations speak TLS 1.3 only, with certificates on both sides. The
// peer is verified in VerifyConnection, which, unlike VerifyPeerCertificate,
// also runs when a session is resumed; and there are no tickets to resume one.
// Everything that changes while running is asked of the Source at each
// handshake.
//
// It opens no sockets, makes no certificates and decides nothing about access:
// which SPIFFE IDs are welcome is its caller's word, and what they may reach is
// authz's. It watches no living session: Withdrawn judges one for whoever does. CRLs
// are the revocation lists of some files; it fetches none.
package identity
