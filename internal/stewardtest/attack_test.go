package stewardtest_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"steward/internal/release/signing"
	"steward/internal/sqldb"
	. "steward/internal/stewardtest" //nolint:revive // the words of these tests
	"steward/internal/wire"
)

// theft is a house whose server is in a thief's hands: the database, the envelope key and the online
// release keys. The release keys themselves are offline.
type theft struct {
	*House
	t      *testing.T
	victim *Device
}

// alter writes to the stolen database while the server is down, so that the server itself signs what
// stands there with its online keys when it starts again.
func (x *theft) alter(change func(tx *sqldb.Tx) error) {
	x.t.Helper()
	x.StopServer()
	db := x.Database()
	if err := db.Write(x.t.Context(), change); err != nil {
		x.t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		x.t.Fatal(err)
	}
	x.StartServer()
}

// demand makes the victim's desired state name a release, with a higher epoch.
func (x *theft) demand(tx *sqldb.Tx, version string, attempt int) error {
	body, err := wire.Canonical(wire.UpdateDesired{Releases: []wire.ReleaseRef{{
		Name: "app", Version: version, Target: wire.ManifestTarget("app", version), Assignment: "asg-0000000000000000", Attempt: attempt,
	}}})
	if err != nil {
		return err
	}
	ctx, now := x.t.Context(), sqldb.Micros(time.Now())
	if _, err := tx.Exec(ctx, "INSERT INTO twin_document (hash, size, touched, body) VALUES ($1, $2, $3, $4)", wire.HashOf(body), len(body), now, body); err != nil {
		return err
	}
	num := "(SELECT num FROM registry_device WHERE id = $1)"
	if _, err := tx.Exec(ctx, "UPDATE twin_desired SET document = (SELECT document FROM twin_document WHERE hash = $2) WHERE section = 'update' AND num = "+num, x.victim.ID, wire.HashOf(body)); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, "UPDATE twin_epoch SET epoch = epoch + 1 WHERE num = "+num, x.victim.ID)
	return err
}

// refuses waits until the device has refused the release, and checks what it says and still runs.
func (x *theft) refuses(version string, attempt int, says, runs string) {
	x.t.Helper()
	var progress any
	x.Until("the device has refused "+version, func() bool {
		updates, _ := x.Reported(x.victim.ID, wire.SectionUpdate)["updates"].([]any)
		for _, u := range updates {
			one, _ := u.(map[string]any)
			progress = one
			if one["version"] == version && one["attempt"] == float64(attempt) && one["state"] == string(wire.UpdateFailed) {
				return true
			}
		}
		return false
	})
	if !strings.Contains(fmt.Sprint(progress), says) {
		x.t.Errorf("want a refusal that says %q, got %v", says, progress)
	}
	if got := Runs(x.victim.State, "app"); got != runs {
		x.t.Errorf("the device runs %q instead of %q", got, runs)
	}
}

func TestStolenServerInstallsNothing(t *testing.T) {
	t.Parallel()
	h := Start(t, Options{})
	keys := h.OfflineKeys()
	x := &theft{House: h, t: t, victim: h.Enlist(h.API, 0, 1)[0]}
	h.Push(keys, "1.0.0", Good)
	h.AwaitState(h.Assign("1.0.0", ""), "committed", 1)
	var old []byte
	if err := h.Database().QueryRowContext(t.Context(), "SELECT body FROM release_metadata WHERE name = 'timestamp.json'").Scan(&old); err != nil {
		t.Fatal(err)
	}
	h.Push(keys, "2.0.0", Good)
	h.AwaitState(h.Assign("2.0.0", ""), "committed", 1)

	// What was never signed.
	x.alter(func(tx *sqldb.Tx) error { return x.demand(tx, "6.6.6", 1) })
	x.refuses("6.6.6", 1, "not among the signed targets", "2.0.0")

	// Metadata of before, to bring back what was replaced.
	var newest []byte
	x.alter(func(tx *sqldb.Tx) error {
		if err := tx.QueryRowContext(t.Context(), "SELECT body FROM release_metadata WHERE name = 'timestamp.json'").Scan(&newest); err != nil {
			return err
		}
		if _, err := tx.Exec(t.Context(), "UPDATE release_metadata SET body = $1 WHERE name = 'timestamp.json'", old); err != nil {
			return err
		}
		return x.demand(tx, "1.0.0", 7)
	})
	x.refuses("1.0.0", 7, "older", "2.0.0")

	// Targets with an unlisted release, signed by keys of the thief's own; snapshot and timestamp are
	// then signed by the server with the right online keys.
	forged, version := x.forge("6.6.7")
	x.alter(func(tx *sqldb.Tx) error {
		for _, q := range []struct {
			sql  string
			args []any
		}{
			{"UPDATE release_metadata SET body = $1 WHERE name = 'timestamp.json'", []any{newest}},
			{"INSERT INTO release_metadata (tenant, name, role, version, body, created) VALUES ('default', $1, 'targets', $2, $3, 0)", []any{fmt.Sprintf("%d.targets.json", version), version, forged}},
			{"UPDATE release_repository SET targets_version = $1, snapshot_expires = 0, timestamp_expires = 0", []any{version}},
		} {
			if _, err := tx.Exec(t.Context(), q.sql, q.args...); err != nil {
				return err
			}
		}
		return x.demand(tx, "6.6.7", 1)
	})
	x.refuses("6.6.7", 1, "not signed by enough", "2.0.0")
}

// forge signs the next targets with keys of the thief's own; they name a release.
func (x *theft) forge(version string) (targets []byte, number int64) {
	x.t.Helper()
	var online signing.OnlineKeys
	repo := x.Get("/release-repository")
	named, _ := repo["online_keys"].(map[string]any)
	online.Snapshot, _ = named["snapshot"].(string)
	online.Timestamp, _ = named["timestamp"].(string)
	thief, err := signing.Init(filepath.Join(x.t.TempDir(), "thief"), online, signing.Options{})
	if err != nil {
		x.t.Fatal(err)
	}
	manifest := wire.ReleaseManifest{Name: "app", Version: version, Components: []wire.Component{{Name: "app", Version: version, Type: wire.ComponentFiles}}}
	release, err := signing.Compose(manifest, []signing.Artifact{{SHA256: wire.HashOf(nil), SizeBytes: 0}})
	if err != nil {
		x.t.Fatal(err)
	}
	// Version after version, until it is the one after the repository's.
	for number = 1; number <= 3; number++ {
		if targets, err = thief.SignTargets(targets, release.Change); err != nil {
			x.t.Fatal(err)
		}
		release.Change = signing.Change{}
	}
	return targets, 3
}
