// Package lab shows a pair of gateways at work, on one machine and without
// privilege: it builds client — west ═ underlay ═ east — server out of network
// namespaces, runs two gateways in processes of their own, carries real requests
// through them, and proves from packets and from what each side saw that the
// source was preserved and that only TLS crossed in between. The lab can stay,
// and runs commands on its hosts for whoever asks over its socket.
//
// The certificates come from an authority in memory and end with the lab. The
// package does not build networks (netlab) and knows nothing of how a gateway
// works: it sees one from outside, as a user does.
package lab
