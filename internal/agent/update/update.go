package update

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"steward/internal/agent/journal"
	"steward/internal/wire"
)

// Source is where metadata and artifacts come from; the link. Nothing it gives is believed before it is
// verified.
type Source interface {
	// Metadata returns a file of the TUF repository. An absent one is an error that link.NotFound tells.
	Metadata(ctx context.Context, name string) ([]byte, error)
	// Artifact writes the content from offset on to w and returns how many bytes it wrote.
	Artifact(ctx context.Context, sha256Hex string, offset int64, w io.Writer) (n int64, err error)
}

// Host is what the room needs of the machine.
type Host interface {
	Exec(ctx context.Context, dir string, argv []string, timeout time.Duration) (output []byte, exitCode int, err error)
	FreeBytes(dir string) (int64, error)
	Inventory(ctx context.Context) (wire.Inventory, error)
}

// Config of a Room.
type Config struct {
	Journal *journal.Journal
	// StateDir holds metadata and downloads; Dir the installed components. Both are made when missing.
	StateDir string
	Dir      string
	Source   Source
	Host     Host
	// Root returns the pinned TUF root, nil when the device has none.
	Root func() []byte
	// Changed is called when Reported has something new.
	Changed func()
	// Architecture is the GOARCH value that components are chosen by; empty means this build's.
	Architecture string
	// ReserveBytes is the space that downloads and unpacking leave free, at most a quarter of what is free
	// before; 0 means 64 MiB.
	ReserveBytes int64
	// Backoff is the pause before the n-th repetition (from 1) after trouble that may pass; nil means
	// 5 s doubling up to 15 minutes.
	Backoff func(n int) time.Duration
	// HealthPause is the time between two rounds of health commands; 0 means 2 s.
	HealthPause time.Duration
	// HealthSecond is how long a second of a component's health_seconds lasts; 0 means a second.
	// Simulated devices and tests have less time.
	HealthSecond time.Duration
	Log          *slog.Logger
	Now          func() time.Time // nil means time.Now
}

// Room implements the agent's Room and Sanitizer.
type Room struct {
	cfg  Config
	wake chan struct{} // capacity 1: there is something to do

	mu       sync.Mutex
	desired  []wire.ReleaseRef
	applied  bool // Apply has been called since the start
	state    state
	reported *wire.UpdateReported // nil: to be made anew

	tries map[string]int // refused deliveries of the running fetch by release name; Run's goroutine only
}

// stateKey is the journal's key for all of the room's state: one record, so that the commit of a
// release and the end of its run are one write.
const stateKey = "update"

// state is what must survive.
type state struct {
	Installed map[string]installed `json:"installed,omitempty"` // by release name
	Runs      map[string]*run      `json:"runs,omitempty"`      // the last attempt by release name
	Owned     []string             `json:"owned,omitempty"`     // components that were ever unpacked: nothing else in Dir is ours to remove
}

// installed is a committed release.
type installed struct {
	Version  string    `json:"version"`
	Since    time.Time `json:"since"`
	Manifest wire.Hash `json:"manifest"` // of the file in manifests/
	Parts    []part    `json:"parts"`
}

// part is one component of a release on this device.
type part struct {
	Component string    `json:"component"`
	Index     int       `json:"index"` // in the manifest
	SHA256    wire.Hash `json:"sha256"`
	SizeBytes int64     `json:"size_bytes"`
	Link      string    `json:"link"`               // what current points to: versions/<version>-<hash12>
	Previous  string    `json:"previous,omitempty"` // what it pointed to before the switch; empty when it was not there
}

// changes tells whether the part is not the one that runs already.
func (p part) changes() bool { return p.Link != p.Previous }

