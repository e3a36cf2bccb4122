package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/cmd/wishbone/daemon"
)

// adminVar names the admin socket where --admin does not.
const adminVar = "WISHBONE_ADMIN"

// adminFlag adds --admin to a command.
func adminFlag(cmd *cobra.Command) *string {
	socket := cmp.Or(os.Getenv(adminVar), "/run/wishbone/admin.sock")
	return cmd.Flags().String("admin", socket, "admin socket of the running gateway (or $"+adminVar+")")
}

// askTime bounds one question.
const askTime = 10 * time.Second

// ask gets an answer from a running gateway.
func ask(ctx context.Context, socket, path string, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	err := daemon.Ask(ctx, socket, path, answer)
	if errors.Is(err, daemon.ErrNotRunning) {
		return &failure{err,
			"is it running, may you use the socket (root, or group wishbone), and is it where the configuration's listen.admin says (--admin)?", codeFailed}
	}
	return err
}

// print writes v as JSON, or whatever text writes.
func (a *app) print(f format, v any, text func(io.Writer)) error {
	if f == "json" {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	text(w)
	return w.Flush()
}

func (a *app) status() *cobra.Command {
	cmd := &cobra.Command{Use: "status", Short: "show how a running gateway does", Args: usageArgs(cobra.NoArgs)}
	socket, format := adminFlag(cmd), formatFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var s daemon.Status
		if err := ask(cmd.Context(), *socket, "/status", &s); err != nil {
			return err
		}
		return a.print(*format, s, func(w io.Writer) { writeStatus(w, s) })
	}
	return cmd
}

func writeStatus(w io.Writer, s daemon.Status) {
	fmt.Fprintf(w, "gateway\t%s (wishbone %s), %s, up %s\n", s.Name, s.Version, s.State, s.Uptime.Round(time.Second))
	if r := s.RefusedReload; r != nil {
		fmt.Fprintf(w, "configuration\t%s\n", reloadLine(r))
	}
	fmt.Fprintf(w, "identity\t%s\n", identityLine(s.Identity))
	fmt.Fprintf(w, "roots\t%s\n", dash(rootsLine(s.Identity.Roots)))
	fmt.Fprintf(w, "networks\t%s\n", join(s.Networks))
	for _, d := range []string{"outbound", "inbound"} {
		c := s.Connections[d]
		fmt.Fprintf(w, "%s\t%d live, %d in all, %s sent, %s received\n", d, c.Active, c.Opened, size(c.Sent), size(c.Received))
	}
	fmt.Fprintf(w, "credit\t%s of %s\n", size(uint64(s.Memory.Used)), size(uint64(s.Memory.Budget)))
	if a := s.Audit; a != nil {
		fmt.Fprintf(w, "audit\t%s\n", auditLine(a))
	}
	writeCounts(w, "refused", s.Refused)
	writeCounts(w, "dry run", s.DryRun)
	writeCounts(w, "ended", s.Closed)
	writeCounts(w, "handshakes refused", s.Handshakes)
	writeCounts(w, "tunnels withdrawn", s.Withdrawn)
	writeCounts(w, "revoked", map[string]uint64{"ids": uint64(s.Revoked.IDs), "serials": uint64(s.Revoked.Serials), "listed": uint64(s.Revoked.Listed)})
	writeCounts(w, "revocation lists", map[string]uint64{"in use": uint64(s.Revoked.Lists), "past their time": uint64(s.Revoked.Stale)})
	writeCounts(w, "packets refused by rules", s.Rules)
	fmt.Fprintf(w, "\npeer\ttunnels\tstreams\twaiting\tendpoint\tnetworks\tlast error\n")
	for _, p := range s.Peers {
		fmt.Fprintf(w, "%s\t%d out, %d in\t%d\t%d\t%s\t%s\t%s\n",
			p.Name, p.Tunnels, p.Inbound, p.Streams, p.Waiting, dash(p.Endpoint), join(p.Networks), dash(p.Error))
	}
}

// reloadLine is one line, however many mistakes there are in the file.
func reloadLine(r *daemon.ReloadStatus) string {
	line := fmt.Sprintf("not that of the file since %s: %s", r.Since.Format(time.RFC3339), strings.ReplaceAll(r.Error, "\n", "; "))
	if r.Hint != "" {
		line += " (" + r.Hint + ")"
	}
	return line
}

func identityLine(i daemon.IdentityStatus) string {
	line := i.Error
	if line == "" {
		line = i.ID + ", until " + i.Expires.Format(time.RFC3339)
	}
	if i.Overdue {
		line += ", not renewed since " + i.Updated.Format(time.RFC3339)
	}
	return line
}

func auditLine(a *daemon.AuditStatus) string {
	written := uint64(0)
	for _, n := range a.Written {
		written += n
	}
	line := fmt.Sprintf("%d written, %d dropped", written, a.Dropped)
	if a.Error != "" {
		line += ", nothing is written now: " + a.Error
	}
	return line
}

