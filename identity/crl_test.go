package identity_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"wishbone/identity"
	"wishbone/identity/identitytest"
)

// tomorrow is when lists end that are good.
func tomorrow() time.Time { return time.Now().Add(24 * time.Hour) }

// shelf is a directory with revocation lists, and what their reader says.
type shelf struct {
	disk
	dir     string
	issuers []*x509.Certificate
	all     func() bool // whether these are all issuers
	refused map[identity.Reason]int
	*identity.CRLs
}

// newShelf knows an authority's root.
func newShelf(t *testing.T, a *identitytest.Authority) *shelf {
	t.Helper()
	s := &shelf{dir: t.TempDir(), issuers: a.Bundle().X509Authorities(), refused: make(map[identity.Reason]int)}
	s.all = func() bool { return true }
	s.CRLs = identity.OpenCRLs(identity.Watch{
		Interval: interval,
		Log:      slog.New(slog.NewTextHandler(&s.disk, nil)),
		Refused:  func(r identity.Reason) { s.refused[r]++ },
	})
	t.Cleanup(func() { s.Close() })
	return s
}

// put writes files and has them read, in their order.
func (s *shelf) put(t *testing.T, files ...[]byte) error {
	t.Helper()
	var paths []string
	for i, data := range files {
		paths = append(paths, filepath.Join(s.dir, string(rune('a'+i))+".crl"))
		put(t, paths[i], data)
	}
	use, err := s.Read(paths, func() ([]*x509.Certificate, bool) { return s.issuers, s.all() })
	if err != nil {
		return err
	}
	use()
	return nil
}

// mustPut is put with good files.
func (s *shelf) mustPut(t *testing.T, files ...[]byte) {
	t.Helper()
	if err := s.put(t, files...); err != nil {
		t.Fatal(err)
	}
}

// judged is what becomes of a peer that was verified with src.
func (s *shelf) judged(svid *x509svid.SVID, src identity.Source) identity.Reason {
	revoked := identity.NewRevocations(nil, nil).With(s.CRLs)
	return identity.ReasonOf(identity.Withdrawn(svid.Certificates, time.Now(), src, revoked))
}

// der is the list in a PEM file.
func der(list []byte) []byte {
	b, _ := pem.Decode(list)
	return b.Bytes
}

// TestListed: a certificate on a list by its issuer ends the handshake in both
// roles, and a live session; those that are not on it are nobody's concern, and
// nor is a list by another authority of the same name.
func TestListed(t *testing.T) {
	a, twin := identitytest.New("mesh.example"), identitytest.New("mesh.example")
	gone, stays := a.Issue(eastPath), a.Issue(eastPath)
	for name, tt := range map[string]struct {
		files [][]byte
		want  identity.Reason
	}{
		"no list":            {nil, ""},
		"an empty list":      {[][]byte{a.CRL(tomorrow())}, ""},
		"another":            {[][]byte{a.CRL(tomorrow(), stays.Certificates[0])}, ""},
		"it":                 {[][]byte{a.CRL(tomorrow(), stays.Certificates[0], gone.Certificates[0])}, identity.Revoked},
		"in DER":             {[][]byte{der(a.CRL(tomorrow(), gone.Certificates[0]))}, identity.Revoked},
		"second in the file": {[][]byte{append(a.CRL(tomorrow()), a.CRL(tomorrow(), gone.Certificates[0])...)}, identity.Revoked},
		"in a second file":   {[][]byte{a.CRL(tomorrow()), a.CRL(tomorrow(), gone.Certificates[0])}, identity.Revoked},
		"past its time":      {[][]byte{a.CRL(time.Now().Add(-time.Minute), gone.Certificates[0])}, identity.Revoked},
		"by another":         {[][]byte{twin.CRL(tomorrow(), gone.Certificates[0])}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t, a)
			s.issuers = slices.Concat(s.issuers, twin.Bundle().X509Authorities())
			s.mustPut(t, tt.files...)
			src := trusting(a, meshDomain, s.issuers...)
			if got := s.judged(gone, src); got != tt.want {
				t.Errorf("a live session: %q, want %q", got, tt.want)
			}
			revoked := func() *identity.Revocations { return identity.NewRevocations(nil, nil).With(s.CRLs) }
			mine, theirs := identity.Client(src, welcome), identity.Server(src, welcome)
			identity.Refuse(mine, src, revoked)
			identity.Refuse(theirs, src, revoked)
			c, far := handshake(t, mine, rawServer(gone))
			near, c2 := reversed(handshake(t, rawClient(gone), theirs))
			if tt.want == "" {
				wantAccepted(t, c, far)
				wantAccepted(t, c2, near)
				return
			}
			for _, e := range []*identity.VerifyError{wantRefused(t, c, far, tt.want), wantRefused(t, near, c2, tt.want)} {
				if e.ID != gone.ID || !strings.Contains(e.Error(), s.dir) {
					t.Errorf("%v: names neither whom nor by what", e)
				}
			}
		})
	}
}

