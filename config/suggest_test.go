package config

import "testing"

func TestDistance(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"peers", "peers", 0},
		{"peer", "peers", 1}, {"peerss", "peers", 1}, {"pears", "peers", 1}, {"preers", "peers", 1},
		{"epers", "peers", 1}, {"netwroks", "networks", 1}, {"kitten", "sitting", 3}, {"abc", "xyz", 3},
	} {
		if got := distance(tc.a, tc.b); got != tc.want {
			t.Errorf("from %q to %q it is %d, want %d", tc.a, tc.b, got, tc.want)
		}
		if got := distance(tc.b, tc.a); got != tc.want {
			t.Errorf("from %q to %q it is %d, want %d", tc.b, tc.a, got, tc.want)
		}
	}
}

func TestNearest(t *testing.T) {
	words := []string{"networks", "name", "limits", "listen"}
	for text, want := range map[string]string{
		"network": "networks", "NETWORKS": "networks", "nmae": "name", "limit": "limits", "lim": "limits",
		"listeners": "listen", "colour": "", "x": "", "": "", "li": "",
	} {
		if got := nearest(text, words); got != want {
			t.Errorf("%q is nearest to %q, want %q", text, got, want)
		}
	}
}
