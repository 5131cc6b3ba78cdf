package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"steward/internal/client"
)

// resource is one kind of thing that get, describe, apply and delete know.
type resource struct {
	names   []string // singular first, then plural and short forms
	path    string   // of the list
	columns []column
	filters []string // query parameters that become flags of get
	create  bool     // apply -f posts it to path, or puts it to path/<key> when key is set
	key     string   // field that names it in apply, e.g. "id"
	whole   bool     // the list is sent in one piece, without limit and cursor
	listed  bool     // there is no path/<id>: describe looks through the list
	remove  bool     // delete sends DELETE path/<id>
	hits    string   // what delete destroys, for the question
}

func (r resource) plural() string { return r.names[min(1, len(r.names)-1)] }

func findResource(name string) (resource, error) {
	var known []string
	for _, r := range resources {
		if slices.Contains(r.names, strings.ToLower(name)) {
			return r, nil
		}
		known = append(known, r.plural())
	}
	return resource{}, usagef("%q is no resource; know %s", name, strings.Join(known, ", "))
}

func completeResources(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, r := range resources {
		names = append(names, r.plural())
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) resourceCommands() []*cobra.Command {
	return inGroup("any", a.getCommand(), a.describeCommand(), a.applyCommand(), a.deleteCommand())
}

func (a *app) getCommand() *cobra.Command {
	var limit int
	filters := map[string]*string{}
	cmd := &cobra.Command{
		Use:               "get RESOURCE",
		Short:             "List things: devices, orders, releases, events, …",
		Args:              args(cobra.ExactArgs(1)),
		ValidArgsFunction: completeResources,
		RunE: func(cmd *cobra.Command, argv []string) error {
			r, err := findResource(argv[0])
			if err != nil {
				return err
			}
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			query, err := r.query(filters)
			if err != nil {
				return err
			}
			items, err := r.list(cmd.Context(), c, query, limit)
			if err != nil {
				return err
			}
			return p.list(items, r.columns)
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 0, "at most so many (0: all)")
	for _, r := range resources {
		for _, f := range r.filters {
			if filters[f] == nil {
				filters[f] = cmd.Flags().String(strings.ReplaceAll(f, "_", "-"), "", filterUsage(f))
			}
		}
	}
	return cmd
}

// filterUsage says what a flag of get takes, where its name doesn't.
func filterUsage(filter string) string {
	switch filter {
	case "q":
		return "text in ID, name or serial number"
	case "selector":
		return "label selector, e.g. site=lab,ring in (a,b)"
	case "presence":
		return "online, late, offline or never"
	case "severity":
		return "info, warning or error: these and worse ones"
	case "since", "until":
		return "time, e.g. 2026-11-23T08:00:00Z"
	case "overdue", "undecided", "reused":
		return "true: only those"
	case "kind":
		return "kind of event (device.moved) or its room (device); kind of discrepancy"
	}
	return "only those with this " + filter
}

func (r resource) query(filters map[string]*string) (url.Values, error) {
	query := url.Values{}
	for name, value := range filters {
		if *value == "" {
			continue
		}
		if !slices.Contains(r.filters, name) {
			return nil, usagef("%s can't be filtered by %s; can by %s", r.plural(), name, first(strings.Join(r.filters, ", "), "nothing"))
		}
		query.Set(name, *value)
	}
	return query, nil
}

// list reads at most limit items (0: all).
func (r resource) list(ctx context.Context, c *client.Client, query url.Values, limit int) ([]client.Object, error) {
	if !r.whole {
		return c.All(ctx, r.path, query, limit)
	}
	var out struct {
		Items []client.Object `json:"items"`
	}
	err := c.Do(ctx, client.Call{Path: r.path, Query: query}, &out)
	if limit > 0 && len(out.Items) > limit {
		out.Items = out.Items[:limit]
	}
	return out.Items, err
}

// one reads one item by its ID.
func (r resource) one(ctx context.Context, c *client.Client, id string) (client.Object, error) {
	var item client.Object
	if !r.listed {
		err := c.Do(ctx, client.Call{Path: r.path + "/" + escapePath(id)}, &item)
		return item, err
	}
	items, err := r.list(ctx, c, nil, 0)
	if err != nil {
		return nil, err
	}
	for _, item := range items {
		if item["id"] == id {
			return item, nil
		}
	}
	return nil, &client.Problem{Status: http.StatusNotFound, Detail: fmt.Sprintf("there is no %s %q", r.names[0], id)}
}

func (a *app) describeCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "describe RESOURCE ID",
		Short:             "Show one thing with all that is known of it",
		Args:              args(cobra.ExactArgs(2)),
		ValidArgsFunction: completeResources,
		RunE: func(cmd *cobra.Command, argv []string) error {
			r, err := findResource(argv[0])
			if err != nil {
				return err
			}
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			item, err := r.one(cmd.Context(), c, argv[1])
			if err != nil {
				return err
			}
			return p.value(item)
		},
	}
}

