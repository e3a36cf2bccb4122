//go:build tools

// Package spire names the programs of SPIRE that the end-to-end tests run. It is
// a module of its own, so that none of what SPIRE needs is among what wishbone
// needs.
package spire

import (
	_ "github.com/spiffe/spire/cmd/spire-agent"
	_ "github.com/spiffe/spire/cmd/spire-server"
)
