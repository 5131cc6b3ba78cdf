package ledger_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"steward/internal/keys"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
)

func keyDir(t *testing.T) *keys.Dir {
	t.Helper()
	store, err := keys.OpenDir(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestKeyIsMadeOnceAndKept(t *testing.T) {
	each(t, func(h house) {
		store := keyDir(t)
		first, err := ledger.OpenKey(t.Context(), h.db, store, "one.example/ledger", false)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ledger.OpenKey(t.Context(), h.db, store, "one.example/ledger", false)
		if err != nil || again.Verifier() != first.Verifier() || again.Origin() != "one.example/ledger" {
			t.Errorf("the key changed: %v, %v", again, err)
		}
	})
	for _, origin := range []string{"with blank", "with+plus", ""} {
		if _, err := ledger.GenerateKey(origin); err == nil {
			t.Errorf("origin %q was accepted", origin)
		}
	}
	p256, err := keyDir(t).Ensure(t.Context(), "one", keys.P256)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ledger.NewKey("one.example/ledger", p256); err == nil {
		t.Error("a key that is not Ed25519 was accepted")
	}
}

func TestNodeWithAnotherKeyRefusesASharedLedger(t *testing.T) {
	each(t, func(h house) {
		store := keyDir(t)
		key, err := ledger.OpenKey(t.Context(), h.db, store, ledgertest.Origin, false)
		if err != nil {
			t.Fatal(err)
		}
		signs := h.open(ledger.Config{Key: key, Shared: true})
		if err := signs.CheckKey(t.Context()); err != nil {
			t.Fatalf("before the log has begun: %v", err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- signs.Run(ctx) }()
		h.append(event("test.one", ""))
		if _, err := signs.Wait(ctx, 0); err != nil {
			t.Fatal(err)
		}
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if err := signs.CheckKey(t.Context()); err != nil {
			t.Fatal(err)
		}
		empty := keyDir(t)
		_, err = ledger.OpenKey(t.Context(), h.db, empty, ledgertest.Origin, false)
		hash := strings.Split(key.Verifier(), "+")[1]
		if !errors.Is(err, keys.ErrNoKey) || !strings.Contains(err.Error(), hash) {
			t.Errorf("without a key: %v; want the name %s of the right one", err, hash)
		}
		if names, err := empty.Names(t.Context()); err != nil || len(names) > 0 {
			t.Errorf("a key was made: %v, %v", names, err)
		}
		other, err := ledger.OpenKey(t.Context(), h.db, empty, ledgertest.Origin, true)
		if err != nil {
			t.Fatal(err)
		}
		foreign := h.open(ledger.Config{Key: other, Shared: true})
		for what, err := range map[string]error{"check": foreign.CheckKey(t.Context()), "run": foreign.Run(t.Context())} {
			if !errors.Is(err, ledger.ErrForeignHead) || !strings.Contains(err.Error(), hash) {
				t.Errorf("%s with another key: %v", what, err)
			}
		}
		if _, err := signs.Verify(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestKeyFileOfEarlierVersionsIsRead(t *testing.T) {
	secret, verifier, err := note.GenerateKey(nil, "steward-ledger")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ledger.key")
	if _, _, err := ledger.ReadKeyFile(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(secret + "\n")
	origin, key, err := ledger.ReadKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	store := keyDir(t)
	if err := store.Import(t.Context(), ledger.KeyName, key); err != nil {
		t.Fatal(err)
	}
	same, err := ledger.NewKey(origin, ed25519.PrivateKey(key))
	if err != nil || same.Verifier() != verifier {
		t.Errorf("the key has another verifier: %v", err)
	}
	text, err := note.Sign(&note.Note{Text: "a\n"}, same)
	if err != nil {
		t.Fatal(err)
	}
	v, err := note.NewVerifier(verifier)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := note.Open(text, note.VerifierList(v)); err != nil {
		t.Errorf("notes don't take its signature: %v", err)
	}
	parts := strings.SplitN(secret, "+", 5)
	for _, broken := range []string{
		"", "PRIVATE+KEY+one.example/ledger+00000000+c2VjcmV0\n", strings.Replace(secret, "steward", "reward", 1),
		strings.Join(parts[:4], "+"), "X" + secret,
	} {
		write(broken)
		if _, _, err := ledger.ReadKeyFile(path); err == nil || strings.Contains(err.Error(), parts[4]) || strings.Contains(err.Error(), "c2VjcmV0") {
			t.Errorf("a broken key gave %v: want an error that doesn't quote it", err)
		}
	}
}
