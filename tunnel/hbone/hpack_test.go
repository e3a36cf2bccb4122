package hbone

import (
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"
)

// TestFields: x/net's decoder reads what we write, of every length that has a form of
// its own.
func TestFields(t *testing.T) {
	b := []byte{noTable, indexedOK}
	b = appendStatic(b, staticAuthority, "192.0.2.1:80")
	b = appendStatic(b, staticMethod, "CONNECT")
	b = appendStatic(b, staticStatus, "503")
	want := []string{":status: 200", ":authority: 192.0.2.1:80", ":method: CONNECT", ":status: 503"}
	for _, n := range []int{0, 1, 126, 127, 128, 254, 255, 256, 127 + 1<<14 - 1, 127 + 1<<14} {
		name, value := "x"+strings.Repeat("n", n), strings.Repeat("v", n)
		b = appendField(b, name, []byte(value))
		want = append(want, name+": "+value)
	}
	d := hpack.NewDecoder(4096, nil)
	fields, err := d.DecodeFull(b)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range fields {
		got = append(got, f.Name+": "+f.Value)
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("decoded:\n%.2000s\nwant:\n%.2000s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
