package hbone

import "testing"

// TestEveryStreamHasItsCredit: who allows more streams finds room for all of them.
func TestEveryStreamHasItsCredit(t *testing.T) {
	for _, streams := range []int{0, 1, 200, 300, 10_000} {
		c := Config{MaxStreams: streams}.withDefaults()
		if c.TunnelBudget != c.MaxStreams*c.StreamWindow+growth {
			t.Errorf("%d streams of %d bytes share %d", c.MaxStreams, c.StreamWindow, c.TunnelBudget)
		}
	}
	if c := (Config{TunnelBudget: 1 << 20}).withDefaults(); c.TunnelBudget != 1<<20 {
		t.Errorf("a budget that is given becomes %d", c.TunnelBudget)
	}
}
