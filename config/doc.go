// Package config reads the configuration file. Every mistake is found at once
// and named with file, line and column, what was expected, and a hint where
// there is one; a file with a mistake gives no Config at all.
//
// The file is a table of keys (schema.go), each with its default written as one
// would write it in the file: a default is read by the same code as what stands
// in a file, and the reference page is held against the same table.
//
// It opens nothing that the file names. Of the host it asks only what defaults
// depend on: its name, its cores and its memory. It knows no other room: what the
// values mean is their rooms' affair.
package config
