package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/ledger"
	"steward/internal/release/signing"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// errTargetsMoved says that other targets were published meanwhile; signing again on top of them helps.
var errTargetsMoved = errors.New("other targets were published meanwhile")

// Publish accepts signed targets. manifests holds the bytes of the new releases' manifests; artifacts
// must have been uploaded before. Everything is checked before anything is kept: signatures, version,
// that nothing signed before changes its content, that every new target is stored with the signed
// length and hash, that manifests are valid and that nothing in use disappears. The same targets again
// change nothing.
func (s *Service) Publish(ctx context.Context, actor device.Actor, tenant device.TenantID, targets []byte, manifests [][]byte) (Repository, error) {
	repo, err := s.Repository(ctx, tenant)
	if err != nil {
		return repo, err
	}
	repo, err = s.publish(ctx, actor, repo, targets, manifests)
	if errors.Is(err, errTargetsMoved) {
		err = fault.New(fault.Conflict, "%v: read the current ones and sign again", err)
	}
	return repo, err
}

// publish is Publish on top of the state that was read; errTargetsMoved says that it has changed.
func (s *Service) publish(ctx context.Context, actor device.Actor, repo Repository, targets []byte, manifests [][]byte) (Repository, error) {
	p := publication{s: s, repo: repo, actor: actor, manifests: map[string]wire.ReleaseManifest{}}
	if done, err := p.verify(ctx, targets); done || err != nil {
		return repo, p.unlessMoved(ctx, err)
	}
	if err := p.checkChanges(ctx, manifests); err != nil {
		return repo, p.unlessMoved(ctx, err)
	}
	for path, body := range p.bodies {
		if _, _, err := s.cfg.Blobs.Put(ctx, bytes.NewReader(body), wire.MaxManifestBytes); err != nil {
			return repo, fmt.Errorf("keep manifest %s: %w", path, err)
		}
	}
	if err := s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error { return p.store(ctx, tx) }); err != nil {
		return repo, err
	}
	s.dropBlobs(ctx, p.orphans)
	return s.Repository(ctx, repo.Tenant)
}

// unlessMoved returns errTargetsMoved in the place of a refusal when somebody else has published since
// the state was read: the checks then held a new database against old targets.
func (p *publication) unlessMoved(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if now, rerr := p.s.Repository(ctx, p.repo.Tenant); rerr == nil && now.Targets.Version != p.repo.Targets.Version {
		return errTargetsMoved
	}
	return err
}

// publication is one new version of the targets on its way in.
type publication struct {
	s     *Service
	repo  Repository
	actor device.Actor

	next      *signing.Targets
	old       map[string]signing.Target
	manifests map[string]wire.ReleaseManifest // new ones by path
	bodies    map[string][]byte               // of the same
	added     []string                        // manifests' paths
	removed   []string
	orphans   []string // artifacts that nobody of the tenant needs any more
}

// verify checks signatures, expiry and version; done says that exactly these targets are there already.
func (p *publication) verify(ctx context.Context, data []byte) (done bool, err error) {
	if !p.repo.Rooted {
		return false, fault.New(fault.Conflict, "this tenant has no root yet: send root.json first")
	}
	root, err := p.s.currentRoot(ctx, p.s.cfg.DB, p.repo)
	if err != nil {
		return false, err
	}
	if p.next, err = root.VerifyTargets(data); err != nil {
		return false, fault.New(fault.Unprocessable, "the targets are refused: %v", err)
	}
	if !p.next.Expires.After(p.s.now()) {
		return false, fault.New(fault.Unprocessable, "the targets are refused: they have expired at %s", p.next.Expires.Format(time.RFC3339))
	}
	current, err := p.s.currentTargets(ctx, p.s.cfg.DB, p.repo)
	if err != nil {
		return false, err
	}
	if bytes.Equal(current, data) {
		return true, nil
	}
	if want := p.repo.Targets.Version + 1; p.next.Version != want {
		return false, fault.New(fault.Conflict, "the targets have version %d, the next one is %d: read the current ones and sign again", p.next.Version, want)
	}
	p.old = map[string]signing.Target{}
	if current != nil {
		// The keys may have been rotated since: the bytes in our own store need no signature.
		old, err := signing.ReadTargets(current)
		if err != nil {
			return false, fmt.Errorf("read the current targets: %w", err)
		}
		p.old = old.Files
	}
	return false, nil
}

