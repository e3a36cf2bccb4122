package config

import (
	"errors"
	"testing"
)

// FuzzParse: whatever a file holds, a mistake has a place in it, and what is
// taken holds what the other rooms count on.
func FuzzParse(f *testing.F) {
	for _, e := range edits(f) {
		f.Add([]byte(e.text(f)))
	}
	f.Add([]byte(base + second))
	f.Add([]byte(base + "policy: [{name: a, action: allow, from: {peers: [east], ids: [\"spiffe://mesh.example/**\"]}, to: {ports: [1-9]}, dryRun: true}]\n"))
	h := testHost(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse("west.yaml", data, h)
		if err == nil {
			checkTaken(t, c)
			return
		}
		es, ok := errors.AsType[Errors](err)
		if !ok || len(es) == 0 || c != nil {
			t.Fatalf("%T %v with %v", err, err, c)
		}
		for _, e := range es {
			if e.Line < 1 || e.Column < 1 || e.Msg == "" || e.File != "west.yaml" {
				t.Errorf("%#v", e)
			}
		}
	})
}

// checkTaken is what must hold of every Config.
func checkTaken(t *testing.T, c *Config) {
	t.Helper()
	if (c.Identity.WorkloadAPI == "") == (c.Identity.Files == nil) {
		t.Errorf("identity %+v", c.Identity)
	}
	if len(c.Peers) == 0 || len(c.Listen.Tunnel) == 0 || c.Listen.Transparent == 0 || c.Name == "" {
		t.Errorf("%+v", c)
	}
	owners := make(map[string]bool)
	for _, n := range c.Networks {
		owners[n.String()] = true
	}
	for _, p := range c.Peers {
		if p.Name == "" || len(p.IDs) == 0 || len(p.Endpoints) == 0 || len(p.Networks) == 0 || p.Inbound.Source == "" || p.Outbound.Unavailable == "" || p.Outbound.Uncarried == "" {
			t.Errorf("%+v", p)
		}
		for _, n := range p.Networks {
			if owners[n.String()] || n != n.Masked() || n.Addr().Is4In6() {
				t.Errorf("network %s of %s", n, p.Name)
			}
			owners[n.String()] = true
		}
	}
	names := make(map[string]bool)
	for _, r := range c.Policy {
		if names[r.Name] || r.Name == "" || r.Action != Allow && r.Action != Deny || r.Line < 1 {
			t.Errorf("%+v", r)
		}
		names[r.Name] = true
		if ids := c.Subjects(r.From); ids != nil && len(ids) == 0 {
			t.Errorf("%+v is about nobody", r)
		}
	}
	if own := c.Routing.Mask &^ c.Routing.Mark; own == 0 || own&(own-1) != 0 || c.Routing.Mark&(c.Routing.Mark-1) != 0 {
		t.Errorf("%+v", c.Routing)
	}
	if c.Timeouts.Connect <= 0 || c.Timeouts.Handshake <= 0 || c.Timeouts.Request <= 0 || c.Keepalive.Idle <= 0 || c.Keepalive.Idle >= flowLife || c.Limits.Memory < leastMemory {
		t.Errorf("%+v %+v %+v", c.Timeouts, c.Keepalive, c.Limits)
	}
}
