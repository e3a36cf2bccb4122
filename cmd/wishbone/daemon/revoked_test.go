package daemon

import (
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/identity/authz"
)

// TestExplainRevoked: what a revoked SPIFFE ID would bring is refused for that, and
// so is what would go to a peer that has no other.
func TestExplainRevoked(t *testing.T) {
	const standby = "spiffe://mesh.example/gateway/east/standby"
	one := "revoked: {ids: [" + standby + ", spiffe://mesh.example/web/south]}\n"
	for _, tt := range []struct {
		revoked, as, source, target string
		verdict                     string
		reason                      authz.Reason
		because                     string
	}{
		{"", standby, "10.2.5.1", "10.1.9.9:80", "delivered to 10.1.9.9:80", "", "it is permitted"},
		{one, standby, "10.2.5.1", "10.1.9.9:80", "refused", "revoked", standby + " is in revoked.ids"},
		{one, "", "10.2.5.1", "10.1.9.9:80", "delivered to 10.1.9.9:80", "", "as " + standby + " it would be otherwise"},
		{one, "", "10.3.0.1", "10.1.9.9:80", "refused", "revoked", "web/south is in revoked.ids"},
		{one, "", "10.1.0.9", "10.2.0.1:80", "carried to east", "", "captured, and carried to peer east"},
		{one, "", "10.1.0.9", "10.3.0.1:80", "refused", "revoked", "every id of peer south is in revoked.ids"},
	} {
		d := explaining(t, parse(t, ruledText+tt.revoked))
		source, err := ParseSource(tt.source)
		if err != nil {
			t.Fatal(err)
		}
		target, err := ParseSource(tt.target)
		if err != nil {
			t.Fatal(err)
		}
		e := d.Explain(source, target)
		if tt.as != "" {
			e = d.ExplainAs(spiffeid.RequireFromString(tt.as), source, target)
		}
		if e.Verdict != tt.verdict || e.Reason != tt.reason {
			t.Errorf("%+v: %s (%s)", tt, e.Verdict, e.Reason)
		}
		if !slices.ContainsFunc(e.Steps, func(s string) bool { return strings.Contains(s, tt.because) }) {
			t.Errorf("%+v: %q", tt, e.Steps)
		}
	}
}
