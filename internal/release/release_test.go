package release_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"

	"steward/internal/blob"
	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/keys"
	"steward/internal/ledger"
	"steward/internal/ledger/ledgertest"
	"steward/internal/release"
	"steward/internal/release/signing"
	"steward/internal/sqldb"
	"steward/internal/sqldb/sqldbtest"
	"steward/internal/ui"
	"steward/internal/wire"
)

func TestMain(m *testing.M) { os.Exit(sqldbtest.Main(m)) }

const tenant device.TenantID = "acme"

var operator = device.Actor{Kind: device.ActorAccount, ID: "acc-1", Name: "Ada"}

// usage is a room update whose answer the test sets.
type usage struct{ assignments, devices int64 }

func (u *usage) InUse(context.Context, sqldb.Reader, device.TenantID, release.Ref) (int64, int64, error) {
	return u.assignments, u.devices, nil
}

func (u *usage) States(context.Context, device.Scope, release.Ref) (map[string]int64, error) {
	return map[string]int64{"committed": u.devices}, nil
}

type rig struct {
	*release.Service
	ledger *ledger.Ledger
	db     *sqldb.DB
	blobs  *blob.Store
	usage  usage
	mu     sync.Mutex
	clock  time.Time
	cfg    release.Config
}

func (r *rig) now() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clock
}

func (r *rig) pass(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock = r.clock.Add(d)
}

func each(t *testing.T, test func(t *testing.T, r *rig)) {
	t.Helper()
	sqldbtest.Each(t, []sqldb.Migration{ledger.Migration(), release.Migration()}, func(t *testing.T, db *sqldb.DB) { test(t, newRig(t, db)) })
}

