package update

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"steward/internal/wire"
)

const (
	currentLink = "current"
	versionsDir = "versions"
	newPrefix   = ".new-" // of what is being unpacked
)

// linkOf is what current points to when the component's version runs: relative, so that the whole
// directory may be moved.
func linkOf(c wire.Component, sha256 wire.Hash) string {
	return filepath.Join(versionsDir, c.Version+"-"+string(sha256)[:12])
}

// readCurrent returns where the component's link points, "" when there is none. Something else in its
// place is an error: it is not ours to remove.
func (r *Room) readCurrent(component string) (string, error) {
	path := filepath.Join(r.componentDir(component), currentLink)
	to, err := os.Readlink(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%s is not a link: %w", path, err)
	}
	return to, nil
}

// switchAll points the links of all parts to the new versions. A kill in the middle goes on with it.
func (r *Room) switchAll(x *run) error {
	for _, p := range x.Parts {
		if _, err := os.Stat(r.versionDir(p)); err != nil {
			return refuse(stepSwitch, "the unpacked files are gone: %v", err)
		}
	}
	for _, p := range x.Parts {
		if err := r.point(p.Component, p.Link); err != nil {
			return fmt.Errorf("switch %s: %w", p.Component, err)
		}
	}
	return nil
}

// switchBack points them to what they pointed to before.
func (r *Room) switchBack(x *run) error {
	for _, p := range slices.Backward(x.Parts) {
		if err := r.point(p.Component, p.Previous); err != nil {
			return fmt.Errorf("switch %s back: %w", p.Component, err)
		}
	}
	return nil
}

// point makes current point to the version, or removes it when the version is empty. At every moment
// there is the old link or the new one.
func (r *Room) point(component, to string) error {
	dir := r.componentDir(component)
	at, err := r.readCurrent(component)
	if err != nil || at == to {
		return err
	}
	path := filepath.Join(dir, currentLink)
	if to == "" {
		if err := r.cfg.Journal.Point("remove current of " + component); err != nil {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		return r.syncDir(dir)
	}
	tmp := filepath.Join(dir, ".current.new")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := r.cfg.Journal.Point("link new current of " + component); err != nil {
		return err
	}
	if err := os.Symlink(to, tmp); err != nil {
		return err
	}
	if err := r.cfg.Journal.Point("rename current of " + component); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return r.syncDir(dir)
}

func (r *Room) syncDir(path string) error {
	if err := r.cfg.Journal.Point("sync directory " + filepath.Base(path)); err != nil {
		return err
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// tidy removes what no version needs any more: downloads, manifests, versions that are neither current
// nor previous, components that no release has. What resists is left for the next time.
func (r *Room) tidy() {
	s, _, _ := r.snapshot()
	keep := map[string]bool{} // paths of versions
	manifests := map[string]bool{}
	components := map[string]bool{}
	note := func(parts []part, manifest wire.Hash) {
		manifests[string(manifest)+".json"] = true
		for _, p := range parts {
			components[p.Component] = true
			keep[filepath.Join(p.Component, p.Link)] = true
			if p.Previous != "" {
				keep[filepath.Join(p.Component, p.Previous)] = true
			}
		}
	}
	for _, in := range s.Installed {
		note(in.Parts, in.Manifest)
	}
	for _, x := range s.Runs {
		if x.Phase != ended {
			note(x.Parts, x.Manifest)
		}
	}
	var failed []error
	for _, name := range entries(filepath.Join(r.cfg.StateDir, "manifests")) {
		if !manifests[name] {
			failed = append(failed, os.Remove(filepath.Join(r.cfg.StateDir, "manifests", name)))
		}
	}
	if !s.busy() {
		for _, name := range entries(r.downloads()) {
			failed = append(failed, os.Remove(filepath.Join(r.downloads(), name)))
		}
	}
	for _, component := range s.Owned {
		failed = append(failed, r.tidyComponent(component, components[component], keep))
	}
	if err := errors.Join(failed...); err != nil {
		r.cfg.Log.Warn("remove old versions", "error", err)
	}
}

// busy tells whether a run may still need its downloads.
func (s state) busy() bool {
	for _, x := range s.Runs {
		if x.Phase == fetching || x.Phase == unpacking {
			return true
		}
	}
	return false
}

// tidyComponent removes the component's versions that are not kept. The one that current points to is
// kept in any case, unless no release has the component any more: then its link goes first.
func (r *Room) tidyComponent(component string, needed bool, keep map[string]bool) error {
	dir := filepath.Join(r.cfg.Dir, component, versionsDir)
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
		return nil //nolint:nilerr // not one of ours
	}
	at, err := r.readCurrent(component)
	if err != nil {
		return err
	}
	if !needed && at != "" {
		if err := r.point(component, ""); err != nil {
			return err
		}
		at = ""
	}
	var failed []error
	for _, version := range entries(dir) {
		link := filepath.Join(versionsDir, version)
		if link == at || keep[filepath.Join(component, link)] {
			continue
		}
		failed = append(failed, os.RemoveAll(filepath.Join(dir, version)))
	}
	if !needed && len(entries(dir)) == 0 {
		failed = append(failed, os.Remove(dir), os.RemoveAll(filepath.Join(r.cfg.Dir, component, ".current.new")))
		_ = os.Remove(filepath.Join(r.cfg.Dir, component)) // when nothing else is in it
	}
	return errors.Join(failed...)
}

func entries(dir string) []string {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	names := make([]string, len(list))
	for i, e := range list {
		names[i] = e.Name()
	}
	return names
}
