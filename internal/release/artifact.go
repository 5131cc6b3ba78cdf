package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"

	"steward/internal/blob"
	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// Upload is an artifact on its way in: a resumable upload of the blob store.
type Upload struct {
	ID          string `json:"id"`
	OffsetBytes int64  `json:"offset_bytes" doc:"How many bytes have arrived: go on from here"`
}

// Artifact is content that releases can be made of.
type Artifact struct {
	SHA256    wire.Hash `json:"sha256"`
	SizeBytes int64     `json:"size_bytes"`
}

var uploadPattern = regexp.MustCompile(`^upl-[0-9a-hjkmnp-tv-z]{16}$`)

// upload finds a tenant's upload; another tenant's has another name in the store.
func (s *Service) upload(tenant device.TenantID, id string) (*blob.Upload, error) {
	if !uploadPattern.MatchString(id) {
		return nil, fault.New(fault.NotFound, "there is no upload %.40q", id)
	}
	return s.cfg.Blobs.Upload(string(tenant) + "_" + id)
}

// StartUpload begins an artifact: it chooses the name under which the bytes are sent.
func (s *Service) StartUpload() Upload { return Upload{ID: "upl-" + device.RandomName(10)} }

// UploadState tells how far an upload is.
func (s *Service) UploadState(tenant device.TenantID, id string) (Upload, error) {
	u, err := s.upload(tenant, id)
	if err != nil {
		return Upload{}, err
	}
	size, err := u.Size()
	return Upload{ID: id, OffsetBytes: size}, err
}

// AppendUpload writes the bytes from the offset on, which must be where the upload stands
// (fault.Conflict). What arrived before an error stays: ask for the state and go on from there.
func (s *Service) AppendUpload(ctx context.Context, tenant device.TenantID, id string, offset int64, r io.Reader) (Upload, error) {
	u, err := s.upload(tenant, id)
	if err != nil {
		return Upload{}, err
	}
	size, err := u.Append(ctx, offset, r, wire.MaxArtifactBytes)
	return Upload{ID: id, OffsetBytes: size}, err
}

// FinishUpload checks the whole content against the hash that the caller knows and makes it an artifact
// of the tenant. Wrong content gives up the upload (fault.Unprocessable). A repeated call after a lost
// answer succeeds.
func (s *Service) FinishUpload(ctx context.Context, actor device.Actor, tenant device.TenantID, id string, want wire.Hash) (Artifact, error) {
	u, err := s.upload(tenant, id)
	if err != nil {
		return Artifact{}, err
	}
	// The store is shared by all tenants: only bytes that this upload has brought make an artifact, even
	// when another request finishes the same upload at this moment.
	size, err := u.Complete(ctx, string(want))
	if errors.Is(err, fault.NotFound) {
		if a, err := s.ArtifactInfo(ctx, tenant, want); err == nil {
			return a, nil
		}
		return Artifact{}, fault.New(fault.NotFound, "upload %s has no bytes", id)
	}
	if err != nil {
		return Artifact{}, err
	}
	return s.claim(ctx, actor, tenant, Artifact{SHA256: want, SizeBytes: size})
}

// claim notes that the tenant has the artifact.
func (s *Service) claim(ctx context.Context, actor device.Actor, tenant device.TenantID, a Artifact) (Artifact, error) {
	return a, s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		return insertArtifact(ctx, tx, tenant, artifact{sha256: string(a.SHA256), size: a.SizeBytes, at: s.now(), by: actor.ID})
	})
}

// StoreArtifact takes an artifact in one go, from a form or from this process itself.
func (s *Service) StoreArtifact(ctx context.Context, actor device.Actor, tenant device.TenantID, r io.Reader) (Artifact, error) {
	sum, size, err := s.cfg.Blobs.Put(ctx, r, wire.MaxArtifactBytes)
	if err != nil {
		return Artifact{}, fmt.Errorf("store artifact: %w", err)
	}
	return s.claim(ctx, actor, tenant, Artifact{SHA256: wire.Hash(sum), SizeBytes: size})
}

// ArtifactInfo tells whether the tenant has an artifact. It wraps fault.NotFound.
func (s *Service) ArtifactInfo(ctx context.Context, tenant device.TenantID, hash wire.Hash) (Artifact, error) {
	size, err := artifactSize(ctx, s.cfg.DB, tenant, string(hash))
	return Artifact{SHA256: hash, SizeBytes: size}, err
}

// Artifact opens an artifact or a manifest of the tenant by its hash, for download. It wraps
// fault.NotFound.
func (s *Service) Artifact(ctx context.Context, tenant device.TenantID, sha256Hex string) (io.ReadSeekCloser, int64, error) {
	if _, err := artifactSize(ctx, s.cfg.DB, tenant, sha256Hex); err != nil {
		return nil, 0, err
	}
	return s.cfg.Blobs.Open(sha256Hex)
}
