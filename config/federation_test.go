package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestFederation: files have the roots of one trust domain, which is not written
// here. Peers of a second one need its bundle; with the Workload API the agent may
// have it.
func TestFederation(t *testing.T) {
	const files = "files: {cert: west.pem, key: west.key, bundle: bundle.pem}"
	for _, tc := range []struct{ name, identity, ids, want string }{
		{"one domain, which is ours", files, "spiffe://a.example/1, spiffe://a.example/2", "no mistake"},
		{"two", files, "spiffe://a.example/1, spiffe://b.example/1, spiffe://b.example/2",
			"6:33: peers[0].ids[1]: spiffe://b.example/1 is of another trust domain than a.example (line 6), and identity.files has the bundle of one\n" +
				"hint: one of them is not ours: add its bundle to identity, as federation: [{trustDomain: b.example, bundle: b.example.pem}]\n"},
		{"two, one of them federated", files + ", federation: [{trustDomain: b.example, bundle: b.pem}]", "spiffe://a.example/1, spiffe://b.example/1", "no mistake"},
		{"federated only", files + ", federation: [{trustDomain: b.example, bundle: b.pem}]", "spiffe://b.example/1", "no mistake"},
		{"a mistake is told once", files + ", federation: [{trustDomain: B.example, bundle: b.pem}]", "spiffe://a.example/1, spiffe://b.example/1",
			"2:99: identity.federation[0].trustDomain: \"B.example\" is no trust domain: trust domain characters are limited to lowercase letters, numbers, dots, dashes, and underscores\n" +
				"hint: write it as partner.example\n"},
		{"two, by the Workload API", "workloadAPI: unix:///run/agent.sock", "spiffe://a.example/1, spiffe://b.example/1", "no mistake"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			text := strings.NewReplacer("workloadAPI: unix:///run/agent.sock", tc.identity, "spiffe://mesh.example/gateway/east", tc.ids).Replace(base)
			_, err := parseHere(t, text)
			if diff := cmp.Diff(tc.want, shown(t, err)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
