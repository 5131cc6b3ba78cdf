package update

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"steward/internal/wire"
)

// fetch gets the release's metadata, manifest and artifacts, all verified, and then writes down that
// everything is there. It may be repeated: what has arrived is not fetched again.
func (r *Room) fetch(ctx context.Context, x *run) error {
	err := r.tryFetch(ctx, x)
	if err == nil {
		delete(r.tries, x.Ref.Name)
		return nil
	}
	var bad *badDelivery
	if !errors.As(err, &bad) {
		return err
	}
	// What is refused may be half of a publication or a cache's mistake: it gets a few chances.
	if r.tries[x.Ref.Name]++; r.tries[x.Ref.Name] < maxTries {
		return err
	}
	delete(r.tries, x.Ref.Name)
	return &refusal{step: bad.step, cause: bad.Error()}
}

// badDelivery is metadata or content that did not pass verification.
type badDelivery struct {
	step string
	err  error
}

func (e *badDelivery) Error() string { return e.err.Error() }
func (e *badDelivery) Unwrap() error { return e.err }

func bad(step, format string, args ...any) error {
	return &badDelivery{step: step, err: fmt.Errorf(format, args...)}
}

func (r *Room) tryFetch(ctx context.Context, x *run) error {
	targets, err := r.refresh(ctx)
	if err != nil {
		return err
	}
	m, manifest, err := r.fetchManifest(ctx, targets, x.Ref)
	if err != nil {
		return err
	}
	parts, err := r.plan(ctx, targets, x.Ref.Name, m)
	if err != nil {
		return err
	}
	if err := r.checkDownloadSpace(parts); err != nil {
		return err
	}
	for _, p := range parts {
		if err := r.download(ctx, p); err != nil {
			return err
		}
	}
	return r.save(func(s *state) {
		next := s.Runs[x.Ref.Name]
		next.Phase, next.Starts, next.Parts, next.Manifest = unpacking, 0, parts, manifest
		next.reach(wire.UpdateDownloaded, r.now())
		for _, p := range parts {
			if !slices.Contains(s.Owned, p.Component) {
				s.Owned = append(s.Owned, p.Component)
			}
		}
	})
}

// fetchManifest gets the manifest that the wish names and keeps it in the state directory.
func (r *Room) fetchManifest(ctx context.Context, targets targets, ref wire.ReleaseRef) (m wire.ReleaseManifest, hash wire.Hash, err error) {
	t, ok := targets[ref.Target]
	if !ok {
		return m, "", bad(stepVerify, "release %s %s is not among the signed targets", ref.Name, ref.Version)
	}
	if t.size > wire.MaxManifestBytes {
		return m, "", refuse(stepVerify, "the manifest of %s %s has %d bytes: at most %d", ref.Name, ref.Version, t.size, wire.MaxManifestBytes)
	}
	buf := &boundedBuffer{limit: t.size}
	if _, err := r.cfg.Source.Artifact(ctx, string(t.sha256), 0, buf); err != nil && !errors.Is(err, errTooLong) {
		return m, "", fmt.Errorf("fetch the manifest of %s %s: %w", ref.Name, ref.Version, err)
	}
	if int64(len(buf.data)) != t.size || wire.HashOf(buf.data) != t.sha256 || buf.over {
		return m, "", bad(stepVerify, "the manifest of %s %s is not the one that was signed", ref.Name, ref.Version)
	}
	if err := wire.Decode(buf.data, &m); err != nil {
		return m, "", refuse(stepVerify, "the manifest of %s %s: %v", ref.Name, ref.Version, err)
	}
	if mistakes := m.Check(); len(mistakes) > 0 {
		return m, "", refuse(stepVerify, "the manifest of %s %s: %s: %s", ref.Name, ref.Version, mistakes[0].Field, mistakes[0].Message)
	}
	if m.Name != ref.Name || m.Version != ref.Version {
		return m, "", refuse(stepVerify, "the manifest under %s is that of %s %s", ref.Target, m.Name, m.Version)
	}
	if err := r.cfg.Journal.WriteFile(r.manifestPath(t.sha256), buf.data, 0o600); err != nil {
		return m, "", diskTrouble(stepFetch, fmt.Errorf("keep the manifest: %w", err))
	}
	return m, t.sha256, nil
}

