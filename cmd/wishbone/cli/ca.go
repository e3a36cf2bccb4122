package cli

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"wishbone/identity/ca"
)

func (a *app) ca() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "ca",
		Short: "a small offline certificate authority, for trials and small sites",
		Long: `A small offline certificate authority, for trials and for sites without SPIRE. Its
directory (--dir) belongs on no gateway: keep it on a machine of its own, or on a stick
that is in a drawer between two uses. A gateway needs only what ca issue writes for it;
with ca request even its private key is made there, and stays.

Certificates are short-lived, and revoked in the gateways' configuration (revoked).`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	dir := cmd.PersistentFlags().String("dir", "ca", "directory of the authority")
	cmd.AddCommand(a.caInit(dir), a.caRequest(), a.caIssue(dir))
	return cmd
}

func (a *app) caInit(dir *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "init TRUST-DOMAIN",
		Short:   "make an authority for a trust domain",
		Example: "  wishbone ca init mesh.example",
		Args:    usageArgs(cobra.ExactArgs(1)),
	}
	valid := daysFlag(cmd, ca.RootValidity, "how long the root is valid")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		td, err := spiffeid.TrustDomainFromString(args[0])
		if err != nil {
			return usage(fmt.Errorf("trust domain %q: %w", args[0], err), "an example: mesh.example")
		}
		root, err := ca.Init(*dir, td, time.Duration(*valid))
		if err != nil {
			return err
		}
		fmt.Fprintf(a.out, "authority of %s until %s\nwrote %s, and the private key %s: keep that one to yourself\n",
			root.TrustDomain, root.NotAfter.Format(time.DateOnly), root.Cert, root.Key)
		return nil
	}
	return cmd
}

const day = 24 * time.Hour

// validity is how long a certificate is valid, in whole days.
type validity time.Duration

// daysFlag adds --days to a command.
func daysFlag(cmd *cobra.Command, def time.Duration, what string) *validity {
	v := validity(def)
	cmd.Flags().Var(&v, "days", what)
	return &v
}

// String, Set and Type make a flag of it.

func (v *validity) String() string { return strconv.Itoa(int(time.Duration(*v) / day)) }
func (v *validity) Type() string   { return "number" }
func (v *validity) Set(s string) error {
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > 36500 {
		return errors.New("want a number of days, 1 to 36500")
	}
	*v = validity(time.Duration(n) * day)
	return nil
}

func (a *app) caIssue(dir *string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "issue ID",
		Short: "issue a certificate with its key, for a gateway",
		Long: `Issue a certificate for a SPIFFE ID and write NAME.pem, NAME.key and bundle.pem, the
three files of the configuration's identity.files. Issuing again renews: a running gateway
takes the new files by itself.

With --csr the certificate is for the key of a request, by ca request or another tool, and
there is no NAME.key. The request must ask for the same ID.`,
		Example: "  wishbone ca issue spiffe://mesh.example/gateway/west\n  wishbone ca issue spiffe://mesh.example/gateway/west --csr west.csr",
		Args:    usageArgs(cobra.ExactArgs(1)),
	}
	valid := daysFlag(cmd, ca.LeafValidity, "how long the certificate is valid")
	out := cmd.Flags().String("out", "", "path of the files without their endings (default: the last part of the ID)")
	csr := cmd.Flags().String("csr", "", "file of a request, whose key stays where it is")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		id, err := gatewayID(args[0])
		if err != nil {
			return err
		}
		if *out == "" {
			*out = path.Base(id.Path())
		}
		var leaf ca.Leaf
		if *csr == "" {
			leaf, err = ca.Issue(*dir, id, *out, time.Duration(*valid))
		} else {
			leaf, err = ca.Sign(*dir, id, *csr, *out, time.Duration(*valid))
		}
		if err != nil {
			return err
		}
		a.tellLeaf(leaf)
		return nil
	}
	return cmd
}

// gatewayID reads an argument.
func gatewayID(arg string) (spiffeid.ID, error) {
	id, err := spiffeid.FromString(arg)
	if err == nil && id.Path() == "" {
		err = errors.New("no path: it names a trust domain, not a gateway")
	}
	if err != nil {
		return id, usage(fmt.Errorf("SPIFFE ID %q: %w", arg, err), "an example: spiffe://mesh.example/gateway/west")
	}
	return id, nil
}

func (a *app) caRequest() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "request ID",
		Short: "make a key on a gateway, and ask for its certificate",
		Long: `Make a private key for a SPIFFE ID, NAME.key, and a request for a certificate, NAME.csr.
The key never leaves this host. A key that is there already is kept.`,
		Example: "  wishbone ca request spiffe://mesh.example/gateway/west",
		Args:    usageArgs(cobra.ExactArgs(1)),
	}
	out := cmd.Flags().String("out", "", "path of the files without their endings (default: the last part of the ID)")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		id, err := gatewayID(args[0])
		if err != nil {
			return err
		}
		if *out == "" {
			*out = path.Base(id.Path())
		}
		r, err := ca.Ask(id, *out)
		if err != nil {
			return err
		}
		what := "wrote"
		if r.Kept {
			what = "kept"
		}
		fmt.Fprintf(a.out, "%s the private key %s: it stays here\nwrote %s: take it to the authority, for\n  wishbone ca issue %s --csr %s\n",
			what, r.Key, r.CSR, id, path.Base(r.CSR))
		return nil
	}
	return cmd
}

func (a *app) tellLeaf(l ca.Leaf) {
	what := "issued"
	if l.Renewed {
		what = "renewed"
	}
	until := l.NotAfter.Format(time.DateOnly)
	if l.Capped {
		until += " (with the root; a new one is due)"
	}
	if l.Key == "" {
		fmt.Fprintf(a.out, "%s %s until %s\nwrote %s and %s: put them beside the key\n", what, l.ID, until, l.Cert, l.Bundle)
		return
	}
	fmt.Fprintf(a.out, "%s %s until %s\nwrote %s, %s and %s\nin the configuration:\n  identity:\n    files: {cert: %s, key: %s, bundle: %s}\n",
		what, l.ID, until, l.Cert, l.Key, l.Bundle, l.Cert, l.Key, l.Bundle)
}
