package release

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/release/signing"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

func insertRepository(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID, keys signing.OnlineKeys, now time.Time) error {
	_, err := tx.Exec(ctx, `INSERT INTO release_repository (tenant, snapshot_key, timestamp_key, created)
		VALUES ($1, $2, $3, $4) ON CONFLICT (tenant) DO NOTHING`, tenant, keys.Snapshot, keys.Timestamp, sqldb.Micros(now))
	return err
}

const repositoryColumns = `tenant, managed, snapshot_key, timestamp_key, created,
	root_version, root_expires, root_threshold, targets_version, targets_expires, targets_threshold,
	snapshot_version, snapshot_expires, timestamp_version, timestamp_expires`

func scanRepository(scan func(...any) error) (Repository, error) {
	r := Repository{Snapshot: RoleStatus{Online: true, Threshold: 1}, Timestamp: RoleStatus{Online: true, Threshold: 1}}
	err := scan(&r.Tenant, &r.Managed, &r.OnlineKeys.Snapshot, &r.OnlineKeys.Timestamp, sqldb.ScanMicros(&r.Created),
		&r.Root.Version, sqldb.ScanMicros(&r.Root.Expires), &r.Root.Threshold,
		&r.Targets.Version, sqldb.ScanMicros(&r.Targets.Expires), &r.Targets.Threshold,
		&r.Snapshot.Version, sqldb.ScanMicros(&r.Snapshot.Expires), &r.Timestamp.Version, sqldb.ScanMicros(&r.Timestamp.Expires))
	r.Rooted = r.Root.Version > 0
	r.Root.Online, r.Targets.Online = r.Managed, r.Managed
	return r, err
}

// repository reads the row; OnlineKeys are those that the current root names.
func repository(ctx context.Context, q sqldb.Reader, tenant device.TenantID) (Repository, error) {
	r, err := scanRepository(q.QueryRowContext(ctx, `SELECT `+repositoryColumns+` FROM release_repository WHERE tenant = $1`, tenant).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return r, fault.New(fault.NotFound, "tenant %s has no release repository yet", tenant)
	}
	return r, err
}