// plan chooses the components for this machine and says where each goes.
func (r *Room) plan(ctx context.Context, targets targets, release string, m wire.ReleaseManifest) ([]part, error) {
	product, err := r.product(ctx, m)
	if err != nil {
		return nil, err
	}
	owners := r.owners(release)
	var parts []part
	for i, c := range m.Components {
		if !c.Fits(r.cfg.Architecture, product) {
			continue
		}
		t, ok := targets[c.Artifact]
		if !ok {
			return nil, bad(stepVerify, "artifact %s is not among the signed targets", c.Artifact)
		}
		if owner := owners[c.Name]; owner != "" {
			return nil, refuse(stepVerify, "component %s belongs to release %s already", c.Name, owner)
		}
		previous, err := r.readCurrent(c.Name)
		if err != nil {
			return nil, refuse(stepVerify, "%v", err)
		}
		parts = append(parts, part{Component: c.Name, Index: i, SHA256: t.sha256, SizeBytes: t.size, Link: linkOf(c, t.sha256), Previous: previous})
	}
	if len(parts) == 0 {
		return nil, refuse(stepVerify, "no component of release %s %s fits this machine (architecture %s, product %q)", m.Name, m.Version, r.cfg.Architecture, product)
	}
	return parts, nil
}

// product asks the machine only when a component is meant for some models.
func (r *Room) product(ctx context.Context, m wire.ReleaseManifest) (string, error) {
	for _, c := range m.Components {
		if len(c.Models) == 0 {
			continue
		}
		inv, err := r.cfg.Host.Inventory(ctx)
		if err != nil {
			return "", fmt.Errorf("find out which product this machine is: %w", err)
		}
		return inv.Machine.Product, nil
	}
	return "", nil
}

// owners tells which other release has a component.
func (r *Room) owners(release string) map[string]string {
	s, _, _ := r.snapshot()
	out := map[string]string{}
	for name, in := range s.Installed {
		if name == release {
			continue
		}
		for _, p := range in.Parts {
			out[p.Component] = name
		}
	}
	return out
}

// needed tells whether the part's archive has to be there: not when it is unpacked already.
func (r *Room) needed(p part) bool {
	_, err := os.Stat(r.versionDir(p))
	return err != nil
}

func (r *Room) partPath(p part) string { return filepath.Join(r.downloads(), string(p.SHA256)) }

// checkDownloadSpace refuses before the first byte what can't fit.
func (r *Room) checkDownloadSpace(parts []part) error {
	var missing int64
	for _, p := range parts {
		if !r.needed(p) {
			continue
		}
		have := int64(0)
		for _, path := range []string{r.partPath(p), r.partPath(p) + ".part"} {
			if info, err := os.Stat(path); err == nil {
				have = max(have, info.Size())
			}
		}
		missing += max(0, p.SizeBytes-have)
	}
	return r.checkSpace(stepFetch, r.downloads(), missing)
}

func (r *Room) checkSpace(step, dir string, bytes int64) error {
	if bytes == 0 {
		return nil
	}
	free, err := r.cfg.Host.FreeBytes(dir)
	if err != nil {
		return fmt.Errorf("find out how much space is free: %w", err)
	}
	// A router with a few MiB of flash must be able to update too: the reserve is a part of what is free.
	if reserve := min(r.cfg.ReserveBytes, free/4); free < bytes+reserve {
		return refuse(step, "not enough space: %d KiB are needed and %d KiB kept in reserve, %d KiB are free",
			kibi(bytes), kibi(reserve), free>>10)
	}
	return nil
}

// kibi rounds up.
func kibi(bytes int64) int64 { return (bytes + 1<<10 - 1) >> 10 }

