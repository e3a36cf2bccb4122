package tunnel

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"golang.org/x/sys/unix"

	"wishbone/tunnel/hbone"
	"wishbone/tunnel/record"
	"wishbone/tunnel/route"
)

// dialAs dials a gateway as a peer of its.
func dialAs(t *testing.T, name string, to *end) func(context.Context, *route.Peer, string) (Session, error) {
	return func(ctx context.Context, _ *route.Peer, _ string) (Session, error) { return join(t, ctx, name, to) }
}

// newTable is a table without peers.
func newTable(t *testing.T) *route.Table {
	t.Helper()
	table, err := route.New(route.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// await reads until the session ends, and returns why.
func await(c record.Conn) error {
	for {
		_, err := c.Read(make([]byte, 4096))
		if !errors.Is(err, record.ErrAgain) {
			if err != nil {
				return err
			}
			continue
		}
		fds := []unix.PollFd{{Fd: int32(c.FD()), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, int(patience.Milliseconds())); n == 0 || err != nil && err != unix.EINTR {
			return errors.Join(err, errors.New("nothing comes"))
		}
	}
}

// answer is what a scripted peer says to a request.
type answer func(fr *http2.Framer, stream uint32) error

func refuse(fr *http2.Framer, stream uint32) error {
	return fr.WriteRSTStream(stream, http2.ErrCodeRefusedStream)
}

func goAway(fr *http2.Framer, _ uint32) error { return fr.WriteGoAway(0, http2.ErrCodeNo, nil) }

func status(code string) answer {
	return func(fr *http2.Framer, stream uint32) error {
		var block bytes.Buffer
		if err := hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: ":status", Value: code}); err != nil {
			return err
		}
		return fr.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true})
	}
}

func cancel(fr *http2.Framer, stream uint32) error {
	return fr.WriteRSTStream(stream, http2.ErrCodeCancel)
}

// early offers to hold early data, and answers when some has come.
func early(then answer) answer {
	return func(fr *http2.Framer, stream uint32) error {
		if err := fr.WriteSettings(http2.Setting{ID: 0x5742, Val: 1}); err != nil {
			return err
		}
		for {
			switch f, err := fr.ReadFrame(); {
			case err != nil:
				return err
			case f.Header().Type == http2.FrameData:
				return then(fr, stream)
			}
		}
	}
}

// echo accepts, and sends the one word that comes back.
func echo(fr *http2.Framer, stream uint32) error {
	if err := status("200")(fr, stream); err != nil {
		return err
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return err
		}
		if d, ok := f.(*http2.DataFrame); ok {
			return fr.WriteData(stream, false, bytes.Clone(d.Data()))
		}
	}
}

// play is a peer that answers its requests one after the other as the script has
// it, over all tunnels.
func play(c *tls.Conn, script <-chan answer) error {
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return err
	}
	fr := http2.NewFramer(c, c)
	if err := errors.Join(fr.WriteSettings(), fr.WriteSettingsAck()); err != nil {
		return err
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return err
		}
		if h, ok := f.(*http2.HeadersFrame); ok {
			if err := (<-script)(fr, h.StreamID); err != nil {
				return err
			}
		}
	}
}

// TestRetry: what the peer has certainly not acted on is asked once more, on
// another tunnel if need be; anything else, and a second refusal, is the client's.
func TestRetry(t *testing.T) {
	for _, tt := range []struct {
		name    string
		script  []answer
		served  bool
		tunnels int
		reason  string
	}{
		{"REFUSED_STREAM", []answer{refuse, echo}, true, 1, ""},
		{"REFUSED_STREAM twice", []answer{refuse, refuse}, false, 1, "unknown"},
		{"GOAWAY", []answer{goAway, echo}, true, 2, ""},
		{"GOAWAY twice", []answer{goAway, goAway}, false, 2, "draining"},
		{"REFUSED_STREAM after early data", []answer{early(refuse), echo}, true, 1, ""},
		{"GOAWAY after early data", []answer{early(goAway), echo}, true, 2, ""},
		{"CANCEL", []answer{cancel}, false, 1, "unknown"},
		{"503", []answer{status("503")}, false, 1, "unknown"},
		{"401", []answer{status("401")}, false, 1, "denied"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			script := make(chan answer, len(tt.script))
			for _, a := range tt.script {
				script <- a
			}
			var dials atomic.Int64
			west := newEnd(t, Config{Tunnel: hbone.Config{EarlyData: true}, Dial: func(ctx context.Context, p *route.Peer, _ string) (Session, error) {
				near, far, err := tcp()
				if err != nil {
					return Session{}, err
				}
				dials.Add(1)
				c := tls.Server(far, serverTLS(t))
				go func() { // ends with the tunnel
					// The tunnel's end is the other side's affair.
					_ = play(c, script)
					c.Close()
				}()
				rec, err := record.Client(ctx, near, clientTLS(), record.Options{})
				return Session{Conn: rec, ID: idOf("east"), Peer: p.Name}, err
			}})
			clients := newSide(t, west)
			if tt.served {
				exchange(t, clients.dial(0), "hello")
			} else {
				clients.wantReset(0)
			}
			if n := int(dials.Load()); len(script) != 0 || n != tt.tunnels {
				t.Errorf("%d answers were not asked for, %d tunnels were dialled; want 0, %d", len(script), n, tt.tunnels)
			}
			s := west.Stats()
			if tt.reason != "" && s.Refused[tt.reason] != 1 || tt.reason == "" && len(s.Refused) != 0 {
				t.Errorf("refused %v, want %q", s.Refused, tt.reason)
			}
		})
	}
}