// dueRepositories lists those whose timestamp or snapshot expires before the given times.
func dueRepositories(ctx context.Context, q sqldb.Reader, timestamp, snapshot time.Time) ([]Repository, error) {
	rows, err := q.QueryContext(ctx, `SELECT `+repositoryColumns+` FROM release_repository
		WHERE root_version > 0 AND targets_version > 0 AND (timestamp_expires < $1 OR snapshot_expires < $2) ORDER BY tenant`,
		sqldb.Micros(timestamp), sqldb.Micros(snapshot))
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var out []Repository
	for rows.Next() {
		r, err := scanRepository(rows.Scan)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// storeRoot moves the repository from the root that was read to the next one.
func storeRoot(ctx context.Context, tx *sqldb.Tx, repo Repository, next *signing.Root, managed bool) error {
	n, err := tx.Exec(ctx, `UPDATE release_repository SET managed = $1, snapshot_key = $2, timestamp_key = $3,
			root_version = $4, root_expires = $5, root_threshold = $6, targets_threshold = $7
		WHERE tenant = $8 AND root_version = $9`,
		flag(managed), next.Online.Snapshot, next.Online.Timestamp, next.Version, sqldb.Micros(next.Expires),
		next.RootThreshold, next.TargetsThreshold, repo.Tenant, repo.Root.Version)
	if err == nil && n == 0 {
		err = fault.New(fault.Conflict, "another root was accepted meanwhile: read it and sign again")
	}
	return err
}

func storeTargets(ctx context.Context, tx *sqldb.Tx, repo Repository, next *signing.Targets) error {
	n, err := tx.Exec(ctx, `UPDATE release_repository SET targets_version = $1, targets_expires = $2
		WHERE tenant = $3 AND targets_version = $4 AND root_version = $5`,
		next.Version, sqldb.Micros(next.Expires), repo.Tenant, repo.Targets.Version, repo.Root.Version)
	if err == nil && n == 0 {
		err = errTargetsMoved
	}
	return err
}

func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// file is one version of a role's metadata.
type file struct {
	role    string
	version int64
	body    []byte
	at      time.Time
}

func (f file) name() string {
	if f.role == "timestamp" {
		return "timestamp.json" // the one name that devices can know beforehand
	}
	return versioned(f.version, f.role)
}

func insertMetadata(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID, f file) error {
	_, err := tx.Exec(ctx, `INSERT INTO release_metadata (tenant, name, role, version, body, created) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (tenant, name) DO UPDATE SET version = excluded.version, body = excluded.body, created = excluded.created`,
		tenant, f.name(), f.role, f.version, f.body, sqldb.Micros(f.at))
	if err != nil {
		return fmt.Errorf("keep %s: %w", f.name(), err)
	}
	if f.role == "root" || f.role == "timestamp" {
		return nil
	}
	_, err = tx.Exec(ctx, `DELETE FROM release_metadata WHERE tenant = $1 AND role = $2 AND version <= $3`,
		tenant, f.role, f.version-keptVersions)
	return err
}

func metadataFile(ctx context.Context, q sqldb.Reader, tenant device.TenantID, name string) ([]byte, error) {
	var body []byte
	err := q.QueryRowContext(ctx, `SELECT body FROM release_metadata WHERE tenant = $1 AND name = $2`, tenant, name).Scan(&body)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fault.New(fault.NotFound, "there is no metadata file %.100q", name)
	}
	return body, err
}

// Filter of List.
type Filter struct {
	Tenant device.TenantID
	Name   string // of the release; empty means all
	Limit  int    // 0 means 50
	Cursor string
}

type releasePosition struct {
	Num int64 `json:"n"`
}

const releaseColumns = `num, name, version, target, sha256, manifest, size_bytes, created, created_by`

func listReleases(ctx context.Context, q sqldb.Reader, f Filter) ([]Release, string, error) {
	if f.Limit <= 0 {
		f.Limit = 50
	}
	var pos releasePosition
	if err := httpapi.DecodeCursor(f.Cursor, &pos); err != nil {
		return nil, "", err
	}
	b := sqldb.NewQuery(`SELECT `+releaseColumns+` FROM release_release WHERE tenant = ?`, f.Tenant)
	if f.Name != "" {
		b.Add(`AND name = ?`, f.Name)
	}
	if pos.Num > 0 {
		b.Add(`AND num < ?`, pos.Num)
	}
	b.Add(`ORDER BY num DESC LIMIT ?`, f.Limit+1)
	found, err := scanReleases(ctx, q, b)
	if err != nil {
		return nil, "", err
	}
	next := ""
	if len(found) > f.Limit {
		found = found[:f.Limit]
		next = httpapi.EncodeCursor(releasePosition{Num: found[f.Limit-1].num})
	}
	out := make([]Release, len(found))
	for i, r := range found {
		if out[i], err = r.release(ctx, q); err != nil {
			return nil, "", err
		}
	}
	return out, next, nil
}

func releaseByName(ctx context.Context, q sqldb.Reader, tenant device.TenantID, ref Ref) (Release, error) {
	return oneRelease(ctx, q, ref.Name+" "+ref.Version, sqldb.NewQuery(`SELECT `+releaseColumns+` FROM release_release
		WHERE tenant = ? AND name = ? AND version = ?`, tenant, ref.Name, ref.Version))
}

func releaseByTarget(ctx context.Context, q sqldb.Reader, tenant device.TenantID, target string) (Release, error) {
	return oneRelease(ctx, q, target, sqldb.NewQuery(`SELECT `+releaseColumns+` FROM release_release
		WHERE tenant = ? AND target = ?`, tenant, target))
}

func oneRelease(ctx context.Context, q sqldb.Reader, called string, b *sqldb.Builder) (Release, error) {
	found, err := scanReleases(ctx, q, b)
	if err != nil {
		return Release{}, err
	}
	if len(found) == 0 {
		return Release{}, fault.New(fault.NotFound, "there is no release %.150s", called)
	}
	return found[0].release(ctx, q)
}

type releaseRow struct {
	Release
	num      int64
	manifest string
}

func scanReleases(ctx context.Context, q sqldb.Reader, b *sqldb.Builder) ([]releaseRow, error) {
	rows, err := q.QueryContext(ctx, b.SQL(), b.Args()...)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var out []releaseRow
	for rows.Next() {
		var r releaseRow
		var by string
		if err := rows.Scan(&r.num, &r.Name, &r.Version, &r.Target, &r.SHA256, &r.manifest, &r.SizeBytes, sqldb.ScanMicros(&r.Created), &by); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(by), &r.CreatedBy); err != nil {
			return nil, fmt.Errorf("read release %s %s: %w", r.Name, r.Version, err)
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// release adds what the manifest says and the artifacts' sizes.
func (r releaseRow) release(ctx context.Context, q sqldb.Reader) (Release, error) {
	var m wire.ReleaseManifest
	if err := json.Unmarshal([]byte(r.manifest), &m); err != nil {
		return Release{}, fmt.Errorf("read the manifest of %s %s: %w", r.Name, r.Version, err)
	}
	r.Notes = m.Notes
	rows, err := q.QueryContext(ctx, `SELECT sha256, size_bytes FROM release_component WHERE release_num = $1 ORDER BY position`, r.num)
	if err != nil {
		return Release{}, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	for i := 0; rows.Next() && i < len(m.Components); i++ {
		c := Component{Component: m.Components[i]}
		if err := rows.Scan(&c.SHA256, &c.SizeBytes); err != nil {
			return Release{}, err
		}
		r.Components = append(r.Components, c)
	}
	return r.Release, rows.Err()
}

func insertRelease(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID, r Release, manifest []byte) error {
	by, err := json.Marshal(r.CreatedBy)
	if err != nil {
		return err
	}
	var num int64
	err = tx.QueryRowContext(ctx, `INSERT INTO release_release (tenant, name, version, target, sha256, manifest, size_bytes, created, created_by)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING num`,
		tenant, r.Name, r.Version, r.Target, r.SHA256, string(manifest), r.SizeBytes, sqldb.Micros(r.Created), string(by)).Scan(&num)
	if sqldb.IsUnique(err) {
		return fault.New(fault.Conflict, "release %s %s exists already", r.Name, r.Version)
	}
	if err != nil {
		return fmt.Errorf("keep release %s %s: %w", r.Name, r.Version, err)
	}
	for i, c := range r.Components {
		if _, err := tx.Exec(ctx, `INSERT INTO release_component (release_num, position, name, version, type, artifact, sha256, size_bytes)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`, num, i, c.Name, c.Version, c.Type, c.Artifact, c.SHA256, c.SizeBytes); err != nil {
			return fmt.Errorf("keep component %s: %w", c.Name, err)
		}
	}
	return nil
}

// deleteRelease removes the release and the tenant's claim on the artifacts that no other release of
// the tenant needs; it returns their hashes.
func deleteRelease(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID, r Release) ([]string, error) {
	if _, err := tx.Exec(ctx, `DELETE FROM release_component WHERE release_num IN
		(SELECT num FROM release_release WHERE tenant = $1 AND name = $2 AND version = $3)`, tenant, r.Name, r.Version); err != nil {
		return nil, err
	}
	if _, err := tx.Exec(ctx, `DELETE FROM release_release WHERE tenant = $1 AND name = $2 AND version = $3`, tenant, r.Name, r.Version); err != nil {
		return nil, err
	}
	hashes := []string{string(r.SHA256)}
	for _, c := range r.Components {
		hashes = append(hashes, string(c.SHA256))
	}
	var orphans []string
	for _, h := range hashes {
		n, err := tx.Exec(ctx, `DELETE FROM release_artifact WHERE tenant = $1 AND sha256 = $2
			AND NOT EXISTS (SELECT 1 FROM release_component c JOIN release_release r ON r.num = c.release_num WHERE c.sha256 = $3 AND r.tenant = $4)
			AND NOT EXISTS (SELECT 1 FROM release_release r WHERE r.sha256 = $5 AND r.tenant = $6)`, tenant, h, h, tenant, h, tenant)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			orphans = append(orphans, h)
		}
	}
	return orphans, nil
}

type componentRow struct{ manifest, artifact string }

// components lists which artifact targets the tenant's releases need.
func components(ctx context.Context, q sqldb.Reader, tenant device.TenantID) ([]componentRow, error) {
	rows, err := q.QueryContext(ctx, `SELECT r.target, c.artifact FROM release_release r
		JOIN release_component c ON c.release_num = r.num WHERE r.tenant = $1`, tenant)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var out []componentRow
	for rows.Next() {
		var c componentRow
		if err := rows.Scan(&c.manifest, &c.artifact); err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, rows.Err()
}

type artifact struct {
	sha256 string
	size   int64
	at     time.Time
	by     string
}

func insertArtifact(ctx context.Context, tx *sqldb.Tx, tenant device.TenantID, a artifact) error {
	_, err := tx.Exec(ctx, `INSERT INTO release_artifact (tenant, sha256, size_bytes, created, created_by) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (tenant, sha256) DO NOTHING`, tenant, a.sha256, a.size, sqldb.Micros(a.at), a.by)
	return err
}

// artifactSize wraps fault.NotFound when the tenant has no such artifact.
func artifactSize(ctx context.Context, q sqldb.Reader, tenant device.TenantID, sha256 string) (int64, error) {
	var size int64
	err := q.QueryRowContext(ctx, `SELECT size_bytes FROM release_artifact WHERE tenant = $1 AND sha256 = $2`, tenant, sha256).Scan(&size)
	if errors.Is(err, sql.ErrNoRows) {
		err = fault.New(fault.NotFound, "there is no artifact with SHA-256 %.64s", sha256)
	}
	return size, err
}

func artifactKnown(ctx context.Context, q sqldb.Reader, sha256 string) (bool, error) {
	var n int64
	err := q.QueryRowContext(ctx, `SELECT COUNT(*) FROM release_artifact WHERE sha256 = $1`, sha256).Scan(&n)
	return n > 0, err
}

// unusedArtifacts drops the claims on artifacts that were uploaded before the time and that no release
// came to need, and returns their hashes.
func unusedArtifacts(ctx context.Context, tx *sqldb.Tx, before time.Time) ([]string, error) {
	rows, err := tx.QueryContext(ctx, `DELETE FROM release_artifact AS a WHERE created < $1
		AND NOT EXISTS (SELECT 1 FROM release_component c JOIN release_release r ON r.num = c.release_num WHERE c.sha256 = a.sha256 AND r.tenant = a.tenant)
		AND NOT EXISTS (SELECT 1 FROM release_release r WHERE r.sha256 = a.sha256 AND r.tenant = a.tenant)
		RETURNING sha256`, sqldb.Micros(before))
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var out []string
	for rows.Next() {
		var h string
		if err := rows.Scan(&h); err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, rows.Err()
}
