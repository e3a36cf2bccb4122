package config

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Load reads the file at path. Mistakes in it come as [Errors]; any other error
// is of the file system.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close() // it was only read
	// One byte more than is allowed, so that Parse sees a file that is too long.
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, data)
}

// Parse makes a Config of what a file holds; path is for messages, and relative
// paths in the file are relative to its directory. The error is [Errors].
func Parse(path string, data []byte) (*Config, error) {
	return parse(path, data, thisHost())
}

// parse is Parse on a given host.
func parse(path string, data []byte, h host) (*Config, error) {
	root, m := parseYAML(data)
	if m != nil {
		return nil, Errors{m.in(path)}
	}
	c := &Config{Path: path}
	r := newReader(path, root.at)
	r.mapping("", root, schema(c, filepath.Dir(path), h))
	check(c, r)
	if len(r.errs) > 0 {
		return nil, r.errs.sorted()
	}
	return c, nil
}
