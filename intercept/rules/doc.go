// Package rules tells the kernel which packets to hand us. A [Plan] says what
// is wanted; a [Backend] makes it so, with nftables or with iptables, and policy
// routing goes with either. The same Plan can be printed as text instead.
//
// It sets no sysctl, opens no listener, resolves no names, and leaves every rule
// that is not ours alone: one nftables table "inet wishbone" or chains
// WISHBONE_*, four policy rules and one routing table.
package rules
