package server

import (
	"context"
	"embed"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"steward/internal/bus"
	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/keys"
	"steward/internal/lease"
	"steward/internal/sqldb"
	"steward/internal/ui"
)

// openBus starts the bus. The nodes know each other by certificates of an authority whose key is in the
// key store, so that to have the keys is all that a node needs to be let in.
func openBus(ctx context.Context, cfg Config, store keys.Store) (*bus.Bus, error) {
	c := bus.Config{URL: cfg.NATS, Outside: cfg.NATSOptions, Name: cfg.nodeName() + "-" + device.RandomName(6), Log: cfg.Log}
	if cfg.BusListen != "" {
		authority, err := store.Ensure(ctx, bus.AuthorityName, keys.P256)
		if err != nil {
			return nil, fmt.Errorf("open the key of the node authority: %w", err)
		}
		c.Cluster = bus.Cluster{Listen: cfg.BusListen, Advertise: cfg.BusAdvertise}
		if c.Cluster.TLS, err = bus.NodeTLS(authority, cfg.Now); err != nil {
			return nil, err
		}
	}
	b, err := bus.Start(c)
	if err != nil {
		return nil, fmt.Errorf("start the bus: %w", err)
	}
	return b, nil
}

// nodeName is what the operator calls this node, else the machine's name.
func (c Config) nodeName() string {
	if c.NodeName != "" {
		return c.NodeName
	}
	if name, err := os.Hostname(); err == nil && name != "" {
		return name
	}
	return "steward"
}

// join enters this node into the list of nodes; the addresses are known by then.
func (s *Server) join(ctx context.Context) (err error) {
	r := s.rooms
	m := &meeting{bus: r.bus, cfg: s.cfg, alive: &r.alive}
	r.apart = &apart{r: r}
	self := lease.Node{Name: s.cfg.nodeName(), Version: s.cfg.Version, Console: s.consoleURL, Link: s.door.url, Bus: r.bus.Address()}
	r.nodes, err = lease.Open(ctx, lease.Config{DB: r.db, Self: self, Now: s.cfg.Now, Log: s.cfg.Log,
		Looked: func(nodes []lease.Node) { m.looked(nodes); r.apart.looked(nodes) }})
	return err
}

// once runs work on one of the nodes; see lease.Nodes. Before this node has joined it waits for nobody.
func (r *rooms) once(ctx context.Context, name string, do func(ctx context.Context) error) error {
	if r.nodes == nil {
		return do(ctx)
	}
	return r.nodes.Once(ctx, name, do)
}

// nodeID names this start of this node to others, once it has joined them.
func (r *rooms) nodeID() string {
	if r.nodes == nil {
		return ""
	}
	return r.nodes.ID()
}

// nodeAlive tells whether a node has given a sign of life lately, as this one has last seen it.
func (r *rooms) nodeAlive(id string) bool {
	_, ok := r.aliveNodes()[id]
	return ok
}

// aliveNodes are the names of the nodes that are there, by their IDs.
func (r *rooms) aliveNodes() map[string]string {
	if alive := r.alive.Load(); alive != nil {
		return *alive
	}
	return nil
}

// alone makes a member of the group that one node runs at a time.
func (r *rooms) alone(name string, run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error { return r.once(ctx, name, run) }
}

// meeting connects the bus of this node with those of the others.
type meeting struct {
	bus    *bus.Bus
	cfg    Config
	alive  *atomic.Pointer[map[string]string]
	warned bool // that others can't be reached
}

// looked is called after each sign of life, by one goroutine at a time.
func (m *meeting) looked(nodes []lease.Node) {
	var others, addrs []string
	alive := map[string]string{}
	for _, n := range nodes {
		if n.Alive {
			alive[n.ID] = n.Name
		}
		if n.Self || !n.Alive {
			continue
		}
		others = append(others, n.Name)
		if n.Bus != "" {
			addrs = append(addrs, n.Bus)
		}
	}
	m.alive.Store(&alive)
	if err := m.bus.SetPeers(addrs); err != nil {
		m.cfg.Log.Warn("the bus can't be connected to another node's", "error", err)
	}
	apart := len(others) > 0 && !m.bus.Outside() && (m.bus.Address() == "" || len(addrs) < len(others))
	if apart && !m.warned {
		m.cfg.Log.Warn("other nodes share this database and no bus: changes reach their devices by polling only; start all with --bus-listen or --nats", "nodes", others)
	}
	m.warned = apart
}