func newRig(t testing.TB, db *sqldb.DB) *rig {
	t.Helper()
	blobs, err := blob.Dir(filepath.Join(t.TempDir(), "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	store, err := keys.OpenDir(filepath.Join(t.TempDir(), "keys"))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{ledger: ledgertest.New(t, db), db: db, blobs: blobs, clock: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	r.cfg = release.Config{DB: db, Blobs: blobs, Ledger: r.ledger, Usage: &r.usage, Keys: store, Now: r.now}
	r.Service = release.New(r.cfg)
	return r
}

// operatorKeys makes offline keys for the rig's server and sets the root.
func (r *rig) operatorKeys(t *testing.T, o signing.Options) *signing.Ceremony {
	t.Helper()
	repo, err := r.Repository(t.Context(), tenant)
	if err != nil {
		t.Fatal(err)
	}
	o.Now = r.now
	c, err := signing.Init(filepath.Join(t.TempDir(), "ceremony"), repo.OnlineKeys, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.SetRoot(t.Context(), operator, tenant, c.Root().Bytes); err != nil {
		t.Fatal(err)
	}
	return c
}

func manifest(name, version string) wire.ReleaseManifest {
	return wire.ReleaseManifest{Name: name, Version: version, Components: []wire.Component{{Name: name, Version: version, Type: wire.ComponentFiles}}}
}

// upload stores content as an artifact.
func (r *rig) upload(t *testing.T, content string) signing.Artifact {
	t.Helper()
	a, err := r.StoreArtifact(t.Context(), operator, tenant, strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	return signing.Artifact(a)
}

// sign composes a release and signs it on top of what the server has.
func (r *rig) sign(t *testing.T, c *signing.Ceremony, rel signing.Release) []byte {
	t.Helper()
	data, err := c.SignTargets(r.targets(t), rel.Change)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func (r *rig) targets(t *testing.T) []byte {
	t.Helper()
	repo, err := r.Repository(t.Context(), tenant)
	if err != nil {
		t.Fatal(err)
	}
	if repo.Targets.Version == 0 {
		return nil
	}
	data, err := r.Metadata(t.Context(), tenant, versioned(repo.Targets.Version, "targets"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func versioned(v int64, role string) string { return fmt.Sprintf("%d.%s.json", v, role) }

func compose(t *testing.T, m wire.ReleaseManifest, artifacts ...signing.Artifact) signing.Release {
	t.Helper()
	rel, err := signing.Compose(m, artifacts)
	if err != nil {
		t.Fatal(err)
	}
	return rel
}

// verifies walks the repository as a device does from the given root.
func (r *rig) verifies(t *testing.T, root []byte) error {
	t.Helper()
	set, err := trustedmetadata.New(root)
	if err != nil {
		return err
	}
	set.RefTime = r.now()
	for {
		data, err := r.Metadata(t.Context(), tenant, versioned(set.Root.Signed.Version+1, "root"))
		if errors.Is(err, fault.NotFound) {
			break
		}
		if err != nil {
			return err
		}
		if _, err := set.UpdateRoot(data); err != nil {
			return err
		}
	}
	data, err := r.Metadata(t.Context(), tenant, "timestamp.json")
	if err != nil {
		return err
	}
	if _, err := set.UpdateTimestamp(data); err != nil {
		return err
	}
	if data, err = r.Metadata(t.Context(), tenant, versioned(set.Timestamp.Signed.Meta["snapshot.json"].Version, "snapshot")); err != nil {
		return err
	}
	if _, err := set.UpdateSnapshot(data, false); err != nil {
		return err
	}
	if data, err = r.Metadata(t.Context(), tenant, versioned(set.Snapshot.Signed.Meta["targets.json"].Version, "targets")); err != nil {
		return err
	}
	_, err = set.UpdateTargets(data)
	return err
}

func TestReleaseSignedOfflineIsPublishedAndVerifiesFromItsRoot(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		c := r.operatorKeys(t, signing.Options{})
		rel := compose(t, manifest("app", "1.0"), r.upload(t, "archive one"))
		repo, err := r.Publish(t.Context(), operator, tenant, r.sign(t, c, rel), [][]byte{rel.Bytes})
		if err != nil {
			t.Fatal(err)
		}
		if repo.Managed || repo.Targets.Version != 1 || repo.Snapshot.Version != 1 || repo.Timestamp.Version != 1 {
			t.Errorf("repository %+v", repo)
		}
		if err := r.verifies(t, c.Root().Bytes); err != nil {
			t.Errorf("a device does not get through: %v", err)
		}
		got, err := r.Release(t.Context(), tenant, "app", "1.0")
		if err != nil || len(got.Components) != 1 || got.SizeBytes != int64(len("archive one")) || got.CreatedBy != operator {
			t.Errorf("release %+v, error %v", got, err)
		}
		for _, hash := range []wire.Hash{got.SHA256, got.Components[0].SHA256} {
			content, _, err := r.Artifact(t.Context(), tenant, string(hash))
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(content)
			if err != nil || wire.HashOf(data) != hash || content.Close() != nil {
				t.Errorf("artifact %s: %v", hash, err)
			}
		}
		if kinds := strings.Join(ledgertest.Kinds(t, r.ledger, ""), " "); kinds != "release.rooted release.published" {
			t.Errorf("ledger has %q", kinds)
		}
		if _, _, err := r.Artifact(t.Context(), "other", string(got.SHA256)); !errors.Is(err, fault.NotFound) {
			t.Errorf("another tenant gets the artifact: %v", err)
		}
	})
}

func TestSamePublicationTwiceChangesNothing(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		c := r.operatorKeys(t, signing.Options{})
		rel := compose(t, manifest("app", "1.0"), r.upload(t, "x"))
		signed := r.sign(t, c, rel)
		for range 2 {
			repo, err := r.Publish(t.Context(), operator, tenant, signed, [][]byte{rel.Bytes})
			if err != nil || repo.Targets.Version != 1 || repo.Timestamp.Version != 1 {
				t.Fatalf("repository %+v, error %v", repo, err)
			}
		}
		if _, err := r.SetRoot(t.Context(), operator, tenant, c.Root().Bytes); err != nil {
			t.Errorf("the same root again: %v", err)
		}
	})
}

func TestPublicationIsRefused(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		c := r.operatorKeys(t, signing.Options{})
		x := r.upload(t, "x")
		first := compose(t, manifest("app", "1.0"), x)
		if _, err := r.Publish(t.Context(), operator, tenant, r.sign(t, c, first), [][]byte{first.Bytes}); err != nil {
			t.Fatal(err)
		}
		stranger, err := signing.Init(filepath.Join(t.TempDir(), "s"), c.Root().Online, signing.Options{Now: r.now})
		if err != nil {
			t.Fatal(err)
		}
		next := compose(t, manifest("app", "2.0"), x)
		strange, err := stranger.SignTargets(nil, next.Change)
		if err != nil {
			t.Fatal(err)
		}
		missing := compose(t, manifest("app", "3.0"), signing.Artifact{SHA256: wire.HashOf([]byte("never sent")), SizeBytes: 10})
		short := compose(t, manifest("app", "3.1"), signing.Artifact{SHA256: x.SHA256, SizeBytes: 100})
		skipped, err := c.SignTargets(r.sign(t, c, signing.Release{}), next.Change)
		if err != nil {
			t.Fatal(err)
		}
		dropping, err := c.SignTargets(r.targets(t), signing.Change{Remove: []string{first.Manifest.Components[0].Artifact}})
		if err != nil {
			t.Fatal(err)
		}
		for name, tc := range map[string]struct {
			targets   []byte
			manifests [][]byte
			kind      error
			says      string
		}{
			"signed by a stranger":    {strange, [][]byte{next.Bytes}, fault.Unprocessable, "not signed"},
			"version skipped":         {skipped, [][]byte{next.Bytes}, fault.Conflict, "version 3"},
			"artifact missing":        {r.sign(t, c, missing), [][]byte{missing.Bytes}, fault.Unprocessable, "no artifact"},
			"wrong length":            {r.sign(t, c, short), [][]byte{short.Bytes}, fault.Unprocessable, "100"},
			"manifest not sent along": {r.sign(t, c, next), nil, fault.Unprocessable, "manifest was not sent"},
			"drops a needed artifact": {dropping, nil, fault.Conflict, "still needs"},
			"no JSON":                 {[]byte("hello"), nil, fault.Unprocessable, "refused"},
		} {
			_, err := r.Publish(t.Context(), operator, tenant, tc.targets, tc.manifests)
			if !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%s: got %v, want a refusal that says %q", name, err, tc.says)
			}
		}
		repo, err := r.Repository(t.Context(), tenant)
		if err != nil || repo.Targets.Version != 1 {
			t.Errorf("something was kept: %+v, error %v", repo.Targets, err)
		}
		if list, _, err := r.List(t.Context(), release.Filter{Tenant: tenant}); err != nil || len(list) != 1 {
			t.Errorf("%d releases, error %v: want the first alone", len(list), err)
		}
	})
}

func TestFirstRootMustNameThisServer(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		other, err := signing.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		foreign := signing.OnlineKeys{Snapshot: signing.PublicHex(other), Timestamp: signing.PublicHex(other)}
		c, err := signing.Init(filepath.Join(t.TempDir(), "keys"), foreign, signing.Options{Now: r.now})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.SetRoot(t.Context(), operator, tenant, c.Root().Bytes); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("a root with other online keys gave %v", err)
		}
		if root, err := r.Root(t.Context(), tenant); root != nil || err != nil {
			t.Errorf("trust document would hold %q, error %v", root, err)
		}
	})
}

