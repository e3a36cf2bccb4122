package pool

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"wishbone/tunnel/route"
)

// Tunnel is what the pool has to know of one. None of its methods may call the
// pool back before it returns.
type Tunnel interface {
	comparable
	// Room is how many streams could be opened now; 0 when the tunnel drains.
	Room() int
	// Streams is how many streams are open.
	Streams() int
	// Starved reports whether streams wait for the connection's window.
	Starved() bool
	// Narrow reports whether the connection loses packets on a long way: streams
	// get more of such a way on connections of their own.
	Narrow() bool
	// Records is how many TLS records were sealed.
	Records() uint64
	// Drain lets the tunnel end after its last stream.
	Drain()
	// Draining reports whether either side has announced the end: there will
	// never be room again.
	Draining() bool
}

// ErrWait says that no tunnel was to be had in time.
var ErrWait = errors.New("no tunnel in time")

// ErrOverloaded says that too many requests wait for the peer already.
var ErrOverloaded = errors.New("too many connections wait for a tunnel")

var (
	errNoEndpoint = errors.New("no endpoint to dial")
	errRemoved    = errors.New("not configured any more")
)

// Config sets a Pool up. Zero values are the defaults.
type Config[T Tunnel] struct {
	// Dial begins to dial an endpoint of the peer, and calls done once, later
	// and on the same loop. It bounds the time that this takes. Required.
	Dial func(p *route.Peer, endpoint string, done func(T, error))
	// Hold says why dialing makes no sense yet; requests wait meanwhile, and Wake is
	// called when that is over. Nil is always ready.
	Hold func() error
	// Now is the loop's clock. Required.
	Now func() time.Duration
	// MaxTunnels bounds the tunnels to one peer that take new streams. 0 means
	// 256.
	MaxTunnels int
	// MaxWaiting bounds the requests to one peer that wait for a tunnel. 0
	// means 10,000.
	MaxWaiting int
	// Idle is how long a tunnel without streams is kept. 0 means 5 min.
	Idle time.Duration
	// MaxAge is after how long a tunnel takes no new streams. 0 means 1 h.
	MaxAge time.Duration
	// Life is how much of its time a tunnel has left, where that may be less than
	// MaxAge. It is asked for once, when the tunnel has been dialled. Nil says
	// that it never is.
	Life func(T) time.Duration
	// MaxRecords is after how many sealed TLS records it takes no new ones.
	// 0 means 2^23, below the limit of RFC 8446 §5.5 with room for the streams
	// that go on.
	MaxRecords uint64
	// Wait is how long a request waits for a tunnel. 0 means 20 s.
	Wait time.Duration
	// FailBack is after how much health the first endpoint is tried again.
	// 0 means 60 s.
	FailBack time.Duration
}

// proven is the age from which a tunnel counts as working. One that is lost
// before was as good as not dialled: in TLS 1.3 a server that does not accept
// our certificate says so only after our side of the handshake is done.
const proven = 2 * time.Second

// spread is how many tunnels there are to a peer at most because one is narrow. TCP
// halves a connection's rate for each loss, so that many streams on one connection
// get what one gets; and each waits for what another one has lost (RFC 9113 §1).
const spread = 8

// Pool is the tunnels of one loop.
type Pool[T Tunnel] struct {
	cfg      Config[T]
	peers    map[string]*peer[T]
	draining bool
}

// New returns an empty pool.
func New[T Tunnel](cfg Config[T]) *Pool[T] {
	cfg.MaxTunnels = cmp.Or(cfg.MaxTunnels, 256)
	cfg.MaxWaiting = cmp.Or(cfg.MaxWaiting, 10_000)
	cfg.Idle = cmp.Or(cfg.Idle, 5*time.Minute)
	cfg.MaxAge = cmp.Or(cfg.MaxAge, time.Hour)
	cfg.MaxRecords = cmp.Or(cfg.MaxRecords, 1<<23)
	cfg.Wait = cmp.Or(cfg.Wait, 20*time.Second)
	cfg.FailBack = cmp.Or(cfg.FailBack, time.Minute)
	return &Pool[T]{cfg: cfg, peers: make(map[string]*peer[T])}
}

// peer is what the pool holds for one peer.
type peer[T Tunnel] struct {
	route   *route.Peer
	tunnels []*entry[T]
	waiters *waiters[T]
	serving bool   // a loop of serve is on the stack
	dials   *dials // replaced when the peer's gateway changes
	backoff backoff
	spurns  int           // tunnels that were spurned one after the other
	spurned time.Duration // when the last one was
}

// entry is one tunnel.
type entry[T Tunnel] struct {
	tunnel   T
	gateway  *dials // of the gateway that it leads to
	endpoint int
	born     time.Duration
	until    time.Duration // when it is too old
	idle     time.Duration // since when it has had no streams; 0 if it has some
	retired  bool
	spurned  bool // see Pool.Spurned
}

