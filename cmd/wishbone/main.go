// Command wishbone is an HBONE tunnel gateway: it captures TCP connections,
// carries them to a peer gateway over mutual TLS, and delivers them there from
// the original client's address and port.
package main

import (
	"os"

	"wishbone/cmd/wishbone/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
