package authz_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/identity/authz"
)

// ruled is config with rules.
func ruled(rules ...authz.Rule) authz.Config {
	cfg := config()
	cfg.Rules = rules
	return cfg
}

func spans(ports ...uint16) (list []authz.PortRange) {
	for _, p := range ports {
		list = append(list, authz.PortRange{First: p, Last: p})
	}
	return list
}

// outcome is how a judgement comes out, in one comparable value.
type outcome struct {
	reason    authz.Reason
	rule, dry string
}

func (o outcome) String() string {
	if o.reason == "" {
		return fmt.Sprintf("permitted by %q, dry run %q", o.rule, o.dry)
	}
	return fmt.Sprintf("%s by %q, dry run %q", o.reason, o.rule, o.dry)
}

// judge asks a policy.
func judge(t testing.TB, p *authz.Policy, id spiffeid.ID, source, target netip.AddrPort) outcome {
	t.Helper()
	permit, err := p.Authorize(id, source, target)
	if err == nil {
		return outcome{"", permit.Rule(), permit.DryRun()}
	}
	denied, ok := errors.AsType[*authz.DeniedError](err)
	if !ok || permit != (authz.Permit{}) {
		t.Fatalf("%v with %+v", err, permit)
	}
	return outcome{denied.Reason, denied.Rule, denied.DryRun}
}

func TestRules(t *testing.T) {
	var (
		web    = authz.Rule{Name: "web", Action: authz.Allow, To: authz.To{Networks: prefixes("10.1.0.0/24", "fd00:1::/64"), Ports: []authz.PortRange{{80, 80}, {8000, 8100}}}}
		toEast = authz.Rule{Name: "east", Action: authz.Allow, From: authz.From{IDs: []spiffeid.ID{east}}, To: authz.To{Ports: spans(22)}}
		subnet = authz.Rule{Name: "subnet", Action: authz.Allow, From: authz.From{Networks: prefixes("10.2.7.0/24")}, To: authz.To{Networks: prefixes("10.1.5.0/24")}}
		inner  = authz.Rule{Name: "inner", Action: authz.Allow, From: authz.From{IDs: []spiffeid.ID{south}}, To: authz.To{Networks: prefixes("10.1.5.6/32")}}
		telnet = authz.Rule{Name: "no-telnet", To: authz.To{Ports: spans(23)}}
		guest  = authz.Rule{Name: "no-guest", From: authz.From{Networks: prefixes("10.2.9.0/24", "10.4.9.0/24")}}
		all    = authz.Rule{Name: "none", Action: authz.Allow, From: authz.From{IDs: []spiffeid.ID{hub}}}
	)
	rules := []authz.Rule{web, toEast, subnet, inner, telnet, guest}
	p := newPolicy(t, ruled(rules...))
	for name, c := range map[string]struct {
		id             spiffeid.ID
		source, target string
		want           outcome
	}{
		"allowed":                          {east, "10.2.0.5:4000", "10.1.0.7:80", outcome{"", "web", ""}},
		"allowed, IPv6":                    {east, "[fd00:2::5]:4000", "[fd00:1::7]:8100", outcome{"", "web", ""}},
		"allowed, mapped":                  {east, "[::ffff:10.2.0.5]:4000", "[::ffff:10.1.0.7]:8000", outcome{"", "web", ""}},
		"named by none":                    {east, "10.2.0.5:4000", "10.1.0.7:81", outcome{}},
		"named by none, beside a range":    {east, "10.2.0.5:4000", "10.1.0.7:8101", outcome{}},
		"named by none, beside a network":  {east, "10.2.0.5:4000", "10.1.1.7:80", outcome{}},
		"another id of the same peer":      {east2, "10.2.0.5:4000", "10.1.0.7:22", outcome{authz.PolicyDefaultDeny, "east", ""}},
		"another peer":                     {south, "10.3.0.5:4000", "10.1.200.7:22", outcome{authz.PolicyDefaultDeny, "east", ""}},
		"the id":                           {east, "10.2.0.5:4000", "10.1.200.7:22", outcome{"", "east", ""}},
		"the source network":               {east, "10.2.7.1:4000", "10.1.5.6:443", outcome{"", "subnet", ""}},
		"not the source network":           {east, "10.2.8.1:4000", "10.1.5.6:443", outcome{authz.PolicyDefaultDeny, "subnet", ""}},
		"allowed within":                   {south, "10.3.0.1:4000", "10.1.5.6:443", outcome{"", "inner", ""}},
		"not allowed around":               {south, "10.3.0.1:4000", "10.1.5.7:443", outcome{authz.PolicyDefaultDeny, "subnet", ""}},
		"denied":                           {hub, "192.0.2.1:4000", "10.2.3.9:23", outcome{authz.PolicyDeny, "no-telnet", ""}},
		"deny wins":                        {east, "10.2.9.1:4000", "10.1.0.7:80", outcome{authz.PolicyDeny, "no-guest", ""}},
		"of two that deny the first":       {east, "10.2.9.1:4000", "10.1.0.7:23", outcome{authz.PolicyDeny, "no-telnet", ""}},
		"ownership comes first":            {east, "10.3.0.5:4000", "10.1.0.7:80", outcome{authz.SourceNotOwned, "", ""}},
		"ownership comes first, target":    {east, "10.2.0.5:4000", "10.3.0.7:23", outcome{authz.TargetNotServed, "", ""}},
		"no source may be a denied one":    {north, "", "10.1.0.7:80", outcome{authz.PolicyDeny, "no-guest", ""}},
		"a source that is not the denied":  {north, "10.4.0.1:4000", "10.1.0.7:80", outcome{"", "web", ""}},
		"families differ, for one gateway": {north, "10.4.0.1:4000", "[fd00:1::7]:80", outcome{"", "web", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			source, target := addrPort(c.source), addrPort(c.target)
			if got := judge(t, p, c.id, source, target); got != c.want {
				t.Errorf("%s from %s to %s: %s, want %s", c.id, source, target, got, c.want)
			}
		})
	}
	t.Run("no source is in no network that is allowed", func(t *testing.T) {
		subnet.From.Networks = prefixes("10.4.0.0/16")
		p := newPolicy(t, ruled(subnet))
		if got := judge(t, p, north, netip.AddrPort{}, addrPort("10.1.5.1:80")); got != (outcome{authz.PolicyDefaultDeny, "subnet", ""}) {
			t.Errorf("%s", got)
		}
		if got := judge(t, p, north, addrPort("10.4.0.1:1"), addrPort("10.1.5.1:80")); got != (outcome{"", "subnet", ""}) {
			t.Errorf("%s", got)
		}
	})
	t.Run("an allow rule for anywhere closes everything", func(t *testing.T) {
		p := newPolicy(t, ruled(all))
		if got := judge(t, p, east, addrPort("10.2.0.5:4000"), addrPort("10.1.0.7:65535")); got != (outcome{authz.PolicyDefaultDeny, "none", ""}) {
			t.Errorf("%s", got)
		}
	})
}

