package pool_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/tunnel/pool"
	"wishbone/tunnel/route"
)

// world is a pool in fake time, with tunnels that carry nothing.
//
//	w := newWorld(t, config{}, "a", "b")
//	w.get("1")                             // a request by that name
//	w.dialling("why", "a")                 // the dials that have begun since
//	w.works("a")                           // the oldest dial to a is answered
//	w.want("why", "1 on a1")               // what requests have got since, in order
//	w.advance(time.Second)                 // with a Sweep at every second
type world struct {
	t       *testing.T
	pool    *pool.Pool[*tunnel]
	now     time.Duration
	swept   time.Duration
	peer    *route.Peer
	begun   []string // dials not yet asked for by dialling
	running []*dial
	serial  map[string]int
	tunnels map[string]*tunnel
	got     []string // answers not yet asked for by want
	room    int      // of new tunnels
}

type config = pool.Config[*tunnel]

type dial struct {
	peer     *route.Peer
	endpoint string
	done     func(*tunnel, error)
}

// tunnel is a pool.Tunnel whose every property is set by the test.
type tunnel struct {
	name     string
	room     int
	streams  int
	starved  bool
	narrow   bool
	records  uint64
	draining bool
}

func (t *tunnel) Room() int {
	if t.draining {
		return 0
	}
	return t.room
}
func (t *tunnel) Streams() int    { return t.streams }
func (t *tunnel) Starved() bool   { return t.starved }
func (t *tunnel) Narrow() bool    { return t.narrow }
func (t *tunnel) Records() uint64 { return t.records }
func (t *tunnel) Drain()          { t.draining = true }
func (t *tunnel) Draining() bool  { return t.draining }

func newWorld(t *testing.T, cfg config, endpoints ...string) *world {
	w := &world{
		t:       t,
		now:     time.Hour, // a loop that has run for a while
		swept:   time.Hour,
		peer:    peer("east", endpoints...),
		serial:  map[string]int{},
		tunnels: map[string]*tunnel{},
		room:    100,
	}
	cfg.Now = func() time.Duration { return w.now }
	cfg.Dial = func(p *route.Peer, endpoint string, done func(*tunnel, error)) {
		w.begun = append(w.begun, endpoint)
		w.running = append(w.running, &dial{p, endpoint, done})
	}
	w.pool = pool.New(cfg)
	return w
}

func peer(name string, endpoints ...string) *route.Peer {
	return &route.Peer{
		Name:      name,
		IDs:       []spiffeid.ID{spiffeid.RequireFromString("spiffe://mesh.example/gateway/" + name)},
		Endpoints: endpoints,
	}
}

// get makes a request whose stream is opened on the tunnel that it gets.
func (w *world) get(name string) *pool.Waiter[*tunnel] { return w.getFrom(w.peer, name) }

func (w *world) getFrom(p *route.Peer, name string) *pool.Waiter[*tunnel] {
	return w.pool.Get(p, w.take(name))
}

func (w *world) take(name string) func(*tunnel, error) {
	return func(t *tunnel, err error) {
		if err != nil {
			w.got = append(w.got, fmt.Sprintf("%s: %v", name, err))
			return
		}
		t.room--
		t.streams++
		w.got = append(w.got, name+" on "+t.name)
	}
}

// want compares what requests have got since the last time. An answer with a
// colon is matched by its beginning.
func (w *world) want(why string, answers ...string) {
	w.t.Helper()
	ok := slices.EqualFunc(w.got, answers, func(got, want string) bool {
		return got == want || strings.Contains(want, ":") && strings.HasPrefix(got, want)
	})
	if !ok {
		w.t.Errorf("%s:\n got %q\nwant %q", why, w.got, answers)
	}
	w.got = nil
}

// dialling compares the dials that have begun since the last time.
func (w *world) dialling(why string, endpoints ...string) {
	w.t.Helper()
	if !slices.Equal(w.begun, endpoints) {
		w.t.Errorf("%s:\n dialled %q\n    want %q", why, w.begun, endpoints)
	}
	w.begun = nil
}

// finish takes the oldest running dial to an endpoint.
func (w *world) finish(endpoint string) *dial {
	w.t.Helper()
	i := slices.IndexFunc(w.running, func(d *dial) bool { return d.endpoint == endpoint })
	if i < 0 {
		w.t.Fatalf("nobody is dialling %q", endpoint)
	}
	d := w.running[i]
	w.running = slices.Delete(w.running, i, i+1)
	return d
}

// works answers a dial with a tunnel named for its endpoint: a1, a2, …
func (w *world) works(endpoint string) *tunnel {
	w.t.Helper()
	d := w.finish(endpoint)
	w.serial[endpoint]++
	t := &tunnel{name: fmt.Sprint(endpoint, w.serial[endpoint]), room: w.room}
	w.tunnels[t.name] = t
	d.done(t, nil)
	return t
}

func (w *world) fails(endpoint string) {
	w.t.Helper()
	w.finish(endpoint).done(nil, errors.New(endpoint+" refused"))
}

// ends takes n streams off a tunnel.
func (w *world) ends(t *tunnel, n int) {
	t.streams -= n
	t.room += n
	w.pool.Room(w.peer, t)
}

// lost closes a tunnel with all its streams.
func (w *world) lost(t *tunnel) {
	t.streams, t.room = 0, 0
	w.pool.Gone(w.peer, t, nil)
}

// advance lets time pass, with a Sweep at every second.
func (w *world) advance(d time.Duration) {
	end := w.now + d
	for w.swept+time.Second <= end {
		w.swept += time.Second
		w.now = w.swept
		w.pool.Sweep()
	}
	w.now = end
}

// up brings a first tunnel up, and lets it prove itself.
func (w *world) up() *tunnel {
	w.t.Helper()
	w.get("first")
	endpoint := w.peer.Endpoints[0]
	w.dialling("the first request dials the first endpoint", endpoint)
	t := w.works(endpoint)
	w.want("and gets its tunnel", "first on "+t.name)
	w.advance(5 * time.Second)
	return t
}

func (w *world) drained(why string, names ...string) {
	w.t.Helper()
	var got []string
	for name, t := range w.tunnels {
		if t.draining {
			got = append(got, name)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, names) {
		w.t.Errorf("%s:\n drained %q\n    want %q", why, got, names)
	}
}