// checkChanges compares with the version before and checks everything that is new.
func (p *publication) checkChanges(ctx context.Context, manifests [][]byte) error {
	p.bodies = map[string][]byte{}
	byHash := map[wire.Hash][]byte{}
	for _, m := range manifests {
		byHash[wire.HashOf(m)] = m
	}
	invalid := &fault.Invalid{}
	for _, path := range p.next.Paths() {
		target := p.next.Files[path]
		if old, ok := p.old[path]; ok {
			if old != target {
				return fault.New(fault.Conflict, "target %s exists with other content: what was signed never changes, choose another version", path)
			}
			continue
		}
		if err := p.checkNew(ctx, target, byHash); err != nil {
			if !errors.Is(err, fault.Unprocessable) {
				return err
			}
			invalid.Add("targets."+path, "%v", err)
		}
	}
	if err := invalid.OrNil(); err != nil {
		return err
	}
	for path := range p.old {
		if _, ok := p.next.Files[path]; !ok && signing.IsManifest(path) {
			p.removed = append(p.removed, path)
		}
	}
	slices.Sort(p.removed)
	return p.checkKept(ctx)
}

// checkNew checks one target that the version before did not have.
func (p *publication) checkNew(ctx context.Context, t signing.Target, bodies map[wire.Hash][]byte) error {
	if !signing.IsManifest(t.Path) {
		return p.s.checkStored(ctx, p.repo.Tenant, t)
	}
	body, ok := bodies[t.SHA256]
	if !ok {
		return fault.New(fault.Unprocessable, "its manifest was not sent along")
	}
	m, err := p.next.ParseManifest(t.Path, body)
	if err != nil {
		return fault.New(fault.Unprocessable, "%v", err)
	}
	p.manifests[t.Path], p.bodies[t.Path] = m, body
	p.added = append(p.added, t.Path)
	return nil
}

// checkStored checks that a target's bytes are there, for this tenant.
func (s *Service) checkStored(ctx context.Context, tenant device.TenantID, t signing.Target) error {
	missing := fault.New(fault.Unprocessable, "no artifact with SHA-256 %s was uploaded", t.SHA256)
	if _, err := artifactSize(ctx, s.cfg.DB, tenant, string(t.SHA256)); errors.Is(err, fault.NotFound) {
		return missing
	} else if err != nil {
		return err
	}
	content, size, err := s.cfg.Blobs.Open(string(t.SHA256))
	if errors.Is(err, fault.NotFound) {
		return missing
	}
	if err != nil {
		return fmt.Errorf("open artifact %s: %w", t.SHA256, err)
	}
	if err := content.Close(); err != nil {
		return err
	}
	if size != t.SizeBytes {
		return fault.New(fault.Unprocessable, "the artifact has %d bytes, the targets say %d", size, t.SizeBytes)
	}
	return nil
}

// checkKept checks that no release that stays loses an artifact, and that none in use goes.
func (p *publication) checkKept(ctx context.Context) error {
	all, err := components(ctx, p.s.cfg.DB, p.repo.Tenant)
	if err != nil {
		return err
	}
	for _, c := range all {
		if slices.Contains(p.removed, c.manifest) {
			continue
		}
		if _, ok := p.next.Files[c.artifact]; !ok {
			return fault.New(fault.Conflict, "the targets drop %s, which %s still needs", c.artifact, c.manifest)
		}
	}
	return nil
}

// checkUnused runs in the transaction of the removal.
func (p *publication) checkUnused(ctx context.Context, tx *sqldb.Tx, r Release) error {
	if p.s.cfg.Usage == nil {
		return nil
	}
	assignments, devices, err := p.s.cfg.Usage.InUse(ctx, tx, p.repo.Tenant, Ref{r.Name, r.Version})
	if err != nil {
		return err
	}
	if assignments > 0 || devices > 0 {
		return fault.New(fault.Conflict, "release %s %s can't be removed: %d assignments and %d devices use it", r.Name, r.Version, assignments, devices)
	}
	return nil
}

