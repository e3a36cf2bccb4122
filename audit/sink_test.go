package audit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wishbone/e2e/netlab"
)

func TestMain(m *testing.M) {
	if err := netlab.Enter(); err != nil { // so that a small disk can be mounted
		fmt.Fprintf(os.Stderr, "these tests need namespaces: %v\n", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// bound is for what takes milliseconds when all is well.
const bound = 20 * time.Second

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(bound); time.Now().Before(deadline); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("it did not come to pass: %s", what)
}

func openLog(t *testing.T, cfg Config) *Log {
	t.Helper()
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func closeLog(t *testing.T, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// written waits until a log has written n records.
func written(t *testing.T, l *Log, n uint64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d records are written", n), func() bool { return l.Stats().Written[Cut] == n })
}

// lines reads the numbers in files of records, one after the other.
func lines(t *testing.T, paths ...string) (numbers []uint64) {
	t.Helper()
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			var r Record
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatalf("%s: %q: %v", path, line, err)
			}
			if r.Event == Cut {
				numbers = append(numbers, r.Sent)
			}
		}
	}
	return numbers
}

// TestFileRotates: whichever way a file is rotated while records are written, all
// of them are in the old one and the new one, in order.
func TestFileRotates(t *testing.T) {
	for name, rotate := range map[string]func(path, old string) error{
		"rename":            os.Rename,
		"rename and create": renameAndCreate,
		"copytruncate":      copyTruncate,
		"link and remove": func(path, old string) error {
			return errors.Join(os.Link(path, old), os.Remove(path))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path, old := filepath.Join(dir, "audit.log"), filepath.Join(dir, "audit.log.1")
			l := openLog(t, Config{File: path})
			write(l, 0, 500)
			if name == "copytruncate" { // loses what is written between the two, by its nature
				written(t, l, 500)
			}
			if err := rotate(path, old); err != nil {
				t.Fatal(err)
			}
			write(l, 500, 1000)
			written(t, l, 1000)
			write(l, 1000, 1001)
			closeLog(t, l)
			if got := lines(t, old, path); !slices.Equal(got, count(1001)) {
				t.Errorf("%d records, want 1001 in order", len(got))
			}
			if n := len(lines(t, path)); n == 0 {
				t.Error("none is in the new file")
			}
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm()&^0o640 != 0 {
				t.Errorf("the file's mode is %v", info.Mode())
			}
		})
	}
}

func renameAndCreate(path, old string) error {
	return errors.Join(os.Rename(path, old), os.WriteFile(path, nil, 0o640))
}

func copyTruncate(path, old string) error {
	data, err := os.ReadFile(path)
	return errors.Join(err, os.WriteFile(old, data, 0o640), os.Truncate(path, 0))
}

// TestFileStays: what was there before stays.
func TestFileStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	for i := range uint64(3) {
		l := openLog(t, Config{File: path})
		write(l, i, i+1)
		closeLog(t, l)
	}
	if got := lines(t, path); !slices.Equal(got, count(3)) {
		t.Errorf("records %v after three runs", got)
	}
}

// TestDiskFull: a full disk costs what does not fit into the queue, and no more:
// with room again, the record that was half written is whole, and what is missing
// is told.
func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	ballast, path := filepath.Join(dir, "ballast"), filepath.Join(dir, "audit.log")
	if err := os.WriteFile(ballast, make([]byte, 32<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	l := openLog(t, Config{File: path, Queue: 256})
	n := uint64(0)
	for ; l.Stats().Err == nil; n += 100 {
		write(l, n, n+100)
		eventually(t, "they are written, or the disk is full", func() bool { return l.Stats().Written[Cut] == n+100 || l.Stats().Err != nil })
	}
	if err := l.Stats().Err; !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	for ; l.Stats().Dropped == 0; n++ {
		write(l, n, n+1)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log has told what is missing", func() bool { return l.Stats().Written[Dropped] > 0 })
	closeLog(t, l)
	st := l.Stats()
	if got := lines(t, path); uint64(len(got)) != st.Written[Cut] || st.Written[Cut]+st.Dropped != n || !slices.IsSorted(got) {
		t.Errorf("%d records in the file, %d written and %d dropped of %d", len(got), st.Written[Cut], st.Dropped, n)
	}
}

// TestPipe: a pipe that nobody reads is an error at the start, and later a sink that
// is stalled, which Write does not feel.
func TestPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{File: path}); !errors.Is(err, unix.ENXIO) {
		t.Errorf("without a reader: %v", err)
	}
	reader, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	l := openLog(t, Config{File: path, Queue: 64})
	n := uint64(0)
	for l.Stats().Dropped == 0 {
		write(l, n, n+1)
		n++
	}
	seen := make(chan uint64)
	go func() { // ends with the record about those that are missing
		defer close(seen)
		s := bufio.NewScanner(reader)
		for s.Scan() {
			var r Record
			if err := json.Unmarshal(s.Bytes(), &r); err != nil {
				t.Errorf("%q: %v", s.Text(), err)
			}
			if r.Event == Dropped {
				seen <- r.Dropped
				return
			}
		}
	}()
	missing := <-seen
	eventually(t, "the log has counted it", func() bool { return l.Stats().Written[Dropped] == 1 })
	if missing == 0 || missing != n-l.Stats().Written[Cut] {
		t.Errorf("%d are told missing, of %d that were not written", missing, n-l.Stats().Written[Cut])
	}
	closeLog(t, l)
}