// downloadTimeout ends one request; the next goes on where it stopped. It bounds what a source that
// trickles can hold.
const downloadTimeout = time.Hour

// download gets a part's archive, from where it stopped before, and verifies length and hash.
func (r *Room) download(ctx context.Context, p part) error {
	if !r.needed(p) {
		return nil
	}
	final := r.partPath(p)
	if info, err := os.Stat(final); err == nil && info.Size() == p.SizeBytes {
		return nil // verified before it got this name
	}
	part := final + ".part"
	if err := r.receive(ctx, p, part); err != nil {
		return err
	}
	got, size, err := hashFile(part)
	if err != nil {
		return err
	}
	if size != p.SizeBytes || got != p.SHA256 {
		return errors.Join(bad(stepVerify, "the content of component %s is not what was signed: SHA-256 %.12s… instead of %.12s…", p.Component, got, p.SHA256), os.Remove(part))
	}
	if err := r.cfg.Journal.Point("rename download " + p.Component); err != nil {
		return err
	}
	if err := os.Rename(part, final); err != nil {
		return err
	}
	return r.syncDir(r.downloads())
}

// receive appends to the file until it has the signed length. An error may pass unless it says
// otherwise; what has arrived stays.
func (r *Room) receive(ctx context.Context, p part, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return diskTrouble(stepFetch, err)
	}
	defer f.Close() //nolint:errcheck // synced below
	info, err := f.Stat()
	if err != nil {
		return err
	}
	offset := info.Size()
	if offset > p.SizeBytes {
		offset = 0
		if err := f.Truncate(0); err != nil {
			return err
		}
	}
	if offset == p.SizeBytes && p.SizeBytes > 0 {
		return f.Sync()
	}
	ctx, cancel := context.WithTimeout(ctx, downloadTimeout)
	defer cancel()
	w := &boundedWriter{w: io.NewOffsetWriter(f, offset), left: p.SizeBytes - offset}
	_, err = r.cfg.Source.Artifact(ctx, string(p.SHA256), offset, w)
	if w.failed != nil {
		return errors.Join(diskTrouble(stepFetch, fmt.Errorf("write the download of component %s: %w", p.Component, w.failed)), f.Truncate(offset))
	}
	if syncErr := f.Sync(); syncErr != nil {
		return diskTrouble(stepFetch, syncErr)
	}
	switch {
	case w.over:
		return errors.Join(bad(stepVerify, "the source sends more than the %d bytes of component %s that were signed", p.SizeBytes, p.Component), os.Remove(path))
	case err != nil:
		return fmt.Errorf("download component %s: %w", p.Component, err)
	case w.left > 0:
		return fmt.Errorf("download component %s: the source ended %d bytes early", p.Component, w.left)
	}
	return nil
}

// diskTrouble turns a full disk into the end of the run: it would not get better by repeating.
func diskTrouble(step string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return refuse(step, "the disk is full: %v", err)
	}
	return err
}

var errTooLong = errors.New("more bytes than were signed")

// boundedWriter stops a source that sends more than it should, and remembers errors of the disk apart
// from the source's.
type boundedWriter struct {
	w      io.Writer
	left   int64
	over   bool
	failed error
}

func (b *boundedWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > b.left {
		b.over = true
		return 0, errTooLong
	}
	n, err := b.w.Write(p)
	b.left -= int64(n)
	b.failed = err
	return n, err
}

type boundedBuffer struct {
	data  []byte
	limit int64
	over  bool
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	if int64(len(b.data)+len(p)) > b.limit {
		b.over = true
		return 0, errTooLong
	}
	b.data = append(b.data, p...)
	return len(p), nil
}

func hashFile(path string) (wire.Hash, int64, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", 0, nil
	}
	if err != nil {
		return "", 0, err
	}
	defer f.Close() //nolint:errcheck // read only
	h := sha256.New()
	n, err := io.Copy(h, f)
	return wire.Hash(hex.EncodeToString(h.Sum(nil))), n, err
}
