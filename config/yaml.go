package config

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds on a file, above any that serves a purpose: 20000 rules of policy, or
// 130000 networks, fit. The lexer makes some 250 bytes of each sign; the parser
// recurses without a bound of its own, and takes time by the square of the keys of
// a mapping.
const (
	maxFile   = 4 << 20 // bytes
	maxSigns  = 1 << 20 // brackets, commas, colons, ends of lines and so on
	maxPairs  = 512     // keys of one mapping
	maxFlow   = 16      // [ and { within each other
	maxIndent = 100     // columns; a level of nesting takes one at least
)

// kind is what a node is.
type kind int

const (
	empty   kind = iota // null, or nothing at all
	scalar              // anything else on its own; numbers are text, too
	list                // of items
	mapping             // of pairs
)

// String says what a node is, in messages.
func (k kind) String() string {
	return [...]string{"nothing", "a single value", "a list", "a mapping"}[k]
}

// node is a value of the file. All that we know of YAML ends here.
type node struct {
	kind  kind
	text  string // of a scalar, without quotes
	items []*node
	pairs []pair
	at    place
}

// pair is a key of a mapping, with its value.
type pair struct {
	key   string
	at    place // of the key
	value *node
}

// place is where something stands in the file; both count from 1.
type place struct{ line, column int }

// syntax is a mistake that makes the file unreadable as a whole.
type syntax struct {
	mistake
	at place
}

// in makes an Error of s.
func (s *syntax) in(file string) *Error {
	return &Error{File: file, Line: s.at.line, Column: s.at.column, Msg: s.msg, Hint: s.hint}
}

