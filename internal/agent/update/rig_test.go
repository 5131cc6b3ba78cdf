package update_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"steward/internal/agent/journal"
	"steward/internal/agent/link"
	"steward/internal/agent/update"
	"steward/internal/release/signing"
	"steward/internal/wire"
)

// repository is a release server in memory: real keys, real metadata, and faults on demand.
type repository struct {
	t         testing.TB
	ceremony  *signing.Ceremony
	snapshot  ed25519.PrivateKey
	timestamp ed25519.PrivateKey

	mu        sync.Mutex
	clock     time.Time
	files     map[string][]byte // metadata by name
	blobs     map[wire.Hash][]byte
	targets   []byte
	online    int64 // version of snapshot and timestamp
	fetched   int64 // bytes of artifacts
	onFetch   func(sha256 string, content []byte, offset int64, w io.Writer) (int64, error)
	onMeta    func(name string) ([]byte, error, bool)
	metaReads int
}

func newRepository(t testing.TB, o signing.Options) *repository {
	t.Helper()
	r := &repository{t: t, clock: time.Now().UTC().Truncate(time.Second), files: map[string][]byte{}, blobs: map[wire.Hash][]byte{}}
	r.snapshot, r.timestamp = newKey(t), newKey(t)
	o.Now = r.now
	c, err := signing.Init(filepath.Join(t.TempDir(), "ceremony"), signing.OnlineKeys{Snapshot: signing.PublicHex(r.snapshot), Timestamp: signing.PublicHex(r.timestamp)}, o)
	if err != nil {
		t.Fatal(err)
	}
	r.ceremony = c
	r.files["1.root.json"] = c.Root().Bytes
	return r
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	key, err := signing.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (r *repository) now() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clock
}

func (r *repository) pass(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock = r.clock.Add(d)
}

// signOnline makes snapshot and timestamp over the given targets, as the server does.
func (r *repository) signOnline(targets []byte) {
	r.t.Helper()
	parsed, err := signing.ReadTargets(targets)
	if err != nil {
		r.t.Fatal(err)
	}
	r.online++
	now := r.now()
	snapshot, err := signing.SignSnapshot(r.snapshot, r.online, parsed, now)
	if err != nil {
		r.t.Fatal(err)
	}
	timestamp, err := signing.SignTimestamp(r.timestamp, r.online, snapshot, now)
	if err != nil {
		r.t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files[fmt.Sprintf("%d.targets.json", parsed.Version)] = targets
	r.files[fmt.Sprintf("%d.snapshot.json", r.online)] = snapshot.Bytes
	r.files["timestamp.json"] = timestamp.Bytes
}

// publish signs a release with the offline keys; one archive per component.
func (r *repository) publish(m wire.ReleaseManifest, archives ...[]byte) wire.ReleaseRef {
	r.t.Helper()
	var artifacts []signing.Artifact
	for _, a := range archives {
		artifacts = append(artifacts, signing.Artifact{SHA256: wire.HashOf(a), SizeBytes: int64(len(a))})
		r.blobs[wire.HashOf(a)] = a
	}
	rel, err := signing.Compose(m, artifacts)
	if err != nil {
		r.t.Fatal(err)
	}
	r.blobs[wire.HashOf(rel.Bytes)] = rel.Bytes
	if r.targets, err = r.ceremony.SignTargets(r.targets, rel.Change); err != nil {
		r.t.Fatal(err)
	}
	r.signOnline(r.targets)
	return wire.ReleaseRef{Name: m.Name, Version: m.Version, Target: wire.ManifestTarget(m.Name, m.Version), Assignment: "asg-" + m.Version, Attempt: 1}
}

// Metadata is update.Source.
func (r *repository) Metadata(_ context.Context, name string) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.metaReads++
	if r.onMeta != nil {
		if data, err, mine := r.onMeta(name); mine {
			return data, err
		}
	}
	data, ok := r.files[name]
	if !ok {
		return nil, &link.Problem{Problem: wire.Problem{Status: http.StatusNotFound, Title: "Not Found"}}
	}
	return data, nil
}

