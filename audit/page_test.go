package audit

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestPage holds the page against the code: every event is there, with an example
// that is as it would be written, and every field in the order of the code.
func TestPage(t *testing.T) {
	data, err := os.ReadFile("../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	var have []Event
	for _, m := range regexp.MustCompile("(?m)^### ([a-z_]+)$").FindAllStringSubmatchIndex(page, -1) {
		e := Event(page[m[2]:m[3]])
		have = append(have, e)
		section, _, _ := strings.Cut(page[m[1]:], "\n#")
		_, example, found := strings.Cut(section, "```json\n")
		line, _, closed := strings.Cut(example, "```")
		if !found || !closed {
			t.Errorf("%s has no example", e)
			continue
		}
		var r Record
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&r); err != nil || r.Event != e || !bytes.Equal(r.appendJSON(nil), []byte(line)) {
			t.Errorf("the example of %s would be written as %s (%v)", e, r.appendJSON(nil), err)
		}
	}
	if !slices.Equal(have, Events()) {
		t.Errorf("events on the page %v, want %v", have, Events())
	}
	var fields, want []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| .+ \\|$").FindAllStringSubmatch(page, -1) {
		fields = append(fields, m[1])
	}
	for f := range reflect.TypeFor[Record]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		want = append(want, name)
	}
	if !slices.Equal(fields, want) {
		t.Errorf("fields on the page %v, want %v", fields, want)
	}
}
