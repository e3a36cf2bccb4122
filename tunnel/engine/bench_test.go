package engine_test

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"wishbone/tunnel/engine"
	"wishbone/tunnel/hbone"
)

// The benchmarks run both gateways, the clients and the servers in one process,
// over loopback.

// cpu is the processor time that this process has used, in seconds.
func cpu(b *testing.B) float64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// BenchmarkUpload sends 64 MiB in all per operation, over so many streams.
// cpu-s/GiB counts the load generator, too; "direct" is that alone.
func BenchmarkUpload(b *testing.B) {
	const size = 64 << 20
	for _, streams := range []int{0, 1, 8, 64} {
		name := fmt.Sprintf("streams=%d", streams)
		if streams == 0 {
			name = "direct"
		}
		b.Run(name, func(b *testing.B) {
			got := make(chan struct{}, 1024)
			address := server(b, gulps(size/max(streams, 1), got))
			if streams > 0 {
				address = newPair(b, address).address
			}
			n := max(streams, 1)
			clients := make([]*net.TCPConn, n)
			for i := range clients {
				clients[i] = dial(b, address)
			}
			chunk := make([]byte, 256<<10)
			b.SetBytes(size)
			before := cpu(b)
			for b.Loop() {
				for _, c := range clients {
					go func() { // waited for by what arrives
						for left := size / n; left > 0; {
							m, err := c.Write(chunk[:min(left, len(chunk))])
							if left -= m; err != nil {
								b.Error(err)
								return
							}
						}
					}()
				}
				for range n {
					<-got
				}
			}
			b.ReportMetric((cpu(b)-before)/float64(b.N)*(1<<30)/size, "cpu-s/GiB")
		})
	}
}

// BenchmarkOpen is a connection: connect, one byte there and back, close.
func BenchmarkOpen(b *testing.B) {
	for _, name := range []string{"direct", "tunnel", "early"} {
		b.Run(name, func(b *testing.B) {
			address := server(b, echo)
			if name != "direct" {
				address = newPairOf(b, address, hbone.Config{EarlyData: name == "early"}).address
			}
			before := cpu(b)
			b.SetParallelism(4)
			b.RunParallel(func(pb *testing.PB) {
				p := make([]byte, 1)
				for pb.Next() {
					c, err := net.Dial("tcp", address)
					if err != nil {
						b.Error(err)
						return
					}
					c.Write(p)
					c.(*net.TCPConn).CloseWrite()
					if _, err := io.ReadFull(c, p); err != nil {
						b.Error(err)
					}
					c.Close()
				}
			})
			b.ReportMetric((cpu(b)-before)/float64(b.N)*1e6, "cpu-µs/op")
		})
	}
}

// BenchmarkDial is a tunnel from nothing: connect, handshake both ways (with keys
// and certificates made anew), hand over to the loops, and close.
func BenchmarkDial(b *testing.B) {
	p := newPair(b, server(b, echo))
	before := cpu(b)
	for b.Loop() {
		client, server := sessions(b)
		var t *engine.Tunnel
		p.on(p.west, func() { t = must(p.west.AddTunnel(client, hbone.Config{}, &westEnd{p})) })
		p.on(p.east, func() { must(p.east.AddTunnel(server, hbone.Config{Role: hbone.Server}, &eastEnd{p, b})) })
		p.on(p.west, func() { t.Close(nil) })
		<-p.lost
		<-p.lost
	}
	b.ReportMetric((cpu(b)-before)/float64(b.N)*1e6, "cpu-µs/op")
}

// BenchmarkPingPong is 64 bytes there and back, alone and beside uploads.
func BenchmarkPingPong(b *testing.B) {
	for _, bulk := range []int{0, 4} {
		b.Run(fmt.Sprintf("bulk=%d", bulk), func(b *testing.B) {
			p := newPair(b, server(b, func(c *net.TCPConn) {
				kind := make([]byte, 1)
				io.ReadFull(c, kind)
				if kind[0] == 'b' {
					io.Copy(io.Discard, c)
					return
				}
				echo(c)
			}))
			var loads sync.WaitGroup
			var clients []net.Conn
			for range bulk {
				c := dial(b, p.address)
				clients = append(clients, c)
				loads.Go(func() {
					c.Write([]byte("b"))
					chunk := make([]byte, 256<<10)
					for {
						if _, err := c.Write(chunk); err != nil {
							return
						}
					}
				})
			}
			c := dial(b, p.address)
			c.Write([]byte("e"))
			msg := make([]byte, 64)
			for b.Loop() {
				c.Write(msg)
				if _, err := io.ReadFull(c, msg); err != nil {
					b.Fatal(err)
				}
			}
			for _, c := range clients {
				c.Close()
			}
			loads.Wait()
		})
	}
}

// BenchmarkIdle reports what a flow that is open and quiet costs both gateways
// together, in bytes of heap.
func BenchmarkIdle(b *testing.B) {
	const flows = 2000
	for b.Loop() {
		b.StopTimer()
		target, stop := silentServer(b, flows)
		p := newPairOf(b, target, hbone.Config{MaxStreams: flows, TunnelBudget: 1 << 40})
		b.StartTimer()
		before := heap()
		fds := make([]int, flows)
		for i := range fds {
			fds[i] = rawDial(b, p.address)
			unix.Write(fds[i], []byte("x"))
			unix.Read(fds[i], make([]byte, 1))
		}
		b.ReportMetric(float64(heap()-before)/flows, "B/flow")
		b.StopTimer()
		for _, fd := range fds {
			unix.Close(fd)
		}
		stop()
		p.settled(b)
		b.StartTimer()
	}
}

// BenchmarkIdleTunnel reports what a quiet tunnel costs both ends together, in
// bytes of heap.
func BenchmarkIdleTunnel(b *testing.B) {
	const tunnels = 50
	for b.Loop() {
		p := newPair(b, server(b, echo))
		before := heap()
		for range tunnels {
			client, server := sessions(b)
			p.on(p.west, func() { must(p.west.AddTunnel(client, hbone.Config{}, &westEnd{p})) })
			p.on(p.east, func() { must(p.east.AddTunnel(server, hbone.Config{Role: hbone.Server}, &eastEnd{p, b})) })
		}
		p.round(p.west)
		p.round(p.east)
		b.ReportMetric(float64(heap()-before)/tunnels, "B/tunnel")
		p.stop()
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC() // what sync.Pool holds goes with the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// silentServer echoes one byte on each of n connections, with bare descriptors.
func silentServer(b *testing.B, n int) (address string, stop func()) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	unix.Listen(fd, 1024)
	sa, err := unix.Getsockname(fd)
	if err != nil {
		b.Fatal(err)
	}
	var all []int
	var running sync.WaitGroup
	running.Go(func() {
		for range n {
			c, _, err := unix.Accept(fd)
			if err != nil {
				return
			}
			p := make([]byte, 1)
			unix.Read(c, p)
			unix.Write(c, p)
			all = append(all, c)
		}
	})
	return fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port), func() {
		running.Wait()
		for _, c := range append(all, fd) {
			unix.Close(c)
		}
	}
}

func rawDial(b *testing.B, address string) int {
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		b.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: a.Port, Addr: [4]byte(a.IP.To4())})
	}
	if err != nil {
		b.Fatal(err)
	}
	return fd
}
