package keys_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"steward/internal/keys"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

func TestMain(m *testing.M) { os.Exit(sqldbtest.Main(m)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newMaster(t testing.TB) keys.Master {
	t.Helper()
	path := filepath.Join(t.TempDir(), "master.key")
	must(t, keys.NewMaster(path))
	m, err := keys.ReadMaster(path)
	must(t, err)
	return m
}

func sealed(t testing.TB, db *sqldb.DB, m keys.Master) *keys.Sealed {
	t.Helper()
	s, err := keys.OpenSealed(t.Context(), db, m)
	must(t, err)
	return s
}

// each runs the test on every kind of store; open gives another node's view of the same one.
func each(t *testing.T, test func(t *testing.T, open func() keys.Movable)) {
	t.Run("directory", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "keys")
		test(t, func() keys.Movable {
			s, err := keys.OpenDir(dir)
			must(t, err)
			return s
		})
	})
	sqldbtest.Each(t, []sqldb.Migration{keys.Migration()}, func(t *testing.T, db *sqldb.DB) {
		m := newMaster(t)
		test(t, func() keys.Movable { return sealed(t, db, m) })
	})
}

func TestConcurrentMakersGetTheSameKeyAndSecret(t *testing.T) {
	each(t, func(t *testing.T, open func() keys.Movable) {
		const makers = 8
		var wg sync.WaitGroup
		var made [makers]struct{ public, secret []byte }
		for i := range makers {
			s := open()
			wg.Go(func() {
				for _, alg := range []keys.Algorithm{keys.P256, keys.Ed25519} {
					key, err := s.Ensure(t.Context(), "key-"+string(alg), alg)
					if err != nil {
						t.Error(err)
						return
					}
					der, err := x509.MarshalPKIXPublicKey(key.Public())
					if err != nil {
						t.Error(err)
					}
					made[i].public = append(made[i].public, der...)
				}
				var err error
				if made[i].secret, err = s.Secret(t.Context(), "link-tickets", 32); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		for _, m := range made {
			if !bytes.Equal(m.public, made[0].public) || !bytes.Equal(m.secret, made[0].secret) || len(m.secret) != 32 {
				t.Fatal("two makers got different keys")
			}
		}
		if bytes.Equal(made[0].secret, make([]byte, 32)) {
			t.Error("the secret is empty")
		}
	})
}

func TestKeyIsGoneAfterItsDeletionAndNamesAreChecked(t *testing.T) {
	each(t, func(t *testing.T, open func() keys.Movable) {
		s, ctx := open(), t.Context()
		_, err := s.Ensure(ctx, "one", keys.P256)
		must(t, err)
		must(t, s.Delete(ctx, "one"))
		must(t, s.Delete(ctx, "one"))
		if _, err := s.Open(ctx, "one"); !errors.Is(err, keys.ErrNoKey) {
			t.Errorf("after its deletion: %v", err)
		}
		for _, name := range []string{"", "../one", "A", "a/b", strings.Repeat("a", 122)} {
			if _, err := s.Ensure(ctx, name, keys.P256); err == nil {
				t.Errorf("name %q was taken", name)
			}
			if err := s.Delete(ctx, name); err == nil {
				t.Errorf("name %q was deleted", name)
			}
		}
		if _, err := s.Ensure(ctx, "one", "rsa"); err == nil {
			t.Error("an unknown algorithm was taken")
		}
	})
}

func TestKeyAndSecretAreNotTakenForOneAnother(t *testing.T) {
	each(t, func(t *testing.T, open func() keys.Movable) {
		s, ctx := open(), t.Context()
		_, err := s.Secret(ctx, "secret", 32)
		must(t, err)
		if _, err := s.Open(ctx, "secret"); err == nil || errors.Is(err, keys.ErrNoKey) {
			t.Errorf("a secret opened as a key: %v", err)
		}
		if _, err := s.Secret(ctx, "secret", 16); err == nil {
			t.Error("a secret of another size was given")
		}
		_, err = s.Ensure(ctx, "key", keys.Ed25519)
		must(t, err)
		if _, err := s.Secret(ctx, "key", 32); err == nil {
			t.Error("a key was given as a secret")
		}
	})
}

func TestImportedKeyNeverReplacesAnother(t *testing.T) {
	each(t, func(t *testing.T, open func() keys.Movable) {
		s, ctx := open(), t.Context()
		_, key, err := ed25519.GenerateKey(nil)
		must(t, err)
		must(t, s.Import(ctx, "ledger", key))
		must(t, s.Import(ctx, "ledger", key))
		_, other, err := ed25519.GenerateKey(nil)
		must(t, err)
		if err := s.Import(ctx, "ledger", other); !errors.Is(err, keys.ErrOther) {
			t.Errorf("another key: %v", err)
		}
		if got, err := open().Ensure(ctx, "ledger", keys.Ed25519); err != nil || !key.Equal(got) {
			t.Errorf("the key changed: %v", err)
		}
	})
}

func TestKeyFilesAreForTheirOwnerOnly(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "keys")
	s, err := keys.OpenDir(dir)
	must(t, err)
	_, err = s.Ensure(t.Context(), "one", keys.P256)
	must(t, err)
	path := filepath.Join(dir, "one.pem")
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	must(t, os.Chmod(path, 0o644))
	if _, err := s.Open(t.Context(), "one"); err == nil || !strings.Contains(err.Error(), "0600") {
		t.Errorf("a key that others may read was used: %v", err)
	}
}

func TestAnotherMasterKeyIsRefusedAndChangesNothing(t *testing.T) {
	sqldbtest.Each(t, []sqldb.Migration{keys.Migration()}, func(t *testing.T, db *sqldb.DB) {
		ctx := t.Context()
		if yes, err := keys.IsSealed(ctx, db); yes || err != nil {
			t.Fatal(yes, err)
		}
		right := newMaster(t)
		key, err := sealed(t, db, right).Ensure(ctx, "ledger", keys.Ed25519)
		must(t, err)
		if _, err := keys.OpenSealed(ctx, db, newMaster(t)); !errors.Is(err, keys.ErrMaster) || !strings.Contains(err.Error(), "master.key") {
			t.Errorf("another master key: %v", err)
		}
		if yes, err := keys.IsSealed(ctx, db); !yes || err != nil {
			t.Error(yes, err)
		}
		again, err := sealed(t, db, right).Open(ctx, "ledger")
		must(t, err)
		if !key.Public().(ed25519.PublicKey).Equal(again.Public()) { //nolint:forcetypeassert // asked for above
			t.Error("the key changed")
		}
	})
}

func TestNothingOfAKeyStandsInTheDatabaseAndRowsCannotBeSwapped(t *testing.T) {
	sqldbtest.Each(t, []sqldb.Migration{keys.Migration()}, func(t *testing.T, db *sqldb.DB) {
		ctx, m := t.Context(), newMaster(t)
		secret, err := sealed(t, db, m).Secret(ctx, "one", 32)
		must(t, err)
		_, err = sealed(t, db, m).Secret(ctx, "two", 32)
		must(t, err)
		var row []byte
		must(t, db.QueryRowContext(ctx, "SELECT sealed FROM keys_key WHERE name = 'one'").Scan(&row))
		for _, form := range [][]byte{secret, []byte(hex.EncodeToString(secret)), []byte(base64.StdEncoding.EncodeToString(secret)), []byte("SECRET")} {
			if bytes.Contains(row, form) {
				t.Error("the secret is readable in the database")
			}
		}
		must(t, db.Write(ctx, func(tx *sqldb.Tx) error {
			_, err := tx.Exec(ctx, "UPDATE keys_key SET sealed = $1 WHERE name = 'two'", row)
			return err
		}))
		if _, err := sealed(t, db, m).Secret(ctx, "two", 32); err == nil || !strings.Contains(err.Error(), "two") {
			t.Errorf("a row that was moved opened: %v", err)
		}
		must(t, db.Write(ctx, func(tx *sqldb.Tx) error {
			_, err := tx.Exec(ctx, "UPDATE keys_key SET sealed = $1 WHERE name = 'two'", []byte{9})
			return err
		}))
		if _, err := sealed(t, db, m).Secret(ctx, "two", 32); err == nil {
			t.Error("a broken row opened")
		}
	})
}

func TestMasterKeyFileIsReadInHexAndBase64AndNeverOverwritten(t *testing.T) {
	raw := bytes.Repeat([]byte{0xfb, 0xff}, 16)
	write := func(text string, mode fs.FileMode) string {
		path := filepath.Join(t.TempDir(), "master")
		must(t, os.WriteFile(path, []byte(text), 0o600))
		must(t, os.Chmod(path, mode))
		return path
	}
	for _, c := range []struct {
		name, text string
		mode       fs.FileMode
		want       string // "" means it is read
	}{
		{"hex", hex.EncodeToString(raw) + "\n", 0o600, ""},
		{"base64", base64.StdEncoding.EncodeToString(raw) + "\r\n", 0o400, ""},
		{"base64 for URLs, of a mounted secret", base64.RawURLEncoding.EncodeToString(raw), 0o440, ""},
		{"readable for everybody", hex.EncodeToString(raw), 0o644, "everybody"},
		{"too short", hex.EncodeToString(raw[:16]), 0o600, "32 random bytes"},
		{"empty", "", 0o600, "32 random bytes"},
		{"words", "correct horse battery staple", 0o600, "32 random bytes"},
	} {
		_, err := keys.ReadMaster(write(c.text, c.mode))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", c.name, err)
		}
		if err != nil && c.text != "" && strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: the error quotes the key: %v", c.name, err)
		}
	}
	path := write("x", 0o600)
	if err := keys.NewMaster(path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file was overwritten: %v", err)
	}
	if _, err := keys.ReadMaster(path + "-not"); err == nil || !strings.Contains(err.Error(), "new-master") {
		t.Errorf("absent: %v", err)
	}
}

