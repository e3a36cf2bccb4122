package doctor

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/config"
	"wishbone/identity"
	"wishbone/identity/workload"
	"wishbone/intercept"
)

// identityTime bounds the wait for a Workload API.
const identityTime = 5 * time.Second

func (e *examination) identity(ctx context.Context) {
	const check = "identity"
	source, err := openIdentity(ctx, e.cfg.Identity)
	if err != nil {
		remedy := fileRemedy(err, hintOf(daemon.IdentityError(err)))
		if w, ok := errors.AsType[*workload.Error](err); ok {
			remedy = w.Hint
		}
		e.fail(check, remedy, "%v", unread(err))
		return
	}
	e.source = e.federated(source)
	svid, err := identity.Own(source)
	if err != nil {
		e.fail(check, hintOf(daemon.IdentityError(err)), "%v", err)
		return
	}
	ends := svid.Certificates[0].NotAfter
	life := ends.Sub(svid.Certificates[0].NotBefore)
	if e.cfg.Identity.Files != nil && time.Until(ends) < min(soon, life/2) {
		e.warn(check, "issue a new certificate; a running gateway takes the new files by itself", "%s ends at %s", svid.ID, ends.Format(time.RFC3339))
		return
	}
	e.ok(check, "%s until %s", svid.ID, ends.Format(time.RFC3339))
}

// federated is source with the bundles of other trust domains. They stay open until
// the program ends.
func (e *examination) federated(source identity.Source) identity.Source {
	others := identity.OpenFederation(identity.Watch{})
	use, err := others.Read(e.cfg.Identity.Bundles())
	if err != nil {
		e.fail("federation", fileRemedy(err, hintOf(daemon.BundleError(err))), "%v", unread(err))
		return source
	}
	use()
	return others.Over(source)
}

// federation looks for the bundle of each trust domain that a peer is of.
func (e *examination) federation(context.Context) {
	const check = "federation"
	if e.source == nil {
		return
	}
	svid, err := e.source.GetX509SVID()
	if err != nil {
		return // identity has said so
	}
	own := svid.ID.TrustDomain()
	if _, wrong := e.cfg.Identity.Bundles()[own]; wrong {
		e.fail(check, "remove it from identity.federation: identity.files or the agent has its bundle", "%s is our own trust domain", own)
	}
	seen := map[spiffeid.TrustDomain]bool{own: true}
	for _, p := range e.cfg.Peers {
		for _, id := range p.IDs {
			td := id.TrustDomain()
			if seen[td] {
				continue
			}
			seen[td] = true
			if b, err := e.source.GetX509BundleForTrustDomain(td); err != nil {
				e.fail(check, e.bundleRemedy(td), "there is no bundle of %s, so %s of peer %s can prove nothing", td, id, p.Name)
			} else {
				e.ok(check, "%s is known by %d of its roots", td, len(b.X509Authorities()))
			}
		}
	}
}

// bundleRemedy is where the bundle of a trust domain may come from.
func (e *examination) bundleRemedy(td spiffeid.TrustDomain) string {
	remedy := fmt.Sprintf("add to identity, federation: [{trustDomain: %s, bundle: %s.pem}]", td, td)
	if e.cfg.Identity.Files == nil {
		return fmt.Sprintf("federate the agent's server with it, and the entry of this gateway (-federatesWith %s); or %s", td.IDString(), remedy)
	}
	return remedy
}

// openIdentity opens what the configuration names. It stays open until the
// program ends.
func openIdentity(ctx context.Context, cfg config.Identity) (identity.Source, error) {
	if cfg.Files != nil {
		return identity.OpenFiles(identity.FilesConfig{Cert: cfg.Files.Cert, Key: cfg.Files.Key, Bundle: cfg.Files.Bundle})
	}
	// gRPC asks from other threads, which have all of root's rights.
	path := strings.TrimPrefix(cfg.WorkloadAPI, "unix://")
	if err := access(path, unix.W_OK); errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	ctx, cancel := context.WithTimeout(ctx, identityTime)
	defer cancel()
	return workload.Open(ctx, workload.Config{Address: cfg.WorkloadAPI})
}

// peers knocks at every endpoint of every peer, all at once.
func (e *examination) peers(ctx context.Context) {
	if e.source == nil {
		return
	}
	type result struct {
		peer     config.Peer
		endpoint string
		err      error
	}
	results := make(chan result)
	n := 0
	for _, p := range e.others() {
		for _, endpoint := range p.Endpoints {
			n++
			go func() { results <- result{p, endpoint, e.knock(ctx, p, endpoint)} }() // ends with the handshake timeout
		}
	}
	var all []result
	for range n {
		all = append(all, <-results)
	}
	slices.SortFunc(all, func(a, b result) int {
		return slices.Compare([]string{a.peer.Name, a.endpoint}, []string{b.peer.Name, b.endpoint})
	})
	for _, r := range all {
		if r.err != nil {
			e.fail("peer "+r.peer.Name, remedyFor(r.err), "%v", r.err)
			continue
		}
		e.ok("peer "+r.peer.Name, "%s has proved that it is one of %s", r.endpoint, r.peer.IDs)
	}
}

var errNotAccepted = errors.New("the peer does not accept us")

// knock does the handshake with an endpoint, and waits for the peer's first
// word: in TLS 1.3 it is the peer's acceptance of our certificate too.
func (e *examination) knock(ctx context.Context, p config.Peer, endpoint string) error {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.Timeouts.Handshake)
	defer cancel()
	own := intercept.Options{Mark: e.cfg.Routing.Mask &^ e.cfg.Routing.Mark}
	cfg := identity.Client(e.source, func(id spiffeid.ID) error {
		if !slices.Contains(p.IDs, id) {
			return fmt.Errorf("want one of %s", p.IDs)
		}
		return nil
	})
	identity.Refuse(cfg, e.source, func() *identity.Revocations { return e.revocations })
	d := tls.Dialer{NetDialer: &net.Dialer{Control: intercept.Control(own, 0)}, Config: cfg}
	conn, err := d.DialContext(ctx, "tcp", endpoint)
	if err != nil {
		return fmt.Errorf("dial %s: %w", endpoint, err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("%w at %s: %w", errNotAccepted, endpoint, err)
	}
	return nil
}

// remedyFor is what to do about a peer that cannot be reached.
func remedyFor(err error) string {
	switch identity.ReasonOf(err) {
	case identity.WrongID:
		return "compare the peer's ids in this configuration with what it proves"
	case identity.WrongDomain, identity.UnknownAuthority:
		return "the two gateways need each other's roots: compare their bundles"
	case identity.Expired:
		return "the peer needs a new certificate"
	case identity.NotYetValid:
		return "compare the clocks of both hosts"
	case identity.Revoked:
		return "take it out of peers, or give it another identity; revoked says why it is refused"
	}
	switch {
	case errors.Is(err, errNotAccepted):
		return "our SPIFFE ID must be among the ids of its peer for us, and our root in its bundle: its log says which it is"
	case errors.Is(err, intercept.ErrPermission):
		return "run doctor as root, or with CAP_NET_ADMIN or CAP_NET_RAW"
	}
	if e, ok := errors.AsType[*net.DNSError](err); ok {
		return "getent hosts " + e.Name + " asks as this host does: is the name right, does its resolver answer? An endpoint may be an address"
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return "nothing answers: is a packet filter in between, is the address right?"
	}
	return "is the gateway up there, on this address and port, and does it have this gateway's id among its peers?"
}
