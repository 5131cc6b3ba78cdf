package release

import (
	"context"
	"errors"
	"fmt"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/release/signing"
	"steward/internal/wire"
)

// InitManaged makes the tenant's offline keys on this server and accepts the root signed with them. It
// is refused when the tenant has a root of its own.
func (s *Service) InitManaged(ctx context.Context, actor device.Actor, tenant device.TenantID) (Repository, error) {
	s.managed.Lock()
	defer s.managed.Unlock()
	repo, err := s.Repository(ctx, tenant)
	if err != nil || repo.Managed {
		return repo, err
	}
	if repo.Rooted {
		return repo, fault.New(fault.Conflict, "this tenant has a root whose keys are kept elsewhere: it can't become managed")
	}
	k, err := s.managedKeys(ctx, tenant, s.making)
	if err != nil {
		return repo, err
	}
	c, err := signing.New(k, repo.OnlineKeys, signing.Options{Now: s.cfg.Now})
	if err != nil {
		return repo, err
	}
	s.cfg.Log.Warn("MANAGED RELEASE KEYS: "+ManagedWarning, "tenant", tenant)
	set, err := s.setRoot(ctx, actor, tenant, rootChange{data: c.Root().Bytes, managed: true})
	if err == nil {
		return set, nil
	}
	// Another node may have signed one with the same keys, a moment earlier.
	if now, nerr := s.Repository(ctx, tenant); nerr == nil && now.Managed {
		return now, nil
	}
	return repo, err
}

// ceremony opens the managed keys under the root that stands.
func (s *Service) ceremony(ctx context.Context, tenant device.TenantID) (*signing.Ceremony, error) {
	root, err := s.Root(ctx, tenant)
	if err != nil {
		return nil, err
	}
	k, err := s.managedKeys(ctx, tenant, s.cfg.Keys.Open)
	if err != nil {
		return nil, fmt.Errorf("open the managed keys: %w", err)
	}
	return signing.With(k, root, signing.Options{Now: s.cfg.Now})
}

// PushManaged signs and publishes a release with the keys on this server. artifacts has one entry per
// component, in their order. The same release again returns the one that is there.
func (s *Service) PushManaged(ctx context.Context, actor device.Actor, tenant device.TenantID, m wire.ReleaseManifest, artifacts []signing.Artifact) (Release, error) {
	composed, err := signing.Compose(m, artifacts)
	if err != nil {
		return Release{}, err
	}
	if r, err := s.Release(ctx, tenant, m.Name, m.Version); err == nil {
		if r.SHA256 == wire.HashOf(composed.Bytes) {
			return r, nil
		}
		return r, fault.New(fault.Conflict, "release %s %s exists with other content: choose another version", m.Name, m.Version)
	} else if !errors.Is(err, fault.NotFound) {
		return r, err
	}
	err = s.signManaged(ctx, actor, tenant, managedChange{
		change: func(*signing.Targets) (signing.Change, error) { return composed.Change, nil }, manifests: [][]byte{composed.Bytes},
	})
	if err != nil {
		return Release{}, err
	}
	return s.Release(ctx, tenant, m.Name, m.Version)
}

// RemoveManaged takes a release away that nothing uses.
func (s *Service) RemoveManaged(ctx context.Context, actor device.Actor, tenant device.TenantID, ref Ref) error {
	r, err := releaseByName(ctx, s.cfg.DB, tenant, ref)
	if err != nil {
		return err
	}
	return s.signManaged(ctx, actor, tenant, managedChange{change: func(t *signing.Targets) (signing.Change, error) {
		others, err := s.otherManifests(ctx, tenant, r)
		return signing.Change{Remove: t.Dropping(r.Name, r.Version, others, r.Manifest())}, err
	}})
}

func (s *Service) otherManifests(ctx context.Context, tenant device.TenantID, but Release) (out []wire.ReleaseManifest, err error) {
	for cursor := ""; ; {
		page, next, err := s.List(ctx, Filter{Tenant: tenant, Limit: 500, Cursor: cursor})
		if err != nil {
			return nil, err
		}
		for _, r := range page {
			if r.Target != but.Target {
				out = append(out, r.Manifest())
			}
		}
		if cursor = next; next == "" {
			return out, nil
		}
	}
}

type managedChange struct {
	change    func(current *signing.Targets) (signing.Change, error)
	manifests [][]byte
}

// managedTries bounds how often a managed change is signed again because another node was faster.
const managedTries = 5

// signManaged signs on top of the current targets and publishes as an operator would.
func (s *Service) signManaged(ctx context.Context, actor device.Actor, tenant device.TenantID, m managedChange) error {
	s.managed.Lock()
	defer s.managed.Unlock()
	var err error
	for range managedTries {
		err = s.tryManaged(ctx, actor, tenant, m)
		if !errors.Is(err, errTargetsMoved) {
			return err
		}
	}
	return fault.New(fault.Conflict, "%v: try again", err)
}

func (s *Service) tryManaged(ctx context.Context, actor device.Actor, tenant device.TenantID, m managedChange) error {
	repo, err := s.Repository(ctx, tenant)
	if err != nil {
		return err
	}
	if !repo.Managed {
		return fault.New(fault.Conflict, "this server does not hold the targets keys: sign with \"steward release push\" where they are")
	}
	c, err := s.ceremony(ctx, tenant)
	if err != nil {
		return err
	}
	current, err := s.currentTargets(ctx, s.cfg.DB, repo)
	if err != nil {
		return err
	}
	var parsed *signing.Targets
	if current != nil {
		if parsed, err = signing.ReadTargets(current); err != nil {
			return err
		}
	}
	change, err := m.change(parsed)
	if err != nil {
		return err
	}
	signed, err := c.SignTargets(current, change)
	if err != nil {
		return fault.New(fault.Unprocessable, "%v", err)
	}
	_, err = s.publish(ctx, actor, repo, signed, m.manifests)
	return err
}
