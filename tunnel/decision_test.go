package tunnel

import (
	"context"
	"crypto/x509"
	"errors"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/identity/authz"
	"wishbone/tunnel/engine"
	"wishbone/tunnel/hbone"
)

// decisions keeps what a gateway has decided.
type decisions struct {
	mu  sync.Mutex
	all []Decision // guarded by mu
}

func (d *decisions) add(t Decision) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = append(d.all, t)
}

// words are what was decided, in a word or two each, in order.
func (d *decisions) words() (words []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, t := range d.all {
		var w strings.Builder
		w.WriteString(string(t.Verdict))
		for _, more := range []string{t.Reason, t.Rule} {
			if more != "" {
				w.WriteString(" " + more)
			}
		}
		words = append(words, w.String())
	}
	return words
}

// ruled is a policy in which west owns the clients, with a rule.
func ruled(t *testing.T, rule authz.Rule) *authz.Policy {
	t.Helper()
	p, err := authz.New(authz.Config{
		Networks: []netip.Prefix{servers},
		Peers:    []authz.Peer{{Name: "west", IDs: []spiffeid.ID{idOf("west")}, Networks: []netip.Prefix{clients}}},
		Rules:    []authz.Rule{rule},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestDecided: each decision is told once, by the side that took it, with who, what
// and why; an end in order is none.
func TestDecided(t *testing.T) {
	stop := func(e *end) {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		e.Drain(now)
	}
	toPort := authz.To{Ports: []authz.PortRange{{First: target.Port(), Last: target.Port()}}}
	for _, tt := range []struct {
		name       string
		closed     bool          // nobody serves
		before     func(p *pair) // the connection
		then       func(p *pair) // while it lives; nil where it does not come about
		lives      bool          // still, afterwards
		west, east []string
	}{
		{
			name: "an end in order", lives: true, then: func(*pair) {},
			west: []string{"tunnel_opened", "allowed"}, east: []string{"tunnel_opened", "allowed"},
		}, {
			name: "no server", closed: true,
			west: []string{"tunnel_opened", "allowed", "failed refused"}, east: []string{"tunnel_opened", "allowed", "failed refused"},
		}, {
			name: "source of another peer", before: func(p *pair) { p.east.setPolicy("south") },
			west: []string{"tunnel_opened", "allowed", "failed denied"}, east: []string{"tunnel_opened", "denied unknown_peer"},
		}, {
			name: "a rule denies", before: func(p *pair) { p.east.policy.Store(ruled(t, authz.Rule{Name: "no", Action: authz.Deny, To: toPort})) },
			west: []string{"tunnel_opened", "allowed", "failed denied"}, east: []string{"tunnel_opened", "denied policy_deny no"},
		}, {
			name: "a rule in dry run would deny", lives: true, then: func(*pair) {},
			before: func(p *pair) {
				p.east.policy.Store(ruled(t, authz.Rule{Name: "no", Action: authz.Deny, To: toPort, DryRun: true}))
			},
			west: []string{"tunnel_opened", "allowed"}, east: []string{"tunnel_opened", "allowed", "dry_run would_deny no"},
		}, {
			name: "no memory", before: func(p *pair) { p.east.cfg.Tunnel.Budget = hbone.NewBudget(1) },
			west: []string{"tunnel_opened", "allowed", "failed overloaded"}, east: []string{"tunnel_opened", "failed overloaded"},
		}, {
			name: "no route", before: func(p *pair) { p.west.routes.Store(newTable(t)) },
			west: []string{"denied no_route"},
		}, {
			name: "this gateway itself", before: func(p *pair) { p.west.cfg.OwnTarget = func(netip.AddrPort) bool { return true } },
			west: []string{"denied loop"},
		}, {
			name: "a reload forbids it, by a rule",
			then: func(p *pair) {
				p.east.policy.Store(ruled(t, authz.Rule{Name: "no", Action: authz.Deny, To: toPort}))
				p.east.Reload()
			},
			west: []string{"tunnel_opened", "allowed"}, east: []string{"tunnel_opened", "allowed", "cut policy_deny no"},
		}, {
			name: "a reload takes the route", then: func(p *pair) { p.west.setRoutes("north"); p.west.Reload() },
			west: []string{"tunnel_opened", "allowed", "cut no_route"}, east: []string{"tunnel_opened", "allowed"},
		}, {
			name: "the peer is revoked",
			then: func(p *pair) {
				p.east.cfg.Withdrawn = func(Session) *Withdrawal { return &Withdrawal{Reason: "revoked", Err: errors.New("revoked")} }
				p.east.Judge()
			},
			west: []string{"tunnel_opened", "allowed"}, east: []string{"tunnel_opened", "allowed", "cut revoked", "tunnel_withdrawn revoked"},
		}, {
			name: "the gateway stops", then: func(p *pair) { stop(p.west) },
			west: []string{"tunnel_opened", "allowed", "cut draining"}, east: []string{"tunnel_opened", "allowed"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if !tt.closed {
				serve(t)
			}
			var west, east decisions
			p := newPair(t, Config{Decided: west.add}, Config{Decided: east.add})
			if tt.before != nil {
				tt.before(p)
			}
			side := newSide(t, p.west)
			if tt.then == nil {
				side.wantReset(0)
			} else {
				c := side.dial(0)
				exchange(t, c, "hello")
				tt.then(p)
				if tt.lives {
					exchange(t, c, "goes on")
					c.CloseWrite()
				}
			}
			eventually(t, "nothing lives", func() bool { return len(p.west.Flows())+len(p.east.Flows()) == 0 })
			for name, side := range map[string]struct {
				*decisions
				want []string
			}{"west": {&west, tt.west}, "east": {&east, tt.east}} {
				if got := side.words(); !slices.Equal(got, side.want) {
					t.Errorf("%s has decided %q, want %q", name, got, side.want)
				}
			}
		})
	}
}

// TestDecisionSays: a decision has all that is known of the connection.
func TestDecisionSays(t *testing.T) {
	serve(t)
	var east decisions
	chain := []*x509.Certificate{{SerialNumber: big.NewInt(0x5e0c1f)}}
	p := newPair(t, Config{}, Config{Decided: east.add})
	s, err := join(t, t.Context(), "west", p.east, func(s *Session) { s.Chain = chain })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	eventually(t, "east has the tunnel", func() bool { return len(east.words()) == 1 })
	want := Decision{Verdict: TunnelOpened, Direction: InboundFlow, Peer: "west", ID: idOf("west"), Serial: "5e0c1f"}
	if got := east.all[0]; got != want {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	p.east.each(func(w *worker) {
		w.decide(CutOff, &carried{
			direction: InboundFlow, client: client, target: target, peer: "west", id: idOf("west"), serial: "5e0c1f", rule: "r", dryRun: "d",
		}, "revoked", engine.End{Sent: 3, Received: 4})
	})
	want = Decision{
		Verdict: CutOff, Direction: InboundFlow, Peer: "west", ID: idOf("west"), Serial: "5e0c1f", Client: client, Target: target,
		Reason: "revoked", Rule: "r", Sent: 3, Received: 4,
	}
	if got := east.all[len(east.all)-1]; got != want {
		t.Errorf("%+v\nwant %+v", got, want)
	}
}
