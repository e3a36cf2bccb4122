package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"reflect"
	"strings"
	"time"
)

// datagram sends each record in a message of its own to a daemon on this host
// (unix(7), SOCK_DGRAM). The standard library's log/syslog would dial again and
// write without a bound in time, in a format older than RFC 5424; go-systemd's
// journal knows one socket, and what it does about messages that do not fit into a
// datagram, ours do not need.
type datagram struct {
	path   string
	conn   *net.UnixConn // nil when the daemon has gone
	encode func(b []byte, r *Record) []byte
	buf    []byte
}

func openDatagram(path string, encode func([]byte, *Record) []byte) (*datagram, error) {
	s := &datagram{path: path, encode: encode}
	return s, s.dial()
}

func (s *datagram) dial() (err error) {
	s.conn, err = net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.path, Net: "unixgram"})
	return err
}

// write sends records. A daemon that does not read is waited for, not for ever; one
// that was started anew is found again.
func (s *datagram) write(records []Record) (int, error) {
	if s.conn == nil {
		if err := s.dial(); err != nil {
			return 0, err
		}
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	for i := range records {
		s.buf = s.encode(s.buf[:0], &records[i])
		if _, err := s.conn.Write(s.buf); err != nil {
			return i, errors.Join(err, s.close()) // the next attempt dials again
		}
	}
	return len(records), nil
}

func (s *datagram) close() error {
	if s.conn == nil {
		return nil
	}
	conn := s.conn
	s.conn = nil
	return conn.Close()
}

// identifier is what daemons file our messages under.
const identifier = "wishbone"

// priority is that of syslog (RFC 5424 §6.2.1): facility 10, security and
// authorization, and severity 6, informational, or 5, notice, for what did not go
// its ordinary way.
func (r *Record) priority() int {
	switch r.Event {
	case Allowed, TunnelOpened, IdentityUpdated, Reloaded:
		return 10<<3 | 6
	}
	return 10<<3 | 5
}

// stamp is a time with as many digits as RFC 5424 §6.2.3 permits.
const stamp = "2006-01-02T15:04:05.000000Z07:00"

// syslogMessage makes messages of RFC 5424: the event as MSGID, the record in JSON
// as the message, and no structured data.
func syslogMessage() func(b []byte, r *Record) []byte {
	host, err := os.Hostname()
	if err != nil || host == "" || len(host) > 255 || strings.ContainsFunc(host, func(c rune) bool { return c <= ' ' || c > '~' }) {
		host = "-" // §6.2.4, NILVALUE
	}
	return func(b []byte, r *Record) []byte {
		b = fmt.Appendf(b, "<%d>1 %s %s %s %d %s - ", r.priority(), r.Time.Format(stamp), host, identifier, os.Getpid(), r.Event)
		return trimLine(r.appendJSON(b))
	}
}

// journalMessage makes messages of the journal's native protocol: a field to a line
// (systemd.journal-fields(7)). The message is the record in JSON; each of its
// fields, but the time, is one of the journal's too.
func journalMessage(b []byte, r *Record) []byte {
	b = append(b, "MESSAGE="...)
	b = r.appendJSON(b)
	b = fmt.Appendf(b, "PRIORITY=%d\nSYSLOG_FACILITY=%d\nSYSLOG_IDENTIFIER=%s\n", r.priority()&7, r.priority()>>3, identifier)
	v := reflect.ValueOf(r).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); !f.IsZero() && f.Type() != reflect.TypeFor[time.Time]() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			b = appendField(b, "WISHBONE_"+strings.ToUpper(name), fmt.Sprint(f.Interface()))
		}
	}
	return b
}

// appendField appends a field. A value of several lines, which only the name of a
// file could be, comes with its length before it.
func appendField(b []byte, name, value string) []byte {
	if !strings.Contains(value, "\n") {
		return fmt.Appendf(b, "%s=%s\n", name, value)
	}
	b = fmt.Appendf(b, "%s\n", name)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	return fmt.Appendf(b, "%s\n", value)
}

func trimLine(b []byte) []byte { return b[:len(b)-1] }
