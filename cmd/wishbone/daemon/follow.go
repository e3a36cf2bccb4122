package daemon

import (
	"maps"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// followIdentity has the live tunnels judged anew whenever the roots change, until
// stop is called, which waits for it.
func (d *Daemon) followIdentity() (stop func() error) {
	stopping, done := make(chan struct{}), make(chan struct{})
	known := d.roots()
	go func() { // ends with stop
		defer close(done)
		for {
			// Asked for first, so that no change falls between.
			updated := d.source.updated()
			if now := d.roots(); !now.equal(known) {
				known = now
				d.gateway.Judge()
			}
			select {
			case <-updated:
			case <-stopping:
				return
			}
		}
	}()
	return func() error {
		close(stopping)
		<-done
		return nil
	}
}

// roots are those of trust domains. One that we have none of is not there.
type roots map[spiffeid.TrustDomain]*x509bundle.Bundle

func (r roots) equal(o roots) bool { return maps.EqualFunc(r, o, (*x509bundle.Bundle).Equal) }

// roots are those of all peers' trust domains as of now.
func (d *Daemon) roots() roots {
	all := make(roots)
	for id := range d.current.Load().peers {
		if b, err := d.source.GetX509BundleForTrustDomain(id.TrustDomain()); err == nil {
			all[id.TrustDomain()] = b
		}
	}
	return all
}
