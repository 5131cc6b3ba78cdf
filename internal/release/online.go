package release

import (
	"context"
	"fmt"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/release/signing"
	"steward/internal/sqldb"
)

// How often Run looks. It is far below the lives of what it renews, so that a node may be down for
// hours.
const (
	refreshEvery = 5 * time.Minute
	sweepEvery   = time.Hour
	// unusedLife is how long an uploaded artifact may wait for its release.
	unusedLife = 7 * 24 * time.Hour
)

// Run keeps timestamp and snapshot fresh and sweeps what no release needs, until ctx ends. Any number
// of nodes may run it: who comes second finds it done.
func (s *Service) Run(ctx context.Context) error {
	refresh, sweep := time.NewTicker(refreshEvery), time.NewTicker(sweepEvery)
	defer refresh.Stop()
	defer sweep.Stop()
	s.Refresh(ctx)
	s.Sweep(ctx)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-refresh.C:
			s.Refresh(ctx)
		case <-sweep.C:
			s.Sweep(ctx)
		}
	}
}

// Refresh signs anew what runs out soon, for all tenants. One tenant's trouble is logged and does not
// keep others from being renewed.
func (s *Service) Refresh(ctx context.Context) {
	due, err := dueRepositories(ctx, s.cfg.DB, s.now().Add(timestampAhead), s.now().Add(snapshotAhead))
	if err != nil {
		s.logFailure(ctx, "find expiring release metadata", "", err)
		return
	}
	for _, repo := range due {
		err := s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error { return s.signOnline(ctx, tx, repo.Tenant, false) })
		s.logFailure(ctx, "sign release metadata anew", repo.Tenant, err)
	}
}

func (s *Service) logFailure(ctx context.Context, what string, tenant device.TenantID, err error) {
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Error("release repository", "doing", what, "tenant", tenant, "error", err)
	}
}

// signOnline signs the snapshot, when the targets or the keys have changed (all) or it runs out, and
// the timestamp. Without targets there is nothing to sign yet. The versions are raised by a condition
// on those that were read, so that of two nodes one does it.
func (s *Service) signOnline(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID, all bool) error {
	repo, err := repository(ctx, tx, tenant)
	if err != nil || !repo.Rooted || repo.Targets.Version == 0 {
		return err
	}
	now := s.now()
	renewSnapshot := all || repo.Snapshot.Expires.Before(now.Add(snapshotAhead))
	if !renewSnapshot && !repo.Timestamp.Expires.Before(now.Add(timestampAhead)) {
		return nil // another node was faster
	}
	online, err := s.onlineKeys(ctx, tenant, s.cfg.Keys.Open)
	if err != nil {
		return err
	}
	if online.public() != repo.OnlineKeys {
		return fmt.Errorf("this node's keys are not those that root version %d names: give it the keys of the other nodes, or sign a new root", repo.Root.Version)
	}
	snapshot := signing.Online{Version: repo.Snapshot.Version, Expires: repo.Snapshot.Expires}
	if renewSnapshot {
		if snapshot, err = s.signSnapshot(ctx, tx, repo, online); err != nil {
			return err
		}
	} else if snapshot.Bytes, err = metadataFile(ctx, tx, tenant, versioned(snapshot.Version, "snapshot")); err != nil {
		return err
	}
	timestamp, err := signing.SignTimestamp(online.timestamp, repo.Timestamp.Version+1, snapshot, now)
	if err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `UPDATE release_repository SET snapshot_version = $1, snapshot_expires = $2, timestamp_version = $3, timestamp_expires = $4
		WHERE tenant = $5 AND timestamp_version = $6 AND snapshot_version = $7`,
		snapshot.Version, sqldb.Micros(snapshot.Expires), timestamp.Version, sqldb.Micros(timestamp.Expires),
		tenant, repo.Timestamp.Version, repo.Snapshot.Version)
	if err != nil {
		return err
	}
	if n == 0 {
		return fault.New(fault.Conflict, "another node signs this tenant's metadata at the same time: try again")
	}
	return insertMetadata(ctx, tx, tenant, file{role: "timestamp", version: timestamp.Version, body: timestamp.Bytes, at: now})
}

func (s *Service) signSnapshot(ctx context.Context, tx *sqldb.Tx, repo Repository, online onlineKeys) (signing.Online, error) {
	data, err := s.currentTargets(ctx, tx, repo)
	if err != nil {
		return signing.Online{}, err
	}
	targets, err := signing.ReadTargets(data)
	if err != nil {
		return signing.Online{}, err
	}
	snapshot, err := signing.SignSnapshot(online.snapshot, repo.Snapshot.Version+1, targets, s.now())
	if err != nil {
		return snapshot, err
	}
	return snapshot, insertMetadata(ctx, tx, repo.Tenant, file{role: "snapshot", version: snapshot.Version, body: snapshot.Bytes, at: s.now()})
}

// Sweep removes artifacts that no release came to need. Unfinished uploads are the blob store's.
func (s *Service) Sweep(ctx context.Context) {
	var unused []string
	err := s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) (err error) {
		unused, err = unusedArtifacts(ctx, tx, s.now().Add(-unusedLife))
		return err
	})
	s.logFailure(ctx, "find unused artifacts", "", err)
	if err == nil {
		s.dropBlobs(ctx, unused)
	}
}