func TestOnlyTheSuccessorFollowsARoot(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		c := r.operatorKeys(t, signing.Options{})
		repo, err := r.Repository(t.Context(), tenant)
		if err != nil {
			t.Fatal(err)
		}
		stranger, err := signing.Init(filepath.Join(t.TempDir(), "s"), repo.OnlineKeys, signing.Options{Now: r.now})
		if err != nil {
			t.Fatal(err)
		}
		first := stranger.Root().Bytes
		second, err := stranger.NextRoot(signing.Rotation{})
		if err != nil {
			t.Fatal(err)
		}
		for name, data := range map[string][]byte{"another first root": first, "a stranger's second": second} {
			if _, err := r.SetRoot(t.Context(), operator, tenant, data); !errors.Is(err, fault.Unprocessable) {
				t.Errorf("%s gave %v", name, err)
			}
		}
		pinned := c.Root().Bytes
		next, err := c.NextRoot(signing.Rotation{})
		if err != nil {
			t.Fatal(err)
		}
		repo, err = r.SetRoot(t.Context(), operator, tenant, next)
		if err != nil || repo.Root.Version != 2 {
			t.Fatalf("root %+v, error %v", repo.Root, err)
		}
		rel := compose(t, manifest("app", "1"), r.upload(t, "x"))
		if _, err := r.Publish(t.Context(), operator, tenant, r.sign(t, c, rel), [][]byte{rel.Bytes}); err != nil {
			t.Fatal(err)
		}
		if err := r.verifies(t, pinned); err != nil {
			t.Errorf("a device that pinned the first root: %v", err)
		}
	})
}

