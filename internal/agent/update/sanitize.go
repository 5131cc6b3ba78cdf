package update

import (
	"context"
	"fmt"

	"steward/internal/wire"
)

// Sanitize destroys everything that the room has put on the machine: installed components, downloads,
// metadata and its record. Run has ended. Services that run from the components go on until somebody
// stops them; their files are gone.
func (r *Room) Sanitize(context.Context) []wire.SanitizedItem {
	s, _, _ := r.snapshot()
	var items []wire.SanitizedItem
	owner := map[string]string{}
	for name, in := range s.Installed {
		for _, p := range in.Parts {
			owner[p.Component] = fmt.Sprintf("files of %s %s: component %s", name, in.Version, p.Component)
		}
	}
	for _, component := range s.Owned {
		what := owner[component]
		if what == "" {
			what = "files of component " + component
		}
		items = append(items, r.destroy(what, r.componentDir(component)))
	}
	items = append(items,
		r.destroy("downloaded artifacts", r.downloads()),
		r.destroy("release manifests", r.cfg.StateDir+"/manifests"),
		r.destroy("release metadata", r.tufDir()))
	record := wire.SanitizedItem{What: "record of installed releases", Technique: "removed from the journal", Result: "destroyed"}
	if err := r.cfg.Journal.Delete(stateKey); err != nil {
		record.Result = err.Error()
	}
	return append(items, record)
}

func (r *Room) destroy(what, dir string) wire.SanitizedItem {
	item := wire.SanitizedItem{What: what, Technique: "overwrite and unlink", Result: "destroyed"}
	size, err := r.cfg.Journal.WipeTree(dir)
	item.SizeBytes = size
	if err != nil {
		item.Result = err.Error()
	}
	return item
}