// TestListedIntermediate: a list by an intermediate counts for what that has signed,
// and one by the root for all that a listed intermediate has.
func TestListedIntermediate(t *testing.T) {
	mayList := func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }
	west := func(leaf *x509.Certificate) {
		leaf.SerialNumber = big.NewInt(7)
		leaf.URIs = append(leaf.URIs, spiffeid.RequireFromPath(meshDomain, westPath).URL())
	}
	root := newForger(t, mayList)
	mid := root.below(t, func(c *x509.Certificate) { mayList(c); c.SerialNumber = big.NewInt(5) })
	svid := mid.issue(t, west)
	src := trusting(identitytest.New("good.example"), meshDomain, root.root)
	list := func(by *forger, serial int64) []byte { return listOf(t, by.issuer, by.key, listing(serial)) }
	part := listing(7) // RFC 5280 §5.2.5, onlyContainsUserCerts
	part.ExtraExtensions = []pkix.Extension{{Id: []int{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 3, 0x81, 1, 0xff}}}
	for name, tt := range map[string]struct {
		list []byte
		want identity.Reason
	}{
		"the leaf by its intermediate":           {list(mid, 7), identity.Revoked},
		"the intermediate by the root":           {list(root, 5), identity.Revoked},
		"the leaf's number by the root":          {list(root, 7), ""},
		"the intermediate's number by itself":    {list(mid, 5), ""},
		"the leaf in a list of a part":           {listOf(t, mid.issuer, mid.key, part), identity.Revoked},
		"the leaf by mid under another name":     {listOf(t, renamed(mid.issuer), mid.key, listing(7)), ""},
		"the leaf by another in the name of mid": {list(root.below(t, mayList), 7), ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t, identitytest.New("mesh.example"))
			s.all = func() bool { return false } // the intermediates are those of peers
			s.mustPut(t, tt.list)
			if got := s.judged(svid, src); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func listing(serial int64) *x509.RevocationList {
	return &x509.RevocationList{RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(serial), RevocationTime: time.Now()}}}
}

// renamed is what the same authority would be under another name.
func renamed(c *x509.Certificate) *x509.Certificate {
	other := *c
	other.RawSubject, other.Subject = nil, pkix.Name{CommonName: "another"}
	return &other
}