// Artifact is update.Source.
func (r *repository) Artifact(_ context.Context, sha256Hex string, offset int64, w io.Writer) (int64, error) {
	r.mu.Lock()
	content, ok := r.blobs[wire.Hash(sha256Hex)]
	fault := r.onFetch
	r.mu.Unlock()
	if !ok {
		return 0, &link.Problem{Problem: wire.Problem{Status: http.StatusNotFound, Title: "Not Found"}}
	}
	if fault != nil {
		return fault(sha256Hex, content, offset, w)
	}
	n, err := w.Write(content[offset:])
	r.mu.Lock()
	r.fetched += int64(n)
	r.mu.Unlock()
	return int64(n), err
}

// entry of a test archive; the zero type is a file.
type entry struct {
	name, content, link string
	kind                byte
	mode                int64
}

func archive(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	z, err := zstd.NewWriter(&buf)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(z)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: e.mode, Linkname: e.link, Size: int64(len(e.content))}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// simple is a release of one component "app" whose file says its version.
func simple(t testing.TB, version string) (wire.ReleaseManifest, []byte) {
	t.Helper()
	return manifest("app", version, wire.Component{Name: "app", Version: version, Commands: commands(version)}),
		archive(t, entry{name: "version", content: version}, entry{name: "bin/", kind: tar.TypeDir, mode: 0o755}, entry{name: "bin/run", content: "run " + version, mode: 0o755})
}

func manifest(name, version string, components ...wire.Component) wire.ReleaseManifest {
	for i := range components {
		components[i].Type = wire.ComponentFiles
	}
	return wire.ReleaseManifest{Name: name, Version: version, Components: components}
}

// commands are "pre v", "post v", "health v"; the machine decides how they end.
func commands(version string) wire.ComponentCommands {
	one := func(name string) []wire.Command { return []wire.Command{{Argv: []string{name, version}}} }
	return wire.ComponentCommands{Pre: one("pre"), Post: one("post"), Health: one("health"), HealthSeconds: 1}
}

// machine is a host whose commands end as the test says.
type machine struct {
	mu    sync.Mutex
	codes map[string]int // by "post 2.0"; absent means 0
	calls []string
	free  int64
	on    func(call string)
}

func (m *machine) Exec(_ context.Context, dir string, argv []string, _ time.Duration) ([]byte, int, error) {
	if _, err := os.Stat(dir); err != nil {
		return nil, 0, err
	}
	m.mu.Lock()
	call := strings.Join(argv, " ")
	m.calls = append(m.calls, call)
	code, hook := m.codes[call], m.on
	m.mu.Unlock()
	if hook != nil {
		hook(call)
	}
	return []byte("output of " + call), code, nil
}

func (m *machine) FreeBytes(string) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.free, nil
}

func (m *machine) Inventory(context.Context) (wire.Inventory, error) {
	return wire.Inventory{Machine: wire.Machine{Product: "Gateway 3"}}, nil
}

func (m *machine) called(call string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.calls {
		if c == call {
			n++
		}
	}
	return n
}

// deviceRig is one device with its directories, which survive kills.
type deviceRig struct {
	t    testing.TB
	repo *repository
	host *machine
	dir  string
	pin  []byte
	now  func() time.Time

	second time.Duration // of health_seconds; 0 means a real one
	crash  func(point string) error
	room   *update.Room
	wake   chan struct{}
	stop   func()
	died   chan any
}

func newDevice(t testing.TB, repo *repository) *deviceRig {
	t.Helper()
	d := &deviceRig{t: t, repo: repo, dir: t.TempDir(), pin: repo.ceremony.Root().Bytes, now: repo.now,
		host: &machine{codes: map[string]int{}, free: 1 << 40}}
	t.Cleanup(func() { d.halt() })
	return d
}

func (d *deviceRig) components() string { return filepath.Join(d.dir, "components") }

// boot opens the journal and starts the room, as the agent does after a start or a kill.
func (d *deviceRig) boot() {
	d.t.Helper()
	d.halt()
	j, err := journal.Open(journal.Config{Dir: filepath.Join(d.dir, "journal"), Crash: func(point string) error {
		if d.crash == nil {
			return nil
		}
		return d.crash(point)
	}})
	if err != nil {
		d.t.Fatal(err)
	}
	wake, died := make(chan struct{}, 1), make(chan any, 1)
	room, err := update.New(update.Config{
		Journal: j, StateDir: filepath.Join(d.dir, "state"), Dir: d.components(), Source: d.repo, Host: d.host,
		Root: func() []byte { return d.pin }, Architecture: "amd64", Now: d.now, HealthPause: time.Millisecond, HealthSecond: d.second,
		Backoff: func(int) time.Duration { return time.Millisecond },
		Changed: func() {
			select {
			case wake <- struct{}{}:
			default:
			}
		},
	})
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				if _, planned := p.(kill); !planned {
					panic(p)
				}
				died <- p
			}
		}()
		if err := room.Run(ctx); err != nil {
			d.t.Errorf("run: %v", err)
		}
	}()
	d.room, d.wake, d.died = room, wake, died
	d.stop = func() { cancel(); <-done }
}

