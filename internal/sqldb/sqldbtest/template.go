package sqldbtest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"sync"

	"steward/internal/sqldb"
)

// templates holds, per engine and set of migrations, what a fresh database is copied from: running
// the migrations of all rooms anew for every test would cost more than the tests.
var templates templateSet

type templateSet struct {
	mu   sync.Mutex
	made map[string]*template
}

type template struct {
	once  sync.Once
	value string
	err   error
}

// get returns the template, making it at the first call; make gets a short name that is unique for
// the migrations.
func (s *templateSet) get(engine string, migrations []sqldb.Migration, make func(ctx context.Context, name string) (string, error)) (string, error) {
	sum, err := digest(migrations)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	if s.made == nil {
		s.made = map[string]*template{}
	}
	one := s.made[engine+sum]
	if one == nil {
		one = new(template)
		s.made[engine+sum] = one
	}
	s.mu.Unlock()
	one.once.Do(func() { one.value, one.err = make(context.Background(), sum) })
	return one.value, one.err
}

// digest names a set of migrations by what is in its files.
func digest(migrations []sqldb.Migration) (string, error) {
	h := sha256.New()
	for _, m := range migrations {
		fmt.Fprintf(h, "room %q\n", m.Room)
		names, err := fs.Glob(m.Files, "*.sql")
		if err != nil {
			return "", err
		}
		for _, name := range names {
			text, err := fs.ReadFile(m.Files, name)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(h, "%q %q\n", name, text)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}
