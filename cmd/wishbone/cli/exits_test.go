package cli

import (
	"fmt"
	"os"
)

// exits is "exits CODE ARG...": it runs wishbone with the arguments, and fails
// unless it ends with the code.
func exits() {
	code := Main(os.Args[2:], os.Stdin, os.Stdout, os.Stderr)
	if want := os.Args[1]; fmt.Sprint(code) != want {
		fmt.Fprintf(os.Stderr, "exit code %d, want %s\n", code, want)
		os.Exit(1)
	}
}
