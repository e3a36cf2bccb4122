package config

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// maxErrors is how many mistakes are told. Beyond that they are not read.
const maxErrors = 100

// Error is one mistake in a file.
type Error struct {
	File string
	// Line and Column count from 1; columns are characters, not bytes.
	Line, Column int
	// Path is the key, as peers[0].ids[1]. It is empty where the file as a whole
	// cannot be read.
	Path string
	// Msg says what is wrong, Hint what to do about it. Hint may be empty; Error
	// leaves it out, for it goes on a line of its own.
	Msg, Hint string
}

// Error gives file:line:column: path: message.
func (e *Error) Error() string {
	if e.Path == "" {
		return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Msg)
	}
	return fmt.Sprintf("%s:%d:%d: %s: %s", e.File, e.Line, e.Column, e.Path, e.Msg)
}

// Errors are all the mistakes of a file, in its order. There is at least one.
type Errors []*Error

// Error gives one line for each mistake.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find the first.
func (es Errors) Unwrap() []error {
	errs := make([]error, len(es))
	for i, e := range es {
		errs[i] = e
	}
	return errs
}

// sorted puts es in the order of the file.
func (es Errors) sorted() Errors {
	slices.SortStableFunc(es, func(a, b *Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return es
}

// mistake is what is wrong with a value, wherever it stands. Nil is nothing.
type mistake struct{ msg, hint string }

// wrong makes a mistake; hint may be empty.
func wrong(hint, format string, args ...any) *mistake {
	return &mistake{msg: fmt.Sprintf(format, args...), hint: hint}
}

// quote shows what the file says, not too much of it.
func quote(text string) string {
	const most = 60
	if utf8.RuneCountInString(text) > most {
		text = string([]rune(text)[:most]) + "…"
	}
	return strconv.Quote(text)
}
