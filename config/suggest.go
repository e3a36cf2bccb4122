package config

import (
	"slices"
	"strings"
)

// suggestKey says what name, which is no key of the mapping at path, may have
// been meant for: a key here, the same key one level down or elsewhere, or any of
// those here.
func suggestKey(path, name string, keys []key) string {
	var here []string
	for _, k := range keys {
		here = append(here, k.name)
	}
	if near := nearest(name, here); near != "" {
		return "did you mean " + near + "?"
	}
	if below := whereBelow(name, keys); below != "" {
		return name + " belongs under " + below
	}
	switch elsewhere, found := whereIs(name); {
	case !found || elsewhere == path:
	case elsewhere == "":
		return name + " belongs at the top, not indented"
	default:
		return name + " belongs under " + elsewhere
	}
	return "the keys here are " + names(keys)
}

// whereBelow finds those of keys that are mappings with a key called name.
func whereBelow(name string, keys []key) string {
	var below []string
	for _, k := range keys {
		if k.keys != nil && slices.ContainsFunc(k.keys(), func(k key) bool { return k.name == name }) {
			below = append(below, k.name)
		}
	}
	return strings.Join(below, " or ")
}

// whereIs finds the mapping that has a key called name; of several, the first.
func whereIs(name string) (parent string, found bool) {
	walk(schema(new(Config), "", host{cores: 1}), "", func(path string, k key) {
		if k.name == name && !found {
			parent, found = path[:max(0, strings.LastIndexByte(path, '.'))], true
		}
	})
	return parent, found
}

// walk calls visit with every key there is, a mapping before what is in it. In
// paths, peers[] stands for any of the peers.
func walk(keys []key, path string, visit func(path string, k key)) {
	for _, k := range keys {
		here := join(path, k.name)
		visit(here, k)
		if k.keys != nil {
			walk(k.keys(), here, visit)
		}
		if k.each != nil {
			walk(k.each(), here+"[]", visit)
		}
	}
}

// nearest is the word that text is most likely a slip for, or empty: at most a
// third of it may be wrong, or one is the beginning of the other.
func nearest(text string, words []string) string {
	best, near := len(text)/3+1, ""
	for _, w := range words {
		if len(text) > 2 && (strings.HasPrefix(w, text) || strings.HasPrefix(text, w)) {
			return w
		}
		if len(text) > 2*len(w)+2 {
			continue // no slip; and it may be as long as the file
		}
		if d := distance(strings.ToLower(text), strings.ToLower(w)); d < best {
			best, near = d, w
		}
	}
	return near
}

// distance is how many characters must be put in, taken out, replaced or swapped
// with the next to make b of a (optimal string alignment).
func distance(a, b string) int {
	before, row := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		twoBefore := before
		before, row = row, slices.Repeat([]int{i + 1}, len(b)+1)
		for j := range len(b) {
			change := before[j]
			if a[i] != b[j] {
				change++
			}
			row[j+1] = min(change, before[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], twoBefore[j-1]+1)
			}
		}
	}
	return row[len(b)]
}