func TestTimestampAndSnapshotAreSignedAnewAheadOfTime(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		c := r.operatorKeys(t, signing.Options{})
		rel := compose(t, manifest("app", "1"), r.upload(t, "x"))
		before, err := r.Publish(t.Context(), operator, tenant, r.sign(t, c, rel), [][]byte{rel.Bytes})
		if err != nil {
			t.Fatal(err)
		}
		r.pass(time.Hour)
		r.Refresh(t.Context())
		repo, err := r.Repository(t.Context(), tenant)
		if err != nil || repo.Timestamp.Version != before.Timestamp.Version {
			t.Errorf("signed anew after an hour: %+v, error %v", repo.Timestamp, err)
		}
		for day := range 10 {
			r.pass(13 * time.Hour)
			second := release.New(r.cfg) // another node of the installation
			var both sync.WaitGroup
			for _, node := range []*release.Service{r.Service, second} {
				both.Go(func() { node.Refresh(t.Context()) })
			}
			both.Wait()
			if err := r.verifies(t, c.Root().Bytes); err != nil {
				t.Fatalf("half day %d: %v", day, err)
			}
		}
		repo, err = r.Repository(t.Context(), tenant)
		if err != nil || repo.Timestamp.Version != before.Timestamp.Version+10 || repo.Snapshot.Version == before.Snapshot.Version {
			t.Errorf("timestamp %d, snapshot %d, error %v: want ten timestamps, each signed by one node", repo.Timestamp.Version, repo.Snapshot.Version, err)
		}
		r.pass(25 * time.Hour)
		if err := r.verifies(t, c.Root().Bytes); err == nil {
			t.Error("a timestamp that nobody has signed for 25 hours is still good")
		}
	})
}

func TestManagedModeSignsOnTheServerAndSaysSo(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		if _, err := r.PushManaged(t.Context(), operator, tenant, manifest("app", "1"), []signing.Artifact{r.upload(t, "x")}); !errors.Is(err, fault.Conflict) {
			t.Errorf("without managed keys: %v", err)
		}
		repo, err := r.InitManaged(t.Context(), operator, tenant)
		if err != nil || !repo.Managed || repo.Warning == "" {
			t.Fatalf("repository %+v, error %v", repo, err)
		}
		root, err := r.Root(t.Context(), tenant)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second finds it done
			if _, err := r.PushManaged(t.Context(), operator, tenant, manifest("app", "1"), []signing.Artifact{r.upload(t, "x")}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.PushManaged(t.Context(), operator, tenant, manifest("app", "1"), []signing.Artifact{r.upload(t, "other")}); !errors.Is(err, fault.Conflict) {
			t.Errorf("other content under the same version: %v", err)
		}
		if err := r.verifies(t, root); err != nil {
			t.Error(err)
		}
		notices, err := r.Notices(t.Context(), device.Scope{Tenant: tenant})
		if err != nil || len(notices) != 1 || !strings.Contains(notices[0].Title, "keys") {
			t.Errorf("notices %+v, error %v: want the warning about the keys", notices, err)
		}
	})
}

