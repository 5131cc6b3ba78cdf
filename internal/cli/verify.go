package cli

import (
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"steward/internal/disposal"
)

// maxCertificateBytes bounds what verify reads.
const maxCertificateBytes = 16 << 20

func (a *app) verifyCommand() *cobra.Command {
	var issuer, roots string
	var opts disposal.VerifyOptions
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check a disposal certificate offline",
		Long: `verify checks every part of a disposal certificate without a server: the issuer's signature, the device's
signed statement, its certificate chain, the ledger's events with their proofs and signed tree head, and
that the parts agree. Name the keys that you trust (they stand in the server's bootstrap.json, and should
be kept where the server can't change them); keys that are not named are taken from the file itself, which
only shows that the file is consistent, and the result says so.`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			p, err := a.printer(cmd)
			if err != nil {
				return err
			}
			for file, to := range map[string]*string{issuer: &opts.IssuerKey, roots: &opts.DeviceRoots} {
				if file == "" {
					continue
				}
				data, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				*to = string(data)
			}
			data, err := readCertificate(cmd.InOrStdin(), argv[0])
			if err != nil {
				return err
			}
			report, verifyErr := disposal.VerifyCertificate(data, opts)
			if p.format != "table" {
				if err := p.value(report); err != nil {
					return err
				}
				return verifyErr
			}
			for _, c := range report.Checks {
				mark := "ok  "
				if !c.OK {
					mark = "BAD "
				}
				fmt.Fprintf(p.w, "%s %-28s %s\n", mark, c.Name, c.Detail)
			}
			fmt.Fprintf(p.w, "\n%s: %s\n", argv[0], report.Verdict)
			return verifyErr
		},
	}
	f := cmd.Flags()
	f.StringVar(&issuer, "issuer-key", "", "PEM file with the issuer's public key")
	f.StringVar(&opts.LedgerKey, "ledger-key", "", "verifier key of the ledger (origin+hash+key)")
	f.StringVar(&roots, "device-roots", "", "PEM file with the device authority's root")
	return cmd
}

func readCertificate(stdin io.Reader, file string) ([]byte, error) {
	in := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxCertificateBytes+1))
	if err == nil && len(data) > maxCertificateBytes {
		return nil, usagef("%s is larger than %d MiB", file, maxCertificateBytes>>20)
	}
	return data, err
}