// escapePath escapes each part of an ID that may have slashes, like a release's name/version.
func escapePath(id string) string {
	parts := strings.Split(id, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}

func (a *app) deleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "delete RESOURCE ID",
		Short:             "Delete or revoke one thing, after asking",
		Args:              args(cobra.ExactArgs(2)),
		ValidArgsFunction: completeResources,
		RunE: func(cmd *cobra.Command, argv []string) error {
			r, err := findResource(argv[0])
			if err != nil {
				return err
			}
			if !r.remove {
				return usagef("%s can't be deleted; a device is retired and disposed of (steward dispose --help)", r.plural())
			}
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			if err := a.confirm(cmd, fmt.Sprintf("Delete %s %s (%s)?", r.names[0], argv[1], r.hits)); err != nil {
				return err
			}
			err = c.Do(cmd.Context(), client.Call{Method: http.MethodDelete, Path: r.path + "/" + escapePath(argv[1])}, nil)
			if err != nil {
				return err
			}
			return p.say(client.Object{"deleted": argv[1]}, "deleted %s %s", r.names[0], argv[1])
		},
	}
}

// manifest is one document of apply -f.
type manifest struct {
	Kind string        `json:"kind"`
	Spec client.Object `json:"spec"`
}

func (a *app) applyCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make things as a YAML or JSON file describes them ('-' reads standard input)",
		Long: `apply makes what the documents of a file describe, one after the other:

  kind: Supplier
  spec: {id: acme, name: ACME Boards Ltd}
  ---
  kind: Model
  spec: {id: gw-100, maker: ACME, name: Gateway 100, architecture: arm64}`,
		Args: args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			docs, err := readManifests(cmd.InOrStdin(), file)
			if err != nil {
				return err
			}
			c, p, err := a.both(cmd)
			if err != nil {
				return err
			}
			for i, d := range docs {
				if err := a.applyOne(cmd, c, p, d); err != nil {
					return fmt.Errorf("document %d of %s (%s): %w", i+1, file, d.Kind, err)
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "file to read (required)")
	return cmd
}

func (a *app) applyOne(cmd *cobra.Command, c *client.Client, p printer, d manifest) error {
	r, err := findResource(d.Kind)
	if err != nil {
		return err
	}
	if !r.create {
		return usagef("%s can't be applied", r.plural())
	}
	call := client.Call{Method: http.MethodPost, Path: r.path, Body: d.Spec}
	if r.key != "" {
		id, ok := d.Spec[r.key].(string)
		if !ok || id == "" {
			return usagef("spec.%s is missing", r.key)
		}
		call.Method, call.Path = http.MethodPut, r.path+"/"+escapePath(id)
		spec := maps.Clone(d.Spec) // the path names it; the body must not
		delete(spec, r.key)
		call.Body = spec
	}
	var made client.Object
	if err := c.Do(cmd.Context(), call, &made); err != nil {
		return err
	}
	return p.say(made, "%s %v: applied", r.names[0], first(formatScalar(made["id"]), formatScalar(made["name"])))
}

// maxManifestBytes bounds a file of apply.
const maxManifestBytes = 8 << 20

func readManifests(stdin io.Reader, file string) ([]manifest, error) {
	if file == "" {
		return nil, usagef("give a file with -f FILE, or -f - for standard input")
	}
	in := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxManifestBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxManifestBytes {
		return nil, usagef("%s is larger than %d bytes", file, maxManifestBytes)
	}
	var docs []manifest
	for i, part := range bytes.Split(data, []byte("\n---")) {
		if len(bytes.TrimSpace(part)) == 0 {
			continue
		}
		var d manifest
		if err := yaml.UnmarshalStrict(part, &d); err != nil {
			return nil, usagef("document %d of %s: %v", i+1, file, err)
		}
		if d.Kind == "" || d.Spec == nil {
			return nil, usagef("document %d of %s: want kind and spec", i+1, file)
		}
		docs = append(docs, d)
	}
	if len(docs) == 0 {
		return nil, usagef("%s holds no document", file)
	}
	return docs, nil
}
