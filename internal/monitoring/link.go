package monitoring

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"steward/internal/device"
	"steward/internal/sqldb"
)

// Connection is what a device holds open to one node.
type Connection struct {
	Node    string    `json:"node" doc:"The node that holds it, by its name"`
	NodeID  string    `json:"node_id" doc:"Of this start of the node's process"`
	Via     string    `json:"via" doc:"Protocol: mqtt/3.1.1, mqtt/5, with +ws over WebSocket"`
	Address string    `json:"address" doc:"From where it was opened last"`
	Since   time.Time `json:"since" doc:"Since when there has been one without a hole"`
	Count   int       `json:"count" doc:"How many are open to this node"`
}

// Disconnect is how the last connection ended.
type Disconnect struct {
	Via string    `json:"via"`
	At  time.Time `json:"at"`
	Why string    `json:"why"`
}

// Links are a device's connections and, when there is none, how the last one ended.
type Links struct {
	Connections []Connection `json:"connections,omitempty" doc:"Open connections; a device that polls by HTTPS has none"`
	Ended       *Disconnect  `json:"disconnected,omitempty" doc:"How the last connection ended, when none is open"`
}

// links holds the connections of this node, and what of them is still to be written: a connection that
// comes and goes within a second is one row, and none of it waits for the database.
type links struct {
	mu    sync.Mutex
	open  map[int64]*openLink
	dirty map[int64]linkNote
}

type openLink struct {
	tenant       device.TenantID
	via, address string
	since        time.Time
	n            int
}

// linkNote is a row of monitoring_link as it should be.
type linkNote struct {
	openLink
	ended time.Time
	why   string
}

// maxWhyBytes bounds what is kept of why a connection ended.
const maxWhyBytes = 200

// Connected notes that a device has opened a connection to this node: via "mqtt/5" from an address. It
// counts as a contact and never blocks.
func (s *Service) Connected(d device.Device, via, address string) {
	s.seen(d)
	l := &s.links
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.open[d.Num]
	if o == nil {
		o = &openLink{tenant: d.Tenant, since: s.now()}
		l.open[d.Num] = o
	}
	o.via, o.address = via, address
	o.n++
	l.dirty[d.Num] = linkNote{openLink: *o}
}

// Disconnected notes that one of the device's connections to this node has ended, and why. It says nothing
// about the device's presence, which goes by its silence. It never blocks.
func (s *Service) Disconnected(d device.Device, why string) {
	l := &s.links
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.open[d.Num]
	if o == nil {
		return // the device was forgotten meanwhile
	}
	o.n--
	note := linkNote{openLink: *o}
	if o.n <= 0 {
		delete(l.open, d.Num)
		note.n, note.ended, note.why = 0, s.now(), clip(cleanText(why), maxWhyBytes)
	}
	l.dirty[d.Num] = note
}

// Alive notes a sign of life on a device's connection. It is a contact like any other.
func (s *Service) Alive(d device.Device) { s.seen(d) }

func (l *links) take() map[int64]linkNote {
	l.mu.Lock()
	defer l.mu.Unlock()
	notes := l.dirty
	l.dirty = map[int64]linkNote{}
	return notes
}

// back returns what could not be written, under what has come meanwhile.
func (l *links) back(notes map[int64]linkNote) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for num, note := range notes {
		if _, newer := l.dirty[num]; !newer {
			l.dirty[num] = note
		}
	}
}

// forget drops a device; that its connection ends afterwards is then not written.
func (l *links) forget(num int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.open, num)
	delete(l.dirty, num)
}

// rewriteAll has every open connection written again.
func (l *links) rewriteAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for num, o := range l.open {
		l.dirty[num] = linkNote{openLink: *o}
	}
}

func (l *links) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.open)
}

// waiting returns what this node knows of a device's connection and the database does not yet.
func (l *links) waiting(num int64) (linkNote, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	note, waits := l.dirty[num]
	return note, waits
}

func (s *Service) nodeAlive(id string) bool {
	switch {
	case id == s.cfg.Node():
		return true
	case s.cfg.NodeAlive == nil:
		return false
	}
	return s.cfg.NodeAlive(id)
}

func (s *Service) nodeName(id string) string {
	if s.cfg.NodeName != nil {
		if name := s.cfg.NodeName(id); name != "" {
			return name
		}
	}
	return id
}

