package config

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// schema is every key there is, in the order of the reference page. Reading it
// fills c; dir is where relative paths begin.
func schema(c *Config, dir string, h host) []key {
	return []key{
		{name: "version", kind: "1", must: true, example: "version: 1", read: one(new(int), version)},
		{name: "name", kind: "name", def: strconv.Quote(h.name), words: "the host's name", read: one(&c.Name, name)},
		{name: "identity", must: true, example: "identity: {workloadAPI: unix:///run/spire/sockets/agent.sock}",
			keys: func() []key { return identityKeys(&c.Identity, dir) }},
		{name: "networks", kind: "list of networks", def: "[]", read: many(&c.Networks, network)},
		{name: "listen", keys: func() []key { return listenKeys(&c.Listen) }},
		{name: "peers", must: true, example: "peers: [{name: east, …}]", each: func() []key {
			c.Peers = append(c.Peers, Peer{})
			return peerKeys(&c.Peers[len(c.Peers)-1])
		}},
		{name: "capture", keys: func() []key { return captureKeys(&c.Capture) }},
		{name: "routing", keys: func() []key { return routingKeys(&c.Routing) }},
		{name: "timeouts", keys: func() []key { return timeoutKeys(&c.Timeouts) }},
		{name: "keepalive", keys: func() []key { return keepaliveKeys(&c.Keepalive) }},
		{name: "drain", keys: func() []key { return drainKeys(&c.Drain) }},
		{name: "limits", keys: func() []key { return limitKeys(&c.Limits, h) }},
		{name: "earlyData", kind: "true or false", def: "false", read: one(&c.EarlyData, whether("true", "false"))},
		{name: "tls", kind: "direct or standard", def: "direct", read: one(&c.TLS, among(TLSDirect, TLSStandard))},
		{name: "log", keys: func() []key { return logKeys(&c.Log) }},
		{name: "audit", optional: true, keys: func() []key { return auditKeys(&c.Audit, dir) }},
		{name: "policy", example: "policy: [{name: no-telnet, action: deny, to: {ports: [23]}}]", each: func() []key {
			c.Policy = append(c.Policy, Rule{})
			return ruleKeys(&c.Policy[len(c.Policy)-1])
		}},
		{name: "revoked", keys: func() []key { return revokedKeys(&c.Revoked, dir) }},
	}
}

func identityKeys(i *Identity, dir string) []key {
	return []key{
		{name: "workloadAPI", kind: "URL", read: one(&i.WorkloadAPI, workloadAPI)},
		{name: "files", optional: true, keys: func() []key {
			i.Files = new(Files)
			return fileKeys(i.Files, dir)
		}},
		{name: "federation", example: "federation: [{trustDomain: partner.example, bundle: partner.pem}]", each: func() []key {
			i.Federation = append(i.Federation, Federated{})
			return federatedKeys(&i.Federation[len(i.Federation)-1], dir)
		}},
		{name: "grace", kind: "duration", def: "1h", read: one(&i.Grace, duration(time.Second, 7*24*time.Hour))},
	}
}

func fileKeys(f *Files, dir string) []key {
	return []key{
		{name: "cert", kind: "path", must: true, example: "cert: west.pem", read: one(&f.Cert, file(dir))},
		{name: "key", kind: "path", must: true, example: "key: west.key", read: one(&f.Key, file(dir))},
		{name: "bundle", kind: "path", must: true, example: "bundle: bundle.pem", read: one(&f.Bundle, file(dir))},
	}
}

func federatedKeys(f *Federated, dir string) []key {
	return []key{
		{name: "trustDomain", kind: "trust domain", must: true, example: "trustDomain: partner.example", read: one(&f.TrustDomain, trustDomain)},
		{name: "bundle", kind: "path", must: true, example: "bundle: partner.pem", read: one(&f.Bundle, file(dir))},
	}
}

func listenKeys(l *Listen) []key {
	return []key{
		{name: "tunnel", kind: "list of address:port", def: `["[::]:15008"]`, read: many(&l.Tunnel, listenAddr)},
		{name: "transparent", kind: "port", def: "15001", read: one(&l.Transparent, number[uint16](1, 65535))},
		{name: "metrics", kind: "address:port, or off", def: "127.0.0.1:15020", read: one(&l.Metrics, offOr(listenAddr))},
		{name: "ready", kind: "address:port, or off", def: "127.0.0.1:15021", read: one(&l.Ready, offOr(listenAddr))},
		{name: "admin", kind: "path, or off", def: "/run/wishbone/admin.sock", read: one(&l.Admin, offOr(socketPath))},
	}
}

func peerKeys(p *Peer) []key {
	return []key{
		{name: "name", kind: "name", must: true, example: "name: east", read: one(&p.Name, name)},
		{name: "ids", kind: "list of SPIFFE IDs", must: true, example: "ids: [spiffe://mesh.example/gateway/east]", read: many(&p.IDs, spiffeID)},
		{name: "endpoints", kind: "list of host:port", must: true, example: `endpoints: ["192.0.2.20:15008"]`, read: many(&p.Endpoints, endpoint)},
		{name: "networks", kind: "list of networks", must: true, example: "networks: [10.2.0.0/16]", read: many(&p.Networks, network)},
		{name: "inbound", keys: func() []key { return inboundKeys(&p.Inbound) }},
		{name: "outbound", keys: func() []key { return outboundKeys(&p.Outbound) }},
	}
}

func inboundKeys(i *Inbound) []key {
	return []key{
		{name: "source", kind: "preserve, address or gateway", def: "preserve", read: one(&i.Source, among(Preserve, Address, Gateway))},
	}
}

