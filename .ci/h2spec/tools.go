//go:build tools

// Package h2spec names the program that checks our HTTP/2. It is a module of its
// own, so that none of what h2spec needs is among what wishbone needs.
package h2spec

import (
	_ "github.com/summerwind/h2spec/cmd/h2spec"
)
