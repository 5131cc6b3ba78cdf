package server

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"steward/internal/client"
	"steward/internal/device"
	"steward/internal/keys"
	"steward/internal/ledger"
	"steward/internal/release/signing"
	"steward/internal/sqldb/sqldbtest"
)

func TestMain(m *testing.M) { os.Exit(sqldbtest.Main(m)) }

// node is the configuration of a server with a data directory of its own.
func node(t *testing.T, change func(*Config)) Config {
	t.Helper()
	cfg := Config{
		DataDir: filepath.Join(t.TempDir(), "data"), ConsoleAddr: "127.0.0.1:0", LinkAddr: "127.0.0.1:0", ManagedKeys: true,
		Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&cfg)
	}
	return cfg
}

// running starts a server, waits until it serves, and returns how to end it.
func running(t *testing.T, cfg Config) (s *Server, end func()) {
	t.Helper()
	serving := make(chan struct{})
	cfg.Serving = func() { close(serving) }
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- errors.Join(s.Run(ctx), s.Close()) }()
	end = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	select {
	case <-serving:
	case err := <-done:
		t.Fatalf("it ended: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("it does not serve")
	}
	return s, end
}

func refused(t *testing.T, cfg Config, want string) {
	t.Helper()
	s, err := Open(t.Context(), cfg)
	if err == nil {
		_ = s.Close()
	}
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want a refusal with %q", err, want)
	}
}

