// Package route finds the peer that owns a destination. A Table holds the
// peers' networks and our own, and the longest prefix wins; it is immutable, so
// a change is a new Table.
//
// It does not choose an endpoint, does not resolve names, and decides nothing
// about access: whether a peer may speak for a source is authz's affair.
package route
