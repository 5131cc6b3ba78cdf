package update_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"steward/internal/release/signing"
	"steward/internal/wire"
)

// refused expects that the release fails in the step and leaves the device as it was.
func (d *deviceRig) refused(ref wire.ReleaseRef, says string) {
	d.t.Helper()
	before := d.running("app")
	d.host.mu.Lock()
	calls := len(d.host.calls)
	d.host.mu.Unlock()
	d.apply(ref)
	p, _ := d.wait(ref)
	if p.State != wire.UpdateFailed || !strings.Contains(p.Cause, says) {
		d.t.Errorf("ended %s: %q, want a refusal that says %q", p.State, p.Cause, says)
	}
	if got := d.running("app"); got != before || len(d.host.calls) != calls {
		d.t.Errorf("runs %q instead of %q after %v", got, before, d.host.calls[calls:])
	}
}

// victim is a device that runs 1.0 of a repository whose server is then stolen.
func victim(t *testing.T, o signing.Options) (*repository, *deviceRig) {
	t.Helper()
	repo := newRepository(t, o)
	d := newDevice(t, repo)
	d.boot()
	m, a := simple(t, "1.0")
	d.install(repo.publish(m, a))
	return repo, d
}

// forge makes a release that nobody with the targets keys has seen, and returns its name and targets.
func (r *repository) forge(version string, ceremony *signing.Ceremony, current []byte) (wire.ReleaseRef, []byte) {
	r.t.Helper()
	m, a := simple(r.t, version)
	rel, err := signing.Compose(m, []signing.Artifact{{SHA256: wire.HashOf(a), SizeBytes: int64(len(a))}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	r.blobs[wire.HashOf(a)], r.blobs[wire.HashOf(rel.Bytes)] = a, rel.Bytes
	r.mu.Unlock()
	targets, err := ceremony.SignTargets(current, rel.Change)
	if err != nil {
		r.t.Fatal(err)
	}
	return wire.ReleaseRef{Name: "app", Version: version, Target: wire.ManifestTarget("app", version), Assignment: "asg-evil", Attempt: 1}, targets
}

func TestStolenServerCanNotNameWhatWasNotSigned(t *testing.T) {
	repo, d := victim(t, signing.Options{})
	ref := wire.ReleaseRef{Name: "app", Version: "6.6.6", Target: wire.ManifestTarget("app", "6.6.6"), Assignment: "a", Attempt: 1}
	d.refused(ref, "not among the signed targets")
	_ = repo
}

func TestStolenServerCanNotSignTargets(t *testing.T) {
	repo, d := victim(t, signing.Options{})
	thief, err := signing.Init(t.TempDir()+"/thief", repo.ceremony.Root().Online, signing.Options{Now: repo.now})
	if err != nil {
		t.Fatal(err)
	}
	one, err := thief.SignTargets(nil, signing.Change{})
	if err != nil {
		t.Fatal(err)
	}
	ref, targets := repo.forge("6.6.6", thief, one) // version 2, as the next would be
	repo.signOnline(targets)
	d.refused(ref, "not signed by enough of the trusted keys")
}

func TestStolenServerCanNotReplaceTheRoot(t *testing.T) {
	repo, d := victim(t, signing.Options{RootKeys: 2, RootThreshold: 2})
	thief, err := signing.Init(t.TempDir()+"/thief", repo.ceremony.Root().Online, signing.Options{Now: repo.now})
	if err != nil {
		t.Fatal(err)
	}
	evil, err := thief.NextRoot(signing.Rotation{})
	if err != nil {
		t.Fatal(err)
	}
	one, err := thief.SignTargets(nil, signing.Change{})
	if err != nil {
		t.Fatal(err)
	}
	ref, targets := repo.forge("6.6.6", thief, one)
	repo.signOnline(targets)
	repo.files["2.root.json"] = evil
	d.refused(ref, "the release root is not signed by enough")

	// One of two root keys is not enough either.
	next, err := repo.ceremony.NextRoot(signing.Rotation{})
	if err != nil {
		t.Fatal(err)
	}
	var half map[string]any
	if err := json.Unmarshal(next, &half); err != nil {
		t.Fatal(err)
	}
	half["signatures"] = half["signatures"].([]any)[:1]
	if repo.files["2.root.json"], err = json.Marshal(half); err != nil {
		t.Fatal(err)
	}
	ref.Attempt = 2
	d.refused(ref, "the release root is not signed by enough")
}

func TestTamperedMetadataIsRefused(t *testing.T) {
	repo, d := victim(t, signing.Options{})
	m, a := simple(t, "2.0")
	ref := repo.publish(m, a)
	honest := maps.Clone(repo.files)
	for attempt, name := range []string{"timestamp.json", "2.snapshot.json", "2.targets.json"} {
		repo.mu.Lock()
		repo.files = maps.Clone(honest)
		repo.files[name] = bytes.Replace(honest[name], []byte(`"version":2`), []byte(`"version":3`), 1)
		repo.mu.Unlock()
		ref.Attempt = attempt + 1
		d.refused(ref, "the release "+strings.TrimPrefix(strings.TrimSuffix(name, ".json"), "2."))
	}
	repo.mu.Lock()
	repo.files = honest
	repo.mu.Unlock()
	ref.Attempt = 9
	d.install(ref)
}

func TestTamperedManifestIsRefused(t *testing.T) {
	repo, d := victim(t, signing.Options{})
	m, a := simple(t, "2.0")
	ref := repo.publish(m, a)
	for hash, content := range repo.blobs {
		if bytes.Contains(content, []byte(`"post 2.0"`)) || bytes.Contains(content, []byte(`["post","2.0"]`)) {
			repo.blobs[hash] = bytes.Replace(content, []byte(`["post","2.0"]`), []byte(`["evil","2.0"]`), 1)
		}
	}
	d.refused(ref, "manifest of app 2.0 is not the one that was signed")
}

func TestTamperedArtifactIsRefused(t *testing.T) {
	for name, tamper := range map[string]func(content []byte) []byte{
		"one bit":     func(c []byte) []byte { c = slices.Clone(c); c[len(c)/2] ^= 1; return c },
		"longer":      func(c []byte) []byte { return append(slices.Clone(c), 'x') },
		"other":       func(c []byte) []byte { return bytes.Repeat([]byte("x"), len(c)) },
		"never stops": func(c []byte) []byte { return bytes.Repeat([]byte("endless "), 1<<20) },
	} {
		t.Run(name, func(t *testing.T) {
			repo, d := victim(t, signing.Options{})
			m, a := simple(t, "2.0")
			ref := repo.publish(m, a)
			repo.blobs[wire.HashOf(a)] = tamper(a)
			d.refused(ref, "signed")
			repo.blobs[wire.HashOf(a)] = a
			ref.Attempt = 2
			d.install(ref) // what was refused is fetched anew
		})
	}
}

func TestReplayedMetadataIsRefused(t *testing.T) {
	repo, d := victim(t, signing.Options{})
	old := maps.Clone(repo.files)
	m, a := simple(t, "2.0")
	d.install(repo.publish(m, a))
	m, a = simple(t, "3.0")
	ref := repo.publish(m, a)
	newest := repo.files
	repo.mu.Lock()
	repo.files = old // timestamp, snapshot and targets of the first day
	repo.mu.Unlock()
	d.refused(ref, "older than one seen before")
	// Only the snapshot is old: the timestamp's own version grows.
	repo.mu.Lock()
	repo.files = maps.Clone(newest)
	repo.mu.Unlock()
	snapshot := signing.Online{Bytes: old["1.snapshot.json"], Version: 1}
	stamp, err := signing.SignTimestamp(repo.timestamp, 9, snapshot, repo.now())
	if err != nil {
		t.Fatal(err)
	}
	repo.mu.Lock()
	repo.files["timestamp.json"] = stamp.Bytes
	repo.mu.Unlock()
	ref.Attempt = 2
	d.refused(ref, "older than one seen before")
}

func TestOldTargetsUnderANewSnapshotAreRefused(t *testing.T) {
	repo, d := victim(t, signing.Options{})
	first := repo.targets
	m, a := simple(t, "2.0")
	d.install(repo.publish(m, a))
	repo.signOnline(first) // the stolen online keys say that the first targets are the newest
	ref := wire.ReleaseRef{Name: "app", Version: "1.0", Target: wire.ManifestTarget("app", "1.0"), Assignment: "asg-back", Attempt: 1}
	d.refused(ref, "older than one seen before")
}

func TestMixedMetadataIsRefused(t *testing.T) {
	repo, d := victim(t, signing.Options{})
	first := repo.targets
	m, a := simple(t, "2.0")
	ref := repo.publish(m, a)
	// Old targets delivered under the new name, as a cache that mixes versions would.
	repo.files["2.targets.json"] = first
	d.refused(ref, "the release targets is not the one that the signed metadata names")
}

func TestHeldBackDeviceNoticesIt(t *testing.T) {
	repo, d := victim(t, signing.Options{})
	m, a := simple(t, "2.0")
	ref := repo.publish(m, a)
	repo.pass(signing.TimestampLife + time.Hour) // nobody signs a timestamp any more
	d.refused(ref, "expired")
	repo.signOnline(repo.targets)
	ref.Attempt = 2
	d.install(ref)
}

func TestRootThatHasExpiredIsRefused(t *testing.T) {
	repo, d := victim(t, signing.Options{})
	m, a := simple(t, "2.0")
	ref := repo.publish(m, a)
	repo.pass(signing.DefaultRootLife + time.Hour)
	repo.signOnline(repo.targets)
	d.refused(ref, "root.json is expired")
}

func TestHugeMetadataIsRefused(t *testing.T) {
	repo, d := victim(t, signing.Options{})
	m, a := simple(t, "2.0")
	ref := repo.publish(m, a)
	repo.files["timestamp.json"] = bytes.Repeat([]byte(" "), 1<<20)
	d.refused(ref, "timestamp.json has 1048576 bytes")
}

func TestDeviceThatSleptForYearsWalksTheRoots(t *testing.T) {
	repo, d := victim(t, signing.Options{RootLife: 400 * 24 * time.Hour})
	for v := 2; v <= 8; v++ {
		repo.pass(300 * 24 * time.Hour)
		root, err := repo.ceremony.NextRoot(signing.Rotation{})
		if err != nil {
			t.Fatal(err)
		}
		repo.files[fmt.Sprintf("%d.root.json", v)] = root
	}
	m, a := simple(t, "2.0")
	d.install(repo.publish(m, a))
	// A replaced online key frees the fleet from a thief who has signed far ahead.
	repo.online = 1 << 40
	repo.signOnline(repo.targets)
	m, a = simple(t, "3.0")
	d.install(repo.publish(m, a))
	repo.snapshot, repo.timestamp, repo.online = newKey(t), newKey(t), 10
	root, err := repo.ceremony.NextRoot(signing.Rotation{Online: signing.OnlineKeys{Snapshot: signing.PublicHex(repo.snapshot), Timestamp: signing.PublicHex(repo.timestamp)}})
	if err != nil {
		t.Fatal(err)
	}
	repo.files["9.root.json"] = root
	m, a = simple(t, "4.0")
	d.install(repo.publish(m, a))
}

func TestDeviceWithoutAPinnedRootInstallsNothing(t *testing.T) {
	repo := newRepository(t, signing.Options{})
	d := newDevice(t, repo)
	d.pin = nil
	d.boot()
	m, a := simple(t, "1.0")
	d.refused(repo.publish(m, a), "no pinned release root")
}

func TestDeviceEnrolledElsewhereForgetsTheOldRepository(t *testing.T) {
	repo, d := victim(t, signing.Options{})
	repo.online = 100
	repo.signOnline(repo.targets)
	m, a := simple(t, "2.0")
	d.install(repo.publish(m, a))
	other := newRepository(t, signing.Options{})
	m, a = simple(t, "3.0")
	ref := other.publish(m, a)
	d.halt()
	d.repo, d.pin, d.now = other, other.ceremony.Root().Bytes, other.now
	d.boot()
	d.install(ref)
	_ = repo
}

func TestDownloadGoesOnWhereItStopped(t *testing.T) {
	repo := newRepository(t, signing.Options{})
	d := newDevice(t, repo)
	m, _ := simple(t, "1.0")
	big := archive(t, entry{name: "version", content: "1.0"}, entry{name: "bin/run", content: "run 1.0"}, entry{name: "noise", content: noise(900_000)})
	ref := repo.publish(m, big)
	sent, requests := int64(0), 0
	repo.onFetch = func(sha string, content []byte, offset int64, w io.Writer) (int64, error) {
		if sha != string(wire.HashOf(big)) {
			n, err := w.Write(content)
			return int64(n), err
		}
		requests++
		end := min(offset+64<<10, int64(len(content)))
		n, err := w.Write(content[offset:end]) // the connection breaks after 64 KiB
		sent += int64(n)
		if err == nil && end < int64(len(content)) {
			err = io.ErrUnexpectedEOF
		}
		return int64(n), err
	}
	d.boot()
	d.install(ref)
	if sent != int64(len(big)) || requests < 4 {
		t.Errorf("%d bytes in %d requests for %d", sent, requests, len(big))
	}
}

func noise(n int) string {
	var b strings.Builder
	x := uint32(1)
	for b.Len() < n {
		x = x*1664525 + 1013904223
		fmt.Fprintf(&b, "%08x", x)
	}
	return b.String()
}

func TestUnreachableServerCostsTimeOnly(t *testing.T) {
	repo, d := victim(t, signing.Options{})
	m, a := simple(t, "2.0")
	ref := repo.publish(m, a)
	failures := 0
	repo.mu.Lock()
	repo.onMeta = func(string) ([]byte, error, bool) {
		failures++
		return nil, errors.New("no route to host"), failures < 20
	}
	repo.mu.Unlock()
	d.install(ref)
}
