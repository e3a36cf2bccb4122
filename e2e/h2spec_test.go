package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/e2e/netlab"
	"wishbone/identity"
)

// h2specVar names the h2spec to use; else the one in PATH is.
const h2specVar = "WISHBONE_H2SPEC"

// h2specCases is how many cases h2spec v2.2.1 has.
const h2specCases = 145

// h2specFails are the cases that fail, and why they may.
var h2specFails = map[string]string{
	"http2/4.2/1":   "sends 1 MiB, which SETTINGS_MAX_FRAME_SIZE allows and the stream's window of 256 KiB does not",
	"http2/4.2/3":   "takes 16 KiB for the largest frame, where SETTINGS_MAX_FRAME_SIZE says 1 MiB",
	"http2/5.3.1/1": "RFC 9113 §5.3.2 has done away with RFC 7540's priorities, and what they depend on is not looked at",
	"http2/5.3.1/2": "the same in a PRIORITY frame",
}

// TestH2spec: a real gateway passes all of h2spec but what is listed, and fails
// all of that.
func TestH2spec(t *testing.T) {
	program := os.Getenv(h2specVar)
	if program == "" {
		program = "h2spec"
	}
	needs(t, program)
	p := newWorld(t)
	p.startEast()
	failed := runH2spec(t, p.West, program, p.shim(p.West, "/gateway/west", netip.AddrPortFrom(netlab.EastOuter4, 15008)))
	awaitLog(t, p.east, "request refused", "peer=west", "method is not CONNECT")
	for name, why := range failed {
		if h2specFails[name] == "" {
			t.Errorf("%s fails:\n%s", name, why)
		}
	}
	for name := range h2specFails {
		if _, ok := failed[name]; !ok {
			t.Errorf("%s passes: it is to be taken off the list", name)
		}
	}
}

// h2specSources are where h2spec comes from, a new one each time: most of its cases end in
// a cut, after which a source rests.
var h2specSources = netip.MustParsePrefix("198.18.0.0/16")

// shim takes what connects on a host on to a gateway's tunnel port, in a mutual
// TLS of that identity: h2spec has no certificate of its own.
func (p *pair) shim(h *netlab.Host, id string, to netip.AddrPort) netip.AddrPort {
	p.t.Helper()
	cfg := identity.Client(p.authority.Source(id), func(spiffeid.ID) error { return nil })
	ln := listen(p.t, h, netip.MustParseAddrPort("127.0.0.1:0"))
	own(p.t, h, h2specSources)
	go func() {
		from := h2specSources.Addr()
		for {
			near, err := ln.Accept()
			if err != nil {
				return // the test is over
			}
			from = from.Next()
			far, err := tryDialFrom(p.t.Context(), h, from, to)
			if err != nil {
				near.Close()
				continue
			}
			go join(near.(*net.TCPConn), tls.Client(far, cfg))
		}
	}()
	return addr(ln.Addr())
}

// join carries bytes both ways until either side has ended, as it ends.
func join(near *net.TCPConn, far *tls.Conn) {
	over := make(chan struct{})
	go func() { // ends with near
		defer close(over)
		// How it ends is of no interest: the other side hears of it.
		_, _ = io.Copy(far, near)
		far.Close()
		_, _ = io.Copy(io.Discard, near) // closed with something unread it would be reset
	}()
	_, _ = io.Copy(near, far)
	_ = near.CloseWrite()
	<-over
	near.Close()
}

// report is what h2spec writes.
type report struct {
	Suites []struct {
		Package string `xml:"package,attr"`
		Cases   []struct {
			Name    string    `xml:"classname,attr"`
			Failure *string   `xml:"failure"`
			Error   *string   `xml:"error"`
			Skipped *struct{} `xml:"skipped"`
		} `xml:"testcase"`
	} `xml:"testsuite"`
}

// legible makes XML of the report: what h2spec has heard is in it as it came.
func legible(r rune) rune {
	if r < ' ' && r != '\n' || r == utf8.RuneError {
		return '.'
	}
	return r
}

// runH2spec returns the cases that did not pass, and why.
func runH2spec(t *testing.T, h *netlab.Host, program string, at netip.AddrPort) map[string]string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "report.xml")
	cmd := exec.Command(program, "--host", at.Addr().String(), "--port", strconv.Itoa(int(at.Port())), "--timeout", "2", "--junit-report", file)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := h.Start(cmd); err != nil {
		t.Fatal(err)
	}
	// It exits with 1 when a case fails.
	if err := cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	var r report
	dec := xml.NewDecoder(bytes.NewReader(bytes.Map(legible, raw)))
	dec.Strict = false
	if err := dec.Decode(&r); err != nil {
		t.Fatal(err)
	}
	failed := make(map[string]string)
	cases := 0
	for _, s := range r.Suites {
		for i, c := range s.Cases {
			cases++
			name := fmt.Sprintf("%s/%d", s.Package, i+1)
			switch {
			case c.Failure != nil:
				failed[name] = c.Name + "\n" + *c.Failure
			case c.Error != nil:
				failed[name] = c.Name + "\n" + *c.Error
			case c.Skipped != nil:
				failed[name] = c.Name + "\nskipped"
			}
		}
	}
	if cases != h2specCases {
		t.Errorf("h2spec ran %d cases, want %d", cases, h2specCases)
	}
	t.Logf("%d of %d pass; not %v", cases-len(failed), cases, slices.Sorted(maps.Keys(failed)))
	return failed
}
