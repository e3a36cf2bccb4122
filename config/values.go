package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// one reads a single value into to.
func one[T any](to *T, read func(string) (T, *mistake)) func(value) {
	return func(v value) {
		if got, m := single(v, read); m != nil {
			v.fail(m)
		} else {
			*to = got
		}
	}
}

// single reads v, which must be a single value.
func single[T any](v value, read func(string) (T, *mistake)) (got T, m *mistake) {
	switch {
	case v.kind != scalar:
		return got, wrong("", "is %s where a single value is expected", v.kind)
	case strings.ContainsFunc(v.text, unicode.IsControl):
		return got, wrong("", "%s has a control character", quote(v.text))
	}
	return read(v.text)
}

// many reads a list of values, no two alike, into to. Items with a mistake are
// zero there, so that those after them keep their numbers.
func many[T comparable](to *[]T, read func(string) (T, *mistake)) func(value) {
	return func(v value) {
		switch v.kind {
		case scalar:
			v.fail(wrong(hintForList(v, read), "is a single value where a list is expected"))
		case mapping:
			v.fail(wrong("", "is a mapping where a list is expected"))
		}
		first := make(map[T]place)
		for i, item := range v.items {
			got, m := single(v.item(i), read)
			at, twice := first[got]
			switch {
			case m != nil:
				v.item(i).fail(withoutColon(item, m, read))
			case twice:
				v.item(i).fail(wrong("remove one of them", "%v is there twice, first on line %d", got, at.line))
			default:
				first[got] = item.at
			}
			*to = append(*to, got)
		}
	}
}

// withoutColon is the mistake m with a hint, where YAML takes numbers with a colon
// between them for a mapping: 8000:8100.
func withoutColon[T any](n *node, m *mistake, read func(string) (T, *mistake)) *mistake {
	if n.kind == mapping && len(n.pairs) == 1 {
		if _, really := read(n.pairs[0].key + ":" + n.pairs[0].value.text); really != nil {
			return wrong(really.hint, "%s", m.msg)
		}
	}
	return m
}

// hintForList says how the single value v is written as a list.
func hintForList[T any](v value, read func(string) (T, *mistake)) string {
	_, m := single(v, read)
	switch {
	case m == nil:
		return "write [" + word(v.text) + "]"
	case m.hint == "":
		return "write a list, in brackets"
	}
	return "put brackets around it, and " + m.hint
}

// word is text as it can stand in a file, within brackets too.
func word(text string) string {
	if strings.ContainsAny(text, "[]{},\"'#") {
		return strconv.Quote(text)
	}
	return text
}

// offOr is read, and "off" is zero.
func offOr[T any](read func(string) (T, *mistake)) func(string) (T, *mistake) {
	return func(text string) (got T, m *mistake) {
		switch text {
		case "off":
			return got, nil
		case "false", "no", "none", "null":
			return got, wrong("write off", "%s is not how to turn it off", text)
		}
		return read(text)
	}
}

// among takes one of a few words.
func among[T ~string](words ...T) func(string) (T, *mistake) {
	return func(text string) (T, *mistake) {
		if slices.Contains(words, T(text)) {
			return T(text), nil
		}
		var all []string
		for _, w := range words {
			all = append(all, string(w))
		}
		hint := ""
		if near := nearest(text, all); near != "" {
			hint = "did you mean " + near + "?"
		}
		return "", wrong(hint, "%s is none of %s", quote(text), strings.Join(all, ", "))
	}
}

// whether says whether a word is yes or no.
func whether(yes, no string) func(string) (bool, *mistake) {
	read := among(no, yes)
	return func(text string) (bool, *mistake) {
		got, m := read(text)
		return got == yes, m
	}
}

// number reads a whole decimal number between least and most.
func number[T int | uint16 | uint32](least, most uint64) func(string) (T, *mistake) {
	return func(text string) (T, *mistake) {
		n, m := digits(text, 10)
		if m == nil && (n < least || n > most) {
			m = wrong("", "%s is not between %d and %d", text, least, most)
		}
		if m != nil {
			return 0, m
		}
		return T(n), nil
	}
}

// mark reads 32 bits, in hexadecimal with 0x or in decimal.
func mark(text string) (uint32, *mistake) {
	hex, found := strings.CutPrefix(strings.ToLower(text), "0x")
	n, m := digits(text, 10)
	if found {
		n, m = digits(hex, 16)
	}
	switch {
	case m != nil:
		return 0, wrong("write 32 bits as 0x08000000, or a decimal number", "%s is no mark", quote(text))
	case n == 0 || n > 1<<32-1:
		return 0, wrong("", "%s is not between 1 and 0xffffffff", text)
	}
	return uint32(n), nil
}

// digits reads nothing but digits. A zero before others could be meant as octal.
func digits(text string, base int) (uint64, *mistake) {
	n, err := strconv.ParseUint(text, base, 64)
	switch {
	case err != nil:
		return 0, wrong("", "%s is no whole number", quote(text))
	case base == 10 && len(text) > 1 && text[0] == '0':
		return 0, wrong("write "+strconv.FormatUint(n, 10), "%s begins with a zero", text)
	}
	return n, nil
}

// version is that of the format.
func version(text string) (int, *mistake) {
	if text != "1" {
		return 0, wrong("write version: 1", "%s is not a version that is supported here", quote(text))
	}
	return 1, nil
}

// maxName is the longest name of a gateway, in bytes: that of a label in DNS.
const maxName = 63

// nameRune says whether c may be in a name. Names become labels of metrics and
// words of log lines, which never need quotes then.
func nameRune(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
}

// name reads a gateway's name.
func name(text string) (string, *mistake) {
	bad := strings.IndexFunc(text, func(c rune) bool { return !nameRune(c) })
	switch {
	case text == "":
		return "", wrong("", "is empty")
	case len(text) > maxName:
		return "", wrong("", "is longer than %d characters", maxName)
	case bad >= 0:
		return "", wrong(fmt.Sprintf("write %s", fitName(text)), "%s is no name: only a-z, 0-9, -, _ and . may be in one", quote(text))
	case strings.ContainsRune("-_.", rune(text[0])):
		return "", wrong("", "%s does not begin with a letter or a digit", quote(text))
	}
	return text, nil
}
