package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// file is a file for lines of JSON. Before each batch it sees whether it is still
// what stands at its path: logrotate(8) renames it, and another takes its place.
// Truncated in place (copytruncate) it goes on at its new end, by O_APPEND.
type file struct {
	path string
	f    *os.File
	torn int // bytes of the first record still to write that are in the file already
	buf  []byte
	ends []int // of each record's line in buf
}

func openFile(path string) (*file, error) {
	s := &file{path: path}
	return s, s.reopen()
}

// reopen opens what stands at the path now. What was open before is closed only
// then. A pipe without a reader is an error, rather than something to wait for
// (fifo(7), O_NONBLOCK).
func (s *file) reopen() error {
	f, err := os.OpenFile(s.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0o640)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	old := s.f
	s.f, s.torn = f, 0
	if old != nil {
		return old.Close()
	}
	return nil
}

// follow sees to it that the file is the one at the path.
func (s *file) follow() error {
	here, err := s.f.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(s.path)
	switch {
	case err == nil && os.SameFile(here, there):
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return s.reopen()
}

// write writes lines. A disk that fills up may take a part of one: that one is not
// done, and its rest follows.
func (s *file) write(records []Record) (int, error) {
	if err := s.follow(); err != nil {
		return 0, err
	}
	s.buf, s.ends = s.buf[:0], s.ends[:0]
	for i := range records {
		s.buf = records[i].appendJSON(s.buf)
		s.ends = append(s.ends, len(s.buf))
	}
	// Pipes take a deadline; files do not, and need none.
	if err := s.f.SetWriteDeadline(time.Now().Add(patience)); err != nil && !errors.Is(err, os.ErrNoDeadline) {
		return 0, err
	}
	n, err := s.f.Write(s.buf[s.torn:])
	n += s.torn
	done := 0
	for done < len(s.ends) && s.ends[done] <= n {
		done++
	}
	s.torn = n
	if done > 0 {
		s.torn -= s.ends[done-1]
	}
	return done, err
}

func (s *file) close() error { return s.f.Close() }
