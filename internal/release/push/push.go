// Package push brings a release from a directory on the release manager's machine to a server: it packs
// the components, uploads what the server does not have, signs with the offline keys, and publishes.
// With a server that holds the keys itself (managed mode) the server signs.
package push

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"steward/internal/client"
	"steward/internal/release/archive"
	"steward/internal/release/signing"
	"steward/internal/wire"
)

// Spec describes a release, as in the file that `steward release push -f` reads.
type Spec struct {
	Name       string      `json:"name"`
	Version    string      `json:"version"`
	Notes      string      `json:"notes,omitempty"`
	Components []Component `json:"components"`
}

// Component is a component of the release. Give either Dir, which is packed, or Archive, a tar or
// tar.zst file that is taken as it is.
type Component struct {
	Name          string                 `json:"name"`
	Version       string                 `json:"version,omitempty"` // "" means the release's
	Type          string                 `json:"type,omitempty"`    // "" means files
	Dir           string                 `json:"dir,omitempty"`
	Archive       string                 `json:"archive,omitempty"`
	Architectures []string               `json:"architectures,omitempty"`
	Models        []string               `json:"models,omitempty"`
	Commands      wire.ComponentCommands `json:"commands,omitempty"`
}

// Pusher pushes releases.
type Pusher struct {
	API *client.Client
	// Keys is the key directory (signing.Init); empty lets a managed server sign.
	Keys       string
	Passphrase []byte
	// Base is the directory that relative paths of a Spec are resolved in.
	Base string
	// Progress is told how much of a component has been sent; may be nil.
	Progress func(component string, sent, total int64)
}

// Push does all of it and returns the manifest as it was signed.
func (p Pusher) Push(ctx context.Context, spec Spec) (wire.ReleaseManifest, error) {
	manifest := wire.ReleaseManifest{Name: spec.Name, Version: spec.Version, Notes: spec.Notes}
	var artifacts []signing.Artifact
	for _, c := range spec.Components {
		if c.Version == "" {
			c.Version = spec.Version
		}
		if c.Type == "" {
			c.Type = wire.ComponentFiles
		}
		a, err := p.component(ctx, c)
		if err != nil {
			return manifest, fmt.Errorf("component %s: %w", c.Name, err)
		}
		artifacts = append(artifacts, a)
		manifest.Components = append(manifest.Components, wire.Component{
			Name: c.Name, Version: c.Version, Type: c.Type, Architectures: c.Architectures, Models: c.Models, Commands: c.Commands,
		})
	}
	rel, err := signing.Compose(manifest, artifacts)
	if err != nil {
		return manifest, err
	}
	if p.Keys == "" {
		body := map[string]any{"manifest": rel.Manifest, "artifacts": apiArtifacts(artifacts)}
		return rel.Manifest, p.API.Do(ctx, client.Call{Method: http.MethodPost, Path: "/releases", Body: body}, nil)
	}
	return rel.Manifest, p.publish(ctx, rel)
}

type apiArtifact struct {
	SHA256    wire.Hash `json:"sha256"`
	SizeBytes int64     `json:"size_bytes"`
}

func apiArtifacts(list []signing.Artifact) []apiArtifact {
	out := make([]apiArtifact, len(list))
	for i, a := range list {
		out[i] = apiArtifact(a)
	}
	return out
}

// publish signs the next targets with the offline keys and hands them over.
func (p Pusher) publish(ctx context.Context, rel signing.Release) error {
	ceremony, err := signing.Open(p.Keys, signing.Options{Passphrase: p.Passphrase})
	if err != nil {
		return err
	}
	current, err := p.targets(ctx)
	if err != nil {
		return err
	}
	signed, err := ceremony.SignTargets(current, rel.Change)
	if err != nil {
		return err
	}
	body := map[string]any{"targets": signed, "manifests": [][]byte{rel.Bytes}}
	err = p.API.Do(ctx, client.Call{Method: http.MethodPost, Path: "/release-repository/targets", Body: body}, nil)
	if err != nil {
		return err
	}
	return ceremony.Keep(signed)
}

// targets returns the server's current targets.json, nil when nothing was published yet.
func (p Pusher) targets(ctx context.Context) ([]byte, error) {
	var data []byte
	err := p.API.Do(ctx, client.Call{Path: "/release-repository/metadata/targets.json"}, &data)
	var problem *client.Problem
	if errors.As(err, &problem) && problem.Status == http.StatusNotFound {
		return nil, nil
	}
	return data, err
}