// New reads the journal; it starts nothing.
func New(cfg Config) (*Room, error) {
	if cfg.Architecture == "" {
		cfg.Architecture = runtime.GOARCH
	}
	if cfg.ReserveBytes == 0 {
		cfg.ReserveBytes = 64 << 20
	}
	if cfg.Backoff == nil {
		cfg.Backoff = defaultBackoff
	}
	if cfg.HealthPause == 0 {
		cfg.HealthPause = 2 * time.Second
	}
	if cfg.HealthSecond == 0 {
		cfg.HealthSecond = time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	r := &Room{cfg: cfg, wake: make(chan struct{}, 1), tries: map[string]int{}}
	if _, err := cfg.Journal.Get(stateKey, &r.state); err != nil {
		return nil, fmt.Errorf("read what is installed: %w", err)
	}
	if r.state.Installed == nil {
		r.state.Installed = map[string]installed{}
	}
	if r.state.Runs == nil {
		r.state.Runs = map[string]*run{}
	}
	return r, nil
}

func defaultBackoff(n int) time.Duration {
	return min(5*time.Second<<min(n-1, 10), 15*time.Minute)
}

// Name and Section say which room of the server this one answers to.
func (r *Room) Name() string { return "update" }

// Section is the desired section that the room takes.
func (r *Room) Section() wire.Section { return wire.SectionUpdate }

// maxReleases bounds the desired releases of one device.
const maxReleases = 64

// Apply takes the newest wishes; Run sees to them.
func (r *Room) Apply(_ context.Context, body []byte) error {
	var d wire.UpdateDesired
	if body != nil {
		if err := wire.Decode(body, &d); err != nil {
			return fmt.Errorf("read the desired releases: %w", err)
		}
	}
	if err := checkDesired(d); err != nil {
		return err
	}
	r.mu.Lock()
	r.desired, r.applied = d.Releases, true
	r.mu.Unlock()
	r.poke()
	return nil
}

func checkDesired(d wire.UpdateDesired) error {
	if len(d.Releases) > maxReleases {
		return fmt.Errorf("%d desired releases: at most %d", len(d.Releases), maxReleases)
	}
	seen := map[string]bool{}
	for _, ref := range d.Releases {
		if err := wire.CheckReleaseName(ref.Name); err != nil {
			return fmt.Errorf("desired release: %w", err)
		}
		if err := wire.CheckReleaseVersion(ref.Version); err != nil {
			return fmt.Errorf("desired release %s: %w", ref.Name, err)
		}
		if want := wire.ManifestTarget(ref.Name, ref.Version); ref.Target != want {
			return fmt.Errorf("desired release %s names the target %.120q, want %s", ref.Name, ref.Target, want)
		}
		if seen[ref.Name] {
			return fmt.Errorf("release %s is desired twice", ref.Name)
		}
		seen[ref.Name] = true
	}
	return nil
}

func (r *Room) poke() {
	select {
	case r.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Reported returns what is installed and how far the updates are.
func (r *Room) Reported(context.Context) (map[wire.Section]any, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.reported == nil {
		r.reported = r.state.report()
	}
	return map[wire.Section]any{wire.SectionUpdate: r.reported}, nil
}

func (s state) report() *wire.UpdateReported {
	out := &wire.UpdateReported{Installed: []wire.InstalledRelease{}, Updates: []wire.UpdateProgress{}}
	for _, name := range sortedKeys(s.Installed) {
		in := s.Installed[name]
		out.Installed = append(out.Installed, wire.InstalledRelease{Name: name, Version: in.Version, Since: in.Since})
	}
	for _, name := range sortedKeys(s.Runs) {
		p := s.Runs[name].Progress
		p.Reached = slices.Clone(p.Reached)
		out.Updates = append(out.Updates, p)
	}
	return out
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// save writes the state that change makes of the present one; on an error nothing has changed, in
// memory as on disk.
func (r *Room) save(change func(s *state)) error {
	r.mu.Lock()
	next := r.state.clone()
	r.mu.Unlock()
	change(&next)
	if err := r.cfg.Journal.Put(stateKey, next); err != nil {
		return fmt.Errorf("write down the update's progress: %w", err)
	}
	r.mu.Lock()
	r.state, r.reported = next, nil
	r.mu.Unlock()
	r.cfg.Changed()
	return nil
}

// clone copies what change may write to; only Run's goroutine saves, so that nothing is lost between.
func (s state) clone() state {
	out := state{Installed: map[string]installed{}, Runs: map[string]*run{}, Owned: slices.Clone(s.Owned)}
	for k, v := range s.Installed {
		out.Installed[k] = v
	}
	for k, v := range s.Runs {
		c := *v
		c.Progress.Reached = slices.Clone(v.Progress.Reached)
		c.Parts = slices.Clone(v.Parts)
		out.Runs[k] = &c
	}
	return out
}

// snapshot returns the state and the wishes for the worker to decide on.
func (r *Room) snapshot() (s state, desired []wire.ReleaseRef, applied bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state.clone(), slices.Clone(r.desired), r.applied
}

func (r *Room) now() time.Time { return r.cfg.Now().UTC() }

// Paths below Dir and StateDir.

func (r *Room) componentDir(component string) string { return filepath.Join(r.cfg.Dir, component) }

func (r *Room) versionDir(p part) string { return filepath.Join(r.componentDir(p.Component), p.Link) }

func (r *Room) downloads() string { return filepath.Join(r.cfg.StateDir, "downloads") }

func (r *Room) manifestPath(h wire.Hash) string {
	return filepath.Join(r.cfg.StateDir, "manifests", string(h)+".json")
}
