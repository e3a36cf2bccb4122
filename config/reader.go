package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// key is one key that a mapping may have. It is one of three: a value (read), a
// mapping (keys), or a list of mappings (each).
type key struct {
	name string
	// kind is its type, in words.
	kind string
	// def is the default as it would stand in the file, read when the key is
	// absent. Empty means none.
	def string
	// words say on the reference page what def is, where that depends on the host.
	words string
	// must says that the key may not be absent, nor an empty list.
	must bool
	// example is what the hint shows of a key that is not there.
	example string

	read func(value)
	keys func() []key
	each func() []key // called once for each item, in order

	// optional says that an absent mapping has no defaults either.
	optional bool
}

// value is a node with its path, and what to tell mistakes to.
type value struct {
	*node
	r    *reader
	path string
	// absent says that it is a default, and stands nowhere in the file.
	absent bool
}

// item is the ith of the list v. Where it stands is kept for later checks.
func (v value) item(i int) value {
	here := value{node: v.items[i], r: v.r, path: index(v.path, i), absent: v.absent}
	if !v.absent {
		v.r.at[here.path] = here.node.at
	}
	return here
}

// fail notes a mistake in v.
func (v value) fail(m *mistake) { v.r.note(v.path, v.at, m) }

// reader goes through a file along a table of keys. It notes mistakes and goes
// on.
type reader struct {
	file string
	root place
	at   map[string]place // of each key that stands in the file, or of its single value, and of each item
	errs Errors
}

func newReader(file string, root place) *reader {
	return &reader{file: file, root: root, at: make(map[string]place)}
}

// note adds a mistake. Too many are not worth reading.
func (r *reader) note(path string, at place, m *mistake) {
	switch {
	case len(r.errs) < maxErrors:
		r.errs = append(r.errs, &Error{File: r.file, Line: at.line, Column: at.column, Path: path, Msg: m.msg, Hint: m.hint})
	case len(r.errs) == maxErrors:
		r.errs = append(r.errs, &Error{File: r.file, Line: at.line, Column: at.column, Msg: fmt.Sprintf("more than %d mistakes; the rest is left out", maxErrors)})
	}
}

// full says that no more mistakes will be told.
func (r *reader) full() bool { return len(r.errs) > maxErrors }

// fail notes a mistake where path stands.
func (r *reader) fail(path string, m *mistake) { r.note(path, r.where(path), m) }

// has says whether path stands in the file.
func (r *reader) has(path string) bool {
	_, found := r.at[path]
	return found
}

// bad says whether there is a mistake at path, or in what it holds.
func (r *reader) bad(path string) bool {
	return slices.ContainsFunc(r.errs, func(e *Error) bool {
		rest, found := strings.CutPrefix(e.Path, path)
		return found && (rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

// where is the place of path, or the beginning where the file does not have it.
func (r *reader) where(path string) place {
	if at, found := r.at[path]; found {
		return at
	}
	return r.root
}

// line is the line of path, in words.
func (r *reader) line(path string) string {
	if !r.has(path) {
		return "the default"
	}
	return fmt.Sprintf("line %d", r.where(path).line)
}

// mapping reads n, which stands at path, along keys.
func (r *reader) mapping(path string, n *node, keys []key) {
	if n.kind != mapping {
		r.note(path, n.at, wrong("the keys here are "+names(keys), "is %s where a mapping is expected", n.kind))
		return
	}
	found := make(map[string]place)
	for _, p := range n.pairs {
		here := join(path, p.key)
		k := slices.IndexFunc(keys, func(k key) bool { return k.name == p.key })
		first, twice := found[p.key]
		switch {
		case k < 0 && r.full():
			return // to find what was meant takes time
		case k < 0:
			r.note(here, p.at, wrong(suggestKey(path, p.key, keys), "unknown key"))
		case twice:
			r.note(here, p.at, wrong("keep one of them", "is there twice, first on line %d", first.line))
		default:
			found[p.key] = p.at
			r.at[here] = p.at
			if p.value.kind == scalar {
				r.at[here] = p.value.at
			}
			r.value(here, p.value, keys[k])
		}
	}
	for _, k := range keys {
		if _, there := found[k.name]; !there {
			r.absent(join(path, k.name), n.at, k)
		}
	}
}

// value reads what stands at path as k.
func (r *reader) value(path string, n *node, k key) {
	switch {
	case n.kind == empty:
		r.note(path, n.at, wrong(hintForEmpty(k), "has no value"))
	case k.must && n.kind == list && len(n.items) == 0:
		r.note(path, n.at, wrong("write "+k.example, "is an empty list"))
	case k.keys != nil:
		r.mapping(path, n, k.keys())
	case k.each != nil:
		r.mappings(path, n, k)
	default:
		k.read(value{node: n, r: r, path: path})
	}
}

// mappings reads a list of them.
func (r *reader) mappings(path string, n *node, k key) {
	if n.kind != list {
		r.note(path, n.at, wrong("write "+k.example, "is %s where a list is expected", n.kind))
		return
	}
	for i, item := range n.items {
		here := index(path, i)
		r.at[here] = item.at
		r.mapping(here, item, k.each())
	}
}

// absent gives k its default. Mistakes in a default are the host's: they are
// told where the mapping stands that could have the key.
func (r *reader) absent(path string, at place, k key) {
	switch {
	case k.must:
		r.note(path, at, wrong("add "+k.example, "is missing"))
	case k.keys != nil && !k.optional:
		r.mapping(path, &node{kind: mapping, at: at}, k.keys())
	case k.def != "":
		k.read(value{node: mustYAML(k.def).moved(at), r: r, path: path, absent: true})
	}
}

func hintForEmpty(k key) string {
	if k.must {
		return "write " + k.example
	}
	return "give it one, or remove the key"
}

// join is the path of a key in the mapping at path.
func join(path, name string) string {
	if strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c == '.' || c > '~' }) || len(name) > 60 || name == "" {
		name = quote(name)
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

// index is the path of an item of the list at path.
func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// names lists keys.
func names(keys []key) string {
	var s []string
	for _, k := range keys {
		s = append(s, k.name)
	}
	return strings.Join(s, ", ")
}
