package config

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// level is a depth of indentation that is open: that of the keys of a mapping, or
// of the items of a list.
type level struct {
	column int
	items  bool
	line   int  // the last of its entries
	open   bool // that one has no value yet
}

// levels are those that are open, the outermost first.
type levels []level

// aKey is what a line looks like that begins with a key, and whether there is
// nothing behind it.
var aKey = regexp.MustCompile(`^["']?[\w.-]+["']?:(?:[ \t]+(?:#.*)?$|$|[ \t])`)

// crooked finds the first line that is indented like none that it could belong
// to, if there is one. The parser notices too, but says what it made of it, which
// helps nobody. It reads lines, not tokens: those are wrong by then.
func crooked(data []byte) (s *syntax, found bool) {
	var ls levels
	depth, number := 0, 0
	for line := range bytes.Lines(data) {
		number++
		text := strings.TrimRight(string(line), " \t\r\n")
		rest := strings.TrimLeft(text, " ")
		if depth == 0 && rest != "" && rest[0] != '#' {
			if s := ls.read(rest, number, 1+len(text)-len(rest)); s != nil {
				return s, true
			}
		}
		depth = max(0, depth+brackets(rest))
	}
	return nil, false
}

// brackets are how many more of them a line opens than it closes. Those in
// quotes are an address's, and in pairs.
func brackets(line string) int {
	return strings.Count(line, "[") + strings.Count(line, "{") - strings.Count(line, "]") - strings.Count(line, "}")
}

// read takes in a line without its indentation.
func (ls *levels) read(rest string, line, column int) *syntax {
	for rest == "-" || strings.HasPrefix(rest, "- ") {
		after := strings.TrimLeft(rest[1:], " ")
		if s := ls.enter(level{column: column, items: true, line: line, open: true}); s != nil {
			return s
		}
		column += len(rest) - len(after)
		rest = after
	}
	if key := aKey.FindString(rest); key != "" {
		value := strings.TrimSpace(rest[len(key):])
		return ls.enter(level{column: column, line: line, open: value == "" || value[0] == '#'})
	}
	return nil
}

// enter takes in an entry, which belongs to a level that is open, or opens one.
func (ls *levels) enter(e level) *syntax {
	n := len(*ls)
	for n > 0 && e.ends((*ls)[n-1]) {
		n--
	}
	open, ended := (*ls)[:n], (*ls)[n:]
	if n == 0 {
		*ls = append(open, e)
		return nil
	}
	switch top := &open[n-1]; {
	case top.column == e.column && top.items == e.items:
		*top = e
		*ls = open
		return nil
	case len(ended) == 0 && top.open && (e.column > top.column || e.items && !top.items):
		top.open = false
		*ls = append(open, e)
		return nil
	}
	return e.crooked(open, ended)
}

// ends says whether e, in its column, ends a level. The items of a list may stand
// below its key without more indentation.
func (e level) ends(l level) bool {
	return l.column > e.column || l.column == e.column && l.items && !e.items
}

// crooked says what is wrong with e, where some levels stay open, and others would
// end.
func (e level) crooked(open, ended levels) *syntax {
	alike := func(l level) bool { return l.items == e.items }
	var where []string
	if i := slices.IndexFunc(ended, alike); i >= 0 {
		where = append(where, ended[i].place())
	}
	for _, l := range slices.Backward(open) {
		if alike(l) {
			where = append(where, l.place())
			break
		}
	}
	hint := "begin it " + strings.Join(where, ", or ")
	if where == nil {
		hint = "a value stands on the line of its key, or below it"
	}
	return syntaxAt(place{e.line, e.column}, hint, "a %s indented by %d fits none above", e.what(), e.column-1)
}

// what is an entry of l.
func (l level) what() string {
	if l.items {
		return "list item (-)"
	}
	return "key"
}

// place says where the entries of l begin.
func (l level) place() string {
	return fmt.Sprintf("in column %d, as the %s of line %d", l.column, l.what(), l.line)
}