func TestManyPushesAtATimeAllArrive(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		if _, err := r.InitManaged(t.Context(), operator, tenant); err != nil {
			t.Fatal(err)
		}
		x := r.upload(t, "x")
		second := release.New(r.cfg)
		var all sync.WaitGroup
		errs := make(chan error, 8)
		for i := range 8 {
			node := []*release.Service{r.Service, second}[i%2]
			all.Go(func() {
				_, err := node.PushManaged(t.Context(), operator, tenant, manifest("app", fmt.Sprintf("1.%d", i)), []signing.Artifact{x})
				errs <- err
			})
		}
		all.Wait()
		for range 8 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		list, _, err := r.List(t.Context(), release.Filter{Tenant: tenant})
		if err != nil || len(list) != 8 {
			t.Errorf("%d releases, error %v", len(list), err)
		}
	})
}

func TestReleaseInUseStays(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		if _, err := r.InitManaged(t.Context(), operator, tenant); err != nil {
			t.Fatal(err)
		}
		shared, own := r.upload(t, "shared"), r.upload(t, "own")
		for _, p := range []struct {
			version string
			a       signing.Artifact
		}{{"1", shared}, {"2", shared}, {"3", own}} {
			m := manifest("app", p.version)
			m.Components[0].Version = "1" // the same component in releases 1 and 2
			if p.version == "3" {
				m.Components[0].Version = "3"
			}
			if _, err := r.PushManaged(t.Context(), operator, tenant, m, []signing.Artifact{p.a}); err != nil {
				t.Fatal(err)
			}
		}
		r.usage = usage{assignments: 1, devices: 5}
		if err := r.RemoveManaged(t.Context(), operator, tenant, release.Ref{Name: "app", Version: "3"}); !errors.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "5 devices") {
			t.Errorf("a release in use: %v", err)
		}
		r.usage = usage{}
		for _, version := range []string{"3", "2"} {
			if err := r.RemoveManaged(t.Context(), operator, tenant, release.Ref{Name: "app", Version: version}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.Release(t.Context(), tenant, "app", "3"); !errors.Is(err, fault.NotFound) {
			t.Errorf("removed release: %v", err)
		}
		if has, err := r.blobs.Has(string(own.SHA256)); has || err != nil {
			t.Errorf("its artifact is still stored (%v, %v)", has, err)
		}
		if has, err := r.blobs.Has(string(shared.SHA256)); !has || err != nil {
			t.Errorf("the artifact of release 1 is gone (%v, %v)", has, err)
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

func TestUploadGoesOnAfterALostConnection(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		content := bytes.Repeat([]byte("steward "), 1000)
		u := r.StartUpload()
		lost := io.MultiReader(bytes.NewReader(content[:3000]), brokenReader{})
		if _, err := r.AppendUpload(t.Context(), tenant, u.ID, 0, lost); err == nil {
			t.Fatal("the broken connection was not noticed")
		}
		state, err := r.UploadState(tenant, u.ID)
		if err != nil || state.OffsetBytes != 3000 {
			t.Fatalf("state %+v, error %v: want what arrived", state, err)
		}
		if _, err := r.AppendUpload(t.Context(), tenant, u.ID, 0, bytes.NewReader(content)); !errors.Is(err, fault.Conflict) {
			t.Errorf("a wrong offset gave %v", err)
		}
		if _, err := r.AppendUpload(t.Context(), tenant, u.ID, 3000, bytes.NewReader(content[3000:])); err != nil {
			t.Fatal(err)
		}
		if _, err := r.FinishUpload(t.Context(), operator, "other", u.ID, wire.HashOf(content)); !errors.Is(err, fault.NotFound) {
			t.Errorf("another tenant finishes the upload: %v", err)
		}
		for range 2 { // the first answer may be lost
			a, err := r.FinishUpload(t.Context(), operator, tenant, u.ID, wire.HashOf(content))
			if err != nil || a.SizeBytes != int64(len(content)) {
				t.Fatalf("artifact %+v, error %v", a, err)
			}
		}
		if _, err := r.FinishUpload(t.Context(), operator, "other", r.StartUpload().ID, wire.HashOf(content)); !errors.Is(err, fault.NotFound) {
			t.Errorf("another tenant claims the content by its hash: %v", err)
		}
		wrong := r.StartUpload()
		if _, err := r.AppendUpload(t.Context(), tenant, wrong.ID, 0, strings.NewReader("other")); err != nil {
			t.Fatal(err)
		}
		if _, err := r.FinishUpload(t.Context(), operator, tenant, wrong.ID, wire.HashOf([]byte("what was meant"))); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("a wrong hash gave %v", err)
		}
		if _, err := r.UploadState(tenant, "../../etc/passwd"); !errors.Is(err, fault.NotFound) {
			t.Errorf("a path as the upload's name gave %v", err)
		}
	})
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestArtifactsThatNoReleaseNeedsAreSwept(t *testing.T) {
	each(t, func(t *testing.T, r *rig) {
		if _, err := r.InitManaged(t.Context(), operator, tenant); err != nil {
			t.Fatal(err)
		}
		used, unused := r.upload(t, "used"), r.upload(t, "unused")
		if _, err := r.PushManaged(t.Context(), operator, tenant, manifest("app", "1"), []signing.Artifact{used}); err != nil {
			t.Fatal(err)
		}
		r.pass(8 * 24 * time.Hour)
		r.Sweep(t.Context())
		if has, err := r.blobs.Has(string(unused.SHA256)); has || err != nil {
			t.Errorf("the unused artifact is there (%v, %v)", has, err)
		}
		if _, _, err := r.Artifact(t.Context(), tenant, string(used.SHA256)); err != nil {
			t.Errorf("the used artifact: %v", err)
		}
		got, err := r.Release(t.Context(), tenant, "app", "1")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := r.Artifact(t.Context(), tenant, string(got.SHA256)); err != nil {
			t.Errorf("the manifest: %v", err)
		}
	})
}

// signedIn is somebody who is signed in with any request.
type signedIn struct{ who httpapi.Principal }

func (s signedIn) Authenticate(*http.Request) (httpapi.Principal, error) { return s.who, nil }

func TestWhoSeesAPartOfTheFleetChangesNoKeysAndNoReleases(t *testing.T) {
	r := newRig(t, sqldbtest.SQLite(t, ledger.Migration(), release.Migration()))
	narrow := httpapi.Principal{Actor: operator, Role: httpapi.Admin, Scope: device.Scope{Tenant: tenant, Selector: device.MustSelector("site=berlin")}}
	api := httpapi.New(httpapi.Config{Auth: signedIn{narrow}, Log: slog.New(slog.DiscardHandler), Now: r.now})
	r.Routes(api)
	console := ui.New(ui.Config{Auth: signedIn{narrow}, Log: slog.New(slog.DiscardHandler)})
	r.Pages(console)
	for _, call := range []struct {
		door               http.Handler
		method, path, body string
	}{
		{api, "POST", "/api/v1/release-repository/managed", ""},
		{api, "PUT", "/api/v1/release-repository/root", `{"root":"e30="}`},
		{api, "POST", "/api/v1/release-repository/targets", `{"targets":"e30="}`},
		{api, "POST", "/api/v1/releases", `{"manifest":{"name":"app","version":"1","components":[]},"artifacts":[]}`},
		{api, "DELETE", "/api/v1/releases/app/1", ""},
		{console, "POST", "/releases/keys/managed", ""}, {console, "POST", "/releases", ""}, {console, "POST", "/releases/app/1/remove", ""},
	} {
		req := httptest.NewRequest(call.method, call.path, strings.NewReader(call.body))
		if call.body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		w := httptest.NewRecorder()
		call.door.ServeHTTP(w, req)
		if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "whole tenant") {
			t.Errorf("%s %s: %d %.300s", call.method, call.path, w.Code, w.Body)
		}
	}
	if repo, err := r.Repository(t.Context(), tenant); err != nil || repo.Rooted {
		t.Errorf("%+v, %v", repo, err)
	}
}
