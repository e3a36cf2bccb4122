//go:build race

package engine_test

// racing: with the race detector a sync.Pool forgets at random.
const racing = true
