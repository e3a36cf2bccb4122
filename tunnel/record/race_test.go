//go:build race

package record

// racing: with the race detector a sync.Pool forgets at random.
const racing = true
