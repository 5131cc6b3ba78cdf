package release_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"steward/internal/keys"
	"steward/internal/ledger"
	"steward/internal/release"
	"steward/internal/release/signing"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
)

func TestNodesThatBecomeManagedAtATimeShareOneRoot(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		second := release.New(r.cfg)
		var both sync.WaitGroup
		for _, node := range []*release.Service{r.Service, second} {
			both.Go(func() {
				if repo, err := node.InitManaged(t.Context(), operator, tenant); err != nil || !repo.Managed || repo.Root.Version != 1 {
					t.Errorf("%+v, %v", repo, err)
				}
			})
		}
		both.Wait()
		x := r.upload(t, "x")
		for i, node := range []*release.Service{r.Service, second} {
			if _, err := node.PushManaged(t.Context(), operator, tenant, manifest("app", string(rune('1'+i))), []signing.Artifact{x}); err != nil {
				t.Error(err)
			}
		}
		root, err := r.Root(t.Context(), tenant)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.verifies(t, root); err != nil {
			t.Error(err)
		}
	})
}

func TestReleaseKeysMayBeSealedInTheDatabase(t *testing.T) {
	migrations := []sqldb.Migration{ledger.Migration(), release.Migration(), keys.Migration()}
	sqldbtest.Each(t, migrations, func(t *testing.T, db *sqldb.DB) {
		path := filepath.Join(t.TempDir(), "master")
		if err := keys.NewMaster(path); err != nil {
			t.Fatal(err)
		}
		node := func() *rig {
			m, err := keys.ReadMaster(path)
			if err != nil {
				t.Fatal(err)
			}
			r := newRig(t, db)
			if r.cfg.Keys, err = keys.OpenSealed(t.Context(), db, m); err != nil {
				t.Fatal(err)
			}
			r.Service = release.New(r.cfg)
			return r
		}
		first, second := node(), node()
		if _, err := first.InitManaged(t.Context(), operator, tenant); err != nil {
			t.Fatal(err)
		}
		if _, err := second.PushManaged(t.Context(), operator, tenant, manifest("app", "1"), []signing.Artifact{second.upload(t, "x")}); err != nil {
			t.Fatal(err)
		}
		root, err := first.Root(t.Context(), tenant)
		if err != nil {
			t.Fatal(err)
		}
		if err := second.verifies(t, root); err != nil {
			t.Error(err)
		}
	})
}

func TestKeyFilesOfEarlierVersionsAreTakenOver(t *testing.T) {
	dir := t.TempDir()
	managed := filepath.Join(dir, string(tenant), "managed")
	if err := os.MkdirAll(managed, 0o700); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"snapshot": "../snapshot.key", "timestamp": "../timestamp.key", "root": "root-1.key", "targets": "targets-1.key"}
	want := map[string]string{}
	for role, file := range files {
		key, err := signing.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		if err := signing.WriteKey(filepath.Join(managed, file), key, nil); err != nil {
			t.Fatal(err)
		}
		want["release-"+role+"-"+string(tenant)] = signing.PublicHex(key)
	}
	store, err := keys.OpenDir(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // every start does it
		if err := release.AdoptKeys(t.Context(), store, dir); err != nil {
			t.Fatal(err)
		}
	}
	db := sqldbtest.SQLite(t, ledger.Migration(), release.Migration())
	r := newRig(t, db)
	r.cfg.Keys = store
	r.Service = release.New(r.cfg)
	repo, err := r.InitManaged(t.Context(), operator, tenant)
	if err != nil {
		t.Fatal(err)
	}
	online := signing.OnlineKeys{Snapshot: want["release-snapshot-"+string(tenant)], Timestamp: want["release-timestamp-"+string(tenant)]}
	if repo.OnlineKeys != online {
		t.Errorf("online keys %+v, want %+v", repo.OnlineKeys, online)
	}
	names, err := store.Names(t.Context())
	if err != nil || len(names) != len(want) {
		t.Errorf("keys %v, %v: want those of the files and no other", names, err)
	}
	if err := release.AdoptKeys(t.Context(), store, filepath.Join(dir, "absent")); err != nil {
		t.Error(err)
	}
}
