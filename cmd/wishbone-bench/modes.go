package main

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// figures are what one measurement gives, by their names in the report.
type figures map[string]float64

// measure makes one measurement.
type measure func(ctx context.Context, w *world, g *gateways, o options) (figures, error)

// mode is one kind of load.
type mode struct {
	name, what string
	far        bool // for a distance; else for a cable
	early      bool // for early data
	run        measure
}

var modes = []mode{
	{"up1", "one upload", false, false, bulk(upload, 1)},
	{"up8", "8 uploads", false, false, bulk(upload, 8)},
	{"up64", "64 uploads", false, false, bulk(upload, 64)},
	{"down1", "one download", false, false, bulk(download, 1)},
	{"conns", "short connections, -clients at a time: a byte there and back, and the end", false, false, awake(connections)},
	{"pingpong", "64 bytes there and back", false, false, awake(pingPong(0, false))},
	{"before4", "the same beside 4 uploads, on a connection that was there before them", false, false, awake(pingPong(4, true))},
	{"beside4", "and on one that began after them", false, false, awake(pingPong(4, false))},
	{"idle", "idle connections that have carried a byte", false, false, idle},
	{"blocked", "short connections, one at a time, beside ten uploads that nobody reads", false, false, awake(beside)},
	{"first", "short connections, one at a time: until the answer is there", true, false, first},
	{"early", "the same with early data", true, true, first},
	{"far1", "one upload", true, false, bulk(upload, 1)},
	{"far8", "8 uploads", true, false, bulk(upload, 8)},
}

// windowOf runs a load's warm-up and then calls begin and end around the time that
// counts.
func (o options) windowOf(ctx context.Context, begin, end func() error) error {
	if err := pause(ctx, o.warmUp); err != nil {
		return err
	}
	if err := begin(); err != nil {
		return err
	}
	if err := pause(ctx, o.window); err != nil {
		return err
	}
	return end()
}

// pause lets time pass while a load runs.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// load is the client's connections of a measurement.
type load struct {
	running sync.WaitGroup
	mu      sync.Mutex
	conns   []*net.TCPConn // guarded by mu
	err     error          // guarded by mu
	over    atomic.Bool
}

// open opens a connection of a kind.
func (l *load) open(ctx context.Context, w *world, g *gateways, kind byte) (*net.TCPConn, error) {
	c, err := w.dial(ctx, g)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.conns = append(l.conns, c)
	l.mu.Unlock()
	_, err = c.Write([]byte{kind})
	return c, err
}

// goes runs f until the load is over. An error before that is the measurement's.
func (l *load) goes(f func() error) {
	l.running.Go(func() {
		if err := f(); err != nil && (!l.over.Load() || errors.Is(err, errWrong)) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.err = errors.Join(l.err, err)
		}
	})
}

// begin opens connections of a kind, and has f run for each.
func (l *load) begin(ctx context.Context, w *world, g *gateways, kind byte, n int, f func(*net.TCPConn) error) error {
	for range n {
		c, err := l.open(ctx, w, g, kind)
		if err != nil {
			return err
		}
		l.goes(func() error { return f(c) })
	}
	return nil
}

func sends(c *net.TCPConn) error { return send(c) }

// end cuts what is left, and waits until that has come through to the server: the
// next measurement must not count what this one has left on its way.
func (l *load) end(w *world) error {
	l.over.Store(true)
	l.mu.Lock()
	for _, c := range l.conns {
		// Both fail only where the connection has ended.
		_ = c.SetLinger(0)
		_ = c.Close()
	}
	l.mu.Unlock()
	w.server.release()
	l.running.Wait()
	w.server.settled()
	return errors.Join(l.err, w.server.failed())
}

// bulk is n streams in one direction.
func bulk(kind byte, n int) measure {
	return func(ctx context.Context, w *world, g *gateways, o options) (figures, error) {
		var l load
		var down atomic.Int64
		got := &w.server.got
		if kind == download {
			got = &down
		}
		err := func() error {
			if kind == download {
				return l.begin(ctx, w, g, kind, n, func(c *net.TCPConn) error { return (&checker{count: &down}).check(c) })
			}
			return l.begin(ctx, w, g, kind, n, sends)
		}()
		var before, after usage
		if err == nil {
			err = o.windowOf(ctx,
				func() (err error) { before, err = g.usage(got.Load()); return err },
				func() (err error) { after, err = g.usage(got.Load()); return err })
		}
		if err = errors.Join(err, l.end(w)); err != nil {
			return nil, err
		}
		f := after.since(before)
		if g.name == "relay" {
			f["aes-s/GiB"] = aesCost()
		}
		return f, nil
	}
}

// connections is short ones, several at a time.
func connections(ctx context.Context, w *world, g *gateways, o options) (figures, error) {
	var l load
	var count atomic.Int64
	for range o.clients {
		l.goes(func() error {
			return w.west.Do(func() error {
				for !l.over.Load() {
					if _, err := roundTrip(g); err != nil {
						return err
					}
					count.Add(1)
				}
				return nil
			})
		})
	}
	var before, after usage
	err := o.windowOf(ctx,
		func() (err error) { before, err = g.usage(count.Load()); return err },
		func() (err error) { after, err = g.usage(count.Load()); return err })
	if err = errors.Join(err, l.end(w)); err != nil {
		return nil, err
	}
	n := float64(after.count - before.count)
	f := figures{"conns/s": n / after.at.Sub(before.at).Seconds()}
	if len(g.west) > 0 {
		f["cpu-us/conn"] = (after.west + after.east - before.west - before.east) / n * 1e6
	}
	return f, nil
}