// TestDryRun: a rule in dry run decides nothing, and is told of where it would
// have turned the judgement around.
func TestDryRun(t *testing.T) {
	dry := func(r authz.Rule) authz.Rule { r.DryRun = true; return r }
	deny := authz.Rule{Name: "deny", To: authz.To{Ports: spans(80)}}
	allow := authz.Rule{Name: "allow", Action: authz.Allow, From: authz.From{IDs: []spiffeid.ID{east}}, To: authz.To{Ports: spans(80)}}
	others := authz.Rule{Name: "others", Action: authz.Allow, From: authz.From{IDs: []spiffeid.ID{south}}, To: authz.To{Ports: spans(80)}}
	for name, c := range map[string]struct {
		rules []authz.Rule
		want  outcome
	}{
		"would deny":                       {[]authz.Rule{dry(deny)}, outcome{"", "", "deny"}},
		"would allow what is open":         {[]authz.Rule{dry(allow)}, outcome{}},
		"would close":                      {[]authz.Rule{dry(others)}, outcome{"", "", "others"}},
		"would close, but another allows":  {[]authz.Rule{dry(others), dry(allow)}, outcome{}},
		"would close, but one does allow":  {[]authz.Rule{dry(others), allow}, outcome{"", "allow", ""}},
		"would allow what is closed":       {[]authz.Rule{others, dry(allow)}, outcome{authz.PolicyDefaultDeny, "others", "allow"}},
		"would deny what is allowed":       {[]authz.Rule{allow, dry(deny)}, outcome{"", "allow", "deny"}},
		"would deny what is closed anyway": {[]authz.Rule{others, dry(deny)}, outcome{authz.PolicyDefaultDeny, "others", ""}},
		"would deny what is denied":        {[]authz.Rule{deny, dry(deny)}, outcome{authz.PolicyDeny, "deny", ""}},
		"would allow what is denied":       {[]authz.Rule{deny, dry(allow)}, outcome{authz.PolicyDeny, "deny", ""}},
	} {
		t.Run(name, func(t *testing.T) {
			for i := range c.rules { // each has a name of its own
				if i > 0 && c.rules[i].Name == c.rules[0].Name {
					c.rules[i].Name += "-again"
				}
			}
			if got := judge(t, newPolicy(t, ruled(c.rules...)), east, addrPort("10.2.0.5:4000"), addrPort("10.1.0.7:80")); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func TestNewRefusesRules(t *testing.T) {
	for name, c := range map[string]struct {
		rule authz.Rule
		want string
	}{
		"no name":            {authz.Rule{}, `the name "" is empty`},
		"name twice":         {authz.Rule{Name: "first"}, `"first" is empty, or another's`},
		"action":             {authz.Rule{Name: "r", Action: 2}, `rule "r": unknown action(2)`},
		"stranger":           {authz.Rule{Name: "r", From: authz.From{IDs: []spiffeid.ID{other}}}, "no peer has the id"},
		"zero id":            {authz.Rule{Name: "r", From: authz.From{IDs: []spiffeid.ID{{}}}}, "no peer has the id"},
		"no ids":             {authz.Rule{Name: "r", From: authz.From{IDs: []spiffeid.ID{}}}, "without items"},
		"no source networks": {authz.Rule{Name: "r", From: authz.From{Networks: prefixes("10.0.0.0/8")[:0]}}, "without items"},
		"no target networks": {authz.Rule{Name: "r", To: authz.To{Networks: []netip.Prefix{}}}, "without items"},
		"no ports":           {authz.Rule{Name: "r", To: authz.To{Ports: []authz.PortRange{}}}, "without items"},
		"host bits":          {authz.Rule{Name: "r", To: authz.To{Networks: prefixes("10.1.0.1/16")}}, "canonical"},
		"mapped":             {authz.Rule{Name: "r", From: authz.From{Networks: prefixes("::ffff:10.0.0.0/104")}}, "canonical"},
		"no prefix":          {authz.Rule{Name: "r", From: authz.From{Networks: []netip.Prefix{{}}}}, "canonical"},
		"port 0":             {authz.Rule{Name: "r", To: authz.To{Ports: []authz.PortRange{{}}}}, "0-0 is no range"},
		"inverted":           {authz.Rule{Name: "r", To: authz.To{Ports: []authz.PortRange{{9, 8}}}}, "9-8 is no range"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := authz.New(ruled(authz.Rule{Name: "first"}, c.rule))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("New says %v, want %q", err, c.want)
			}
		})
	}
}

func TestRuleInErrorText(t *testing.T) {
	p := newPolicy(t, ruled(authz.Rule{Name: "no-telnet", To: authz.To{Ports: spans(23)}}))
	_, err := p.Authorize(east, addrPort("10.2.0.3:4000"), addrPort("10.1.0.7:23"))
	if want := "authorise spiffe://mesh.example/gateway/east, source 10.2.0.3:4000, to 10.1.0.7:23: policy_deny by rule no-telnet"; err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
}

// TestChangeCuts: asking for what lives again under another policy refuses
// exactly what that forbids, which is how a reload finds what to cut.
func TestChangeCuts(t *testing.T) {
	type flow struct {
		id             spiffeid.ID
		source, target string
	}
	live := []flow{
		{east, "10.2.0.5:1", "10.1.0.7:80"}, {east, "10.2.0.5:2", "10.1.0.7:22"}, {east2, "10.2.0.5:3", "10.1.0.7:80"},
		{south, "10.3.0.5:1", "10.1.0.7:80"}, {south, "10.3.0.5:2", "10.1.0.8:80"}, {north, "", "10.1.0.7:22"},
		{hub, "192.0.2.9:1", "10.1.0.7:80"}, {east, "[fd00:2::5]:1", "[fd00:1::7]:80"},
	}
	toWeb := authz.To{Networks: prefixes("10.1.0.7/32"), Ports: spans(80)}
	before := newPolicy(t, ruled(authz.Rule{Name: "web", Action: authz.Allow, To: toWeb}))
	for name, c := range map[string]struct {
		rules []authz.Rule
		cut   []int
	}{
		"nothing":           {nil, nil},
		"dry run":           {[]authz.Rule{{Name: "all", DryRun: true}}, nil},
		"a port":            {[]authz.Rule{{Name: "ssh", To: authz.To{Ports: spans(22)}}}, []int{1, 5}},
		"an id":             {[]authz.Rule{{Name: "east", From: authz.From{IDs: []spiffeid.ID{east}}}}, []int{0, 1, 7}},
		"a source":          {[]authz.Rule{{Name: "south", From: authz.From{Networks: prefixes("10.3.0.5/32")}}}, []int{3, 4}},
		"all but one":       {[]authz.Rule{{Name: "web", Action: authz.Allow, From: authz.From{IDs: []spiffeid.ID{south}}, To: toWeb}}, []int{0, 2, 6}},
		"a host":            {[]authz.Rule{{Name: "host", To: authz.To{Networks: prefixes("10.1.0.8/32")}}}, []int{4}},
		"an unknown source": {[]authz.Rule{{Name: "north", From: authz.From{Networks: prefixes("10.4.1.0/24")}}}, []int{5}},
		"all":               {[]authz.Rule{{Name: "all"}}, []int{0, 1, 2, 3, 4, 5, 6, 7}},
	} {
		t.Run(name, func(t *testing.T) {
			after := newPolicy(t, ruled(c.rules...))
			var cut []int
			for i, f := range live {
				if o := judge(t, before, f.id, addrPort(f.source), addrPort(f.target)); o.reason != "" {
					t.Fatalf("flow %d never lived: %s", i, o)
				}
				if o := judge(t, after, f.id, addrPort(f.source), addrPort(f.target)); o.reason != "" {
					cut = append(cut, i)
				}
			}
			if !slices.Equal(cut, c.cut) {
				t.Errorf("flows %v are cut, want %v", cut, c.cut)
			}
		})
	}
}
