package identity_test

import (
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/identity"
	"wishbone/identity/identitytest"
)

// TestRevoked: in both roles, an ID or a serial number anywhere in the chain ends
// the handshake with its own reason; others are nobody's concern.
func TestRevoked(t *testing.T) {
	a := identitytest.New("mesh.example")
	svid := a.Issue(eastPath, identitytest.Options{Intermediates: 1})
	number := func(c *x509.Certificate) string { return fmt.Sprintf("%x", c.SerialNumber) }
	for name, tt := range map[string]struct {
		ids     []spiffeid.ID
		serials []string
		refused bool
	}{
		"nobody":         {},
		"another id":     {ids: []spiffeid.ID{a.ID(westPath)}},
		"another serial": {serials: []string{"ffffff"}},
		"id":             {ids: []spiffeid.ID{a.ID(westPath), svid.ID}, refused: true},
		"serial":         {serials: []string{number(svid.Certificates[0])}, refused: true},
		"intermediate":   {serials: []string{number(svid.Certificates[1])}, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			revoked := identity.NewRevocations(tt.ids, tt.serials)
			mine := identity.Client(a.Source(westPath), welcome)
			identity.Refuse(mine, a.Source(westPath), func() *identity.Revocations { return revoked })
			c, s := handshake(t, mine, identity.Server(identitytest.NewSource(svid, a), welcome))
			theirs := identity.Server(a.Source(westPath), welcome)
			identity.Refuse(theirs, a.Source(westPath), func() *identity.Revocations { return revoked })
			s2, c2 := reversed(handshake(t, identity.Client(identitytest.NewSource(svid, a), welcome), theirs))
			if !tt.refused {
				wantAccepted(t, c, s)
				wantAccepted(t, c2, s2)
				return
			}
			for _, e := range []*identity.VerifyError{wantRefused(t, c, s, identity.Revoked), wantRefused(t, s2, c2, identity.Revoked)} {
				if e.ID != svid.ID {
					t.Errorf("the refusal is of %s", e.ID)
				}
			}
		})
	}
}

func reversed(c, s end) (end, end) { return s, c }

// TestRefuseKeepsTheRest: who was not welcome before is not by being unrevoked.
func TestRefuseKeepsTheRest(t *testing.T) {
	a := identitytest.New("mesh.example")
	cfg := identity.Client(a.Source(westPath), only(a.ID("/gateway/south")))
	identity.Refuse(cfg, a.Source(westPath), func() *identity.Revocations { return nil })
	c, s := handshake(t, cfg, identity.Server(a.Source(eastPath), welcome))
	wantRefused(t, c, s, identity.WrongID)
}

// TestWithdrawn: what was proved stands though its time is over, until its root
// goes, or it is revoked.
func TestWithdrawn(t *testing.T) {
	a, b := identitytest.New("mesh.example"), identitytest.New("mesh.example")
	at := time.Now()
	src := a.Source(westPath)
	for _, o := range []identitytest.Options{
		{}, {Intermediates: 2},
		{NotBefore: at.Add(-time.Hour), NotAfter: at.Add(-time.Minute)},
	} {
		svid := a.Issue(eastPath, o)
		proved := at.Add(-2 * time.Minute)
		if err := identity.Withdrawn(svid.Certificates, proved, src, nil); err != nil {
			t.Errorf("%+v: nothing was withdrawn, and yet %v", o, err)
		}
		if err := identity.Withdrawn(svid.Certificates, at, src, nil); err != nil {
			t.Errorf("%+v: looked at after its time: %v", o, err)
		}
		gone := identitytest.NewSource(svid, b)
		if err := identity.Withdrawn(svid.Certificates, proved, gone, nil); identity.ReasonOf(err) != identity.RootWithdrawn {
			t.Errorf("%+v: another root: %v", o, err)
		}
		gone.Distrust(b)
		if err := identity.Withdrawn(svid.Certificates, proved, gone, nil); identity.ReasonOf(err) != identity.RootWithdrawn {
			t.Errorf("%+v: no root at all: %v", o, err)
		}
		revoked := identity.NewRevocations([]spiffeid.ID{svid.ID}, nil)
		if err := identity.Withdrawn(svid.Certificates, proved, src, revoked); identity.ReasonOf(err) != identity.Revoked {
			t.Errorf("%+v: revoked: %v", o, err)
		}
	}
	// The root was not valid yet at that time, as one that was issued anew is not.
	svid := a.Issue(eastPath)
	if err := identity.Withdrawn(svid.Certificates, at.AddDate(-1, 0, 0), src, nil); err != nil {
		t.Errorf("a root that is valid now: %v", err)
	}
}
