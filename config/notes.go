package config

// Notes are what is allowed and still deserves a word, as for the output of a
// check. They are one sentence each, in no particular order.
func (c *Config) Notes() []string {
	var notes []string
	if len(c.Networks) == 0 {
		notes = append(notes, "networks is empty: nothing that peers send is delivered, and no forwarded connection is captured")
	}
	if !c.Capture.Forwarded && !c.Capture.Local {
		notes = append(notes, "capture.from is empty: nothing is captured")
	}
	for _, p := range c.Peers {
		if p.Outbound.Unavailable == Pass {
			notes = append(notes, "outbound.unavailable of peer "+p.Name+" is pass: without the gateway its connections go in the clear, and its addresses prove nothing")
		}
	}
	for _, r := range c.Policy {
		if r.DryRun {
			notes = append(notes, "policy rule "+r.Name+" is in dry run: it decides nothing")
		}
	}
	return notes
}
