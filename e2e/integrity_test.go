package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/lab"
	"wishbone/e2e/netlab"
)

// cargo is what goes through in one case: four cases each way are 256 MiB.
const cargo = 64 << 20

// goods are the bytes of a case, and pieces of them with their sums.
type goods struct {
	pieces [][]byte
	sums   [][sha256.Size]byte
}

// split makes n pieces of b, each unlike the others.
func split(b []byte, n int) goods {
	var g goods
	for i := range n {
		piece := b[i*len(b)/n : (i+1)*len(b)/n]
		g.pieces = append(g.pieces, piece)
		g.sums = append(g.sums, sha256.Sum256(piece))
	}
	return g
}

// open opens n connections and matches their ends.
func open(t *testing.T, from *netlab.Host, ln net.Listener, n int) (clients, servers []*net.TCPConn) {
	t.Helper()
	byClient := map[netip.AddrPort]*net.TCPConn{}
	for range n {
		c := dial(t, from, addr(ln.Addr()))
		clients = append(clients, c)
		s := accept(t, ln)
		byClient[addr(s.RemoteAddr())] = s
	}
	for _, c := range clients {
		s := byClient[addr(c.LocalAddr())]
		if s == nil {
			t.Fatalf("the server has not seen %s", c.LocalAddr())
		}
		servers = append(servers, s)
	}
	return clients, servers
}

// ship sends each piece on its connection, ends it, and fails unless exactly the
// piece, and then the end, comes out of its other side.
func ship(t *testing.T, g goods, from, to []*net.TCPConn) {
	var all sync.WaitGroup
	for i := range from {
		all.Go(func() {
			if _, err := from[i].Write(g.pieces[i]); err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
			if err := from[i].CloseWrite(); err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
		})
		all.Go(func() {
			h := sha256.New()
			n, err := io.Copy(h, onlyReader{to[i]})
			if err != nil || int(n) != len(g.pieces[i]) || [sha256.Size]byte(h.Sum(nil)) != g.sums[i] {
				t.Errorf("stream %d: %d bytes (%v) with sum %x, want %d with %x", i, n, err, h.Sum(nil), len(g.pieces[i]), g.sums[i])
			}
		})
	}
	all.Wait()
}

// TestIntegrity: what is sent arrives, all of it and nothing else, 256 MiB each
// way over one stream and over fifty, and both ways at once.
func TestIntegrity(t *testing.T) {
	p := newPair(t)
	bytes := text(7, cargo)
	back := text(8, cargo/4)
	for _, n := range []int{1, 50} {
		there, here := split(bytes, n), split(back, n)
		for _, f := range families {
			ln := listen(t, p.Server, netip.AddrPortFrom(f.server, uint16(8000+n)))
			for _, way := range []struct {
				name string
				ship func(t *testing.T, clients, servers []*net.TCPConn)
				size carriedBytes
			}{
				{"to the server", func(t *testing.T, c, s []*net.TCPConn) { ship(t, there, c, s) }, carriedBytes{cargo, 0}},
				{"to the client", func(t *testing.T, c, s []*net.TCPConn) { ship(t, there, s, c) }, carriedBytes{0, cargo}},
				{"both ways", func(t *testing.T, c, s []*net.TCPConn) {
					var both sync.WaitGroup
					both.Go(func() { ship(t, here, c, s) })
					both.Go(func() { ship(t, here, s, c) })
					both.Wait()
				}, carriedBytes{cargo / 4, cargo / 4}},
			} {
				t.Run(fmt.Sprintf("%s/%d streams/%s", way.name, n, f.name), func(t *testing.T) {
					before := volume(t, p)
					clients, servers := open(t, p.Client, ln, n)
					way.ship(t, clients, servers)
					after := volume(t, p)
					if got := (carriedBytes{after.up - before.up, after.down - before.down}); got != way.size {
						t.Errorf("the gateways say that they carried %+v, want %+v", got, way.size)
					}
				})
			}
		}
	}
}

// carriedBytes is how many bytes have gone to servers, and to clients.
type carriedBytes struct{ up, down uint64 }

// volume is what both gateways say, which must be the same.
func volume(t *testing.T, p *pair) carriedBytes {
	t.Helper()
	west, east := status(t, p.west).Connections["outbound"], status(t, p.east).Connections["inbound"]
	if west.Sent != east.Received || west.Received != east.Sent {
		t.Errorf("west has counted %+v, east %+v", west, east)
	}
	return carriedBytes{west.Sent, west.Received}
}

