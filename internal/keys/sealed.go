package keys

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"steward/internal/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migration makes the tables of sealed keys.
func Migration() sqldb.Migration {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the folder is embedded above
	}
	return sqldb.Migration{Room: "keys", Files: files}
}

// ErrMaster says that the master key is not the one that sealed the keys.
var ErrMaster = errors.New("the keys in the database are sealed under another master key")

// Sealed is a Store in the database. Whoever has a copy of the database and not the master key has none
// of the keys.
type Sealed struct{ store }

// OpenSealed opens the store of a migrated database; the first call settles its master key. Another
// one is refused with ErrMaster, and nothing is changed.
func OpenSealed(ctx context.Context, db *sqldb.DB, master Master) (*Sealed, error) {
	block, err := aes.NewCipher(master.key)
	if err != nil {
		return nil, fmt.Errorf("master key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("master key: %w", err)
	}
	v := &vault{db: db, aead: aead, known: map[string][]byte{}}
	if err := v.checkMaster(ctx); err != nil {
		return nil, fmt.Errorf("master key of %s: %w", master.file, err)
	}
	return &Sealed{store{v}}, nil
}

// IsSealed tells whether the database holds sealed keys, so that a node without the master key can say
// what it lacks.
func IsSealed(ctx context.Context, q sqldb.Reader) (bool, error) {
	var n int
	err := q.QueryRowContext(ctx, "SELECT COUNT(*) FROM keys_master").Scan(&n)
	return n > 0, err
}

// vault is the keeper in the database.
type vault struct {
	db   *sqldb.DB
	aead cipher.AEAD

	mu    sync.Mutex
	known map[string][]byte // opened before: what stands under a name never changes
}

// The names under which things are sealed, as additional data: a row can't be passed off as another.
const (
	sealFormat   = 1 // first byte of what is sealed
	keyContext   = "steward key "
	masterName   = "steward master key"
	masterPhrase = "this database's keys are sealed under this master key"
)

// seal encrypts under a random nonce of 96 bits: far fewer than 2³² seals are ever made under one master
// key (NIST SP 800-38D, section 8.3).
func (v *vault) seal(name string, plain []byte) []byte {
	out := make([]byte, 1+v.aead.NonceSize(), 1+v.aead.NonceSize()+len(plain)+v.aead.Overhead())
	out[0] = sealFormat
	_, _ = rand.Read(out[1:]) // never fails (crypto/rand)
	return v.aead.Seal(out, out[1:], plain, []byte(name))
}

func (v *vault) unseal(name string, sealed []byte) ([]byte, error) {
	n := 1 + v.aead.NonceSize()
	if len(sealed) < n || sealed[0] != sealFormat {
		return nil, errors.New("what is sealed has an unknown format")
	}
	plain, err := v.aead.Open(nil, sealed[1:n], sealed[n:], []byte(name))
	if err != nil {
		return nil, errors.New("it was not sealed under this master key and name, or was changed since")
	}
	return plain, nil
}

// checkMaster compares the master key with the one that was used first.
func (v *vault) checkMaster(ctx context.Context) error {
	var sealed []byte
	err := v.db.QueryRowContext(ctx, "SELECT sealed FROM keys_master").Scan(&sealed)
	if errors.Is(err, sql.ErrNoRows) {
		err = v.db.Write(ctx, func(tx *sqldb.Tx) error {
			_, err := tx.Exec(ctx, `INSERT INTO keys_master (one, sealed) VALUES (1, $1) ON CONFLICT DO NOTHING`, v.seal(masterName, []byte(masterPhrase)))
			if err != nil {
				return err
			}
			return tx.QueryRowContext(ctx, "SELECT sealed FROM keys_master").Scan(&sealed)
		})
	}
	if err != nil {
		return err
	}
	if plain, err := v.unseal(masterName, sealed); err != nil || string(plain) != masterPhrase {
		return ErrMaster
	}
	return nil
}

func (v *vault) place() string { return "the database" }

func (v *vault) read(ctx context.Context, name string) ([]byte, error) {
	v.mu.Lock()
	plain, ok := v.known[name]
	v.mu.Unlock()
	if ok {
		return plain, nil
	}
	var sealed []byte
	err := v.db.QueryRowContext(ctx, "SELECT sealed FROM keys_key WHERE name = $1", name).Scan(&sealed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrNoKey
	}
	if err != nil {
		return nil, err
	}
	if plain, err = v.unseal(keyContext+name, sealed); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.known[name] = plain
	return plain, nil
}

func (v *vault) add(ctx context.Context, name string, encoded []byte) error {
	sealed := v.seal(keyContext+name, encoded)
	return v.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO keys_key (name, sealed, created) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`,
			name, sealed, sqldb.Micros(time.Now()))
		return err
	})
}

func (v *vault) remove(ctx context.Context, name string) error {
	err := v.db.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(ctx, "DELETE FROM keys_key WHERE name = $1", name)
		return err
	})
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.known, name)
	return err
}

func (v *vault) names(ctx context.Context) (out []string, err error) {
	rows, err := v.db.QueryContext(ctx, "SELECT name FROM keys_key ORDER BY name")
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // read to the end
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		out = append(out, name)
	}
	return out, rows.Err()
}
