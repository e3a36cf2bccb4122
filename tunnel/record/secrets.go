package record

import (
	"bytes"
	"crypto/tls"
	"encoding/hex"
)

// secrets are the two traffic secrets of a session (RFC 8446 §7.1), as crypto/tls
// tells them to a key log. They stay in this process, and are wiped as soon as
// the keys of the session do not need them any more.
type secrets struct {
	client, server []byte
}

// heard returns cfg such that its sessions tell their secrets to s, and to nobody
// else.
func (s *secrets) heard(cfg *tls.Config) *tls.Config {
	cfg = cfg.Clone()
	cfg.KeyLogWriter = s
	// A ticket would be the first record under the server's key.
	cfg.SessionTicketsDisabled = true
	return cfg
}

// Write takes a line of the key log: a label, the client's random and the secret,
// in hexadecimal (crypto/tls.Config.KeyLogWriter).
func (s *secrets) Write(line []byte) (int, error) {
	f := bytes.Fields(line)
	if len(f) != 3 {
		return len(line), nil
	}
	var err error
	switch string(f[0]) {
	case "CLIENT_TRAFFIC_SECRET_0":
		s.client, err = unhex(f[2])
	case "SERVER_TRAFFIC_SECRET_0":
		s.server, err = unhex(f[2])
	}
	return len(line), err
}

func unhex(digits []byte) ([]byte, error) {
	b := make([]byte, hex.DecodedLen(len(digits)))
	_, err := hex.Decode(b, digits)
	return b, err
}

// wipe forgets the secrets. Those that sessions have taken are theirs.
func (s *secrets) wipe() {
	clear(s.client)
	clear(s.server)
}
