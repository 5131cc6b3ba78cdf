package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"

	"steward/internal/run"
	"steward/internal/server"
)

func (a *app) runCommands() []*cobra.Command {
	return inGroup("run", a.serverCommand(), a.backupCommand(), a.restoreCommand(), a.migrateStoreCommand(), a.healthCommand(), a.manCommand(), a.demoCommand(), a.loginCommand(), a.openapiCommand(), a.adminCommand(), a.keysCommand())
}

func (a *app) serverCommand() *cobra.Command {
	cfg := server.Config{Version: a.version}
	var verbose bool
	var proxies []string
	cmd := &cobra.Command{
		Use:   "server --data DIR",
		Short: "Run a server",
		Long: `server runs Steward with its embedded engines, or on PostgreSQL and an outside NATS.

It writes the addresses it serves on, its CA and the first administrator's credentials to
DIR/bootstrap.json (mode 0600) once it serves. Stop it with SIGTERM or Ctrl-C.

Each flag can be a variable of the environment instead: --link-url as STEWARD_LINK_URL, and so on.`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			unknown, err := fromEnvironment(cmd, os.Environ())
			if err != nil {
				return err
			}
			if cfg.DataDir == "" {
				return usagef("give the data directory with --data DIR")
			}
			for _, p := range proxies {
				prefix, err := netip.ParsePrefix(p)
				if err != nil {
					return usagef("--trusted-proxy %q: want a network like 10.0.0.0/8", p)
				}
				cfg.TrustedProxies = append(cfg.TrustedProxies, prefix)
			}
			level := slog.LevelInfo
			if verbose {
				level = slog.LevelDebug
			}
			cfg.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
			for _, name := range unknown {
				cfg.Log.Warn("this variable of the environment is no setting of the server", "name", name)
			}
			sd := newSupervisor()
			cfg.Serving = func() {
				if err := sd.tell("READY=1"); err != nil {
					cfg.Log.Error("the service manager was not told that the server is ready", "error", err)
				}
			}
			s, err := server.Open(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "console %s\nlink    %s\nlogin   see %s/bootstrap.json\n", s.ConsoleURL(), s.LinkURL(), cfg.DataDir)
			var g run.Group
			g.Add("server", s.Run)
			g.Add("service manager", func(ctx context.Context) error { sd.watch(ctx, cfg.Log, s.Alive); return nil })
			return errors.Join(g.Run(cmd.Context()), s.Close())
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.DataDir, "data", os.Getenv("STEWARD_DATA"), "data directory: database, keys, artifacts, metrics")
	f.StringVar(&cfg.ConsoleAddr, "console", server.DefaultConsoleAddr, "address of console and API; port 0 picks a free one")
	f.StringVar(&cfg.LinkAddr, "link", server.DefaultLinkAddr, "address of the devices' door; port 0 picks a free one")
	f.StringVar(&cfg.MQTTAddr, "mqtt", "auto", "address of a further door for MQTT alone, which the link's serves, too; auto is port 8883 if it is free, off is none")
	f.StringVar(&cfg.LinkURL, "link-url", "", "how devices reach the link, when it isn't https://<host name>:<port>")
	f.StringSliceVar(&cfg.LinkNames, "link-name", nil, "further name or address for the link's certificate (repeat)")
	f.StringVar(&cfg.ConsoleCert, "console-cert", "", "PEM certificate of the console")
	f.StringVar(&cfg.ConsoleKey, "console-key", "", "PEM key of the console")
	f.BoolVar(&cfg.BehindProxy, "behind-proxy", false, "a reverse proxy ends TLS in front of the console")
	f.StringSliceVar(&proxies, "trusted-proxy", nil, "network of proxies whose X-Forwarded-For is believed (repeat)")
	f.StringVar(&cfg.Database, "database", os.Getenv("STEWARD_DATABASE"), "postgres://… instead of the embedded database (or STEWARD_DATABASE)")
	f.StringVar(&cfg.NATS, "nats", os.Getenv("STEWARD_NATS"), "nats://… instead of the embedded bus (or STEWARD_NATS)")
	f.StringVar(&cfg.NATSOptions.Credentials, "nats-credentials", "", "NATS credentials file (.creds)")
	f.StringVar(&cfg.NATSOptions.CA, "nats-ca", "", "PEM authorities that sign NATS' certificate")
	f.StringVar(&cfg.NATSOptions.Cert, "nats-cert", "", "PEM certificate for NATS")
	f.StringVar(&cfg.NATSOptions.Key, "nats-key", "", "PEM key for NATS")
	f.StringVar(&cfg.NodeName, "node-name", "", "name of this node among several (default: the machine's name)")
	f.StringVar(&cfg.BusListen, "bus-listen", os.Getenv("STEWARD_BUS_LISTEN"), "host:port at which other nodes' buses connect (or STEWARD_BUS_LISTEN)")
	f.StringVar(&cfg.BusAdvertise, "bus-advertise", os.Getenv("STEWARD_BUS_ADVERTISE"), "host:port at which they reach it, when it isn't that (or STEWARD_BUS_ADVERTISE)")
	f.StringVar(&cfg.Artifacts, "artifacts", os.Getenv("STEWARD_ARTIFACTS"), "directory that all nodes share, or s3://…, for release artifacts (or STEWARD_ARTIFACTS)")
	f.StringVar(&cfg.MasterKeyFile, "master-key-file", os.Getenv("STEWARD_MASTER_KEY_FILE"), "keep all keys in the database, sealed under this file's key (or STEWARD_MASTER_KEY_FILE)")
	f.BoolVar(&cfg.NewLedgerKey, "new-ledger-key", false, "go on with a new ledger key after the old one was lost (PostgreSQL)")
	f.DurationVar(&cfg.CertificateLife, "certificate-life", 90*24*time.Hour, "life of device certificates")
	f.DurationVar(&cfg.ReportInterval, "report-interval", time.Minute, "how often devices report")
	f.DurationVar(&cfg.MetricsRetention, "metrics-retention", 15*24*time.Hour, "how long metrics are kept")
	f.StringVar(&cfg.MetricsStore, "metrics-store", "", "Prometheus-compatible store of metrics that all nodes share, https://[user:password@]host[/path]")
	f.StringVar(&cfg.MetricsWrite, "metrics-store-write", "", "its address for remote writes, when that isn't /api/v1/write below")
	f.StringArrayVar(&cfg.MetricsHeaders, "metrics-store-header", nil, "\"Name: value\" to send with each request to it (repeat)")
	f.BoolVar(&cfg.ManagedKeys, "managed-release-keys", false, "keep the release keys on the server: for trying out only")
	f.BoolVarP(&verbose, "verbose", "v", false, "log more")
	return cmd
}

func (a *app) openapiCommand() *cobra.Command {
	var contract bool
	cmd := &cobra.Command{
		Use:   "openapi",
		Short: "Print the API's OpenAPI 3.1 document, or the device contract's JSON Schemas",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			produce := server.OpenAPI
			if contract {
				produce = func(context.Context) ([]byte, error) { return server.ContractSchemas() }
			}
			doc, err := produce(cmd.Context())
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(doc)
			return err
		},
	}
	cmd.Flags().BoolVar(&contract, "device-contract", false, "the JSON Schemas of what server and devices say to each other")
	return cmd
}