// Get finds a tunnel with room to the peer and hands it to take: at once if
// there is one (then Get returns nil), else when one has been dialled or has
// room again. A tunnel that has room is a result even while dials fail; without
// any tunnel, a request fails at once while the pool rests after a round of
// failed dials. Requests are served in their order. take may call the pool.
func (p *Pool[T]) Get(to *route.Peer, take func(T, error)) *Waiter[T] {
	var none T
	pr := p.peer(to)
	if pr.waiters.n == 0 {
		if e := p.choose(pr); e != nil {
			take(e.tunnel, nil)
			return nil
		}
	}
	if err := p.hopeless(pr); err != nil {
		take(none, err)
		return nil
	}
	w := &Waiter[T]{deadline: p.cfg.Now() + p.cfg.Wait, take: take}
	pr.waiters.push(w)
	p.serve(pr)
	if w.queue == nil {
		return nil
	}
	return w
}

// hopeless says why a request should not even wait.
func (p *Pool[T]) hopeless(pr *peer[T]) error {
	name := pr.route.Name
	pause := pr.backoff.until - p.cfg.Now()
	switch {
	case pr.waiters.n >= p.cfg.MaxWaiting:
		return fmt.Errorf("peer %s: %w", name, ErrOverloaded)
	case pr.live() > 0:
	case len(pr.route.Endpoints) == 0:
		return fmt.Errorf("peer %s: %w", name, errNoEndpoint)
	case pause > 0:
		return fmt.Errorf("peer %s: %w (next attempt in %s)", name, pr.backoff.err, pause.Round(time.Millisecond))
	}
	return nil
}

// peer finds or makes a peer's record. A peer that was configured anew keeps
// its tunnels as long as its identity and endpoints are the same.
func (p *Pool[T]) peer(to *route.Peer) *peer[T] {
	pr := p.peers[to.Name]
	if pr == nil {
		pr = &peer[T]{route: to, waiters: new(waiters[T]), dials: newDials(len(to.Endpoints))}
		p.peers[to.Name] = pr
	}
	if pr.route != to && !sameGateway(pr.route, to) {
		pr.retireAll()
		pr.dials = newDials(len(to.Endpoints))
		pr.backoff = backoff{}
	}
	pr.route = to
	return pr
}

func sameGateway(a, b *route.Peer) bool {
	return slices.Equal(a.IDs, b.IDs) && slices.Equal(a.Endpoints, b.Endpoints)
}

// choose picks the fullest tunnel that has room and is not starved, or the emptiest
// where the way is narrow; a starved one only when no other can be had, and then
// another is dialled beside it.
func (p *Pool[T]) choose(pr *peer[T]) *entry[T] {
	var best *entry[T]
	up, starved, narrow := false, true, pr.narrow()
	for _, e := range pr.tunnels {
		p.maybeRetire(e)
		if e.retired {
			continue
		}
		up = true
		room, s := e.tunnel.Room(), e.tunnel.Starved()
		if room > 0 && (best == nil || starved && !s || s == starved && room != best.tunnel.Room() && narrow == (room > best.tunnel.Room())) {
			best, starved = e, s
		}
	}
	if up {
		p.failBack(pr)
	}
	if best == nil {
		return nil
	}
	if starved {
		p.dial(pr)
	} else if narrow {
		p.widen(pr, 1)
	}
	best.idle = 0
	return best
}

// widen dials another tunnel where the way is narrow and there are not as many as
// there are streams, those included that are about to come.
func (p *Pool[T]) widen(pr *peer[T], coming int) {
	live, streams := 0, coming
	for _, e := range pr.tunnels {
		if !e.retired {
			live++
			streams += e.tunnel.Streams()
		}
	}
	if live > 0 && live < min(streams, spread) && pr.narrow() {
		p.dial(pr)
	}
}

// narrow says so of the way to the peer.
func (pr *peer[T]) narrow() bool {
	return slices.ContainsFunc(pr.tunnels, func(e *entry[T]) bool { return !e.retired && e.tunnel.Narrow() })
}

// maybeRetire lets a tunnel go that is too old, has sealed too much, or whose
// peer lets it go.
func (p *Pool[T]) maybeRetire(e *entry[T]) {
	if p.cfg.Now() >= e.until || e.tunnel.Records() >= p.cfg.MaxRecords || e.tunnel.Draining() {
		e.retire()
	}
}

func (e *entry[T]) retire() {
	if !e.retired {
		e.retired = true
		e.tunnel.Drain()
	}
}

func (pr *peer[T]) retireAll() {
	for _, e := range pr.tunnels {
		e.retire()
	}
}

