package cli

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"steward/internal/disposal"
	"steward/internal/ledger"
)

// maxCertificateBytes bounds what verify reads.
const maxCertificateBytes = 16 << 20

func (a *app) verifyCommand() *cobra.Command {
	var issuer, roots string
	var opts disposal.VerifyOptions
	cmd := &cobra.Command{
		Use:   "verify FILE",
		Short: "Check a disposal certificate, or the proof of a ledger's event, offline",
		Long: `verify checks every part of a disposal certificate without a server: the issuer's signature, the device's
signed statement, its certificate chain, the ledger's events with their proofs and signed tree head, and
that the parts agree. Name the keys that you trust (they stand in the server's bootstrap.json, and should
be kept where the server can't change them); keys that are not named are taken from the file itself, which
only shows that the file is consistent, and the result says so.

A file from "steward ledger proof EVENT -o json" is checked against --ledger-key: that the event stands in
the ledger's tree, in the place and with the words that the file says.`,
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
			if proof, err := ledger.ParseProof(data); err == nil {
				return verifyProof(p, proof, opts.LedgerKey)
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

// verifyProof tells what an event's proof proves.
func verifyProof(p printer, proof ledger.Proof, verifier string) error {
	if verifier == "" {
		return usagef("a proof needs the ledger's key: give it with --ledger-key (it stands in the server's bootstrap.json)")
	}
	event, head, err := ledger.VerifyProof(proof, verifier)
	if err != nil {
		return fmt.Errorf("the proof does not verify: %w", err)
	}
	return p.say(event, "proven: %s of %s is entry %d of %d in the ledger %s", event.Kind, event.At.Format(time.RFC3339), event.Sequence, head.Size, head.Origin)
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
