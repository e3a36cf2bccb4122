package workload

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// maxTold bounds the mistakes remembered, since their text comes from outside.
const maxTold = 16

// watcher takes what workloadapi reports. Only the one goroutine that watches
// calls it.
type watcher struct {
	*Source
	ctx  context.Context
	told map[string]bool // mistakes logged since the last good answer
}

// start begins to watch. The context of a Source is its own: that of Open ends
// with Open.
func (s *Source) start() error {
	client, err := workloadapi.New(context.Background(),
		workloadapi.WithAddr(s.cfg.Address),
		workloadapi.WithDialOptions(s.dialOptions()...),
		workloadapi.WithBackoffStrategy(constant(s.cfg.Retry)))
	if err != nil {
		return newError(BadAddress, s.cfg.Address, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	w := &watcher{Source: s, ctx: ctx, told: make(map[string]bool)}
	s.wg.Go(func() { w.watch(client) })
	return nil
}

// watch runs until Close. WatchX509Context retries by itself, but takes two
// statuses for final, Canceled and InvalidArgument. A gateway outlives agents
// that say so.
func (w *watcher) watch(client *workloadapi.Client) {
	for w.ctx.Err() == nil {
		// The error has been reported to OnX509ContextWatchError.
		_ = client.WatchX509Context(w.ctx, w)
		select {
		case <-w.ctx.Done():
		case <-time.After(w.cfg.Retry):
		}
	}
	if err := client.Close(); err != nil {
		w.cfg.Log.Warn("workload API connection not closed", "error", err)
	}
}

// OnX509ContextUpdate takes a good answer.
func (w *watcher) OnX509ContextUpdate(answer *workloadapi.X509Context) {
	svid, err := pick(answer.SVIDs, w.cfg.ID)
	if err != nil {
		w.mistake(newError(NoSuchID, w.cfg.Address, err))
		return
	}
	clear(w.told)
	if w.trouble.Swap(nil) != nil {
		w.cfg.Log.Info("workload API answers again", "address", w.cfg.Address)
	}
	next := &material{svid: svid, bundles: answer.Bundles, replaced: make(chan struct{})}
	if w.now.Load().same(next) {
		return
	}
	close(w.now.Swap(next).replaced)
	w.cfg.Log.Info("identity updated", "id", svid.ID, "serial", fmt.Sprintf("%x", svid.Certificates[0].SerialNumber),
		"expires", svid.Certificates[0].NotAfter, "roots", roots(next))
}

// OnX509ContextWatchError takes the end of an attempt, or an answer that could
// not be read.
func (w *watcher) OnX509ContextWatchError(err error) {
	if w.ctx.Err() != nil {
		return
	}
	w.mistake(w.classify(err))
}

// mistake keeps what we have and says so, once.
func (w *watcher) mistake(e *Error) {
	w.trouble.Store(e)
	text := e.Error()
	if w.told[text] || len(w.told) == maxTold {
		return
	}
	w.told[text] = true
	if svid := w.now.Load().svid; svid != nil {
		w.cfg.Log.Error("workload API fails, keeping the last identity", "problem", e.Problem, "error", e,
			"hint", e.Hint, "expires", svid.Certificates[0].NotAfter)
		return
	}
	w.cfg.Log.Warn("no identity yet", "problem", e.Problem, "error", e, "hint", e.Hint)
}

// pick chooses the SVID with the wanted ID, or the first. There is at least one.
func pick(svids []*x509svid.SVID, want spiffeid.ID) (*x509svid.SVID, error) {
	if want.IsZero() {
		return svids[0], nil
	}
	var have []string
	for _, svid := range svids {
		if svid.ID == want {
			return svid, nil
		}
		have = append(have, svid.ID.String())
	}
	return nil, fmt.Errorf("no SVID for %s among those for %q", want, have)
}

// same says whether two answers mean the same. A certificate has one key.
func (m *material) same(o *material) bool {
	return m.svid != nil &&
		slices.EqualFunc(m.svid.Certificates, o.svid.Certificates, (*x509.Certificate).Equal) &&
		slices.EqualFunc(m.bundles.Bundles(), o.bundles.Bundles(), (*x509bundle.Bundle).Equal)
}

// roots lists each trust domain with its number of roots.
func roots(m *material) (list []string) {
	for _, b := range m.bundles.Bundles() {
		list = append(list, fmt.Sprintf("%s:%d", b.TrustDomain(), len(b.X509Authorities())))
	}
	return list
}

// constant waits the same time before every attempt: the agent is on this host,
// and one gateway does not crowd it.
type constant time.Duration

func (c constant) NewBackoff() workloadapi.Backoff { return c }
func (c constant) Next() time.Duration             { return time.Duration(c) }
func (c constant) Reset()                          {}