func (d *deviceRig) halt() {
	if d.stop != nil {
		d.stop()
		d.stop = nil
	}
}

// kill is what a crash hook panics with.
type kill struct{ point string }

func (d *deviceRig) apply(refs ...wire.ReleaseRef) {
	d.t.Helper()
	var body []byte
	if len(refs) > 0 {
		var err error
		if body, err = wire.Canonical(wire.UpdateDesired{Releases: refs}); err != nil {
			d.t.Fatal(err)
		}
	}
	if err := d.room.Apply(context.Background(), body); err != nil {
		d.t.Fatal(err)
	}
}

func (d *deviceRig) report() *wire.UpdateReported {
	d.t.Helper()
	sections, err := d.room.Reported(context.Background())
	if err != nil {
		d.t.Fatal(err)
	}
	return sections[wire.SectionUpdate].(*wire.UpdateReported)
}

func (d *deviceRig) progress(ref wire.ReleaseRef) wire.UpdateProgress {
	d.t.Helper()
	for _, p := range d.report().Updates {
		if p.Name == ref.Name && p.Version == ref.Version && p.Assignment == ref.Assignment && p.Attempt == ref.Attempt {
			return p
		}
	}
	return wire.UpdateProgress{}
}

func final(s wire.UpdateState) bool {
	return s == wire.UpdateCommitted || s == wire.UpdateRolledBack || s == wire.UpdateFailed
}

// wait waits until the update has ended, or the room was killed.
func (d *deviceRig) wait(ref wire.ReleaseRef) (p wire.UpdateProgress, killed bool) {
	d.t.Helper()
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if p = d.progress(ref); final(p.State) {
			return p, false
		}
		select {
		case <-d.wake:
		case <-tick.C:
		case <-d.died:
			return d.progress(ref), true
		case <-deadline.C:
			d.t.Fatalf("%s %s stands at %q (%s)", ref.Name, ref.Version, p.State, p.Cause)
		}
	}
}

// install applies the release and expects that it is committed.
func (d *deviceRig) install(ref wire.ReleaseRef) {
	d.t.Helper()
	d.apply(ref)
	if p, _ := d.wait(ref); p.State != wire.UpdateCommitted {
		d.t.Fatalf("%s %s ended %s: %s", ref.Name, ref.Version, p.State, p.Cause)
	}
}

// running reads which version of the component current names, and that it is whole; "" for none.
func (d *deviceRig) running(component string) string {
	d.t.Helper()
	link, err := os.Readlink(filepath.Join(d.components(), component, "current"))
	if errors.Is(err, os.ErrNotExist) {
		return ""
	}
	if err != nil {
		d.t.Fatal(err)
	}
	dir := filepath.Join(d.components(), component, link) // it may be switched between two reads
	version, err := os.ReadFile(filepath.Join(dir, "version"))
	if err != nil {
		d.t.Fatalf("current of %s names no whole version: %v", component, err)
	}
	if run, err := os.ReadFile(filepath.Join(dir, "bin", "run")); err != nil || string(run) != "run "+string(version) {
		d.t.Fatalf("version %s of %s is not whole: %q, %v", version, component, run, err)
	}
	return string(version)
}

func (d *deviceRig) versions(component string) []string {
	d.t.Helper()
	list, err := os.ReadDir(filepath.Join(d.components(), component, "versions"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		d.t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, strings.SplitN(e.Name(), "-", 2)[0])
	}
	return names
}

// eventually waits for what the room does after it has reported.
func (d *deviceRig) eventually(what string, holds func() bool) {
	d.t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline.C:
			d.t.Fatalf("%s: not within 20 s", what)
		}
	}
}
