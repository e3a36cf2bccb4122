package hbone

import (
	"net/netip"
	"strings"
	"testing"
)

func TestParseAuthority(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"10.2.0.5:80", "10.2.0.5:80"},
		{"10.2.0.5:1", "10.2.0.5:1"},
		{"10.2.0.5:65535", "10.2.0.5:65535"},
		{"[2001:db8::1]:443", "[2001:db8::1]:443"},
		{"[2001:DB8:0:0:0:0:0:1]:443", "[2001:db8::1]:443"},
		{"[::]:1", "[::]:1"},
		{"[::ffff:10.2.0.5]:80", "10.2.0.5:80"},
		{"[::ffff:a02:5]:80", "10.2.0.5:80"},
		{"[0:0:0:0:0:ffff:10.2.0.5]:80", "10.2.0.5:80"},
		{"[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]:65535", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"},
	} {
		got, err := parseAuthority(tt.in)
		if err != nil || got != netip.MustParseAddrPort(tt.want) {
			t.Errorf("%q: %v, %v, want %s", tt.in, got, err, tt.want)
		}
	}
	for _, in := range []string{
		"", ":", ":80", "10.2.0.5", "10.2.0.5:", "10.2.0.5:0", "10.2.0.5:00", "[::1]:0",
		"10.2.0.5:65536", "10.2.0.5:-1", "10.2.0.5:+80", "10.2.0.5:080x", "10.2.0.5:8 0", "10.2.0.5:http",
		"10.2.0.5:80 ", " 10.2.0.5:80", "10.2.0.5:80\x00", "10.2.0.5:80/", "10.2.0.5:80:80",
		"10.2.0:80", "10.2.0.5.6:80", "010.2.0.5:80", "10.2.0.256:80", "0x0a020005:80", "167903237:80",
		"2001:db8::1:443", "2001:db8::1", "[2001:db8::1]", "[2001:db8::1]443", "[2001:db8::1", "2001:db8::1]:443",
		"[10.2.0.5]:80", "[[::1]]:80", "[]:80", "[::1::]:80", "[v1.x]:80",
		"[fe80::1%eth0]:80", "[fe80::1%25eth0]:80", "[fe80::1%]:80", "10.2.0.5%eth0:80", "[::ffff:10.2.0.5%1]:80", // CVE-2026-26310
		"user@10.2.0.5:80", "user:pass@10.2.0.5:80", "http://10.2.0.5:80", "localhost:80", "svc.ns.svc.cluster.local:80",
		"xn--bcher-kva.example:80", "bücher.example:80", "*:80", "10.2.0.5:80,10.2.0.6:80", "１０.2.0.5:80",
		"[0000:0000:0000:0000:0000:0000:0000:0000:0000:0000]:80", strings.Repeat("1", 1<<20),
	} {
		got, err := parseAuthority(in)
		if err == nil {
			t.Errorf("%.80q: %v, want an error", in, got)
			continue
		}
		if !strings.HasPrefix(err.Error(), ":authority ") || len(err.Error()) > 400 {
			t.Errorf("%.80q: error %.500q", in, err)
		}
	}
}

