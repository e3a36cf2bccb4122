package config

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// page is the reference page.
func page(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// row is a key on the page.
type row struct{ Path, Kind, Default string }

// rows reads the tables of the page; examples are by path.
func rows(t *testing.T) (all []row, examples map[string]string) {
	t.Helper()
	examples = make(map[string]string)
	for line := range strings.Lines(page(t)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 7 || !strings.HasPrefix(cells[1], " `") {
			continue
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		path := strings.Trim(cells[1], "`")
		all = append(all, row{path, cells[2], cells[3]})
		examples[path] = strings.Trim(cells[4], "`")
	}
	return all, examples
}

// rowOf is how the page must have k.
func rowOf(path string, k key) row {
	r := row{path, k.kind, "—"}
	switch {
	case k.keys != nil:
		r.Kind = "mapping"
	case k.each != nil:
		r.Kind = "list of mappings"
	}
	switch {
	case k.must:
		r.Default = "required"
	case k.words != "":
		r.Default = k.words
	case k.def != "":
		r.Default = "`" + k.def + "`"
	}
	return r
}

func TestPageHasEveryKey(t *testing.T) {
	var want []row
	walk(schema(new(Config), "", testHost(t)), "", func(path string, k key) {
		want = append(want, rowOf(path, k))
	})
	got, _ := rows(t)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the page is not what the code is (-code +page):\n%s", diff)
	}
}

func TestPageExamplesAreRead(t *testing.T) {
	_, examples := rows(t)
	walk(schema(new(Config), "", testHost(t)), "", func(path string, k key) {
		if k.read == nil {
			return
		}
		if examples[path] == "" {
			t.Errorf("%s has no example", path)
			return
		}
		r := newReader("example", place{1, 1})
		r.value(path, mustYAML(examples[path]), k)
		if len(r.errs) > 0 {
			t.Errorf("the example of %s: %v", path, r.errs)
		}
	})
}

func TestPageFilesAreWhole(t *testing.T) {
	seen := make(map[string]bool)
	files := 0
	for part := range strings.SplitSeq(page(t), "```yaml\n") {
		text, _, found := strings.Cut(part, "```")
		if !found {
			continue
		}
		files++
		root, s := parseYAML([]byte(text))
		if s != nil {
			t.Fatal(s.in("example"))
		}
		c := new(Config)
		r := newReader("example", root.at)
		r.mapping("", root, schema(c, "", testHost(t)))
		check(c, r)
		if len(r.errs) > 0 {
			t.Errorf("example %d: %v", files, r.errs)
		}
		for path := range r.at {
			seen[strings.NewReplacer("peers[0]", "peers[]", "policy[0]", "policy[]", "federation[0]", "federation[]").Replace(path)] = true
		}
	}
	if files != 4 {
		t.Errorf("%d files on the page", files)
	}
	walk(schema(new(Config), "", testHost(t)), "", func(path string, k key) {
		if !seen[path] {
			t.Errorf("%s is in no example", path)
		}
	})
}

// TestHintsOfExamples holds what hints say of keys that are not there to what
// can be read.
func TestHintsOfExamples(t *testing.T) {
	walk(schema(new(Config), "", testHost(t)), "", func(path string, k key) {
		if !k.must {
			return
		}
		text, found := strings.CutPrefix(k.example, k.name+": ")
		if !found {
			t.Errorf("%s has the example %q", path, k.example)
		}
		if k.read == nil {
			return
		}
		r := newReader("example", place{1, 1})
		r.value(path, mustYAML(text), k)
		if len(r.errs) > 0 {
			t.Errorf("the example of %s: %v", path, r.errs)
		}
	})
}
