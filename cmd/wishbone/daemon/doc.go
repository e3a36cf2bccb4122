// Package daemon makes a running gateway out of a configuration: it opens the
// identity and the sockets, installs the rules, puts both directions to work,
// and takes everything down again in the reverse order. It also answers those
// who ask how the gateway does: metrics, readiness, and the admin socket.
//
// A Daemon is whole or not there: Start returns it when it serves, or an error
// with everything undone. It parses no flags and no files, handles no signals,
// and decides nothing about connections; that is tunnel's.
package daemon
