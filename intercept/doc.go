// Package intercept makes sockets: it takes connections that the kernel
// diverts to us (TPROXY), and makes connections that appear to come from
// somebody else (IP_TRANSPARENT). It knows addresses and socket options.
//
// It does not know peers, TLS or HTTP, does not move bytes, and does not write
// the rules that divert packets; those are intercept/rules.
//
// Every socket made here carries the own mark, so that our rules leave it
// alone; without it our own connections would be captured again.
package intercept
