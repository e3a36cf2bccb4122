package doctor

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"wishbone/cmd/wishbone/daemon"
	"wishbone/config"
	"wishbone/identity"
	"wishbone/intercept/rules"
)

// Level is how bad a finding is.
type Level string

// The levels.
const (
	OK   Level = "ok"
	Warn Level = "warn" // works, perhaps not as wanted
	Fail Level = "fail" // does not work
)

// Finding is one thing that was looked at.
type Finding struct {
	Level Level `json:"level"`
	// Check is what was looked at, in a word or two.
	Check string `json:"check"`
	// What was found, in a sentence.
	What string `json:"what"`
	// Remedy is what to do about it; empty where there is nothing to do.
	Remedy string `json:"remedy,omitempty"`
}

// examination is one look at a host.
type examination struct {
	cfg     *config.Config
	plan    rules.Plan // of cfg
	running bool       // a gateway runs already: its ports are taken by itself
	source  identity.Source
	// revocations are nil where the lists cannot be read.
	revocations *identity.Revocations
	ourselves   []string // names of peers that are this very gateway
	findings    []Finding
}

// Examine looks at this host in the light of a configuration. running says that
// the gateway with this configuration is up. It takes as long as the slowest
// peer, at most ctx.
func Examine(ctx context.Context, cfg *config.Config, running bool) []Finding {
	e := &examination{cfg: cfg, plan: daemon.Plan(ctx, cfg), running: running}
	e.asGateway(func() {
		for _, look := range []func(context.Context){
			e.configuration, e.capabilities, e.landlock, e.userNamespaces, e.limits, e.audit, e.identity, e.federation, e.fileModes, e.revoked, e.ports, e.firewall, e.standing, e.foreignChains, e.foreignRules,
			e.forwarding, e.reversePath, e.routes, e.mirror, e.localSources, e.peers,
		} {
			look(ctx)
		}
	})
	return e.findings
}

func (e *examination) ok(check, format string, args ...any) {
	e.find(OK, check, "", format, args...)
}

func (e *examination) warn(check, remedy, format string, args ...any) {
	e.find(Warn, check, remedy, format, args...)
}

func (e *examination) fail(check, remedy, format string, args ...any) {
	e.find(Fail, check, remedy, format, args...)
}

// find notes what was found, on one line: programs say things on several.
func (e *examination) find(level Level, check, remedy, format string, args ...any) {
	what := strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")
	e.findings = append(e.findings, Finding{level, check, what, remedy})
}

func (e *examination) configuration(context.Context) {
	f, err := os.Open(e.cfg.Path)
	if err != nil { // though the caller has read it, with more rights
		e.fail("configuration", fileRemedy(err, ""), "%v", err)
		return
	}
	f.Close()
	notes := e.cfg.Notes()
	for _, n := range notes {
		e.warn("configuration", "", "%s", n)
	}
	if len(notes) == 0 {
		e.ok("configuration", "%s: gateway %s, %d peers", e.cfg.Path, e.cfg.Name, len(e.cfg.Peers))
	}
}

// soon is when a certificate is near its end, unless half of its life is shorter.
const soon = 7 * 24 * time.Hour
