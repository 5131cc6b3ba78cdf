package disposal_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"steward/internal/agent/disposal"
	"steward/internal/agent/journal"
	"steward/internal/agent/link"
	"steward/internal/wire"
)

// scene is a device with data and a server that may refuse.
type scene struct {
	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cfg  disposal.Config
	room *disposal.Room

	mu        sync.Mutex
	sent      [][]byte
	refuse    []error // one for each attempt
	resists   int     // how often the source says that something could not be destroyed
	destroyed bool
}

func newScene(t *testing.T) *scene {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{t: t, dir: t.TempDir(), key: key}
	if err := os.WriteFile(filepath.Join(s.dir, "data"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(journal.Config{Dir: filepath.Join(s.dir, "journal")})
	if err != nil {
		t.Fatal(err)
	}
	s.cfg = disposal.Config{
		Dir: s.dir, Journal: j, Device: "dev-1", Serial: "SN-1", Sender: s,
		Signer:  func(context.Context) (crypto.Signer, error) { return key, nil },
		Quiesce: func(context.Context) error { return nil },
		Sources: []disposal.Source{{Name: "update", Sanitize: s.sanitize}},
		Destroy: func(context.Context) error { s.destroyed = true; return nil },
		Keep:    []string{"journal"}, Retry: link.Backoff{Least: time.Millisecond, Most: 2 * time.Millisecond},
		Now: time.Now, Log: slog.New(slog.DiscardHandler), Changed: func() {},
	}
	s.room, err = disposal.New(s.cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *scene) sanitize(context.Context) []wire.SanitizedItem {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.resists > 0 {
		s.resists--
		return []wire.SanitizedItem{{What: "release files", Result: "input/output error"}}
	}
	return []wire.SanitizedItem{{What: "release files", Technique: "overwrite", Result: "destroyed"}}
}

func (s *scene) PostDisposal(_ context.Context, envelope []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.destroyed {
		s.t.Error("the key was destroyed before the server had the statement")
	}
	s.sent = append(s.sent, envelope)
	if len(s.refuse) > 0 {
		err := s.refuse[0]
		s.refuse = s.refuse[1:]
		return err
	}
	return nil
}

func (s *scene) order() {
	s.t.Helper()
	body, err := json.Marshal(wire.DisposalDesired{Order: "dsp-1", Device: "dev-1", Method: "clear"})
	if err == nil {
		err = s.room.Apply(s.t.Context(), body)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) state() wire.DisposalReported {
	s.t.Helper()
	sections, err := s.room.Reported(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	if r, ok := sections[wire.SectionDisposal].(*wire.DisposalReported); ok {
		return *r
	}
	return wire.DisposalReported{}
}

func TestStatementStaysTheSameWhateverTheServerAnswers(t *testing.T) {
	s := newScene(t)
	s.refuse = []error{errors.New("offline"), &link.Problem{Problem: wire.Problem{Status: 500}}, &link.Problem{Problem: wire.Problem{Status: 403, Code: wire.CodeDecommissioned}}}
	s.order()
	if err := s.room.Run(t.Context()); !errors.Is(err, disposal.ErrDecommissioned) {
		t.Fatal(err)
	}
	if len(s.sent) != 3 || string(s.sent[0]) != string(s.sent[2]) {
		t.Errorf("%d were sent, or they differ", len(s.sent))
	}
	var statement wire.SanitizationStatement
	if err := wire.Open(s.sent[0], wire.SanitizationType, []crypto.PublicKey{s.key.Public()}, &statement); err != nil {
		t.Fatal(err)
	}
	keyID, err := wire.KeyIDOf(s.key.Public())
	if err != nil || statement.KeyID != keyID || statement.Finished.Before(statement.Started) {
		t.Errorf("%+v %v", statement, err)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "data")); !errors.Is(err, os.ErrNotExist) || !s.destroyed {
		t.Error("data or key are still there")
	}
	stone, err := disposal.ReadTombstone(s.dir)
	if err != nil || stone == nil || stone.Order != "dsp-1" {
		t.Fatal(stone, err)
	}
	if err := wire.Open(stone.Statement, wire.SanitizationType, []crypto.PublicKey{s.key.Public()}, &statement); err != nil {
		t.Errorf("the tombstone's copy of the statement: %v", err)
	}
}

func TestNothingIsSignedWhileSomethingResists(t *testing.T) {
	s := newScene(t)
	s.resists = 2
	s.order()
	if got := s.state(); got.State != "accepted" {
		t.Errorf("%+v", got)
	}
	if err := s.room.Run(t.Context()); !errors.Is(err, disposal.ErrDecommissioned) {
		t.Fatal(err)
	}
	if s.resists != 0 || len(s.sent) != 1 || strings.Contains(string(s.sent[0]), "input/output") {
		t.Errorf("%d attempts are left, %d statements", s.resists, len(s.sent))
	}
}

func TestFailureIsReportedAndTheKeyStays(t *testing.T) {
	s := newScene(t)
	s.resists = 1 << 30
	s.order()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.room.Run(ctx) }()
	deadline := time.Now().Add(5 * time.Second)
	for s.state().State != "failed" || !strings.Contains(s.state().Cause, "release files: input/output error") {
		if time.Now().After(deadline) {
			t.Fatalf("state %+v", s.state())
		}
		<-time.After(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if s.destroyed || len(s.sent) > 0 {
		t.Error("key destroyed or statement sent")
	}
}

func TestUnreadableTombstoneCountsAsOne(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, disposal.TombstoneFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if stone, err := disposal.ReadTombstone(dir); err != nil || stone == nil {
		t.Error(stone, err)
	}
}