func TestParseForwarded(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{`for="10.1.0.7:40000"`, "10.1.0.7:40000"},
		{`for=10.1.0.7:40000`, "10.1.0.7:40000"}, // not a token, but plain
		{`For="10.1.0.7:40000"`, "10.1.0.7:40000"},
		{`FOR="[2001:db8::7]:1"`, "[2001:db8::7]:1"},
		{`for="[::ffff:10.1.0.7]:40000"`, "10.1.0.7:40000"},
		{`for="10.1.0.7:40000";host=echo.example.com`, "10.1.0.7:40000"}, // ztunnel's
		{`host=echo.example.com;for="10.1.0.7:40000"`, "10.1.0.7:40000"},
		{`for="10.1.0.7:40000";by="10.1.0.1:15008";proto=tcp`, "10.1.0.7:40000"},
		{`for="10.1.0.7:40000";host="a;b,c=d"`, "10.1.0.7:40000"},
		{`secret="";for="10.1.0.7:40000"`, "10.1.0.7:40000"},
	} {
		got, err := parseForwarded(tt.in)
		if err != nil || got != netip.MustParseAddrPort(tt.want) {
			t.Errorf("%s: %v, %v, want %s", tt.in, got, err, tt.want)
		}
	}
	for _, in := range []string{
		``, `for`, `for=`, `for=""`, `="10.1.0.7:1"`, `10.1.0.7:1`, `"for"="10.1.0.7:1"`,
		`for="10.1.0.7"`, `for=10.1.0.7`, `for="[2001:db8::7]"`, `for="2001:db8::7"`, `for="2001:db8::7:1"`,
		`for="10.1.0.7:0"`, `for="10.1.0.7:65536"`, `for="10.1.0.7:_port"`, `for="[fe80::7%eth0]:1"`,
		`for=unknown`, `for="unknown"`, `for=_hidden`, `for="_SEVKISEK:1"`, `for="client.example:1"`,
		`for="10.1.0.7:1`, `for=10.1.0.7:1"`, `for="10.1.0.7:1"x`, `for="10.1.0.7:1" `, ` for="10.1.0.7:1"`,
		`for = "10.1.0.7:1"`, `for= "10.1.0.7:1"`, `for="10.1.0.7:1" ;host=a`, `for="10.1.0.7:1"; host=a`,
		`for="10.1.0.7:1";`, `;for="10.1.0.7:1"`, `for="10.1.0.7:1";;host=a`,
		`for="10.1.0.7:1", for="10.1.0.8:2"`, `for="10.1.0.7:1",for="10.1.0.8:2"`, `for=10.1.0.7:1, for=10.1.0.8:2`, `for="10.1.0.7:1",`, `,for="10.1.0.7:1"`,
		`for="10.1.0.7:1";for="10.1.0.8:2"`, `for="10.1.0.7:1";FOR="10.1.0.7:1"`,
		`for="10.1.0\.7:1"`, `for="10.1.0.7:1\"`, `for="10.1.0.7:1";host="a\"b"`,
		`host=echo.example.com`, `by="10.1.0.7:1"`, `fort="10.1.0.7:1"`, `f or="10.1.0.7:1"`, `för="10.1.0.7:1"`,
		`for='10.1.0.7:1'`, `for="10.1.0.7:1"` + "\x00", strings.Repeat(`a=b;`, 10000),
	} {
		got, err := parseForwarded(in)
		if err == nil {
			t.Errorf("%.80q: %v, want an error", in, got)
			continue
		}
		if !strings.HasPrefix(err.Error(), "forwarded ") || len(err.Error()) > 500 {
			t.Errorf("%.80q: error %.600q", in, err)
		}
	}
}

// TestForwardedFor: what we write (RFC 7239 §6).
func TestForwardedFor(t *testing.T) {
	for in, want := range map[string]string{
		"10.1.0.7:40000":    `for="10.1.0.7:40000"`,
		"[2001:db8::7]:443": `for="[2001:db8::7]:443"`,
	} {
		if got := string(appendForwardedFor(nil, netip.MustParseAddrPort(in))); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}

// TestReasonStatus: each reason has its status, and what a status alone says is
// what it was, as far as it can say that.
func TestReasonStatus(t *testing.T) {
	seen := make(map[Reason]bool)
	for _, r := range Reasons() {
		if seen[r] || strings.Trim(string(r), "abcdefghijklmnopqrstuvwxyz_") != "" {
			t.Errorf("%q is twice there, or no label", r)
		}
		seen[r] = true
		if got := reasonOf(r.status(), string(r)); got != r {
			t.Errorf("%s comes back as %s", r, got)
		}
		alone := map[string]Reason{"401": Denied, "400": Malformed, "503": Unknown}
		if got := reasonOf(r.status(), ""); got != alone[r.status()] {
			t.Errorf("%s alone is %s, want %s", r.status(), got, alone[r.status()])
		}
	}
}
