package signing

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"steward/internal/wire"
)

// Lives of what is signed offline. Root lives long since every device must see its successor in time;
// a fleet that nobody has released to for a year is noticed by its expiring targets.
const (
	DefaultRootLife    = 3 * 365 * 24 * time.Hour
	DefaultTargetsLife = 365 * 24 * time.Hour
)

// Options of a key ceremony; the zero value is one key per role, unencrypted.
type Options struct {
	RootKeys         int           // how many root keys to make; 0 means 1
	RootThreshold    int           // how many of them must sign; 0 means 1
	TargetsKeys      int           // likewise for targets; 0 means 1
	TargetsThreshold int           // 0 means 1
	RootLife         time.Duration // 0 means DefaultRootLife
	TargetsLife      time.Duration // 0 means DefaultTargetsLife
	Passphrase       []byte        // encrypts the key files; empty leaves them readable for their owner
	Now              func() time.Time
}

func (o Options) withDefaults() Options {
	for _, n := range []*int{&o.RootKeys, &o.RootThreshold, &o.TargetsKeys, &o.TargetsThreshold} {
		if *n == 0 {
			*n = 1
		}
	}
	if o.RootLife == 0 {
		o.RootLife = DefaultRootLife
	}
	if o.TargetsLife == 0 {
		o.TargetsLife = DefaultTargetsLife
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

func (o Options) check() error {
	for _, r := range []struct {
		role            string
		keys, threshold int
	}{{metadata.ROOT, o.RootKeys, o.RootThreshold}, {metadata.TARGETS, o.TargetsKeys, o.TargetsThreshold}} {
		if r.keys < 1 || r.keys > 16 || r.threshold < 1 || r.threshold > r.keys {
			return fmt.Errorf("%s: %d of %d keys must sign: want 1 to 16 keys and a threshold they can reach", r.role, r.threshold, r.keys)
		}
	}
	return nil
}

// Ceremony is a directory with offline keys and the metadata that was last signed with them:
//
//	root-1.key …  targets-1.key …  root.json  targets.json
//
// Key files may be taken away to other places; what is missing doesn't sign. The metadata is kept so
// that a server that lies about the current version is noticed here.
type Ceremony struct {
	dir         string
	o           Options
	rootKeys    []ed25519.PrivateKey
	targetsKeys []ed25519.PrivateKey
	root        *Root
}

// Init makes the keys and signs root version 1, which names the server's online keys. The directory is
// made with mode 0700; one that already holds a root is refused with an error that wraps fs.ErrExist.
func Init(dir string, online OnlineKeys, o Options) (*Ceremony, error) {
	o = o.withDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the key directory: %w", err)
	}
	if files, err := filepath.Glob(filepath.Join(dir, "*.key")); err != nil || len(files) > 0 {
		return nil, errors.Join(fmt.Errorf("key directory %s already holds keys: %w", dir, fs.ErrExist), err)
	}
	c := &Ceremony{dir: dir, o: o}
	var err error
	if c.rootKeys, err = makeKeys(dir, metadata.ROOT, o.RootKeys, o.Passphrase); err != nil {
		return nil, err
	}
	if c.targetsKeys, err = makeKeys(dir, metadata.TARGETS, o.TargetsKeys, o.Passphrase); err != nil {
		return nil, err
	}
	if err := c.firstRoot(online); err != nil {
		return nil, err
	}
	return c, writeNew(filepath.Join(dir, "root.json"), c.root.Bytes)
}

// firstRoot signs root version 1, which names the ceremony's keys and the server's online keys.
func (c *Ceremony) firstRoot(online OnlineKeys) error {
	root := metadata.Root(expiry(c.o.Now(), c.o.RootLife))
	if err := nameKeys(root, metadata.ROOT, c.o.RootThreshold, publics(c.rootKeys)); err != nil {
		return err
	}
	if err := nameKeys(root, metadata.TARGETS, c.o.TargetsThreshold, publics(c.targetsKeys)); err != nil {
		return err
	}
	if err := nameOnline(root, online); err != nil {
		return err
	}
	data, err := sign(root, c.rootKeys)
	if err != nil {
		return err
	}
	if c.root, err = VerifyFirstRoot(data); err != nil {
		return fmt.Errorf("check the new root: %w", err)
	}
	return nil
}

// Keys are one offline key per role, held by the caller.
type Keys struct{ Root, Targets ed25519.PrivateKey }

// New signs root version 1 with keys that the caller holds; the ceremony has no directory and remembers
// nothing.
func New(k Keys, online OnlineKeys, o Options) (*Ceremony, error) {
	c := &Ceremony{o: o.withDefaults(), rootKeys: []ed25519.PrivateKey{k.Root}, targetsKeys: []ed25519.PrivateKey{k.Targets}}
	return c, c.firstRoot(online)
}

// With signs under an existing root with keys that the caller holds; see New.
func With(k Keys, root []byte, o Options) (*Ceremony, error) {
	c := &Ceremony{o: o.withDefaults(), rootKeys: []ed25519.PrivateKey{k.Root}, targetsKeys: []ed25519.PrivateKey{k.Targets}}
	var err error
	if c.root, err = VerifyFirstRoot(root); err != nil {
		return nil, fmt.Errorf("read the root: %w", err)
	}
	return c, nil
}

func makeKeys(dir, role string, n int, passphrase []byte) ([]ed25519.PrivateKey, error) {
	var keys []ed25519.PrivateKey
	for i := range n {
		key, err := NewKey()
		if err != nil {
			return nil, err
		}
		if err := WriteKey(filepath.Join(dir, fmt.Sprintf("%s-%d.key", role, i+1)), key, passphrase); err != nil {
			return nil, fmt.Errorf("keep %s key %d: %w", role, i+1, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// Open reads a ceremony directory with those of its keys that are there.
func Open(dir string, o Options) (*Ceremony, error) {
	c := &Ceremony{dir: dir, o: o.withDefaults()}
	data, err := os.ReadFile(filepath.Join(dir, "root.json"))
	if err != nil {
		return nil, fmt.Errorf("open the key directory: %w", err)
	}
	if c.root, err = VerifyFirstRoot(data); err != nil {
		return nil, fmt.Errorf("open the key directory: %w", err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.key"))
	if err != nil {
		return nil, err
	}
	slices.Sort(files)
	for _, file := range files {
		key, err := ReadKey(file, o.Passphrase)
		if err != nil {
			return nil, fmt.Errorf("read key: %w", err)
		}
		if strings.HasPrefix(filepath.Base(file), metadata.ROOT) {
			c.rootKeys = append(c.rootKeys, key)
		} else {
			c.targetsKeys = append(c.targetsKeys, key)
		}
	}
	return c, nil
}

// Root is the newest root that was signed here.
func (c *Ceremony) Root() *Root { return c.root }

// Targets is the newest targets metadata that was signed here, nil before the first.
func (c *Ceremony) Targets() (*Targets, error) {
	if c.dir == "" {
		return nil, nil //nolint:nilnil // none is remembered
	}
	data, err := os.ReadFile(filepath.Join(c.dir, "targets.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // none is no error
	}
	if err != nil {
		return nil, err
	}
	return c.root.VerifyTargets(data)
}

// ErrRollback says that the server offers older targets than were signed here.
var ErrRollback = errors.New("the server's targets are older than those signed in this key directory")

// Change is what to do to the targets.
type Change struct {
	Add    []Target
	Remove []string // paths
}

// SignTargets verifies the server's current targets (nil when it has none), applies the change and
// signs the next version. Fewer keys than the threshold give a half-signed document: others add theirs
// with AddSignatures. Call Keep once the server has accepted the result.
func (c *Ceremony) SignTargets(current []byte, change Change) ([]byte, error) {
	next := metadata.Targets(expiry(c.o.Now(), c.o.TargetsLife))
	mine, err := c.Targets()
	if err != nil {
		return nil, fmt.Errorf("read the targets signed last: %w", err)
	}
	if current != nil {
		old, err := c.root.VerifyTargets(current)
		if err != nil {
			return nil, err
		}
		if mine != nil && old.Version < mine.Version {
			return nil, fmt.Errorf("%w: version %d, here %d", ErrRollback, old.Version, mine.Version)
		}
		next.Signed.Version = old.Version + 1
		next.Signed.Targets = old.meta.Signed.Targets
	} else if mine != nil {
		return nil, fmt.Errorf("%w: it has none, here is version %d", ErrRollback, mine.Version)
	}
	if err := apply(&next.Signed, change); err != nil {
		return nil, err
	}
	if len(c.targetsKeys) == 0 {
		return nil, fmt.Errorf("key directory %s holds no targets key", c.dir)
	}
	return sign(next, c.targetsKeys)
}

// Keep remembers complete targets that the server has accepted: it can't offer older ones any more
// without being noticed at the next SignTargets.
func (c *Ceremony) Keep(targets []byte) error {
	if _, err := c.root.VerifyTargets(targets); err != nil {
		return fmt.Errorf("keep the targets: %w", err)
	}
	return replaceFile(filepath.Join(c.dir, "targets.json"), targets)
}

func apply(s *metadata.TargetsType, change Change) error {
	for _, path := range change.Remove {
		if _, ok := s.Targets[path]; !ok {
			return fmt.Errorf("target %s is not there to be removed", path)
		}
		delete(s.Targets, path)
	}
	for _, t := range change.Add {
		if err := wire.SafeTarget(t.Path); err != nil {
			return err
		}
		f, err := targetFile(t)
		if err != nil {
			return err
		}
		if old, ok := s.Targets[t.Path]; ok && !old.Equal(*f) {
			return fmt.Errorf("target %s exists with other content: releases never change, choose another version", t.Path)
		}
		s.Targets[t.Path] = f
	}
	return nil
}

// AddSignatures adds the signatures of this directory's keys to a half-signed root or targets document
// and returns it. Who calls it must have looked at what it says.
func (c *Ceremony) AddSignatures(data []byte) ([]byte, error) {
	if m, err := metadata.Targets().FromBytes(data); err == nil {
		return addTo(m, c.targetsKeys)
	}
	m, err := metadata.Root().FromBytes(data)
	if err != nil {
		return nil, fmt.Errorf("the document is neither targets nor root: %w", err)
	}
	out, err := addTo(m, c.rootKeys)
	if err != nil {
		return nil, err
	}
	return out, c.keepRoot(out)
}

// keepRoot remembers a complete successor of the root.
func (c *Ceremony) keepRoot(data []byte) error {
	next, err := c.root.VerifyNextRoot(data)
	if err != nil {
		return nil //nolint:nilerr // not complete yet
	}
	c.root = next
	if c.dir == "" {
		return nil
	}
	return replaceFile(filepath.Join(c.dir, "root.json"), data)
}

// Rotation is what the next root changes; zero fields leave things as they are.
type Rotation struct {
	Online           OnlineKeys // new online keys, e.g. after the server was stolen
	RootThreshold    int
	TargetsThreshold int
	AddRoot          []string // public keys in hex
	AddTargets       []string
	RemoveRoot       []string
	RemoveTargets    []string
}

// NextRoot signs the successor of the root with a new expiry and the rotation's changes. Like targets,
// it may be half-signed.
func (c *Ceremony) NextRoot(r Rotation) ([]byte, error) {
	next, err := metadata.Root().FromBytes(c.root.Bytes)
	if err != nil {
		return nil, err
	}
	next.Signed.Version++
	next.Signed.Expires = expiry(c.o.Now(), c.o.RootLife)
	for _, role := range []struct {
		name        string
		threshold   int
		add, remove []string
	}{{metadata.ROOT, r.RootThreshold, r.AddRoot, r.RemoveRoot}, {metadata.TARGETS, r.TargetsThreshold, r.AddTargets, r.RemoveTargets}} {
		if err := revoke(next, role.name, role.remove); err != nil {
			return nil, err
		}
		threshold := role.threshold
		if threshold == 0 {
			threshold = next.Signed.Roles[role.name].Threshold
		}
		if err := nameKeys(next, role.name, threshold, role.add); err != nil {
			return nil, err
		}
	}
	if r.Online != (OnlineKeys{}) {
		if err := nameOnline(next, r.Online); err != nil {
			return nil, err
		}
	}
	if len(c.rootKeys) == 0 {
		return nil, fmt.Errorf("key directory %s holds no root key", c.dir)
	}
	data, err := sign(next, c.rootKeys)
	if err != nil {
		return nil, err
	}
	return data, c.keepRoot(data)
}

// expiry has whole seconds in UTC, as TUF writes times.
func expiry(now time.Time, life time.Duration) time.Time {
	return now.Add(life).UTC().Truncate(time.Second)
}

func sign[T metadata.Roles](m *metadata.Metadata[T], keys []ed25519.PrivateKey) ([]byte, error) {
	m.ClearSignatures()
	return addTo(m, keys)
}

// addTo signs with keys that have not signed yet.
func addTo[T metadata.Roles](m *metadata.Metadata[T], keys []ed25519.PrivateKey) ([]byte, error) {
	for _, key := range keys {
		id, err := keyID(key)
		if err != nil {
			return nil, err
		}
		m.Signatures = slices.DeleteFunc(m.Signatures, func(s metadata.Signature) bool { return s.KeyID == id })
		signer, err := signature.LoadED25519Signer(key)
		if err != nil {
			return nil, fmt.Errorf("load signer: %w", err)
		}
		if _, err := m.Sign(signer); err != nil {
			return nil, fmt.Errorf("sign: %w", err)
		}
	}
	return m.ToBytes(false)
}