// rootsLine has each trust domain with its number of roots.
func rootsLine(roots map[string]int) string {
	var parts []string
	for _, td := range slices.Sorted(maps.Keys(roots)) {
		parts = append(parts, fmt.Sprintf("%s %d", td, roots[td]))
	}
	return strings.Join(parts, ", ")
}

// writeCounts writes the counters that are not zero.
func writeCounts[K ~string](w io.Writer, what string, counts map[K]uint64) {
	var parts []string
	for name, n := range counts {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", name, n))
		}
	}
	if len(parts) > 0 {
		slices.Sort(parts)
		fmt.Fprintf(w, "%s\t%s\n", what, strings.Join(parts, ", "))
	}
}

func join(list []netip.Prefix) string {
	var parts []string
	for _, p := range list {
		parts = append(parts, p.String())
	}
	return dash(strings.Join(parts, " "))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// size prints bytes as a person reads them.
func size(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

func (a *app) flows() *cobra.Command {
	cmd := &cobra.Command{Use: "flows", Short: "list the live connections of a running gateway", Args: usageArgs(cobra.NoArgs)}
	socket, format := adminFlag(cmd), formatFlag(cmd)
	peer := cmd.Flags().String("peer", "", "only those with one peer, by its name")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := a.knowsPeer(cmd, *socket, *peer); err != nil {
			return err
		}
		var flows []daemon.Flow
		if err := ask(cmd.Context(), *socket, "/flows", &flows); err != nil {
			return err
		}
		if *peer != "" {
			flows = slices.DeleteFunc(flows, func(f daemon.Flow) bool { return f.Peer != *peer })
		}
		return a.print(*format, flows, func(w io.Writer) { writeFlows(w, flows) })
	}
	return cmd
}

// knowsPeer refuses a peer that a running gateway does not have: no flows of it
// would look as if all were well.
func (a *app) knowsPeer(cmd *cobra.Command, socket, peer string) error {
	if !cmd.Flags().Changed("peer") {
		return nil
	}
	var s daemon.Status
	if err := ask(cmd.Context(), socket, "/status", &s); err != nil {
		return err
	}
	var names []string
	for _, p := range s.Peers {
		names = append(names, p.Name)
	}
	if !slices.Contains(names, peer) {
		return usage(fmt.Errorf("gateway %s has no peer %q", s.Name, peer), "its peers are %s", strings.Join(names, ", "))
	}
	return nil
}

func writeFlows(w io.Writer, flows []daemon.Flow) {
	fmt.Fprintf(w, "direction\tclient\ttarget\tpeer\tstate\tsent\treceived\tage\tid\n")
	for _, f := range flows {
		client := ""
		if f.Client.IsValid() { // else its peer has named none
			client = f.Client.String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", f.Direction, dash(client), f.Target, f.Peer, f.State,
			size(f.Sent), size(f.Received), f.Age.Round(time.Second), dash(f.ID))
	}
}

func (a *app) explainCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain SRC DST:PORT",
		Short: "say what would become of a connection, and why",
		Args:  usageArgs(cobra.ExactArgs(2)),
	}
	socket, format := adminFlag(cmd), formatFlag(cmd)
	as := cmd.Flags().String("as", "", "SPIFFE ID of the tunnel that brings it; default: the first ID of the peer that owns SRC")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if _, err := daemon.ParseSource(args[0]); err != nil {
			return usage(err, "an example: wishbone explain 10.1.0.2 10.2.0.2:443")
		}
		if _, err := netip.ParseAddrPort(args[1]); err != nil {
			return usage(fmt.Errorf("%q is not address:port", args[1]), "an example: wishbone explain 10.1.0.2 10.2.0.2:443")
		}
		query := url.Values{"source": {args[0]}, "target": {args[1]}}
		if cmd.Flags().Changed("as") {
			if _, err := spiffeid.FromString(*as); err != nil {
				return usage(fmt.Errorf("--as %q is no SPIFFE ID: %w", *as, err), "an example: wishbone explain 10.1.0.2 10.2.0.2:443 --as spiffe://mesh.example/gateway/west")
			}
			query.Set("as", *as)
		}
		var e daemon.Explanation
		if err := ask(cmd.Context(), *socket, "/explain?"+query.Encode(), &e); err != nil {
			return err
		}
		return a.print(*format, e, func(w io.Writer) {
			fmt.Fprintf(w, "%s to %s: %s", args[0], args[1], e.Verdict)
			if e.RefusedNow != "" {
				fmt.Fprintf(w, ", but refused now (%s)", e.RefusedNow)
			}
			fmt.Fprintln(w)
			for _, s := range e.Steps {
				fmt.Fprintf(w, "- %s\n", s)
			}
		})
	}
	return cmd
}