// smallBuffer makes a socket take little at a time (socket(7), SO_RCVBUF).
func smallBuffer(t *testing.T, c syscall.Conn) {
	t.Helper()
	withFD(t, c, func(fd int) {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096); err != nil {
			t.Error(err)
		}
	})
}

// TestResetBehindData: a reset does not overtake the data before it, though
// megabytes of them wait in between for a reader that is slow and has little
// room; and it is a reset, not an end.
func TestResetBehindData(t *testing.T) {
	p := newPair(t)
	const size, waiting = 8 << 20, 512 << 10
	for _, f := range families {
		for _, reader := range []string{"client", "server"} {
			t.Run(reader+" reads/"+f.name, func(t *testing.T) {
				ln := listen(t, p.Server, netip.AddrPortFrom(f.server, 8080))
				clients, servers := open(t, p.Client, ln, 1)
				from, to := servers[0], clients[0]
				if reader == "server" {
					from, to = clients[0], servers[0]
				}
				smallBuffer(t, to)
				g := split(text(9, size), 1)
				h := sha256.New()
				sent := make(chan struct{})
				go func() { // ends with the connection
					defer close(sent)
					if _, err := from.Write(g.pieces[0]); err != nil {
						t.Errorf("send: %v", err)
					}
					awaitQueue(t, from, unix.SIOCOUTQ, 0)
					if err := errors.Join(from.SetLinger(0), from.Close()); err != nil {
						t.Error(err)
					}
				}()
				// All that the sender does not get rid of is read, but for the end.
				early, err := readUntil(h, to, sent, size-waiting)
				if err != nil {
					t.Fatalf("after %d bytes, before the reset: %v", early, err)
				}
				t.Logf("%d bytes were on their way when the reset came", size-early)
				n, err := io.Copy(h, onlyReader{to})
				if n += early; n != size || [sha256.Size]byte(h.Sum(nil)) != g.sums[0] {
					t.Errorf("%d bytes arrived, or others than were sent, want %d", n, size)
				}
				if !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("then %v, want a reset", err)
				}
			})
		}
	}
}

// readUntil reads in small pieces until stop is closed, and no more than limit
// and one piece before that.
func readUntil(h hash.Hash, c io.Reader, stop <-chan struct{}, limit int64) (total int64, err error) {
	buf := make([]byte, 4096)
	for total < limit {
		select {
		case <-stop:
			return total, nil
		default:
		}
		n, err := c.Read(buf)
		h.Write(buf[:n])
		if total += int64(n); err != nil {
			return total, err
		}
	}
	<-stop
	return total, nil
}

// TestStalledReader: one connection whose server does not read holds up no
// other on the same tunnel, and loses nothing.
func TestStalledReader(t *testing.T) {
	p := newPair(t)
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			ln := listen(t, p.Server, netip.AddrPortFrom(f.server, 8080))
			clients, servers := open(t, p.Client, ln, 11)
			stuck, beside := split(text(10, 32<<20), 1), split(text(11, 20<<20), 10)
			done := make(chan error, 1)
			go func() { // ends when its server has read
				_, err := clients[0].Write(stuck.pieces[0])
				done <- errors.Join(err, clients[0].CloseWrite())
			}()
			// Nothing moves any more when two looks see the same.
			last := uint64(0)
			eventually(t, "the stalled stream is full", func() bool {
				now := flowBytes(t, p.west, addr(clients[0].LocalAddr()))
				same := now == last && now > 0
				last = now
				return same
			})
			ship(t, beside, clients[1:], servers[1:])
			ship(t, beside, servers[1:], clients[1:])
			select {
			case err := <-done:
				t.Fatalf("the stalled stream was not stalled (%v)", err)
			default:
			}
			h := sha256.New()
			n, err := io.Copy(h, onlyReader{servers[0]})
			if err != nil || int(n) != len(stuck.pieces[0]) || [sha256.Size]byte(h.Sum(nil)) != stuck.sums[0] {
				t.Errorf("of the stalled stream %d bytes came (%v), want %d", n, err, len(stuck.pieces[0]))
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

// flowBytes is how much a client's connection has sent, by the word of its gateway.
func flowBytes(t *testing.T, g *lab.Gateway, client netip.AddrPort) uint64 {
	t.Helper()
	for _, f := range flows(t, g) {
		if f.Client == client {
			return f.Sent
		}
	}
	t.Fatalf("gateway %s does not carry %s", g.Name, client)
	return 0
}
