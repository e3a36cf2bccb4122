package identity

import (
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Federation has the roots of trust domains other than ours, from a file for
// each, however it is replaced. Each stands for itself: while one is missing,
// half-written or unfit, its last good roots stay.
type Federation struct {
	poller
	cfg Watch
	now atomic.Pointer[bundles]

	mu    sync.Mutex
	files map[spiffeid.TrustDomain]*bundleFile // guarded by mu
}

// bundles are the roots that count. They are immutable.
type bundles struct {
	roots    map[spiffeid.TrustDomain]*x509bundle.Bundle
	replaced chan struct{} // closed when others have taken their place
}

// bundleFile is where the roots of a trust domain come from.
type bundleFile struct {
	path string
	settled
}

// OpenFederation has no bundles yet: Read brings them. The caller closes it.
func OpenFederation(cfg Watch) *Federation {
	f := &Federation{cfg: cfg.withDefaults()}
	f.now.Store(&bundles{replaced: make(chan struct{})})
	f.poller.start(f.cfg.Interval, f.check)
	return f
}

// Read reads the bundles of other trust domains, in PEM or as SPIFFE bundle
// documents, and gives what puts them in use in place of those before: a trust
// domain that is not among them is not known any more. A file that is in use
// already keeps its last good roots. The error is a *VerifyError of the first that
// is not good; then there is nothing to use.
func (f *Federation) Read(paths map[spiffeid.TrustDomain]string) (use func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	files := make(map[spiffeid.TrustDomain]*bundleFile)
	fresh := make(map[spiffeid.TrustDomain]*x509bundle.Bundle)
	for _, td := range slices.SortedFunc(maps.Keys(paths), spiffeid.TrustDomain.Compare) {
		if old := f.files[td]; old != nil && old.path == paths[td] {
			files[td] = old
			continue
		}
		data := readFile(paths[td])
		if fresh[td], err = data.bundle(td); err != nil {
			return nil, err
		}
		files[td] = &bundleFile{paths[td], settled{sumOf(data), sumOf(data)}}
	}
	return func() { f.use(files, fresh) }, nil
}

// use puts files in use, of which those not fresh were so before.
func (f *Federation) use(files map[spiffeid.TrustDomain]*bundleFile, fresh map[spiffeid.TrustDomain]*x509bundle.Bundle) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.files = files
	for td := range files {
		if fresh[td] == nil {
			fresh[td] = f.now.Load().roots[td]
		}
	}
	f.replace(fresh)
}

// replace makes roots those that count, if they are others.
func (f *Federation) replace(roots map[spiffeid.TrustDomain]*x509bundle.Bundle) {
	if maps.EqualFunc(roots, f.now.Load().roots, (*x509bundle.Bundle).Equal) {
		return
	}
	close(f.now.Swap(&bundles{roots, make(chan struct{})}).replaced)
}

// check takes what the files hold where it is new and good.
func (f *Federation) check() {
	f.mu.Lock()
	defer f.mu.Unlock()
	roots := maps.Clone(f.now.Load().roots)
	for _, td := range slices.SortedFunc(maps.Keys(f.files), spiffeid.TrustDomain.Compare) {
		file := f.files[td]
		data := readFile(file.path)
		if yes, again := file.is(sumOf(data)); !yes || again {
			continue
		}
		b, err := data.bundle(td)
		if err != nil {
			f.cfg.Refused(ReasonOf(err))
			f.cfg.Log.Error("bundle not taken, keeping the last good one", "trustDomain", td, "reason", ReasonOf(err), "error", err)
			continue
		}
		roots[td] = b
		f.cfg.Log.Info("bundle updated", "trustDomain", td, "roots", len(b.X509Authorities()))
	}
	f.replace(roots)
}

// GetX509BundleForTrustDomain gives the roots of td, and fails for one that no
// file is named for.
func (f *Federation) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if b := f.now.Load().roots[td]; b != nil {
		return b, nil
	}
	return nil, errors.New("no bundle of trust domain " + td.Name())
}

// Updated is closed at the next change of roots. To miss none, ask for it before
// reading what it tells of. It stays open after Close.
func (f *Federation) Updated() <-chan struct{} { return f.now.Load().replaced }

// Over is src, with the bundles of f in place of those that src may have of the
// same trust domains: they are never merged. Our own trust domain is src's alone.
func (f *Federation) Over(src Source) Source { return federated{src, f} }

type federated struct {
	Source
	other *Federation
}

func (s federated) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	svid, err := s.GetX509SVID()
	if err != nil {
		return nil, err // whose domain is ours cannot be said
	}
	if svid.ID.TrustDomain() != td {
		if b, err := s.other.GetX509BundleForTrustDomain(td); err == nil {
			return b, nil
		}
	}
	return s.Source.GetX509BundleForTrustDomain(td)
}