// live counts the tunnels that take new streams. Those that only carry their
// last ones to the end do not count, however many they have become.
func (pr *peer[T]) live() int {
	n := 0
	for _, e := range pr.tunnels {
		if !e.retired {
			n++
		}
	}
	return n
}

// liveAt reports whether a tunnel to an endpoint takes new streams and is at
// least so old.
func (pr *peer[T]) liveAt(endpoint int, now, age time.Duration) bool {
	return slices.ContainsFunc(pr.tunnels, func(e *entry[T]) bool {
		return !e.retired && e.endpoint == endpoint && now-e.born >= age
	})
}

// failWaiters ends all present requests. What they do about it (another Get)
// meets an empty queue.
func (pr *peer[T]) failWaiters(err error) {
	var none T
	ws := pr.waiters
	pr.waiters = new(waiters[T])
	for ws.n > 0 {
		ws.pop().take(none, err)
	}
}

// serve gives tunnels with room to those who wait, in their order, and dials
// another if some are left.
func (p *Pool[T]) serve(pr *peer[T]) {
	if pr.serving { // called from a take: the loop below goes on with it
		return
	}
	pr.serving = true
	for pr.waiters.n > 0 {
		e := p.choose(pr)
		if e == nil {
			break
		}
		pr.waiters.pop().take(e.tunnel, nil)
	}
	pr.serving = false
	p.dialIfNeeded(pr)
}

// Room is told that a tunnel may have room again, has lost a stream, or is
// draining.
func (p *Pool[T]) Room(to *route.Peer, t T) {
	pr := p.peers[to.Name]
	switch {
	case pr == nil:
	case t.Draining():
		p.peerDrains(pr, t)
	case t.Room() > 0:
		p.serve(pr)
	}
}

// peerDrains retires a tunnel whose peer has announced its end, once, and looks
// for another for those who wait.
func (p *Pool[T]) peerDrains(pr *peer[T], t T) {
	i := pr.index(t)
	if i < 0 || pr.tunnels[i].retired {
		return
	}
	p.maybeRetire(pr.tunnels[i])
	p.giveUp(pr)
	p.dialIfNeeded(pr)
}

var errSpurned = errors.New("peer lets each tunnel go without a look at what is asked on it")

// Spurned is told that a peer has sent a request back untouched and takes no more
// on this tunnel (GOAWAY). That happens at a tunnel's end. A peer that does so to
// one fresh tunnel after the other is as good as not reached. While the pool drains it is
// our own tunnels that take no more.
func (p *Pool[T]) Spurned(to *route.Peer, t T) {
	pr := p.peers[to.Name]
	if pr == nil || p.draining {
		return
	}
	i, now := pr.index(t), p.cfg.Now()
	if i < 0 || pr.tunnels[i].gateway != pr.dials || pr.tunnels[i].spurned || now-pr.tunnels[i].born >= proven {
		return
	}
	e := pr.tunnels[i]
	e.spurned = true
	e.retire()
	if now-pr.spurned >= memory {
		pr.spurns = 0
	}
	pr.spurned = now
	if pr.spurns++; pr.spurns > 1 {
		p.dialFailed(pr, e.endpoint, errSpurned)
	}
}

func (pr *peer[T]) index(t T) int {
	return slices.IndexFunc(pr.tunnels, func(e *entry[T]) bool { return e.tunnel == t })
}

// shortLived is the error of a dial whose tunnel was lost at once; cause may be
// nil.
func shortLived(cause error) error {
	const what, hint = "tunnel was closed as soon as it was up", "(does the peer accept this gateway's identity?)"
	if cause == nil {
		return errors.New(what + " " + hint)
	}
	return fmt.Errorf("%s: %w %s", what, cause, hint)
}

// Loss is what the end of a tunnel comes to, before Gone is told of it: cause, unless
// the tunnel was as good as not dialled.
func (p *Pool[T]) Loss(to *route.Peer, t T, cause error) error {
	if pr := p.peers[to.Name]; pr != nil {
		if i := pr.index(t); i >= 0 && p.failed(pr.tunnels[i]) {
			return shortLived(cause)
		}
	}
	return cause
}

// failed says so of a tunnel that is lost now.
func (p *Pool[T]) failed(e *entry[T]) bool { return !e.retired && p.cfg.Now()-e.born < proven }

// Gone is told that a tunnel has closed, and why; nil stands for an end in order.
func (p *Pool[T]) Gone(to *route.Peer, t T, cause error) {
	pr := p.peers[to.Name]
	if pr == nil {
		return
	}
	i := pr.index(t)
	if i < 0 {
		return
	}
	e := pr.tunnels[i]
	pr.tunnels = slices.Delete(pr.tunnels, i, i+1)
	switch {
	case e.retired:
	case p.failed(e):
		if now := p.cfg.Now(); !pr.liveAt(pr.dials.first, now, 0) {
			pr.dials.use(now, pr.fallback())
		}
		p.dialFailed(pr, e.endpoint, shortLived(cause))
		return
	default:
		pr.dials.endRound()
	}
	p.giveUp(pr)
	p.dialIfNeeded(pr)
}