func TestKeysAreCopiedBetweenStoresAndNeverReplaceOthers(t *testing.T) {
	sqldbtest.Each(t, []sqldb.Migration{keys.Migration()}, func(t *testing.T, db *sqldb.DB) {
		ctx := t.Context()
		from, err := keys.OpenDir(t.TempDir())
		must(t, err)
		key, err := from.Ensure(ctx, "ledger", keys.Ed25519)
		must(t, err)
		secret, err := from.Secret(ctx, "link-tickets", 32)
		must(t, err)
		to := sealed(t, db, newMaster(t))
		for range 2 { // it may be repeated
			if n, err := keys.Copy(ctx, from, to); n != 2 || err != nil {
				t.Fatalf("%d copied, %v", n, err)
			}
		}
		copied, err := to.Open(ctx, "ledger")
		must(t, err)
		if !key.Public().(ed25519.PublicKey).Equal(copied.Public()) { //nolint:forcetypeassert // asked for above
			t.Error("the copy is another key")
		}
		if got, err := to.Secret(ctx, "link-tickets", 32); err != nil || !bytes.Equal(got, secret) {
			t.Error("the copy is another secret")
		}
		back, err := keys.OpenDir(t.TempDir())
		must(t, err)
		if n, err := keys.Copy(ctx, to, back); n != 2 || err != nil {
			t.Fatalf("back: %d copied, %v", n, err)
		}
		other, err := keys.OpenDir(t.TempDir())
		must(t, err)
		_, err = other.Secret(ctx, "a", 32)
		must(t, err)
		_, err = other.Ensure(ctx, "ledger", keys.Ed25519)
		must(t, err)
		if _, err := keys.Copy(ctx, other, to); !errors.Is(err, keys.ErrOther) {
			t.Errorf("another ledger key: %v", err)
		}
		if names, err := to.Names(ctx); err != nil || len(names) != 2 {
			t.Errorf("names %v, %v: a refused copy changes nothing", names, err)
		}
	})
}