// daemonAt is a datagram socket that a syslog daemon has.
func daemonAt(t *testing.T, path string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(bound)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func message(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// rfc5424 is a message with no structured data (RFC 5424 §6).
var rfc5424 = regexp.MustCompile(`^<(\d{1,3})>1 (\S+) ([!-~]{1,255}) ([!-~]{1,48}) ([!-~]{1,128}) ([!-~]{1,32}) - (.*)$`)

// TestSyslog: a record is one message of RFC 5424.
func TestSyslog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if _, err := Open(Config{Syslog: path}); err == nil {
		t.Error("a socket that is not there was opened")
	}
	d := daemonAt(t, path)
	l := openLog(t, Config{Syslog: path, Gateway: "west"})
	for event, priority := range map[Event]string{Allowed: "86", Denied: "85"} {
		l.Write(Record{Event: event, Client: client, Target: target})
		text := message(t, d)
		m := rfc5424.FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("%q is no message of RFC 5424", text)
		}
		at, err := time.Parse("2006-01-02T15:04:05.999999Z", m[2])
		if err != nil || m[1] != priority || m[4] != "wishbone" || m[5] != fmt.Sprint(os.Getpid()) || m[6] != string(event) {
			t.Errorf("%q: %v", text, err)
		}
		var r Record
		if err := json.Unmarshal([]byte(m[7]), &r); err != nil || r.Event != event || r.Client != client || r.Time.Truncate(time.Microsecond) != at {
			t.Errorf("message %q: %+v, %v", m[7], r, err)
		}
	}
	closeLog(t, l)
}

// journalFields reads a message of the journal's native protocol.
func journalFields(t *testing.T, text string) map[string]string {
	t.Helper()
	fields := map[string]string{}
	for text != "" {
		line, rest, ok := strings.Cut(text, "\n")
		name, value, inline := strings.Cut(line, "=")
		if !inline {
			size := int(rest[0]) | int(rest[1])<<8 // and none longer
			value, rest = rest[8:8+size], rest[8+size+1:]
		}
		if !ok || name == "" || fields[name] != "" {
			t.Fatalf("field %q in %q", line, text)
		}
		fields[name], text = value, rest
	}
	return fields
}

// TestJournald: a record is one message of the journal, with its fields.
func TestJournald(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	d := daemonAt(t, path)
	l := openLog(t, Config{Journald: path, Gateway: "west"})
	l.Write(full())
	got := journalFields(t, message(t, d))
	var r Record
	if err := json.Unmarshal([]byte(got["MESSAGE"]), &r); err != nil || r.Client != client {
		t.Errorf("message %q: %v", got["MESSAGE"], err)
	}
	delete(got, "MESSAGE")
	want := map[string]string{
		"PRIORITY": "5", "SYSLOG_FACILITY": "10", "SYSLOG_IDENTIFIER": "wishbone",
		"WISHBONE_EVENT": "denied", "WISHBONE_GATEWAY": "west", "WISHBONE_DIRECTION": "inbound", "WISHBONE_PEER": "east",
		"WISHBONE_ID": "spiffe://mesh.example/gateway/east", "WISHBONE_SERIAL": "1f", "WISHBONE_CLIENT": "10.1.0.2:40000",
		"WISHBONE_TARGET": "10.2.0.2:8080", "WISHBONE_FROM": "[2001:db8::1]:5000", "WISHBONE_REASON": "policy_deny", "WISHBONE_RULE": "no-telnet",
		"WISHBONE_RULE_AT": "/etc/<a&b>\n/west.yaml:7", "WISHBONE_SENT_BYTES": "1", "WISHBONE_RECEIVED_BYTES": "2", "WISHBONE_DROPPED": "3",
	}
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %q, want %q", name, got[name], value)
		}
	}
	if len(got) != len(want) {
		t.Errorf("fields %v", got)
	}
	closeLog(t, l)
}

// TestDaemonStalls: a daemon that does not read stalls nobody, and gets all that
// there was room for once it does; one that is started anew is found again.
func TestDaemonStalls(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	d := daemonAt(t, path)
	l := openLog(t, Config{Syslog: path, Queue: 64})
	n := uint64(0)
	for l.Stats().Dropped == 0 {
		write(l, n, n+1)
		n++
	}
	missing := regexp.MustCompile(`"event":"dropped".*"dropped":(\d+)`)
	read := uint64(0)
	var told string
	for ; told == ""; read++ {
		if m := missing.FindStringSubmatch(message(t, d)); m != nil {
			told = m[1]
		}
	}
	if told != fmt.Sprint(n-(read-1)) {
		t.Errorf("%s are told missing, and %d of %d were read", told, read-1, n)
	}

	if err := errors.Join(d.Close(), os.Remove(path)); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	write(l, n, n+1)
	eventually(t, "the log misses its daemon", func() bool { return l.Stats().Err != nil })
	d = daemonAt(t, path)
	if text := message(t, d); !strings.Contains(text, fmt.Sprintf(`"sent_bytes":%d`, n)) {
		t.Errorf("the new daemon gets %q", text)
	}
	closeLog(t, l)
}