// Sweep does what time asks for: it lets idle and old tunnels go, fails
// requests that have waited too long, and dials anew for the others. It is
// called every second or so.
func (p *Pool[T]) Sweep() {
	now := p.cfg.Now()
	for _, pr := range p.peers {
		for _, e := range pr.tunnels {
			p.maybeRetire(e)
			p.retireIdle(e, now)
		}
		pr.preferFirst(now)
		p.expire(pr, now)
		p.dialIfNeeded(pr)
		p.widen(pr, 0)
	}
}

// retireIdle lets a tunnel go that has had no streams for long.
func (p *Pool[T]) retireIdle(e *entry[T], now time.Duration) {
	switch {
	case e.tunnel.Streams() > 0:
		e.idle = 0
	case e.idle == 0:
		e.idle = now
	case now-e.idle >= p.cfg.Idle:
		e.retire()
	}
}

// preferFirst lets the tunnels to later endpoints go as soon as one to the
// present endpoint has proved itself.
func (pr *peer[T]) preferFirst(now time.Duration) {
	first := pr.dials.first
	if !pr.liveAt(first, now, proven) {
		return
	}
	for _, e := range pr.tunnels {
		if e.endpoint > first {
			e.retire()
		}
	}
}

// expire fails the requests that have waited too long.
func (p *Pool[T]) expire(pr *peer[T], now time.Duration) {
	var none T
	for pr.waiters.n > 0 && pr.waiters.head.deadline <= now {
		err := fmt.Errorf("peer %s: %w", pr.route.Name, ErrWait)
		if why := p.held(); why != nil {
			err = fmt.Errorf("%w: %w", err, why)
		}
		pr.waiters.pop().take(none, err)
	}
}

func (p *Pool[T]) held() error {
	if p.cfg.Hold == nil {
		return nil
	}
	return p.cfg.Hold()
}

// Renew dials the endpoint of a tunnel anew, whoever waits: what lives on it needs
// the handshake. The new tunnel ends at once if nobody has a use for it.
func (p *Pool[T]) Renew(to *route.Peer, t T) {
	pr := p.peers[to.Name]
	if pr == nil {
		return
	}
	i := pr.index(t)
	if i < 0 || pr.tunnels[i].gateway != pr.dials {
		return
	}
	if e, now := pr.tunnels[i], p.cfg.Now(); pr.dials.mayProbe(now, e.endpoint) {
		p.begin(pr, &dialing{endpoint: e.endpoint, began: now, probe: true})
	}
}

// Wake ends every pause: what dials have failed for may not be so any more.
func (p *Pool[T]) Wake() {
	for _, pr := range p.peers {
		pr.backoff = backoff{}
		pr.dials.endRound()
		p.dialIfNeeded(pr)
	}
}

// Keep is told of other routes. Find knows the peers by their names, and has nil for
// one that there is no more: its tunnels end after their last stream, and requests
// that wait for it fail. Those that wait for one that is reached otherwise get a
// tunnel to where it is now.
func (p *Pool[T]) Keep(find func(name string) *route.Peer) {
	for name, pr := range p.peers {
		if to := find(name); to != nil {
			p.dialIfNeeded(p.peer(to))
			continue
		}
		delete(p.peers, name)
		pr.retireAll()
		pr.dials = newDials(0) // what is being dialled is not wanted
		pr.failWaiters(fmt.Errorf("peer %s: %w", name, errRemoved))
	}
}

// Drain lets every tunnel end after its last stream. Requests that wait get one all the
// same, which ends after theirs, and so does one that a peer has sent back: their clients
// were there before. The caller sees to it that there are no others.
func (p *Pool[T]) Drain() {
	p.draining = true
	for _, pr := range p.peers {
		pr.retireAll()
		p.dialIfNeeded(pr)
	}
}

// Status is how the tunnels to one peer stand.
type Status struct {
	Tunnels, Streams, Waiting, Dialing int
	Endpoint                           string
	Err                                error // of the last round of dialing, nil if it worked
}

// Status reports on a peer.
func (p *Pool[T]) Status(name string) Status {
	pr := p.peers[name]
	if pr == nil {
		return Status{}
	}
	s := Status{Tunnels: len(pr.tunnels), Waiting: pr.waiters.n, Dialing: len(pr.dials.running), Err: pr.backoff.err}
	for _, e := range pr.tunnels {
		s.Streams += e.tunnel.Streams()
	}
	if pr.live() > 0 {
		s.Endpoint = pr.route.Endpoints[pr.dials.first]
	}
	return s
}
