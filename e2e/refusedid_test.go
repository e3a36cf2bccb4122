package e2e

import "testing"

// TestRefusedIdentity: a peer that does not accept our SPIFFE ID says so by an alert only,
// after our side of the handshake is done (TLS 1.3). The log says what that may mean, as
// status does.
func TestRefusedIdentity(t *testing.T) {
	p := newPair(t, func(_, east *site) { east.peerIDs = "[spiffe://" + domain + "/gateway/other]" })
	unreachable(t, p.Client, web)
	awaitLog(t, p.west, "level=WARN", "tunnel down", "peer=east", "tls: bad certificate (does the peer accept this gateway's identity?)")
	awaitLog(t, p.east, "tunnel refused", "reason=wrong_id")
}
