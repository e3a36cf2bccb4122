// Package authz decides whether a peer may reach an address as the source that
// it claims. The answer is a Permit, which only this package can make and which
// delivery requires.
//
// Ownership decides. One table holds the peers' networks and our own, and the
// longest prefix wins: a source is believed if and only if its owner is the
// very peer that claims it, a target is served if and only if its owner is
// ourselves. So a peer with 10.0.0.0/8 cannot speak for another's 10.2.0.0/16.
//
// Rules narrow that, and never widen it. A deny rule that matches wins. A
// destination that an allow rule names is open only to what some allow rule
// matches; one that none names stays as ownership has it. Rules in dry run decide
// nothing: a judgement says if they would have turned it around.
//
// It knows no certificates (identity has proved the SPIFFE ID by then), opens
// no sockets, and does not see through translators: what a NAT64 or a load
// balancer inside our own networks makes of an address is not known here.
package authz