// listOf has a list signed by whoever.
func listOf(t *testing.T, issuer *x509.Certificate, key crypto.Signer, list *x509.RevocationList) []byte {
	t.Helper()
	list.Number, list.ThisUpdate, list.NextUpdate = big.NewInt(1), time.Now().Add(-time.Hour), tomorrow()
	may := *issuer // CreateRevocationList reads from it who signs, and insists on more than some here have
	may.KeyUsage |= x509.KeyUsageCRLSign
	may.SubjectKeyId = []byte{1}
	der, err := x509.CreateRevocationList(rand.Reader, list, &may, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// badList is what is not taken for a list, and what says so.
type badList struct {
	data []byte
	want identity.Reason
	says string
}

func badLists(t *testing.T, a *identitytest.Authority) map[string]badList {
	t.Helper()
	f := newForger(t, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign })
	impostor := newForger(t, func(c *x509.Certificate) { c.Subject = a.Bundle().X509Authorities()[0].Subject })
	critical := func(oid ...int) []pkix.Extension {
		return []pkix.Extension{{Id: oid, Critical: true, Value: []byte{2, 1, 1}}}
	}
	byNobody := listOf(t, f.issuer, f.key, &x509.RevocationList{})
	good := a.CRL(tomorrow(), a.Issue(westPath).Certificates[0])
	damaged := der(good)
	damaged[len(damaged)-1] ^= 1
	return map[string]badList{
		"nothing":            {nil, identity.Malformed, "malformed"},
		"text":               {[]byte("no list\n"), identity.Malformed, "malformed"},
		"half of one":        {good[:len(good)/2], identity.Malformed, "not complete"},
		"one and a half":     {append(bytes.Clone(good), good[:len(good)/2]...), identity.Malformed, "not complete"},
		"half of one in DER": {der(good)[:100], identity.Malformed, "malformed"},
		"two in DER":         {append(der(good), der(good)...), identity.Malformed, "something follows"},
		"a certificate":      {marshalBundle(t, a.Bundle()), identity.Malformed, "holds no revocation list"},
		"too much":           {append(bytes.Clone(good), make([]byte, 4<<20)...), identity.TooLarge, "more than 4194304 bytes"},
		"changes to another": {listOf(t, f.issuer, f.key, &x509.RevocationList{ExtraExtensions: critical(2, 5, 29, 27)}), identity.Malformed, "2.5.29.27 is critical"},
		"entries of others": {listOf(t, f.issuer, f.key, &x509.RevocationList{RevokedCertificateEntries: []x509.RevocationListEntry{
			{SerialNumber: big.NewInt(7), RevocationTime: time.Now(), ExtraExtensions: critical(2, 5, 29, 29)},
		}}), identity.Malformed, "2.5.29.29 of an entry is critical"},
		"by nobody here":          {byNobody, identity.UnknownAuthority, "no authority here"},
		"by an impostor":          {listOf(t, impostor.issuer, impostor.key, &x509.RevocationList{}), identity.BadSignature, "has not signed"},
		"with a damaged end":      {damaged, identity.BadSignature, "has not signed"},
		"a good one beside a bad": {append(bytes.Clone(good), byNobody...), identity.UnknownAuthority, "no authority here"},
	}
}

// TestListsNotTaken: what is wrong with a file is an error with its name at first,
// and later leaves the last good lists as they were, is logged and counted once, and
// a good one counts again afterwards.
func TestListsNotTaken(t *testing.T) {
	for name := range badLists(t, identitytest.New("mesh.example")) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { // whose clock is another
				a := identitytest.New("mesh.example")
				bad, s, src := badLists(t, a)[name], newShelf(t, a), a.Source(westPath)
				defer s.Close()
				path := filepath.Join(s.dir, "a.crl")
				if err := s.put(t, bad.data); identity.ReasonOf(err) != bad.want || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), bad.says) {
					t.Errorf("at first: %v, want %q of the file: %q", err, bad.want, bad.says)
				}
				if len(s.All()) != 0 {
					t.Errorf("has taken %v", s.All())
				}

				gone, next := a.Issue(eastPath), a.Issue(eastPath)
				s.mustPut(t, a.CRL(tomorrow(), gone.Certificates[0]), a.CRL(tomorrow()))
				put(t, path, bad.data)
				rest()
				put(t, filepath.Join(s.dir, "b.crl"), a.CRL(tomorrow()))
				rest()
				if got := s.judged(gone, src); got != identity.Revoked {
					t.Errorf("the last good list does not count: %q", got)
				}
				if s.refused[bad.want] != 1 || len(s.refused) != 1 || s.logged(notTaken) != 1 || s.logged("reason="+string(bad.want)+" ") != 1 {
					t.Errorf("want %q once, counted %v:\n%s", bad.want, s.refused, s.log.String())
				}
				if err := s.put(t, bad.data); err != nil {
					t.Errorf("read again as one in use: %v", err)
				}

				renew(t, path, a.CRL(tomorrow(), next.Certificates[0]))
				rest()
				if before, now := s.judged(gone, src), s.judged(next, src); before != "" || now != identity.Revoked {
					t.Errorf("after a good list: %q and %q", before, now)
				}
			})
		})
	}
}