func (p *publication) store(ctx context.Context, tx *sqldb.Tx) error {
	tenant, now := p.repo.Tenant, p.s.now()
	p.orphans = nil // the transaction may run again
	if err := storeTargets(ctx, tx, p.repo, p.next); err != nil {
		return err
	}
	if err := insertMetadata(ctx, tx, tenant, file{role: "targets", version: p.next.Version, body: p.next.Bytes, at: now}); err != nil {
		return err
	}
	var events []ledger.Event
	for _, path := range p.removed {
		event, err := p.remove(ctx, tx, path)
		if err != nil {
			return err
		}
		events = append(events, event)
	}
	for _, path := range p.added {
		event, err := p.add(ctx, tx, path, now)
		if err != nil {
			return err
		}
		events = append(events, event)
	}
	if err := p.s.signOnline(ctx, tx, tenant, true); err != nil {
		return err
	}
	return p.s.cfg.Ledger.Append(ctx, tx, events...)
}

func (p *publication) add(ctx context.Context, tx *sqldb.Tx, path string, now time.Time) (ledger.Event, error) {
	m := p.manifests[path]
	r := Release{Name: m.Name, Version: m.Version, Target: path, SHA256: p.next.Files[path].SHA256, Notes: m.Notes, Created: now, CreatedBy: p.actor}
	for _, c := range m.Components {
		t := p.next.Files[c.Artifact]
		r.Components = append(r.Components, Component{Component: c, SHA256: t.SHA256, SizeBytes: t.SizeBytes})
		r.SizeBytes += t.SizeBytes
	}
	// The manifest is fetched by its hash like every target.
	if err := insertArtifact(ctx, tx, p.repo.Tenant, artifact{sha256: string(r.SHA256), size: int64(len(p.bodies[path])), at: now, by: p.actor.ID}); err != nil {
		return ledger.Event{}, err
	}
	if err := insertRelease(ctx, tx, p.repo.Tenant, r, p.bodies[path]); err != nil {
		return ledger.Event{}, err
	}
	return ledger.Event{
		Tenant: p.repo.Tenant, Kind: EventPublished, Subject: r.Subject(), Actor: p.actor,
		Data: ledger.Facts(map[string]any{
			"name": r.Name, "version": r.Version, "manifest_sha256": r.SHA256, "size_bytes": r.SizeBytes,
			"components": len(r.Components), "targets_version": p.next.Version, "managed": p.repo.Managed,
		}),
	}, nil
}

func (p *publication) remove(ctx context.Context, tx *sqldb.Tx, path string) (ledger.Event, error) {
	r, err := releaseByTarget(ctx, tx, p.repo.Tenant, path)
	if err != nil {
		return ledger.Event{}, err
	}
	if err := p.checkUnused(ctx, tx, r); err != nil {
		return ledger.Event{}, err
	}
	orphans, err := deleteRelease(ctx, tx, p.repo.Tenant, r)
	if err != nil {
		return ledger.Event{}, err
	}
	p.orphans = append(p.orphans, orphans...)
	return ledger.Event{
		Tenant: p.repo.Tenant, Kind: EventRemoved, Subject: r.Subject(), Actor: p.actor,
		Data: ledger.Facts(map[string]any{"name": r.Name, "version": r.Version, "targets_version": p.next.Version}),
	}, nil
}

// dropBlobs removes bytes that no tenant has any more. What fails is found by the sweep in Run.
func (s *Service) dropBlobs(ctx context.Context, hashes []string) {
	for _, h := range hashes {
		used, err := artifactKnown(ctx, s.cfg.DB, h)
		if err == nil && !used {
			err = s.cfg.Blobs.Delete(h)
		}
		if err != nil && !errors.Is(err, fault.NotFound) {
			s.cfg.Log.Warn("remove artifact", "sha256", h, "error", err)
		}
	}
}
