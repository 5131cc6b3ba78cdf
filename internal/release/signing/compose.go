package signing

import (
	"fmt"
	"strings"

	"steward/internal/fault"
	"steward/internal/wire"
)

// Artifact is the archive of one component as it was uploaded.
type Artifact struct {
	SHA256    wire.Hash
	SizeBytes int64
}

// Release is a release ready to be signed: its manifest's bytes and the targets that it adds.
type Release struct {
	Manifest wire.ReleaseManifest
	Bytes    []byte
	Change   Change
}

// Compose names the artifacts of the manifest's components, checks the manifest and lists the targets
// to add. artifacts has one entry per component, in their order. What is wrong comes as *fault.Invalid.
func Compose(m wire.ReleaseManifest, artifacts []Artifact) (Release, error) {
	if len(artifacts) != len(m.Components) {
		return Release{}, fault.Bad("components", "%d components and %d artifacts", len(m.Components), len(artifacts))
	}
	var change Change
	m.Components = append([]wire.Component(nil), m.Components...)
	listed := map[string]bool{}
	for i := range m.Components {
		c, a := &m.Components[i], artifacts[i]
		if _, err := wire.ParseHash(string(a.SHA256)); err != nil {
			return Release{}, fault.Bad(fmt.Sprintf("components[%d].artifact", i), "%v", err)
		}
		if a.SizeBytes < 0 || a.SizeBytes > wire.MaxArtifactBytes {
			return Release{}, fault.Bad(fmt.Sprintf("components[%d].artifact", i), "%d bytes: at most %d", a.SizeBytes, int64(wire.MaxArtifactBytes))
		}
		c.Artifact = wire.ArtifactTarget(c.Name, c.Version, a.SHA256)
		if !listed[c.Artifact] {
			listed[c.Artifact] = true
			change.Add = append(change.Add, Target{Path: c.Artifact, SHA256: a.SHA256, SizeBytes: a.SizeBytes})
		}
	}
	if err := CheckManifest(m); err != nil {
		return Release{}, err
	}
	data, err := wire.Canonical(m)
	if err != nil {
		return Release{}, fmt.Errorf("encode manifest: %w", err)
	}
	if len(data) > wire.MaxManifestBytes {
		return Release{}, fault.Bad("manifest", "%d bytes: at most %d", len(data), wire.MaxManifestBytes)
	}
	change.Add = append(change.Add, Target{Path: wire.ManifestTarget(m.Name, m.Version), SHA256: wire.HashOf(data), SizeBytes: int64(len(data))})
	return Release{Manifest: m, Bytes: data, Change: change}, nil
}

// CheckManifest returns the manifest's mistakes as *fault.Invalid.
func CheckManifest(m wire.ReleaseManifest) error {
	invalid := &fault.Invalid{}
	for _, mistake := range m.Check() {
		invalid.Add(mistake.Field, "%s", mistake.Message)
	}
	return invalid.OrNil()
}

// ParseManifest reads the content of a manifest's target and checks that it belongs there and that its
// artifacts are among the targets.
func (t *Targets) ParseManifest(path string, data []byte) (wire.ReleaseManifest, error) {
	var m wire.ReleaseManifest
	target, ok := t.Files[path]
	if !ok {
		return m, fmt.Errorf("%s is not among the targets", path)
	}
	if target.SizeBytes != int64(len(data)) || target.SHA256 != wire.HashOf(data) {
		return m, fmt.Errorf("%s has other content than the targets say", path)
	}
	if len(data) > wire.MaxManifestBytes {
		return m, fmt.Errorf("%s of %d bytes: at most %d", path, len(data), wire.MaxManifestBytes)
	}
	if err := wire.Decode(data, &m); err != nil {
		return m, fmt.Errorf("%s is no release manifest: %w", path, err)
	}
	if err := CheckManifest(m); err != nil {
		return m, fmt.Errorf("%s: %w", path, err)
	}
	if want := wire.ManifestTarget(m.Name, m.Version); want != path {
		return m, fmt.Errorf("the manifest of %s stands under %s", want, path)
	}
	for _, c := range m.Components {
		if _, ok := t.Files[c.Artifact]; !ok {
			return m, fmt.Errorf("%s needs %s, which is not among the targets", path, c.Artifact)
		}
	}
	return m, nil
}

// IsManifest tells whether a target is a release's manifest.
func IsManifest(path string) bool { return strings.HasPrefix(path, "releases/") }

// ManifestPaths lists the targets that are manifests, in order.
func (t *Targets) ManifestPaths() []string {
	var out []string
	for _, p := range t.Paths() {
		if IsManifest(p) {
			out = append(out, p)
		}
	}
	return out
}

// Dropping lists what to remove with a release: its manifest and those artifacts that no other manifest
// of the given needs.
func (t *Targets) Dropping(name, version string, others []wire.ReleaseManifest, own wire.ReleaseManifest) []string {
	needed := map[string]bool{}
	for _, m := range others {
		for _, c := range m.Components {
			needed[c.Artifact] = true
		}
	}
	out := []string{wire.ManifestTarget(name, version)}
	for _, c := range own.Components {
		if _, listed := t.Files[c.Artifact]; listed && !needed[c.Artifact] {
			needed[c.Artifact] = true // once
			out = append(out, c.Artifact)
		}
	}
	return out
}