// LinksOf returns a device's connections to nodes that are there, the oldest first.
func (s *Service) LinksOf(ctx context.Context, num int64) (Links, error) {
	rows, err := s.cfg.DB.QueryContext(ctx, "SELECT node, via, address, since, n, ended, why FROM monitoring_link WHERE num = $1 ORDER BY since", num)
	if err != nil {
		return Links{}, fmt.Errorf("read connections: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	mine, waits := s.links.waiting(num)
	var out Links
	for rows.Next() {
		var c Connection
		var d Disconnect
		if err := rows.Scan(&c.NodeID, &c.Via, &c.Address, sqldb.ScanMicros(&c.Since), &c.Count, sqldb.ScanMicros(&d.At), &d.Why); err != nil {
			return Links{}, fmt.Errorf("read connections: %w", err)
		}
		if c.NodeID == s.cfg.Node() && waits {
			continue // what this node knows is newer
		}
		c.Node = s.nodeName(c.NodeID)
		if c.Count > 0 && s.nodeAlive(c.NodeID) {
			out.Connections = append(out.Connections, c)
			continue
		}
		if c.Count > 0 {
			d.At, d.Why = c.Since, whyNodeGone // since at least then; the sweep will write when
		}
		d.Via = c.Via
		out.end(d)
	}
	if err := rows.Err(); err != nil {
		return Links{}, fmt.Errorf("read connections: %w", err)
	}
	switch {
	case waits && mine.n > 0:
		out.Connections = append(out.Connections, Connection{s.nodeName(s.cfg.Node()), s.cfg.Node(), mine.via, mine.address, mine.since, mine.n})
	case waits:
		out.end(Disconnect{mine.via, mine.ended, mine.why})
	}
	if len(out.Connections) > 0 {
		out.Ended = nil
	}
	return out, nil
}

// end keeps the last of the ends.
func (l *Links) end(d Disconnect) {
	if l.Ended == nil || !d.At.Before(l.Ended.At) {
		l.Ended = &d
	}
}

const whyNodeGone = "the node that held it stopped"

// ConnectedCount counts the devices of the tenant with an open connection, by node; an index is read.
func (s *Service) ConnectedCount(ctx context.Context, tenant device.TenantID) (byNode map[string]int64, err error) {
	return s.connected.get(ctx, tenant, s.now, func() (map[string]int64, error) {
		rows, err := s.cfg.DB.QueryContext(ctx, "SELECT node, COUNT(*) FROM monitoring_link WHERE tenant = $1 AND n > 0 GROUP BY node", string(tenant))
		if err != nil {
			return nil, fmt.Errorf("count connections: %w", err)
		}
		defer rows.Close() //nolint:errcheck // rows.Err tells
		out := map[string]int64{}
		for rows.Next() {
			var node string
			var n int64
			if err := rows.Scan(&node, &n); err != nil {
				return nil, fmt.Errorf("count connections: %w", err)
			}
			if s.nodeAlive(node) {
				out[s.nodeName(node)] += n
			}
		}
		return out, rows.Err()
	})
}

// writeLinks stores this node's notes, oldest numbers first, and takes away how older connections ended.
func (s *Service) writeLinks(ctx context.Context, tx *sqldb.Tx, notes map[int64]linkNote) error {
	nums := slices.Sorted(maps.Keys(notes))
	for chunk := range slices.Chunk(nums, rowsPerStatement) {
		if err := upsertLinks(ctx, tx, s.cfg.Node(), chunk, notes); err != nil {
			return fmt.Errorf("write connections: %w", err)
		}
	}
	return nil
}

func upsertLinks(ctx context.Context, tx *sqldb.Tx, node string, nums []int64, notes map[int64]linkNote) error {
	q := sqldb.NewQuery("INSERT INTO monitoring_link (num, node, tenant, via, address, since, n, ended, why) VALUES")
	for i, num := range nums {
		c := notes[num]
		comma := ","
		if i == len(nums)-1 {
			comma = ""
		}
		q.Add("(?, ?, ?, ?, ?, ?, ?, ?, ?)"+comma, num, node, string(c.tenant), c.via, c.address, sqldb.Micros(c.since), c.n, sqldb.Micros(c.ended), c.why)
	}
	q.Add(`ON CONFLICT (num, node) DO UPDATE SET via = excluded.via, address = excluded.address, since = excluded.since,
		n = excluded.n, ended = excluded.ended, why = excluded.why`)
	if err := exec(ctx, tx, q); err != nil {
		return err
	}
	in, arg := tx.Dialect().Among("num", nums)
	return exec(ctx, tx, sqldb.NewQuery("DELETE FROM monitoring_link WHERE n = 0 AND "+in+" AND node <> ?", arg, node))
}

// Bounds of one look for connections of dead nodes.
const (
	deadFor       = 15 * time.Second // how long a node must be gone before its connections are ended
	deadChunks    = 20               // of rowsPerStatement devices
	keepEnded     = 30 * 24 * time.Hour
	checkOwnEvery = time.Minute
)

// endDead ends the connections of nodes that are gone. Their devices lost them through no fault of their
// own, so their silence counts from now: a node that dies makes nobody late before a whole grace is over.
func (s *Service) endDead(ctx context.Context) error {
	nodes, err := texts(s.cfg.DB.QueryContext(ctx, nodesWithLinks))
	if err != nil {
		return fmt.Errorf("look for dead nodes: %w", err)
	}
	now := s.now()
	for node := range s.dead {
		if !slices.Contains(nodes, node) {
			delete(s.dead, node)
		}
	}
	for _, node := range nodes {
		if s.nodeAlive(node) {
			delete(s.dead, node)
			continue
		}
		since, known := s.dead[node]
		if !known {
			s.dead[node] = now
			continue
		}
		if now.Sub(since) < deadFor {
			continue // it may have come just now, and be unknown here
		}
		if err := s.endLinks(ctx, node); err != nil {
			return err
		}
	}
	return nil
}

// nodesWithLinks jumps from one node to the next in the index instead of reading it whole.
const nodesWithLinks = `WITH RECURSIVE nodes(node) AS (
	SELECT MIN(node) FROM monitoring_link WHERE n > 0
	UNION ALL
	SELECT (SELECT MIN(l.node) FROM monitoring_link l WHERE l.n > 0 AND l.node > nodes.node) FROM nodes WHERE nodes.node IS NOT NULL)
	SELECT node FROM nodes WHERE node IS NOT NULL`

func (s *Service) endLinks(ctx context.Context, node string) error {
	for range deadChunks {
		var nums []int64
		err := s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) (err error) {
			nums, err = numbers(tx.QueryContext(ctx, "SELECT num FROM monitoring_link WHERE node = $1 AND n > 0 ORDER BY num LIMIT $2", node, rowsPerStatement))
			if err != nil || len(nums) == 0 {
				return err
			}
			in, arg := tx.Dialect().Among("num", nums)
			now := sqldb.Micros(s.now())
			return errors.Join(
				exec(ctx, tx, sqldb.NewQuery("UPDATE monitoring_seen SET excused = ?", now).Add("WHERE "+in, arg)),
				exec(ctx, tx, sqldb.NewQuery("UPDATE monitoring_link SET n = 0, ended = ?, why = ? WHERE node = ? AND "+in, now, whyNodeGone, node, arg)),
			)
		})
		if err != nil {
			return fmt.Errorf("end the connections of node %s: %w", node, err)
		}
		if len(nums) < rowsPerStatement {
			return nil
		}
	}
	return nil
}

// checkOwn writes this node's connections again when the database has fewer: others have taken it for dead
// while it was paused or cut off.
func (s *Service) checkOwn(ctx context.Context) error {
	var n int
	err := s.cfg.DB.QueryRowContext(ctx, "SELECT COUNT(*) FROM monitoring_link WHERE node = $1 AND n > 0", s.cfg.Node()).Scan(&n)
	if err != nil {
		return fmt.Errorf("check connections: %w", err)
	}
	if n < s.links.count() {
		s.links.rewriteAll()
	}
	return nil
}

// forgetEnded deletes how connections ended long ago.
func (s *Service) forgetEnded(ctx context.Context) error {
	for n := int64(rowsPerStatement); n == rowsPerStatement; {
		err := s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) (err error) {
			n, err = tx.Exec(ctx, `DELETE FROM monitoring_link WHERE n = 0 AND (num, node) IN
				(SELECT num, node FROM monitoring_link WHERE n = 0 AND ended < $1 ORDER BY ended LIMIT $2)`, sqldb.Micros(s.now().Add(-keepEnded)), rowsPerStatement)
			return err
		})
		if err != nil {
			return fmt.Errorf("forget old connections: %w", err)
		}
	}
	return nil
}