// component packs (or takes) the archive and uploads it unless the server has it.
func (p Pusher) component(ctx context.Context, c Component) (signing.Artifact, error) {
	if (c.Dir == "") == (c.Archive == "") {
		return signing.Artifact{}, errors.New("give either dir or archive")
	}
	file, err := p.open(c)
	if err != nil {
		return signing.Artifact{}, err
	}
	defer file.Close()
	h := sha256.New()
	size, err := io.Copy(h, file)
	if err != nil {
		return signing.Artifact{}, err
	}
	a := signing.Artifact{SHA256: wire.Hash(hex.EncodeToString(h.Sum(nil))), SizeBytes: size}
	return a, p.upload(ctx, c.Name, a, file)
}

// open returns the archive, read from its start; a packed one is gone when it is closed.
func (p Pusher) open(c Component) (*os.File, error) {
	if c.Archive != "" {
		return os.Open(p.resolve(c.Archive))
	}
	temp, err := os.CreateTemp("", "steward-release-*.tar.zst")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(temp.Name()); err != nil { // lives on until it is closed
		return nil, errors.Join(err, temp.Close())
	}
	if err := archive.Pack(temp, p.resolve(c.Dir)); err != nil {
		return nil, errors.Join(err, temp.Close())
	}
	_, err = temp.Seek(0, io.SeekStart)
	return temp, err
}

func (p Pusher) resolve(path string) string {
	if filepath.IsAbs(path) || p.Base == "" {
		return path
	}
	return filepath.Join(p.Base, path)
}

// chunkBytes is how much is sent in one request; a lost connection costs at most this.
const chunkBytes = 4 << 20

func (p Pusher) upload(ctx context.Context, name string, a signing.Artifact, file io.ReaderAt) error {
	err := p.API.Do(ctx, client.Call{Path: "/artifacts/" + string(a.SHA256)}, nil)
	var problem *client.Problem
	if err == nil || !errors.As(err, &problem) || problem.Status != http.StatusNotFound {
		return err
	}
	var up struct {
		ID     string `json:"id"`
		Offset int64  `json:"offset_bytes"`
	}
	if err := p.API.Do(ctx, client.Call{Method: http.MethodPost, Path: "/artifact-uploads"}, &up); err != nil {
		return err
	}
	path := "/artifact-uploads/" + up.ID
	for failures := 0; up.Offset < a.SizeBytes; {
		if p.Progress != nil {
			p.Progress(name, up.Offset, a.SizeBytes)
		}
		chunk := make([]byte, min(chunkBytes, a.SizeBytes-up.Offset))
		if _, err := file.ReadAt(chunk, up.Offset); err != nil {
			return err
		}
		err := p.API.Do(ctx, client.Call{
			Method: http.MethodPatch, Path: path, Body: io.Reader(bytes.NewReader(chunk)), Type: "application/octet-stream",
			Query: url.Values{"offset": {strconv.FormatInt(up.Offset, 10)}},
		}, &up)
		if err == nil {
			failures = 0
			continue
		}
		if failures++; failures > 5 || !errors.Is(err, client.ErrUnreachable) {
			return err
		}
		if err := p.goOn(ctx, path, failures, &up); err != nil {
			return err
		}
	}
	if p.Progress != nil {
		p.Progress(name, a.SizeBytes, a.SizeBytes)
	}
	return p.API.Do(ctx, client.Call{Method: http.MethodPost, Path: path + "/finish", Body: map[string]any{"sha256": a.SHA256}}, nil)
}

// goOn waits and asks the server how far the upload is.
func (p Pusher) goOn(ctx context.Context, path string, failures int, up any) error {
	select {
	case <-time.After(time.Duration(failures) * time.Second):
	case <-ctx.Done():
		return ctx.Err()
	}
	err := p.API.Do(ctx, client.Call{Path: path}, up)
	if errors.Is(err, client.ErrUnreachable) {
		return nil // the next try finds out
	}
	return err
}

// InitKeys makes the offline keys in dir for the server's online keys and hands over the first root.
func InitKeys(ctx context.Context, api *client.Client, dir string, o signing.Options) error {
	var repo struct {
		Rooted     bool               `json:"rooted"`
		OnlineKeys signing.OnlineKeys `json:"online_keys"`
	}
	if err := api.Do(ctx, client.Call{Path: "/release-repository"}, &repo); err != nil {
		return err
	}
	if repo.Rooted {
		return errors.New("the server has a release root already: sign its successor with `steward release rotate`")
	}
	ceremony, err := signing.Init(dir, repo.OnlineKeys, o)
	if err != nil {
		return err
	}
	return SetRoot(ctx, api, ceremony.Root().Bytes)
}

// SetRoot hands a signed root over.
func SetRoot(ctx context.Context, api *client.Client, root []byte) error {
	return api.Do(ctx, client.Call{Method: http.MethodPut, Path: "/release-repository/root", Body: map[string]any{"root": root}}, nil)
}
