// Package ca is a small offline certificate authority, for trials and for sites
// that have no SPIRE. Init makes a root in a directory; Issue signs an X509-SVID
// with it and writes the three files that identity.Files reads.
//
// The directory is the authority: whoever can read its ca.key can be anyone in
// the trust domain, so it belongs on no gateway, but on a machine of its own, or on
// a medium that is away between two uses. The key is not encrypted.
//
// A gateway's key need not travel either: Ask makes it on the gateway, with a
// request, and Sign answers that with a certificate.
//
// Certificates follow the X509-SVID standard: ECDSA on P-256, one URI, and a
// root that signs leaves directly (path length 0). The root carries no name
// constraint, since some verifiers refuse every constraint on URIs (rustls, and
// with it ztunnel); that a root speaks for one trust domain only is the
// verifier's business in SPIFFE, and it is identity's here.
//
// To renew is to issue again under the same name; a gateway takes the new files
// by itself. To replace the root:
//
//  1. Init a new directory, and append the old ca.pem to the new one.
//  2. Append the new root to bundle.pem on every gateway.
//  3. Issue every identity again from the new directory.
//  4. Delete the old root from the new ca.pem, and from bundle.pem everywhere.
//
// Every root in ca.pem is handed out, and the one that ca.key belongs to signs.
// Issue adds to the bundle.pem that it finds and takes nothing away that is
// still valid.
//
// It makes no revocation lists (leaves are short-lived, and a gateway's
// configuration revokes), serves nothing over a network, attests nobody, and signs
// no intermediates.
package ca