func outboundKeys(o *Outbound) []key {
	return []key{
		{name: "unavailable", kind: "reject or pass", def: "reject", read: one(&o.Unavailable, among(Reject, Pass))},
		{name: "uncarried", kind: "reject or pass", def: "reject", read: one(&o.Uncarried, among(Reject, Pass))},
	}
}

func captureKeys(c *Capture) []key {
	return []key{
		{name: "firewall", kind: "auto, nftables, iptables or none", def: "auto",
			read: one(&c.Firewall, among(FirewallAuto, NFTables, IPTables, NoFirewall))},
		{name: "from", kind: "list of forwarded, local", def: "[forwarded, local]", read: captureFrom(c)},
		{name: "sources", kind: "list of networks", def: "[]", words: "networks", read: many(&c.Sources, network)},
		{name: "exclude", keys: func() []key { return excludeKeys(&c.Exclude) }},
		{name: "existing", kind: "pass or reset", def: "pass", read: one(&c.ResetExisting, whether("reset", "pass"))},
	}
}

// captureFrom reads a list of words into its two fields.
func captureFrom(c *Capture) func(value) {
	return func(v value) {
		var from []string
		many(&from, among("forwarded", "local"))(v)
		c.Forwarded, c.Local = slices.Contains(from, "forwarded"), slices.Contains(from, "local")
	}
}

func excludeKeys(e *Exclude) []key {
	return []key{
		{name: "networks", kind: "list of networks", def: "[]", read: many(&e.Networks, prefix)},
		{name: "ports", kind: "list of ports and ranges", def: "[]", read: many(&e.Ports, ports)},
		{name: "uids", kind: "list of numbers", def: "[]", read: many(&e.UIDs, uid)},
		{name: "cgroups", kind: "list of paths", def: "[]", read: many(&e.Cgroups, cgroup)},
	}
}

// uid reads the number of a user. Names are not looked up: that would read files
// which this one does not name, and could ask the network.
func uid(text string) (uint32, *mistake) {
	n, m := number[uint32](0, 1<<32-2)(text) // the last means none (chown(2))
	if m != nil && text != "" && strings.Trim(text[:1], "-0123456789") != "" {
		m.hint = "write the user's number: id -u " + text
	}
	return n, m
}

func routingKeys(r *Routing) []key {
	return []key{
		{name: "mark", kind: "mark", def: "0x08000000", read: one(&r.Mark, mark)},
		{name: "mask", kind: "mark", def: "0x0c000000", read: one(&r.Mask, mark)},
		{name: "table", kind: "number", def: "15008", read: one(&r.Table, table)},
		// Ours must come before those of main and default (ip-rule(8)).
		{name: "priority", kind: "number", def: "1508", read: one(&r.Priority, number[int](1, 32766-rulePriorities))},
	}
}

// rulePriorities is how many rules we have, one after the other.
const rulePriorities = 4

// table reads the number of a routing table that is not the kernel's own.
func table(text string) (int, *mistake) {
	switch text {
	case "0", "253", "254", "255":
		return 0, wrong("the default is 15008", "%s is a table of the kernel's own", text)
	}
	return number[int](1, 1<<31-1)(text)
}

func timeoutKeys(t *Timeouts) []key {
	const least = 100 * time.Millisecond
	return []key{
		{name: "connect", kind: "duration", def: "10s", read: one(&t.Connect, duration(least, 2*time.Minute))},
		{name: "handshake", kind: "duration", def: "10s", read: one(&t.Handshake, duration(least, time.Minute))},
		{name: "request", kind: "duration", def: "15s", read: one(&t.Request, duration(least, 5*time.Minute))},
	}
}

func keepaliveKeys(k *Keepalive) []key {
	return []key{
		{name: "idle", kind: "duration", def: "180s", read: one(&k.Idle, keepaliveIdle)},
		{name: "interval", kind: "duration", def: "15s", read: one(&k.Interval, seconds(time.Second, 2*time.Minute))},
		// 127 is MAX_TCP_KEEPCNT of the kernel.
		{name: "count", kind: "number", def: "4", read: one(&k.Count, number[int](1, 127))},
	}
}

func drainKeys(d *Drain) []key {
	return []key{
		{name: "grace", kind: "duration", def: "30s", read: one(&d.Grace, duration(0, 24*time.Hour))},
	}
}

func limitKeys(l *Limits, h host) []key {
	return []key{
		{name: "memory", kind: "size or share", def: "25%", read: one(&l.Memory, size(h.memory))},
		{name: "streamsPerTunnel", kind: "number", def: "200", read: one(&l.StreamsPerTunnel, number[int](1, 10000))},
		{name: "handshakes", kind: "number", def: strconv.Itoa(max(1, h.cores/2)), words: "half the cores, at least 1",
			read: one(&l.Handshakes, number[int](1, 1024))},
	}
}

func logKeys(l *Log) []key {
	return []key{
		{name: "level", kind: "debug, info, warn or error", def: "info", read: one(&l.Level, among("debug", "info", "warn", "error"))},
		{name: "format", kind: "text or json", def: "text", read: one(&l.Format, among("text", "json"))},
	}
}

func auditKeys(a *Audit, dir string) []key {
	return []key{
		{name: "file", kind: "path", read: one(&a.File, file(dir))},
		{name: "syslog", kind: "path", read: one(&a.Syslog, socketPath)},
		{name: "journald", kind: "path", read: one(&a.Journald, socketPath)},
	}
}

func revokedKeys(r *Revoked, dir string) []key {
	return []key{
		{name: "ids", kind: "list of SPIFFE IDs", def: "[]", read: many(&r.IDs, spiffeID)},
		{name: "serials", kind: "list of serial numbers", def: "[]", read: many(&r.Serials, serial)},
		{name: "crls", kind: "list of paths", def: "[]", read: many(&r.CRLs, file(dir))},
	}
}
