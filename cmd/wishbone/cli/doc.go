// Package cli is the command line: its commands, what they print, and how they
// end. Errors are one line, "wishbone: error: …", then "hint: …" where there is
// one; exit codes are 0 for done, 1 for failed, 2 for a mistake in the usage or
// the configuration.
//
// It is a package of its own, rather than main, so that tests can run the
// program out of their own binary.
package cli
