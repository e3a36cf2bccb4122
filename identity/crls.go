package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Issuers gives the certificates of those who may have signed revocation lists, and
// whether these are all. As long as they are not, a list is taken whoever it is by.
type Issuers func() (known []*x509.Certificate, all bool)

// CRLs are the revocation lists of some files, however these are replaced. Each
// file stands for itself: while it is missing, half-written or by a stranger, its
// last good lists stay.
type CRLs struct {
	poller
	cfg Watch
	now atomic.Pointer[lists]

	mu      sync.Mutex
	files   []*crlFile // guarded by mu
	issuers Issuers    // guarded by mu
}

// lists are those that count. They are immutable.
type lists struct {
	all      []*crl
	replaced chan struct{} // closed when others have taken their place
}

// crlFile is one file with lists.
type crlFile struct {
	path string
	settled
	lists    []*crl
	unproven bool // taken while not all issuers were known
	unsigned bool // what was last judged was refused for none of these issuers has signed it
	by       sum  // the issuers that it was judged by
	told     bool // that a list is past its time
}

// OpenCRLs has no lists yet: Read brings them. The caller closes it.
func OpenCRLs(cfg Watch) *CRLs {
	c := &CRLs{cfg: cfg.withDefaults()}
	c.now.Store(&lists{replaced: make(chan struct{})})
	c.poller.start(c.cfg.Interval, c.check)
	return c
}

// Read reads files of revocation lists, in PEM or DER, and gives what puts them in
// use in place of those before. A file that is in use already keeps its last good
// lists. Issuers is asked now, and whenever one has changed. The error is a
// *VerifyError of the first that is not good; then there is nothing to use.
func (c *CRLs) Read(paths []string, issuers Issuers) (use func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var files []*crlFile
	for _, path := range paths {
		if i := slices.IndexFunc(c.files, func(f *crlFile) bool { return f.path == path }); i >= 0 {
			files = append(files, c.files[i])
			continue
		}
		f := &crlFile{path: path}
		data := readUpTo(path, maxCRL)
		f.settled = settled{sumOf(data), sumOf(data)}
		if err := f.parse(data, issuers); err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return func() { c.use(files, issuers) }, nil
}

// parse takes what a file holds, or says by reason why not.
func (f *crlFile) parse(data pemFile, issuers Issuers) error {
	f.unsigned = false
	lists, err := data.crls()
	if err != nil {
		return err
	}
	known, all := issuers()
	if all {
		if err := checkAll(lists, known); err != nil {
			f.unsigned, f.by = true, sumOfAuthorities(known)
			return err
		}
	}
	f.lists, f.unproven, f.told = lists, !all, false
	return nil
}

func (c *CRLs) use(files []*crlFile, issuers Issuers) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.files, c.issuers = files, issuers
	c.replace()
}

// replace makes the lists of the files those that count.
func (c *CRLs) replace() {
	next := &lists{replaced: make(chan struct{})}
	for _, f := range c.files {
		next.all = append(next.all, f.lists...)
	}
	close(c.now.Swap(next).replaced)
	c.warn()
}

// warn tells once of each file with a list that is past its time. Such a list still
// counts: those on it are not to be trusted again because nobody has looked after
// it, and nobody else is to be refused for that.
func (c *CRLs) warn() {
	for _, f := range c.files {
		if i := slices.IndexFunc(f.lists, (*crl).stale); i >= 0 && !f.told {
			f.told = true
			l := f.lists[i].list
			c.cfg.Log.Warn("revocation list is past its time; it still counts", "file", f.path, "issuer", l.Issuer.String(), "nextUpdate", l.NextUpdate)
		}
	}
}

// check takes what the files hold where it is new and good.
func (c *CRLs) check() {
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := false
	for _, f := range c.files {
		c.prove(f)
		data := readUpTo(f.path, maxCRL)
		if yes, again := f.is(sumOf(data)); !yes || again && !f.otherwise(c.issuers) {
			continue
		}
		if err := f.parse(data, c.issuers); err != nil {
			c.refuse(f, err)
			continue
		}
		changed = true
		c.cfg.Log.Info("revocation lists updated", "file", f.path, "lists", len(f.lists), "entries", entries(f.lists))
	}
	if changed {
		c.replace()
	}
	c.warn()
}

// otherwise says whether a list that none had signed may be judged otherwise now: the
// bundle with its authority may come after it.
func (f *crlFile) otherwise(issuers Issuers) bool {
	if !f.unsigned {
		return false
	}
	known, _ := issuers()
	return f.by != sumOfAuthorities(known)
}

func sumOfAuthorities(certs []*x509.Certificate) (all sum) {
	h := sha256.New()
	for _, c := range certs {
		h.Write(c.Raw)
	}
	h.Sum(all[:0])
	return all
}

// prove asks who the lists of a file are by, once that can be said.
func (c *CRLs) prove(f *crlFile) {
	if !f.unproven {
		return
	}
	known, all := c.issuers()
	if f.unproven = !all; f.unproven {
		return
	}
	if err := checkAll(f.lists, known); err != nil {
		c.refuse(f, err)
	}
}

func (c *CRLs) refuse(f *crlFile, err error) {
	c.cfg.Refused(ReasonOf(err))
	c.cfg.Log.Error("revocation lists not taken, keeping the last good ones", "file", f.path, "reason", ReasonOf(err), "error", err)
}

func entries(all []*crl) (n int) {
	for _, l := range all {
		n += len(l.serials)
	}
	return n
}

// Updated is closed at the next change of lists. To miss none, ask for it before
// reading what it tells of. It stays open after Close.
func (c *CRLs) Updated() <-chan struct{} { return c.now.Load().replaced }

// CRL is what there is to say of a revocation list.
type CRL struct {
	// File is where it is, Issuer the name of its signer.
	File, Issuer string
	// Entries is how many certificates it has.
	Entries int
	// NextUpdate is when there should be a newer one; zero if it does not say. Stale
	// is that this has passed.
	NextUpdate time.Time
	Stale      bool
}

// All are the lists that count.
func (c *CRLs) All() (all []CRL) {
	for _, l := range c.now.Load().all {
		all = append(all, CRL{l.path, l.list.Issuer.String(), len(l.serials), l.list.NextUpdate, l.stale()})
	}
	return all
}
