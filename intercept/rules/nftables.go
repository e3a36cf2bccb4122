package rules

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tableName is our table, of family inet. Another of that name is ours by
// definition: one that a killed process left.
const tableName = "wishbone"

// elementsAMessage bounds the elements of one message: the length of an
// attribute has 16 bits, and an IPv6 element takes 36 bytes. Even, so that the
// two ends of a range stay together.
const elementsAMessage = 1000

// NFTables returns the backend that speaks to nf_tables itself, in the network
// namespace of the thread that calls its methods. It needs no program, but
// CAP_NET_ADMIN, and the kernel's nft_tproxy, nft_socket and nft_fib_inet.
func NFTables() (Backend, error) {
	// A question that changes nothing tells whether there is an nf_tables, and
	// whether we may ask.
	conn, err := nftables.New()
	if err == nil {
		_, err = conn.ListTablesOfFamily(nftables.TableFamilyINet)
	}
	if errors.Is(err, unix.EINVAL) { // netfilter is there, and knows no such subsystem
		return nil, fmt.Errorf("speak to nf_tables: %w", lacksTables(err))
	}
	if err != nil {
		return nil, fmt.Errorf("speak to nf_tables: %w", explain(err))
	}
	return &nftBackend{}, nil
}

type nftBackend struct{}

func (*nftBackend) Name() string { return "nftables" }

// Apply brings the policy routing first: a packet that a rule has marked must
// find its way.
func (*nftBackend) Apply(p Plan) error {
	groups, err := findCgroups(p.Exclude.Cgroups)
	if err != nil {
		return fmt.Errorf("apply nftables rules: %w", err)
	}
	if err := addRouting(p.Routing); err != nil {
		return fmt.Errorf("apply nftables rules: %w", explain(err))
	}
	if err := install(build(p, groups)); err != nil {
		return fmt.Errorf("apply nftables rules: %w", explain(err))
	}
	return nil
}

func (*nftBackend) Remove(r Routing) error {
	err := transact(func(conn *nftables.Conn) error {
		// Adding what is there is no error, deleting what is not there is one.
		conn.AddTable(table())
		conn.DelTable(table())
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove nftables rules: %w", explain(err))
	}
	if err := removeRouting(r); err != nil {
		return fmt.Errorf("remove nftables rules: %w", explain(err))
	}
	return nil
}

// Live puts the protocol TCP into a set for a while. An element that is there
// keeps its time when it is added once more, so it is taken out first; the
// first line makes sure that it can be.
func (*nftBackend) Live(p Plan) error {
	if !slices.ContainsFunc(p.Peers, func(p Peer) bool { return p.PassUnavailable }) {
		return nil
	}
	live := &nftables.Set{Table: table(), Name: "live", KeyType: nftables.TypeInetProto, HasTimeout: true}
	tcp := nftables.SetElement{Key: []byte{unix.IPPROTO_TCP}}
	err := transact(func(conn *nftables.Conn) error {
		forAWhile := tcp
		forAWhile.Timeout = LiveFor
		return errors.Join(
			conn.SetAddElements(live, []nftables.SetElement{tcp}),
			conn.SetDeleteElements(live, []nftables.SetElement{tcp}),
			conn.SetAddElements(live, []nftables.SetElement{forAWhile}),
		)
	})
	if err != nil {
		return fmt.Errorf("tell the rules that the gateway is alive: %w", explain(err))
	}
	return nil
}

func (*nftBackend) Counters() (map[string]uint64, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("read nftables counters: %w", err)
	}
	objects, err := conn.GetNamedObjects(table())
	if err != nil {
		return nil, fmt.Errorf("read nftables counters: %w", explain(err))
	}
	counts := map[string]uint64{}
	for _, o := range objects {
		if named, ok := o.(*nftables.NamedObj); ok {
			if c, ok := named.Obj.(*expr.Counter); ok {
				counts[named.Name] = c.Packets
			}
		}
	}
	if len(counts) == 0 {
		return nil, fmt.Errorf("read nftables counters: table inet %s: %w", tableName, unix.ENOENT)
	}
	return counts, nil
}

func table() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
}

// install makes the kernel's table like rs, in one transaction. Rules and sets
// of a plan are replaced; the memory of living connections, and what the
// counters have counted, is kept. A table whose parts are of another kind, that
// an older version may have left, is replaced altogether.
func install(rs ruleset) error {
	err := rs.commit(false)
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EOPNOTSUPP) {
		return rs.commit(true)
	}
	return err
}