// pingPong is 64 bytes there and back, beside uploads, on a connection that is the
// first or the last of them.
func pingPong(uploads int, isFirst bool) measure {
	return func(ctx context.Context, w *world, g *gateways, o options) (figures, error) {
		var l load
		var took []float64
		var before, after usage
		err := func() error {
			var c *net.TCPConn
			echoes := func() (err error) { c, err = l.open(ctx, w, g, echo); return err }
			begin := func() error { return l.uploads(ctx, w, g, o, uploads) }
			steps := []func() error{begin, echoes}
			if isFirst {
				slices.Reverse(steps)
			}
			for _, step := range steps {
				if err := step(); err != nil {
					return err
				}
			}
			var counts atomic.Bool
			done := make(chan error, 1)
			go func() { done <- pings(c, &l.over, &counts, &took) }() // ends with the load; received from below
			err := o.windowOf(ctx,
				func() (err error) { counts.Store(true); before, err = g.usage(w.server.got.Load()); return err },
				func() (err error) { l.over.Store(true); after, err = g.usage(w.server.got.Load()); return err })
			return errors.Join(err, <-done)
		}()
		if err = errors.Join(err, l.end(w)); err != nil {
			return nil, err
		}
		f := figures{"p50-us": quantile(took, .5) * 1e6, "p99-us": quantile(took, .99) * 1e6}
		if uploads > 0 {
			maps.Copy(f, after.since(before))
		}
		return f, nil
	}
}

// uploads begins some, if any, and gives them time.
func (l *load) uploads(ctx context.Context, w *world, g *gateways, o options, n int) error {
	if n == 0 {
		return nil
	}
	if err := l.begin(ctx, w, g, upload, n, sends); err != nil {
		return err
	}
	return pause(ctx, o.warmUp)
}

// pings measures round trips until over.
func pings(c net.Conn, over, counts *atomic.Bool, took *[]float64) error {
	buf := make([]byte, 64)
	for i := 0; !over.Load(); i = (i + 64) % (period - 64) {
		began := time.Now()
		if _, err := c.Write(pattern[i : i+64]); err != nil {
			return err
		}
		if err := c.SetReadDeadline(began.Add(20 * time.Second)); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			return err
		}
		if string(buf) != string(pattern[i:i+64]) {
			return errWrong
		}
		if counts.Load() {
			*took = append(*took, time.Since(began).Seconds())
		}
	}
	return nil
}

// idle is memory: connections that have carried a byte each way, and rest.
func idle(ctx context.Context, w *world, g *gateways, o options) (figures, error) {
	if len(g.west) == 0 {
		return figures{}, nil
	}
	// What was measured before has left its mark on the heap.
	if err := g.restart(ctx); err != nil {
		return nil, err
	}
	var l load
	before, err := g.memory()
	if err != nil {
		return nil, err
	}
	var after [2]float64
	err = func() error {
		for range o.idle {
			c, err := l.open(ctx, w, g, echo)
			if err != nil {
				return err
			}
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				return err
			}
		}
		return o.windowOf(ctx, func() error { return nil }, func() (err error) { after, err = g.memory(); return err })
	}()
	if err = errors.Join(err, l.end(w)); err != nil {
		return nil, err
	}
	n := float64(o.idle) * 1024
	return figures{"west-KiB/conn": (after[0] - before[0]) / n, "east-KiB/conn": (after[1] - before[1]) / n,
		"both-KiB/conn": (after[0] + after[1] - before[0] - before[1]) / n}, nil
}

// first is how long a short connection takes until its answer is there.
func first(ctx context.Context, w *world, g *gateways, o options) (figures, error) {
	took, err := w.requests(ctx, g, o)
	if err != nil {
		return nil, err
	}
	return figures{"p50-ms": quantile(took, .5) * 1e3}, nil
}

// blockedUploads is how many nobody reads in mode blocked. They would send for ever.
const blockedUploads = 10

// beside is short connections, alone and then beside blocked uploads.
func beside(ctx context.Context, w *world, g *gateways, o options) (figures, error) {
	alone, err := w.requests(ctx, g, o)
	if err != nil {
		return nil, err
	}
	var l load
	var with []float64
	err = func() error {
		if err := l.begin(ctx, w, g, blocked, blockedUploads, sends); err != nil {
			return err
		}
		with, err = w.requests(ctx, g, o)
		return err
	}()
	stuck := errors.Is(err, os.ErrDeadlineExceeded)
	if stuck {
		err = nil
	}
	if err = errors.Join(err, l.end(w)); err != nil {
		return nil, err
	}
	if stuck { // which is a result
		return figures{"p99-alone-us": quantile(alone, .99) * 1e6, "stuck": 1}, nil
	}
	a, b := quantile(alone, .99), quantile(with, .99)
	return figures{"p99-alone-us": a * 1e6, "p99-us": b * 1e6, "times": b / a}, nil
}

// requests are short connections, one after the other, for the time of a
// measurement.
func (w *world) requests(ctx context.Context, g *gateways, o options) (took []float64, err error) {
	began := time.Now()
	err = w.west.Do(func() error {
		for ctx.Err() == nil && time.Since(began) < o.warmUp+o.window {
			t, err := roundTrip(g)
			if err != nil {
				return err
			}
			if time.Since(began) > o.warmUp {
				took = append(took, t)
			}
		}
		return ctx.Err()
	})
	return took, err
}

// quantile of at least one value.
func quantile(v []float64, q float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return v[min(len(v)-1, int(q*float64(len(v))))]
}
