package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// measurement is one candidate in one mode in one repetition.
type measurement struct {
	Repeat    int     `json:"repeat"`
	Mode      string  `json:"mode"`
	Candidate string  `json:"candidate"`
	Figures   figures `json:"figures"`
}

// results are what was measured, in memory and, one JSON object a line, in a file.
type results struct {
	all  []measurement
	file *os.File // nil without
}

// open begins results, or goes on with those in a file. The caller closes them.
func open(path string, resume bool) (*results, error) {
	r := new(results)
	if path == "" {
		if resume {
			return nil, errors.New("-resume goes on with the file of -json, and there is none")
		}
		return r, nil
	}
	flags := os.O_RDWR | os.O_CREATE | os.O_TRUNC
	if resume {
		flags = os.O_RDWR | os.O_CREATE
	}
	var err error
	if r.file, err = os.OpenFile(path, flags, 0o644); err != nil {
		return nil, err
	}
	// What follows the last whole line was interrupted.
	whole := int64(0)
	for in := bufio.NewReader(r.file); ; {
		line, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			break
		}
		var m measurement
		if err == nil {
			err = json.Unmarshal(line, &m)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", path, err), r.file.Close())
		}
		r.all, whole = append(r.all, m), whole+int64(len(line))
	}
	if err := r.file.Truncate(whole); err != nil {
		return nil, errors.Join(err, r.file.Close())
	}
	_, err = r.file.Seek(whole, io.SeekStart)
	return r, err
}

func (r *results) close() error {
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}

func (r *results) has(repeat int, mode, candidate string) bool {
	return slices.ContainsFunc(r.all, func(m measurement) bool {
		return m.Repeat == repeat && m.Mode == mode && m.Candidate == candidate
	})
}

func (r *results) add(m measurement) error {
	r.all = append(r.all, m)
	if r.file == nil {
		return nil
	}
	line, err := json.Marshal(m)
	if err == nil {
		_, err = r.file.Write(append(line, '\n'))
	}
	return err
}

// machine says where this was measured.
func machine() string {
	model := runtime.GOARCH
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, ok := strings.CutPrefix(line, "model name"); ok {
				model = strings.TrimSpace(strings.TrimLeft(name, " \t:"))
				break
			}
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return model
	}
	return fmt.Sprintf("%d × %s, Linux %s, %s", runtime.NumCPU(), model, unix.ByteSliceToString(u.Release[:]), runtime.Version())
}
