package daemon

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"testing"
)

// FuzzAdmin: whatever is asked for at the admin socket, the answer is an
// explanation or that it was no question.
func FuzzAdmin(f *testing.F) {
	for _, q := range []string{
		"source=10.2.4.1&target=10.1.9.9:5432", "source=[fd00:2::2]:1&target=[fd00:1::9]:80", "source=10.1.0.9&target=10.2.0.2:22",
		"source=10.2.4.1&target=10.1.0.1:15008", "source=::ffff:10.2.4.1&target=[::ffff:10.1.9.9]:80", "source=fe80::1%25eth0&target=[fe80::2%25eth0]:80",
		"source=10.2.4.1&target=10.1.9.9:23&as=spiffe://mesh.example/gateway/east", "source=10.2.4.1&target=10.1.9.9:23&as=spiffe://mesh.example/gateway/stranger",
		"source=10.2.4.1&target=10.1.9.9:0&as=spiffe://mesh.example", "source=&target=&as=", "%zz;source", "",
	} {
		f.Add(q)
	}
	d := explaining(f, parse(f, ruledText))
	f.Fuzz(func(t *testing.T, query string) {
		w := httptest.NewRecorder()
		d.answerExplain(w, &http.Request{Method: http.MethodGet, URL: &url.URL{Path: "/explain", RawQuery: query}})
		if w.Code == http.StatusBadRequest && w.Body.Len() > 1 {
			return
		}
		var e Explanation
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code != http.StatusOK {
			t.Fatalf("%d %s: %v", w.Code, w.Body, err)
		}
		if e.Verdict == "" || len(e.Steps) == 0 || slices.Contains(e.Steps, "") || !e.Target.IsValid() || !e.Source.IsValid() {
			t.Errorf("%+v", e)
		}
	})
}