// TestListsUpdated: a change is told once it counts, and nothing else is. A file that
// is taken out of use counts no more.
func TestListsUpdated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := identitytest.New("mesh.example")
		s, src, gone := newShelf(t, a), a.Source(westPath), a.Issue(eastPath)
		defer s.Close()
		told := func(updated <-chan struct{}) bool {
			rest()
			select {
			case <-updated:
				return true
			default:
				return false
			}
		}
		s.mustPut(t, a.CRL(tomorrow()))
		before := s.Updated()
		if told(before) {
			t.Error("told of nothing")
		}
		put(t, filepath.Join(s.dir, "a.crl"), a.CRL(tomorrow(), gone.Certificates[0]))
		if !told(before) || s.judged(gone, src) != identity.Revoked {
			t.Error("not told of another list")
		}
		before = s.Updated()
		if err := os.Remove(filepath.Join(s.dir, "a.crl")); err != nil {
			t.Fatal(err)
		}
		if told(before) || s.judged(gone, src) != identity.Revoked || s.refused[identity.Unreadable] != 1 {
			t.Error("a file that is not there any more has taken its list along")
		}
		s.mustPut(t)
		if !told(before) || s.judged(gone, src) != "" {
			t.Error("not told that no file is in use")
		}
	})
}

// TestStaleList: a list whose time has passed still counts, and the log says so once.
func TestStaleList(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := identitytest.New("mesh.example")
		s, src, gone := newShelf(t, a), a.Source(westPath), a.Issue(eastPath)
		defer s.Close()
		s.mustPut(t, a.CRL(time.Now().Add(time.Minute), gone.Certificates[0]))
		rest()
		if l := s.All(); len(l) != 1 || l[0].Stale || l[0].Entries != 1 || s.logged("past its time") != 0 {
			t.Errorf("%+v\n%s", l, s.log.String())
		}
		<-time.After(time.Minute)
		rest()
		if l := s.All(); len(l) != 1 || !l[0].Stale || s.logged("past its time") != 1 {
			t.Errorf("%+v\n%s", l, s.log.String())
		}
		if got := s.judged(gone, src); got != identity.Revoked {
			t.Errorf("%q, want %q", got, identity.Revoked)
		}
	})
}

// TestListsBeforeRoots: as long as not all issuers are known, a list is taken whoever
// it is by, and is asked for its signer when they are.
func TestListsBeforeRoots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, stranger := identitytest.New("mesh.example"), identitytest.New("other.example")
		s, gone := newShelf(t, a), a.Issue(eastPath)
		defer s.Close()
		var partly atomic.Bool
		partly.Store(true)
		s.all = func() bool { return !partly.Load() }
		s.mustPut(t, a.CRL(tomorrow(), gone.Certificates[0]), stranger.CRL(tomorrow()))
		rest()
		if s.logged(notTaken) != 0 {
			t.Error(s.log.String())
		}
		partly.Store(false)
		rest()
		if s.logged(notTaken) != 1 || s.refused[identity.UnknownAuthority] != 1 || s.logged("b.crl") == 0 {
			t.Errorf("counted %v:\n%s", s.refused, s.log.String())
		}
		if got := s.judged(gone, a.Source(westPath)); got != identity.Revoked {
			t.Errorf("%q, want %q", got, identity.Revoked)
		}
	})
}

// TestListBeforeItsAuthority: a list that was there before the root which has signed it
// is taken when the root comes.
func TestListBeforeItsAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, next := identitytest.New("mesh.example"), identitytest.New("mesh.example")
		s, gone := newShelf(t, a), next.Issue(eastPath)
		defer s.Close()
		var issuers atomic.Pointer[[]*x509.Certificate]
		issuers.Store(&s.issuers)
		path := filepath.Join(s.dir, "a.crl")
		put(t, path, a.CRL(tomorrow()))
		use, err := s.Read([]string{path}, func() ([]*x509.Certificate, bool) { return *issuers.Load(), true })
		if err != nil {
			t.Fatal(err)
		}
		use()
		both := slices.Concat(a.CRL(tomorrow()), next.CRL(tomorrow(), gone.Certificates[0]))
		put(t, path, both)
		rest()
		if s.refused[identity.BadSignature]+s.refused[identity.UnknownAuthority] != 1 {
			t.Fatalf("refused %v", s.refused)
		}
		now := slices.Concat(s.issuers, next.Bundle().X509Authorities()) // the bundle, a moment later
		issuers.Store(&now)
		rest()
		rest()
		if got := s.judged(gone, next.Source(westPath)); got != identity.Revoked {
			t.Errorf("after the root has come: %q, want %q\n%s", got, identity.Revoked, s.log.String())
		}
	})
}
