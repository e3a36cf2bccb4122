package e2e

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wishbone/cmd/wishbone/doctor"
	"wishbone/identity/identitytest"
)

// list puts another revocation list in a file's place.
func (p *pair) list(t *testing.T, path string, next time.Time, revoked ...*x509.Certificate) {
	t.Helper()
	if err := os.WriteFile(path+".new", p.authority.CRL(next, revoked...), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// startWith starts a gateway on each machine; the first one's has something more.
func (o *overlay) startWith(extra string) {
	for i, m := range o.vms {
		s := o.site(m)
		if i == 0 {
			s.extra = extra
		}
		m.gateway = o.start(m.host, s, site{})
	}
}

// TestRevocationList: a peer whose certificate comes on a list is cut off at once,
// without a reload, whichever side has dialled the tunnel, and gets no other; other
// peers notice nothing. A list that is damaged changes nothing, and what is on none
// any more is let in again.
func TestRevocationList(t *testing.T) {
	o := newMachines(t, 3)
	a, b := o.vms[0], o.vms[1]
	tomorrow := time.Now().Add(24 * time.Hour)
	file := filepath.Join(t.TempDir(), "mesh.crl") // which a gateway must be let see
	o.list(t, file, tomorrow)
	o.startWith("revoked: {crls: [" + file + "]}")
	cut, stay := o.star(t)

	o.list(t, file, tomorrow, o.leaf(b.name))
	mustBreak(t, cut...)
	mustSayCut(t, a.gateway, "revoked", cut...)
	mustLive(t, stay...)
	mustRefuse(t, a, b)
	awaitLog(t, a.gateway, "tunnel not established", "peer="+b.name, "revoked", "mesh.crl")
	awaitLog(t, a.gateway, "tunnel refused", "reason=revoked", "gateway/"+b.name)
	if s := status(t, a.gateway); s.Withdrawn["revoked"] < 2 || s.Revoked.Lists != 1 || s.Revoked.Listed != 1 || s.Closed["cut"] != uint64(len(cut)) {
		t.Errorf("status: withdrawn %v, revoked %+v, ends %v", s.Withdrawn, s.Revoked, s.Closed)
	}
	_, out := runOn(t, a.host, "1", "status", "--admin", filepath.Join(o.dir, a.name+".sock"))
	mustMatch(t, out, `^tunnels withdrawn +revoked [2-9]`, `^revoked +listed 1$`, `^revocation lists +in use 1$`)

	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, good[:len(good)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	awaitLog(t, a.gateway, "revocation lists not taken", "mesh.crl", "reason=malformed")
	if n := scrape(t, a.host)[`wishbone_identity_files_refused_total{reason="malformed"}`]; n != 1 {
		t.Errorf("%v lists were not taken, want 1", n)
	}
	mustRefuse(t, a, b)
	mustLive(t, stay...)

	// Its time has passed, and it counts all the same: nobody is on it now.
	o.list(t, file, time.Now().Add(-time.Hour))
	awaitLog(t, a.gateway, "revocation list is past its time", "mesh.crl")
	o.letIn(t, a, b)
	if n := scrape(t, a.host)["wishbone_revocation_lists_stale"]; n != 1 {
		t.Errorf("%v lists are past their time, want 1", n)
	}
	mustLive(t, stay...)
}

// TestRevocationListRefused: a gateway does not start with a list that does not
// count, and says which and why; a running one does not take another configuration
// with it, and the doctor says the same.
func TestRevocationListRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		list         []byte
		what, remedy string
	}{
		"by a stranger":  {identitytest.New("other.example").CRL(time.Now().Add(time.Hour)), "unknown_authority", "a root in the bundle"},
		"by an impostor": {identitytest.New(domain).CRL(time.Now().Add(time.Hour)), "bad_signature", "get it again"},
		"text":           {[]byte("no list"), "malformed", "openssl crl"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t, longLived)
			if err := os.WriteFile(filepath.Join(p.dir, "bad.crl"), tt.list, 0o644); err != nil {
				t.Fatal(err)
			}
			p.westSite.extra = "revoked: {crls: [bad.crl]}"
			p.writeYAML(p.westSite, p.eastSite)
			code, out := runOn(t, p.West, "1", "run", "-c", filepath.Join(p.dir, "west.yaml"))
			if code != 1 || !strings.Contains(out, tt.what) || !strings.Contains(out, "bad.crl") || !strings.Contains(out, tt.remedy) {
				t.Errorf("run: exit code %d\n%s", code, out)
			}
			hangUp(t, p.west)
			awaitLog(t, p.west, "level=ERROR", tt.what, "bad.crl")
			if s := status(t, p.west); s.State != "ready" || s.Revoked.Lists != 0 {
				t.Errorf("%+v", s)
			}
			_, findings := diagnose(t, p)
			if !slices.ContainsFunc(findings, func(f doctor.Finding) bool {
				return f.Level == doctor.Fail && f.Check == "revoked" && strings.Contains(f.What, tt.what) && strings.Contains(f.Remedy, tt.remedy)
			}) {
				t.Errorf("the doctor: %+v", findings)
			}
		})
	}
}