// parseYAML reads one document, in the subset of YAML 1.2 that configurations
// need. Anchors, aliases, merges and tags are not in it: with them a line of the
// file would stand for several keys, and a short file could grow without bound.
func parseYAML(data []byte) (*node, *syntax) {
	if s := checkBytes(data); s != nil {
		return nil, s
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // a byte order mark
	return survive(func() (*node, *syntax) {
		tokens := lexer.Tokenize(string(data))
		if s := checkTokens(tokens); s != nil {
			return nil, straightened(s, data)
		}
		// Duplicate keys are ours to find: we know the line of the first.
		file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
		if err != nil {
			return nil, straightened(syntaxOf(err, data), data)
		}
		for _, doc := range file.Docs {
			if doc.Body != nil {
				return convert(doc.Body)
			}
		}
		return nil, syntaxAt(place{1, 1}, "it begins with version: 1", "the file is empty")
	})
}

// survive makes a mistake of a panic. The parser is not ours, and a file that is
// read again while the gateway runs must not end all that it carries.
func survive(read func() (*node, *syntax)) (n *node, s *syntax) {
	defer func() {
		if failure := recover(); failure != nil {
			n, s = nil, syntaxAt(place{1, 1}, "", "the YAML parser failed: %v", failure)
		}
	}()
	return read()
}

func syntaxAt(at place, hint, format string, args ...any) *syntax {
	return &syntax{mistake: *wrong(hint, format, args...), at: at}
}

// checkBytes refuses what is too long, and what is no text.
func checkBytes(data []byte) *syntax {
	if len(data) > maxFile {
		return syntaxAt(place{1, 1}, "", "the file is longer than 4MiB")
	}
	at, signs := place{1, 1}, 0
	for len(data) > 0 {
		c, size := utf8.DecodeRune(data)
		if isSign(data) {
			signs++
		}
		switch {
		case signs > maxSigns:
			return syntaxAt(at, "", "the file has more than %d signs", maxSigns)
		case c == utf8.RuneError && size == 1:
			return syntaxAt(at, "save the file as UTF-8", "byte 0x%02x is not UTF-8", data[0])
		case c == 0:
			return syntaxAt(at, "", "the file has a NUL byte")
		case c == '\n':
			at = place{at.line + 1, 1}
		default:
			at.column++
		}
		data = data[size:]
	}
	return nil
}

// isSign says whether data begins with what may part two tokens. There are at most
// twice as many of these, and one.
func isSign(data []byte) bool {
	if data[0] == ':' || data[0] == '-' { // within a word they are nothing
		return len(data) == 1 || data[1] <= ' '
	}
	return strings.IndexByte("\n,[]{}\"'#&*!|>?%@`", data[0]) >= 0
}

// unsupported are the parts of YAML that are not in our subset, and what to do.
var unsupported = map[token.Type]struct{ what, hint string }{
	token.AnchorType:     {"an anchor (&)", "write the value wherever it is meant"},
	token.AliasType:      {"an alias (*)", "write the value wherever it is meant, or quote it if it is text"},
	token.MergeKeyType:   {"a merge (<<)", "write the keys wherever they are meant"},
	token.TagType:        {"a tag (!)", "remove it, or quote it if it is text"},
	token.MappingKeyType: {"a complex key (?)", "write key: value"},
	token.DirectiveType:  {"a directive (%)", "remove it"},
	token.LiteralType:    {"a block of text (|)", "write it on one line"},
	token.FoldedType:     {"a block of text (>)", "write it on one line"},
}

// checkTokens refuses what is not in our subset, and what nests or goes on so
// that the parser could not bear it.
func checkTokens(tokens token.Tokens) *syntax {
	var seen seen
	for _, t := range tokens {
		if s := seen.next(t); s != nil {
			return s
		}
	}
	return nil
}

// seen is what checkTokens knows of the tokens before.
type seen struct {
	content bool    // anything but comments
	ended   bool    // the document
	opened  place   // the outermost bracket that is open
	flow    []int   // the keys in each bracket that is open
	block   []pairs // those of each mapping outside of brackets that is
}

// pairs are the keys of a mapping so far, which all begin in one column.
type pairs struct{ column, keys int }

// next checks t.
func (s *seen) next(t *token.Token) *syntax {
	at := placeOf(t)
	if u, found := unsupported[t.Type]; found {
		return syntaxAt(at, u.hint, "%s is not supported here", u.what)
	}
	switch t.Type {
	case token.InvalidType:
		return syntaxAt(at, hintFor(t.Error, ""), "%s", t.Error)
	case token.CommentType:
		return nil
	case token.DocumentHeaderType, token.DocumentEndType:
		s.ended = s.ended || s.content || t.Type == token.DocumentEndType
		return nil
	}
	s.content = true
	keys := s.count(t)
	depth := len(s.flow)
	switch {
	case s.ended:
		return syntaxAt(at, "write one file for each gateway", "a second document is not supported here")
	case depth > maxFlow, depth == 0 && indent(t) > maxIndent:
		return syntaxAt(at, "", "nested too deeply")
	case depth > 0 && t.Type == token.SequenceEntryType: // YAML 1.2.2 §7.4
		return syntaxAt(s.opened, "close it, and write commas between items in it", "the bracket is still open at the list item (-) on line %d", at.line)
	case keys > maxPairs:
		return syntaxAt(at, "", "a mapping has more than %d keys", maxPairs)
	}
	return nil
}

// count counts what t opens, closes or is. If it is a key, it tells how many its
// mapping has by now.
func (s *seen) count(t *token.Token) (keys int) {
	switch t.Type {
	case token.SequenceStartType, token.MappingStartType:
		if len(s.flow) == 0 {
			s.opened = placeOf(t)
		}
		s.flow = append(s.flow, 0)
	case token.SequenceEndType, token.MappingEndType:
		s.flow = s.flow[:max(0, len(s.flow)-1)]
	case token.MappingValueType:
		if depth := len(s.flow); depth > 0 {
			s.flow[depth-1]++
			return s.flow[depth-1]
		}
		s.leave(indent(t))
		if last := len(s.block) - 1; last < 0 || s.block[last].column < indent(t) {
			s.block = append(s.block, pairs{column: indent(t)})
		}
		last := &s.block[len(s.block)-1]
		last.keys++
		return last.keys
	case token.SequenceEntryType:
		s.leave(indent(t))
	}
	return 0
}

// leave ends the mappings that stand further in than a column.
func (s *seen) leave(column int) {
	for len(s.block) > 0 && s.block[len(s.block)-1].column > column {
		s.block = s.block[:len(s.block)-1]
	}
}

// indent is the column of a list item or a key, and 0 for all else: only those
// nest outside of brackets.
func indent(t *token.Token) int {
	switch {
	case t.Type == token.SequenceEntryType:
		return t.Position.Column
	case t.Type == token.MappingValueType && t.Prev != nil:
		return t.Prev.Position.Column
	}
	return 0
}

// placeOf is where t stands. The lexer is at times off by one at line ends.
func placeOf(t *token.Token) place {
	return place{max(1, t.Position.Line), max(1, t.Position.Column)}
}

// syntaxOf makes ours of the parser's error.
func syntaxOf(err error, data []byte) *syntax {
	e, ok := errors.AsType[yaml.Error](err)
	if !ok || e.GetToken() == nil {
		return syntaxAt(place{1, 1}, "", "not YAML: %v", err)
	}
	at := placeOf(e.GetToken())
	return syntaxAt(at, hintFor(e.GetMessage(), lineOf(data, at.line)), "%s", e.GetMessage())
}

// straightened is s, or the indentation that led to it. The parser may notice at
// the end of the line before.
func straightened(s *syntax, data []byte) *syntax {
	if cause, found := crooked(data); found && cause.at.line <= s.at.line+1 {
		return cause
	}
	return s
}

// noSpace is a key with its value right behind the colon.
var noSpace = regexp.MustCompile(`^[ -]*[A-Za-z]+:[^ /]`)

// bracketed is an IPv6 address with a port, which YAML takes for a list.
var bracketed = regexp.MustCompile(`\[[0-9a-fA-F:.]*\]:[0-9]`)

// hintFor knows the mistakes that people make most.
func hintFor(msg, line string) string {
	switch {
	case strings.Contains(msg, "\t"), strings.Contains(msg, "tab character"):
		return "indent with spaces"
	case bracketed.MatchString(line):
		return `quote an address that has brackets: "[::]:15008"`
	case noSpace.MatchString(line):
		return "write a space after the colon"
	case strings.Contains(msg, "mapping value is not allowed"):
		return "quote a value that has a colon in it"
	}
	return ""
}

// lineOf is a line of data, counting from 1, or empty.
func lineOf(data []byte, n int) string {
	for range n - 1 {
		_, data, _ = bytes.Cut(data, []byte("\n"))
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	return string(line)
}

// convert makes our tree of the parser's.
func convert(n ast.Node) (*node, *syntax) {
	at := placeOf(n.GetToken())
	switch n := n.(type) {
	case *ast.NullNode:
		return &node{kind: empty, at: at}, nil
	case *ast.StringNode:
		return &node{kind: scalar, text: n.Value, at: at}, nil
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		// The text as written: 010 is not 8, nor 1_000 a thousand.
		return &node{kind: scalar, text: n.GetToken().Value, at: at}, nil
	case *ast.SequenceNode:
		return convertList(n, at)
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			at = placeOf(n.Values[0].Key.GetToken()) // the parser says the colon
		}
		return convertMapping(n.Values, at)
	}
	return nil, syntaxAt(at, "", "%s is not supported here", strings.ToLower(n.Type().YAMLName()))
}

func convertList(n *ast.SequenceNode, at place) (*node, *syntax) {
	l := &node{kind: list, at: at}
	for _, v := range n.Values {
		item, s := convert(v)
		if s != nil {
			return nil, s
		}
		l.items = append(l.items, item)
	}
	return l, nil
}

func convertMapping(values []*ast.MappingValueNode, at place) (*node, *syntax) {
	m := &node{kind: mapping, at: at}
	for _, v := range values {
		key, s := convert(v.Key)
		if s != nil {
			return nil, s
		}
		if key.kind != scalar {
			return nil, syntaxAt(key.at, "", "a key must be a word")
		}
		value, s := convert(v.Value)
		if s != nil {
			return nil, s
		}
		m.pairs = append(m.pairs, pair{key: key.text, at: key.at, value: value})
	}
	return m, nil
}

// mustYAML parses what stands in our own code.
func mustYAML(text string) *node {
	n, s := parseYAML([]byte(text))
	if s != nil {
		panic(fmt.Sprintf("BUG: default %q: %s", text, s.msg))
	}
	return n
}

// moved puts n, and all that is in it, at one place.
func (n *node) moved(at place) *node {
	n.at = at
	for _, item := range n.items {
		item.moved(at)
	}
	return n
}