// bootstrapToken names this node's token, so that nodes don't take away each other's: by a file in the data
// directory, which outlives the process.
func (r *rooms) bootstrapToken() (string, error) {
	if r.db.Dialect() == sqldb.SQLite {
		return "bootstrap", nil
	}
	path := r.cfg.path("node-id")
	data, err := os.ReadFile(path)
	if err == nil && len(strings.TrimSpace(string(data))) > 0 {
		return "bootstrap " + strings.TrimSpace(string(data)), nil
	}
	if err != nil && !os.IsNotExist(err) {
		return "", err
	}
	id := device.RandomName(6)
	if err := os.WriteFile(path+".new", []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("name this node: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return "", fmt.Errorf("name this node: %w", err)
	}
	return "bootstrap " + id, syncDir(filepath.Dir(path))
}

// nodeView is a node as API and page show it.
type nodeView struct {
	ID      string    `json:"id" doc:"Of this start of the process"`
	Name    string    `json:"name"`
	State   string    `json:"state" enum:"alive,silent" doc:"silent: no sign of life for some seconds; others have taken over its work"`
	Version string    `json:"version"`
	Console string    `json:"console" doc:"URL of console and API"`
	Link    string    `json:"link" doc:"URL of the devices' door"`
	Bus     string    `json:"bus,omitempty" doc:"Where other nodes reach its part of the bus"`
	Started time.Time `json:"started"`
	Seen    time.Time `json:"seen" doc:"Last sign of life, by the database's clock"`
	Self    bool      `json:"self" doc:"It gave this answer"`
	Leases  []string  `json:"leases" doc:"What it does for all nodes"`
}

// listNodes is for people who see the whole installation.
func (r *rooms) listNodes(ctx context.Context, scope device.Scope) ([]nodeView, error) {
	if !seesNodes(scope) {
		return nil, fault.New(fault.Forbidden, "nodes are shown to accounts of the tenant %s that see all of its devices", device.DefaultTenant)
	}
	nodes, err := r.nodes.List(ctx)
	out := make([]nodeView, len(nodes))
	for i, n := range nodes {
		out[i] = nodeView{
			ID: n.ID, Name: n.Name, State: "silent", Version: n.Version, Console: n.Console, Link: n.Link, Bus: n.Bus,
			Started: n.Started.UTC(), Seen: n.Seen.UTC(), Self: n.Self, Leases: append([]string{}, n.Leases...),
		}
		if n.Alive {
			out[i].State = "alive"
		}
	}
	return out, err
}

func seesNodes(scope device.Scope) bool {
	return scope.Tenant == device.DefaultTenant && scope.Selector.Empty()
}

func (r *rooms) nodeRoutes(a *httpapi.API) {
	type out struct{ Body httpapi.List[nodeView] }
	httpapi.Register(a, httpapi.Op{
		ID: "list-nodes", Method: http.MethodGet, Path: "/nodes", Summary: "List the server processes of the installation", Tag: "server", Role: httpapi.Viewer,
		Detail: "Those that run, and for an hour those that fell silent. For accounts of the tenant default that see all of its devices.",
	}, func(ctx context.Context, who httpapi.Principal, _ *struct{}) (*out, error) {
		nodes, err := r.listNodes(ctx, who.Scope)
		return &out{httpapi.List[nodeView]{Items: nodes}}, err
	})
}

//go:embed page/*.html
var pageFiles embed.FS

type nodesData struct {
	Nodes   []nodeView
	Bus     string // how the nodes are connected, in words
	Several bool   // there may be several: the database is PostgreSQL
}

func (r *rooms) nodePages(c *ui.Console) {
	pages := c.Parse(pageFiles)
	c.Handle("GET /nodes", httpapi.Viewer, func(w http.ResponseWriter, q *http.Request, who httpapi.Principal) error {
		nodes, err := r.listNodes(q.Context(), who.Scope)
		if err != nil {
			return err
		}
		return pages.Render(w, q, who, "nodes.html", ui.View{
			Title: "Nodes", Nav: "/access", Crumbs: []ui.NavItem{{Name: "Access", Path: "/access"}},
			Data: nodesData{Nodes: nodes, Bus: r.busWords(nodes), Several: !strings.HasPrefix(r.cfg.Database, "sqlite:")},
		})
	})
}

// busWords tells how wake-ups get from node to node.
func (r *rooms) busWords(nodes []nodeView) string {
	alive := len(nodes) - len(slices.DeleteFunc(slices.Clone(nodes), func(n nodeView) bool { return n.State == "alive" }))
	switch {
	case r.bus.Outside() && r.bus.Connected():
		return "connected to the outside NATS"
	case r.bus.Outside():
		return "not connected to the outside NATS: devices and pages learn of changes by polling"
	case alive < 2:
		return "one node needs no connection"
	case r.bus.Address() == "":
		return "none: start the nodes with --bus-listen or --nats; until then devices and pages learn of other nodes' changes by polling"
	}
	return fmt.Sprintf("connected to %d of %d other nodes", r.bus.Peers(), alive-1)
}

// nodeNotices tells of nodes that fell silent.
func (r *rooms) nodeNotices(ctx context.Context, scope device.Scope) (out []ui.Notice, err error) {
	if !seesNodes(scope) || r.nodes == nil {
		return nil, nil
	}
	nodes, err := r.nodes.List(ctx)
	for _, n := range nodes {
		if !n.Alive {
			out = append(out, ui.Notice{
				Level: ui.Warn, Title: "Node " + n.Name + " is silent", Href: "/nodes",
				Detail: "It has given no sign of life since " + n.Seen.UTC().Format(time.DateTime) + " UTC. Its devices connect to other nodes, and its work goes on there.",
			})
		}
	}
	return out, err
}