// commit sends the ruleset, afresh if the table that is there shall go first.
func (rs ruleset) commit(afresh bool) error {
	batch, err := compose(func(conn *nftables.Conn) error {
		if afresh {
			conn.DelTable(conn.AddTable(table()))
		}
		return rs.fill(conn)
	})
	if err != nil {
		return err
	}
	if err := send(batch); err != nil {
		return rs.nameRule(batch, err)
	}
	return nil
}

// fill writes the commands. Parts that are there already are added once more,
// which changes nothing.
func (rs ruleset) fill(conn *nftables.Conn) error {
	t := conn.AddTable(table())
	for _, name := range rs.counters {
		conn.AddObj(&nftables.NamedObj{Table: t, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	}
	var sets []*nftables.Set
	for i, s := range rs.sets {
		sets = append(sets, s.kernel(t, i))
		if err := conn.AddSet(sets[i], nil); err != nil {
			return fmt.Errorf("set %s: %w", s.name, err)
		}
	}
	conn.FlushTable(t) // of its rules, and nothing else
	for i, s := range rs.sets {
		if s.memory {
			continue
		}
		conn.FlushSet(sets[i])
		for elements := range slices.Chunk(s.kernelElements(), elementsAMessage) {
			if err := conn.SetAddElements(sets[i], elements); err != nil {
				return fmt.Errorf("elements of set %s: %w", s.name, err)
			}
		}
	}
	for _, c := range rs.chains {
		conn.AddChain(c.kernel(t))
	}
	for _, c := range rs.chains {
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Name: c.name, Table: t}, Exprs: r.exprs})
		}
	}
	return nil
}

// kernel is the set as the kernel is told. Its number is for the transaction.
// An exact concatenation has no flag: with it, nft's own text of the same set
// would be another set.
func (s *set) kernel(t *nftables.Table, index int) *nftables.Set {
	k := &nftables.Set{
		Table: t, ID: uint32(index) + 1, Name: s.name, KeyType: s.key,
		Interval: s.ranges, Dynamic: s.dynamic, HasTimeout: s.memory, Timeout: s.timeout, Size: s.size,
	}
	if s.native {
		k.KeyByteOrder = binaryutil.NativeEndian
	}
	return k
}

// kernelElements are a set's elements; a range is two, its first key and the
// first behind it. The last range of all has no end.
func (s *set) kernelElements() []nftables.SetElement {
	var all []nftables.SetElement
	for _, e := range s.elements {
		all = append(all, nftables.SetElement{Key: e.key})
		if e.end != nil {
			all = append(all, nftables.SetElement{Key: e.end, IntervalEnd: true})
		}
	}
	return all
}

func (c *chain) kernel(t *nftables.Table) *nftables.Chain {
	k := &nftables.Chain{Table: t, Name: c.name}
	if c.base != nil {
		policy := nftables.ChainPolicyAccept
		k.Type, k.Hooknum, k.Priority, k.Policy = c.base.kind, c.base.hook, nftables.ChainPriorityMangle, &policy
	}
	return k
}

// nameRule adds to an error about a rule what the rule says, and what the
// kernel needs for it.
func (rs ruleset) nameRule(batch []netlink.Message, err error) error {
	e, ok := errors.AsType[*batchError](err)
	if !ok || e.index >= len(batch) || !isNewRule(batch[e.index]) {
		return err
	}
	n := 0
	for _, m := range batch[:e.index] {
		if isNewRule(m) {
			n++
		}
	}
	failed := rs.rules()[n]
	err = fmt.Errorf("rule %q: %w", failed.text, err)
	if e.errno != unix.ENOENT {
		return err
	}
	if module := failed.module(); module != "" {
		err = fmt.Errorf("%w; the kernel lacks %s (modprobe %[2]s)", err, module)
	}
	return err
}

// rules are those of all chains, in the order of their messages.
func (rs ruleset) rules() []rule {
	var all []rule
	for _, c := range rs.chains {
		all = append(all, c.rules...)
	}
	return all
}

func isNewRule(m netlink.Message) bool {
	return m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE
}

// module is the kernel's module for the least common expression of a rule.
func (r rule) module() string {
	for _, e := range r.exprs {
		switch e.(type) {
		case *expr.TProxy:
			return "nft_tproxy"
		case *expr.Socket:
			return "nft_socket"
		case *expr.Fib:
			return "nft_fib_inet"
		case *expr.Reject:
			return "nft_reject_inet"
		}
	}
	return ""
}

// explain adds what one can do about an error.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("missing CAP_NET_ADMIN: %w", err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT):
		return lacksTables(err)
	}
	return err
}

func lacksTables(err error) error {
	return fmt.Errorf("the kernel lacks nf_tables (modprobe nf_tables): %w", err)
}