func masterKey(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "master.key")
	if err := keys.NewMaster(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSecondNodeNeedsTheKeysOfTheFirst(t *testing.T) {
	url := sqldbtest.URL(t, sqldbtest.PostgresEngine, Migrations()...)
	onPostgres := func(c *Config) { c.Database = url }
	first := node(t, onPostgres)
	s, end := running(t, first)
	if _, err := s.rooms.ledger.Wait(t.Context(), 0); err != nil { // the first events are signed
		t.Fatal(err)
	}
	end()
	empty := node(t, onPostgres)
	refused(t, empty, "this node lacks")
	store, err := keys.OpenDir(empty.path("keys"))
	if err != nil {
		t.Fatal(err)
	}
	if names, err := store.Names(t.Context()); err != nil || len(names) != 0 {
		t.Errorf("the refused node made keys: %v, %v", names, err)
	}
	if _, err := store.Ensure(t.Context(), ledger.KeyName, keys.Ed25519); err != nil {
		t.Fatal(err)
	}
	refused(t, empty, "signed with another key")
	copied := node(t, onPostgres)
	from, err := keys.OpenDir(first.path("keys"))
	if err != nil {
		t.Fatal(err)
	}
	to, err := keys.OpenDir(copied.path("keys"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Copy(t.Context(), from, to); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(copied.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	_, end = running(t, copied)
	end()
	// Whoever has lost the key says so, and the ledger tells of it.
	if err := to.Delete(t.Context(), ledger.KeyName); err != nil {
		t.Fatal(err)
	}
	refused(t, copied, "this node lacks")
	copied.NewLedgerKey = true
	rekeyed, end := running(t, copied)
	defer end()
	for deadline := time.Now().Add(30 * time.Second); ; {
		events, _, err := rekeyed.rooms.ledger.Events(t.Context(), ledger.Filter{Kinds: []string{"ledger.rekeyed"}})
		if err == nil && len(events) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the ledger tells %d times of its new key, %v", len(events), err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func TestKeysMoveFromTheDirectoryIntoTheDatabase(t *testing.T) {
	for _, engine := range []string{sqldbtest.SQLiteEngine, sqldbtest.PostgresEngine} {
		t.Run(engine, func(t *testing.T) {
			url := sqldbtest.URL(t, engine, Migrations()...)
			cfg := node(t, func(c *Config) { c.Database = url })
			s, end := running(t, cfg)
			before, err := s.rooms.ledger.Verifier()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := SealKeys(t.Context(), cfg); !errors.Is(err, ErrRunning) {
				t.Errorf("beside a running server: %v", err)
			}
			end()
			cfg.MasterKeyFile = masterKey(t)
			n, err := SealKeys(t.Context(), cfg)
			if err != nil || n < 8 { // ledger, envelope, issuer, tickets, link authorities, release keys
				t.Fatalf("%d keys, %v", n, err)
			}
			if err := os.RemoveAll(cfg.path("keys")); err != nil {
				t.Fatal(err)
			}
			elsewhere := node(t, func(c *Config) { c.Database, c.MasterKeyFile = url, cfg.MasterKeyFile })
			s, end = running(t, elsewhere)
			after, err := s.rooms.ledger.Verifier()
			if err != nil || after != before {
				t.Errorf("another ledger key: %v", err)
			}
			end()
			if files, err := os.ReadDir(elsewhere.path("keys")); err != nil || len(files) != 0 {
				t.Errorf("files of keys: %v, %v", files, err)
			}
			elsewhere.MasterKeyFile = masterKey(t)
			refused(t, elsewhere, "another master key")
			elsewhere.MasterKeyFile = ""
			refused(t, elsewhere, "--master-key-file")
			elsewhere.MasterKeyFile = cfg.MasterKeyFile
			if _, err := VerifyLedger(t.Context(), elsewhere); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestKeyFilesOfEarlierVersionsStayTheKeys(t *testing.T) {
	cfg := node(t, nil)
	releases := cfg.path("keys", "release", string(device.DefaultTenant))
	if err := os.MkdirAll(releases, 0o700); err != nil {
		t.Fatal(err)
	}
	secret, verifier, err := note.GenerateKey(nil, ledgerOrigin)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg.path("keys", "ledger.key"), []byte(secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	snapshot, err := signing.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := signing.WriteKey(filepath.Join(releases, "snapshot.key"), snapshot, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s, end := running(t, cfg)
		if got, err := s.rooms.ledger.Verifier(); err != nil || got != verifier {
			t.Errorf("ledger key %s, want %s (%v)", got, verifier, err)
		}
		repo, err := s.rooms.release.Repository(t.Context(), device.DefaultTenant)
		if err != nil || repo.OnlineKeys.Snapshot != signing.PublicHex(snapshot) {
			t.Errorf("snapshot key %s, %v", repo.OnlineKeys.Snapshot, err)
		}
		end()
	}
}

func TestNodesAreListedForWhoSeesTheInstallation(t *testing.T) {
	url := sqldbtest.URL(t, sqldbtest.PostgresEngine, Migrations()...)
	master := masterKey(t)
	named := func(name string) Config {
		return node(t, func(c *Config) {
			c.Database, c.MasterKeyFile, c.NodeName, c.BusListen = url, master, name, "127.0.0.1:0"
		})
	}
	a, endA := running(t, named("a"))
	defer endA()
	b, endB := running(t, named("b"))
	defer endB()
	tokens := map[string]bool{}
	ask := func(s *Server, path string) *httptest.ResponseRecorder {
		boot, err := client.ReadBootstrap(s.cfg.DataDir)
		if err != nil {
			t.Fatal(err)
		}
		tokens[boot.Token] = true
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.Header.Set("Authorization", "Bearer "+boot.Token)
		rec := httptest.NewRecorder()
		s.handler.ServeHTTP(rec, r)
		return rec
	}
	for _, s := range []*Server{a, b} {
		rec := ask(s, "/api/v1/nodes")
		var list struct{ Items []nodeView }
		if err := json.Unmarshal(rec.Body.Bytes(), &list); err != nil || len(list.Items) != 2 {
			t.Fatalf("%d %s", rec.Code, rec.Body)
		}
		for i, n := range list.Items {
			if n.Name != []string{"a", "b"}[i] || n.State != "alive" || n.Console == "" || n.Link == "" || n.Bus == "" || n.Self != (n.Name == s.cfg.NodeName) {
				t.Errorf("%+v", n)
			}
		}
		page := ask(s, "/nodes").Body.String()
		for _, want := range []string{"this one", list.Items[0].Console, list.Items[1].Link, "Bus between nodes"} {
			if !strings.Contains(page, want) {
				t.Errorf("the page of %s has no %q", s.cfg.NodeName, want)
			}
		}
	}
	if len(tokens) != 2 {
		t.Error("two nodes have one bootstrap token")
	}
	narrow := device.Scope{Tenant: device.DefaultTenant}
	narrow.Selector, _ = device.ParseSelector("site=lab")
	for _, scope := range []device.Scope{{Tenant: "other"}, narrow} {
		if _, err := a.rooms.listNodes(t.Context(), scope); err == nil {
			t.Errorf("%+v sees the nodes", scope)
		}
		if n, err := a.rooms.nodeNotices(t.Context(), scope); err != nil || len(n) != 0 {
			t.Errorf("%+v is told of nodes: %v, %v", scope, n, err)
		}
	}
}

func TestNodesMayStartForTheFirstTimeTogether(t *testing.T) {
	url := sqldbtest.URL(t, sqldbtest.PostgresEngine)
	master, artifacts := masterKey(t), t.TempDir()
	var all sync.WaitGroup
	for _, name := range []string{"a", "b", "c"} {
		cfg := node(t, func(c *Config) {
			c.Database, c.MasterKeyFile, c.Artifacts, c.NodeName, c.BusListen = url, master, artifacts, name, "127.0.0.1:0"
		})
		all.Go(func() {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			cfg.Serving = cancel // it serves: that was all
			s, err := Open(ctx, cfg)
			if err == nil {
				err = errors.Join(s.Run(ctx), s.Close())
			}
			if err != nil {
				t.Errorf("node %s: %v", name, err)
			}
			if _, err := client.ReadBootstrap(cfg.DataDir); err != nil {
				t.Errorf("node %s: %v", name, err)
			}
		})
	}
	all.Wait()
	s, end := running(t, node(t, func(c *Config) { c.Database, c.MasterKeyFile, c.Artifacts = url, master, artifacts }))
	defer end()
	for table, want := range map[string]int{
		"access_account": 1, "release_repository": 1, "provisioning_authority WHERE tenant = ''": 2, "keys_master": 1,
	} {
		var n int
		if err := s.rooms.db.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM "+table).Scan(&n); err != nil || n != want {
			t.Errorf("%s has %d rows, want %d (%v)", table, n, want, err)
		}
	}
}

func TestBusThatCannotListenOrAdvertiseIsRefused(t *testing.T) {
	refused(t, node(t, func(c *Config) { c.BusListen = "nonsense" }), "bus")
	refused(t, node(t, func(c *Config) { c.BusListen, c.BusAdvertise = "127.0.0.1:0", "nonsense" }), "advertised")
	refused(t, node(t, func(c *Config) { c.BusListen, c.NATS = "127.0.0.1:0", "nats://127.0.0.1:4222" }), "outside NATS")
	if _, err := SealKeys(t.Context(), node(t, func(c *Config) { c.MasterKeyFile = masterKey(t) })); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no data directory: %v", err)
	}
}
