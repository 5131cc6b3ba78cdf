package stewardtest

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"steward/internal/agent/host/sim"
	"steward/internal/client"
	"steward/internal/disposal"
	"steward/internal/ledger"
	"steward/internal/server"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

// Options of a House; the zero value is a server in this process on SQLite.
type Options struct {
	Engine  string // sqldbtest.SQLiteEngine ("") or sqldbtest.PostgresEngine
	Process bool   // the server is a process of its own, which KillServer can kill
	// ManagedKeys lets the server sign releases; else a test makes keys with OfflineKeys.
	ManagedKeys     bool
	CertificateLife time.Duration // 0 means 90 days
	Seed            uint64        // of the simulated devices; 0 means 7
	Now             func() time.Time
	Dir             string // of the server's data; "" means one of the test's
	// Change is called with the configuration before the first start; nil is fine. A server that is a
	// process gets what serverOrder has of it.
	Change func(*server.Config)
	Within []string // a command that runs the server's process, e.g. in a network namespace
}

// House is a running Steward. Its API is that of the first administrator.
type House struct {
	*API
	Boot client.Bootstrap
	Sim  *sim.Fleet
	Dir  string // of the server's data

	t       testing.TB
	cfg     server.Config
	process bool
	within  []string
	stop    func(kill bool) error // nil while the server is down
	pid     int                   // of the server's process
}

// Start runs a server and waits until it serves. It ends with the test.
func Start(t testing.TB, o Options) *House {
	t.Helper()
	if o.Engine == "" {
		o.Engine = sqldbtest.SQLiteEngine
	}
	if o.Seed == 0 {
		o.Seed = 7
	}
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "server")
	}
	h := &House{t: t, Dir: o.Dir, process: o.Process, within: o.Within, Sim: sim.NewFleet(sim.Config{Seed: o.Seed})}
	h.cfg = server.Config{
		DataDir: h.Dir, ConsoleAddr: "127.0.0.1:0", LinkAddr: "127.0.0.1:0", ManagedKeys: o.ManagedKeys,
		CertificateLife: o.CertificateLife, Version: "test", Now: o.Now, Log: logOf(t),
	}
	if o.Engine == sqldbtest.PostgresEngine {
		h.cfg.Database = sqldbtest.URL(t, o.Engine, server.Migrations()...)
	}
	if o.Change != nil {
		o.Change(&h.cfg)
	}
	t.Cleanup(func() {
		if err := h.end(false); err != nil {
			t.Errorf("stop the server: %v", err)
		}
	})
	h.StartServer()
	return h
}

func logOf(t testing.TB) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	return slog.New(slog.DiscardHandler)
}

// StartServer starts a stopped server on the same data and the same ports.
func (h *House) StartServer() {
	h.t.Helper()
	if h.stop != nil {
		h.t.Fatal("the server runs already")
	}
	var err error
	if h.process {
		err = h.spawnServer()
	} else {
		err = h.runServer()
	}
	if err != nil {
		h.t.Fatalf("start the server: %v", err)
	}
	h.cfg.ConsoleAddr, h.cfg.LinkAddr = hostOf(h.Boot.Console), hostOf(h.Boot.Link)
	api, err := client.New(client.Settings{URL: h.Boot.Console, Token: h.Boot.Token, CA: h.Boot.CA})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(api.Close)
	if h.API == nil {
		h.API = &API{t: h.t}
	}
	h.API.c, h.API.settings = api, client.Settings{URL: h.Boot.Console, Token: h.Boot.Token, CA: h.Boot.CA}
}

// runServer runs the server in this process.
func (h *House) runServer() error {
	s, err := server.Open(context.Background(), h.cfg)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	h.stop = func(bool) error {
		cancel()
		return errors.Join(<-ended, s.Close())
	}
	return h.await(func() error {
		select {
		case err := <-ended:
			ended <- err
			return errors.Join(errors.New("the server ended"), err)
		default:
			return nil
		}
	}, func(b client.Bootstrap) bool { return b.Console == s.ConsoleURL() })
}

// await waits for a fresh bootstrap file.
func (h *House) await(alive func() error, fresh func(client.Bootstrap) bool) error {
	var failed error
	ok := poll(startLimit, func() bool {
		if failed = alive(); failed != nil {
			return true
		}
		b, err := client.ReadBootstrap(h.Dir)
		h.Boot = b
		return err == nil && fresh(b)
	})
	if failed == nil && !ok {
		failed = errors.New("it does not serve")
	}
	return failed
}

// StopServer ends the server in order.
func (h *House) StopServer() {
	h.t.Helper()
	if err := h.end(false); err != nil {
		h.t.Fatalf("stop the server: %v", err)
	}
}

// KillServer kills the server's process with signal 9.
func (h *House) KillServer() {
	h.t.Helper()
	if !h.process {
		h.t.Fatal("only a server with Options.Process can be killed")
	}
	if err := h.end(true); err != nil {
		h.t.Fatalf("kill the server: %v", err)
	}
}

func (h *House) end(kill bool) error {
	if h.stop == nil {
		return nil
	}
	stop := h.stop
	h.stop = nil
	return stop(kill)
}

// VerifyLedger recomputes the ledger from the database and holds it against the heads that were kept.
func (h *House) VerifyLedger(kept ...[]byte) ledger.Checkpoint {
	h.t.Helper()
	head, err := server.VerifyLedger(context.Background(), server.Config{DataDir: h.Dir, Database: h.cfg.Database}, kept...)
	if err != nil {
		h.t.Errorf("the ledger does not hold: %v", err)
	}
	return head
}

// Checkpoint returns the ledger's signed head.
func (h *House) Checkpoint() []byte {
	h.t.Helper()
	var text string
	h.Until("the ledger has a signed head", func() bool {
		out, err := h.Try("GET", "/ledger/checkpoint", nil)
		text, _ = out["checkpoint"].(string)
		return err == nil && text != ""
	})
	return []byte(text)
}

// VerifyCertificate waits for the device's disposal certificate and checks it as `steward verify` does,
// with the keys that an operator has pinned.
func (h *House) VerifyCertificate(id string) {
	h.t.Helper()
	var certificate []byte
	h.Until("the disposal certificate of "+id+" is made", func() bool {
		return h.c.Do(context.Background(), client.Call{Path: "/devices/" + id + "/disposal/certificate"}, &certificate) == nil
	})
	report, err := disposal.VerifyCertificate(certificate, disposal.VerifyOptions{IssuerKey: h.Boot.IssuerKey, LedgerKey: h.Boot.LedgerKey})
	if err != nil || report.Verdict != disposal.VerdictValid || report.Attested {
		h.t.Errorf("disposal certificate of %s: %s, %v", id, report.Verdict, err)
	}
}

// Database opens the server's database, as somebody with the machine could.
func (h *House) Database() *sqldb.DB {
	h.t.Helper()
	url := h.cfg.Database
	if url == "" {
		url = "sqlite:" + filepath.Join(h.Dir, "steward.db")
	}
	return sqldbtest.OpenURL(h.t, url)
}
