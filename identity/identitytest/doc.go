// Package identitytest mints SVIDs from an authority held in memory, good ones
// and bad ones, for tests and for the lab. Nothing that serves users may import
// it: its keys are nobody's secret, and its mistakes panic.
//
// It does not verify anything, and it is no certificate authority to run: that
// is `wishbone ca`.
package identitytest
