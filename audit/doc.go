// Package audit keeps the record of what a gateway has decided: who, what, by
// which rule, when. It writes to a file, to syslog or to journald, and never makes
// the one who decides wait: what there is no room for is dropped, and counted.
//
// A record has no field that could hold a byte of what connections carry: each is
// an address, a name of the configuration, an identity, a number, or a word of a
// closed list.
package audit
