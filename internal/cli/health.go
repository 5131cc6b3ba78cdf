package cli

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"steward/internal/client"
	"steward/internal/server"
)

// healthTimeout is how long a server may take to say that it is ready.
const healthTimeout = 5 * time.Second

// healthCommand is for container engines and scripts that have no other HTTP client.
func (a *app) healthCommand() *cobra.Command {
	var ca string
	cmd := &cobra.Command{
		Use:   "health [URL]",
		Short: "Ask a server whether it is ready; exit 0 if it is, 6 if not",
		Args:  args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, argv []string) error {
			url := first(append(argv, a.flags.url, os.Getenv("STEWARD_URL"), "http://"+server.DefaultConsoleAddr)...)
			hc := &http.Client{Timeout: healthTimeout}
			if ca != "" {
				pem, err := os.ReadFile(ca)
				if err != nil {
					return err
				}
				pool := x509.NewCertPool()
				if !pool.AppendCertsFromPEM(pem) {
					return usagef("--ca %s holds no certificate", ca)
				}
				hc.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
			}
			req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, strings.TrimSuffix(url, "/")+"/readyz", nil)
			if err != nil {
				return usagef("%v", err)
			}
			resp, err := hc.Do(req)
			if err != nil {
				return fmt.Errorf("%w: %w", client.ErrUnreachable, err)
			}
			defer resp.Body.Close() //nolint:errcheck // read only
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
			if resp.StatusCode != http.StatusOK {
				return fmt.Errorf("%w: not ready: %s", client.ErrUnreachable, strings.TrimSpace(string(body)))
			}
			fmt.Fprintln(cmd.OutOrStdout(), "ready")
			return nil
		},
	}
	cmd.Flags().StringVar(&ca, "ca", "", "PEM file with the authority of the console's certificate")
	return cmd
}
