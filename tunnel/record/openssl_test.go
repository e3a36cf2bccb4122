package record

import (
	"bufio"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"crypto/x509"

	"golang.org/x/sys/unix"
)

// openssl runs the program, whose input and output the test has.
func openssl(t *testing.T, args ...string) (in io.WriteCloser, out *bufio.Reader) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("openssl is not installed")
		}
		t.Skip("LEFT OUT: openssl is not installed")
	}
	cmd := exec.Command("openssl", args...)
	in, err := cmd.StdinPipe()
	check(t, err)
	pipe, err := cmd.StdoutPipe()
	check(t, err)
	cmd.Stderr = cmd.Stdout
	check(t, cmd.Start())
	kill := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() }) // a test that waits in vain
	t.Cleanup(func() {
		kill.Stop()
		// It may have ended, and how is of no interest.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return in, bufio.NewReader(pipe)
}

// TestOpenSSL: in both roles and with every cipher suite there is, bytes pass, keys
// are changed whoever asks for it, and the session ends in order.
func TestOpenSSL(t *testing.T) {
	for suite, cryptoTLS := range map[string]bool{
		"TLS_AES_128_GCM_SHA256": false, "TLS_AES_256_GCM_SHA384": false,
		// Not ours: crypto/tls goes on.
		"TLS_CHACHA20_POLY1305_SHA256": true,
	} {
		t.Run(suite, func(t *testing.T) {
			testEnds(t, ours, func(t *testing.T, e end) {
				c, in, out := withOpenSSL(t, e, suite)
				defer c.Close()
				if _, ok := c.(*standard); ok != cryptoTLS {
					t.Errorf("a %T", c)
				}
				for _, line := range []string{"hello\n", "k\n", "after k\n", "K\n", "after K\n", strings.Repeat("long ", 20_000) + "\n"} {
					go func() { _, _ = io.WriteString(in, line) }() // the program's end ends it
					switch {
					case len(line) > 2:
						await(t, c, line)
						said := "we: " + line
						check(t, c.Seal([]byte(said)))
						mustFlush(t, c)
						prints(t, out, said)
					// A line alone is a command: k changes its key, K has ours changed too.
					// Nothing may be behind it in what it reads.
					case e.role == client: // s_server tells us at once
						wait(t, c.FD(), unix.POLLIN)
						if n, err := c.Read(make([]byte, 10)); n > 0 || err != ErrAgain {
							t.Fatal(n, err)
						}
						mustFlush(t, c)
					default: // s_client with the next data
						prints(t, out, "KEYUPDATE\n")
					}
				}
			})
		})
	}
}

// prints waits until a program prints a line. It prints others, of tickets and keys.
func prints(t *testing.T, out *bufio.Reader, line string) {
	t.Helper()
	for got := ""; !strings.HasSuffix(got, line); {
		var err error
		if got, err = out.ReadString('\n'); err != nil {
			t.Fatalf("openssl ends before it has printed %.20q: %v", line, err)
		}
	}
}

// withOpenSSL makes a Conn at an end, with openssl at the other.
func withOpenSSL(t *testing.T, e end, suite string) (c Conn, in io.WriteCloser, out *bufio.Reader) {
	t.Helper()
	if e.role == server {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		check(t, err)
		defer ln.Close()
		in, out = openssl(t, "s_client", "-connect", ln.Addr().String(), "-tls1_3", "-ciphersuites", suite)
		nc, err := ln.Accept()
		check(t, err)
		c, err = e.conn(timeout(t), nc.(*net.TCPConn), connConfig(t, e), nil)
		check(t, err)
		return c, in, out
	}
	cert := selfSigned(t, 0)
	file := filepath.Join(t.TempDir(), "server.pem")
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	check(t, err)
	both := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...)
	check(t, os.WriteFile(file, both, 0o600))
	in, out = openssl(t, "s_server", "-accept", "127.0.0.1:0", "-cert", file, "-naccept", "1", "-tls1_3", "-ciphersuites", suite)
	var port int
	for port == 0 {
		line, err := out.ReadString('\n')
		check(t, err)
		_, _ = fmt.Sscanf(line, "ACCEPT 127.0.0.1:%d", &port) // or it is another line
	}
	nc, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	check(t, err)
	c, err = e.conn(timeout(t), nc.(*net.TCPConn), &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}, nil)
	check(t, err)
	return c, in, out
}

// await reads until a text has come.
func await(t *testing.T, c Conn, text string) {
	t.Helper()
	var got []byte
	buf := make([]byte, batch)
	for string(got) != text {
		wait(t, c.FD(), unix.POLLIN)
		n, err := c.Read(buf)
		got = append(got, buf[:n]...)
		if err != nil && err != ErrAgain || !strings.HasPrefix(text, string(got)) {
			t.Fatalf("%d bytes of %d, %v", len(got), len(text), err)
		}
	}
}

// mustFlush writes all there is.
func mustFlush(t *testing.T, c Conn) {
	t.Helper()
	for {
		done, err := c.Flush()
		check(t, err)
		if done {
			return
		}
		wait(t, c.FD(), unix.POLLOUT)
	}
}
