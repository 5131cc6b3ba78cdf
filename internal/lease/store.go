package lease

import (
	"context"
	"maps"
	"slices"
	"time"

	"steward/internal/sqldb"
)

// row is a node and what is known of its signs of life.
type row struct {
	Node
	beat int64
	age  time.Duration // of the last beat, by the database's clock
}

type leaseSet map[string]lease

// of returns the names of the node's leases.
func (s leaseSet) of(node string) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(s)) {
		if s[name].holder == node {
			names = append(names, name)
		}
	}
	return names
}

// clock is the database's own time in microseconds; SQLite has this process's. The parameter is that.
func clock(d sqldb.Dialect, param string) string {
	return d.Pick(param, "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT) + 0 * CAST("+param+" AS BIGINT)")
}

func (n *Nodes) upsert(ctx context.Context, tx *sqldb.Tx) error {
	s := n.self
	if err := tx.ReadCommitted(ctx); err != nil { // it touches no row but its own
		return err
	}
	_, err := tx.Exec(ctx, `INSERT INTO lease_node (id, name, version, console, link, bus, started, seen, beat)
		VALUES ($1, $2, $3, $4, $5, $6, $7, `+clock(tx.Dialect(), "$8")+`, 1)
		ON CONFLICT (id) DO UPDATE SET seen = excluded.seen, beat = lease_node.beat + 1`,
		s.ID, s.Name, s.Version, s.Console, s.Link, s.Bus, sqldb.Micros(s.Started), sqldb.Micros(n.cfg.Now()))
	return err
}

func readNodes(ctx context.Context, db *sqldb.DB, now func() time.Time) (out []row, err error) {
	rows, err := db.QueryContext(ctx, `SELECT id, name, version, console, link, bus, started, seen, beat, `+
		clock(db.Dialect(), "$1")+` FROM lease_node ORDER BY name, started, id`, sqldb.Micros(now()))
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // read to the end
	for rows.Next() {
		var r row
		var clock time.Time
		err := rows.Scan(&r.ID, &r.Name, &r.Version, &r.Console, &r.Link, &r.Bus, sqldb.ScanMicros(&r.Started), sqldb.ScanMicros(&r.Seen), &r.beat, sqldb.ScanMicros(&clock))
		if err != nil {
			return nil, err
		}
		r.age = clock.Sub(r.Seen)
		out = append(out, r)
	}
	return out, rows.Err()
}

func readLeases(ctx context.Context, q sqldb.Reader) (leaseSet, error) {
	rows, err := q.QueryContext(ctx, "SELECT name, holder, term FROM lease_lease")
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // read to the end
	out := leaseSet{}
	for rows.Next() {
		var name string
		var l lease
		if err := rows.Scan(&name, &l.holder, &l.term); err != nil {
			return nil, err
		}
		out[name] = l
	}
	return out, rows.Err()
}

// take makes this node the holder when the lease is still as it was seen: of that holder and term, whose
// last beat is the one that has been watched.
func (n *Nodes) take(ctx context.Context, tx *sqldb.Tx, name string, was lease, beat int64) (bool, error) {
	if was.term == 0 {
		added, err := tx.Exec(ctx, `INSERT INTO lease_lease (name, holder, term) VALUES ($1, $2, 1) ON CONFLICT DO NOTHING`, name, n.self.ID)
		return added == 1, err
	}
	taken, err := tx.Exec(ctx, `UPDATE lease_lease SET holder = $1, term = term + 1
		WHERE name = $2 AND holder = $3 AND term = $4
		  AND (holder = '' OR holder = $5 OR NOT EXISTS (SELECT 1 FROM lease_node WHERE id = $6 AND beat <> $7))
		  AND EXISTS (SELECT 1 FROM lease_node WHERE id = $8)`,
		n.self.ID, name, was.holder, was.term, n.self.ID, was.holder, beat, n.self.ID)
	return taken == 1, err
}

func free(ctx context.Context, tx *sqldb.Tx, h *holding, node string) error {
	_, err := tx.Exec(ctx, "UPDATE lease_lease SET holder = '' WHERE name = $1 AND holder = $2 AND term = $3", h.name, node, h.term)
	return err
}

// fence locks the lease's row against take, for transactions that see what others commit meanwhile.
func fence(ctx context.Context, tx *sqldb.Tx, h *holding) error {
	var term int64
	err := tx.QueryRowContext(ctx, "SELECT term FROM lease_lease WHERE name = $1"+tx.Dialect().Pick("", " FOR SHARE"), h.name).Scan(&term)
	if err == nil && term != h.term {
		return ErrLost
	}
	return err
}

// remove takes a node out of the list, unless it has given another sign of life than the one named; -1
// means whatever it gave.
func remove(ctx context.Context, tx *sqldb.Tx, id string, beat int64) error {
	_, err := tx.Exec(ctx, "DELETE FROM lease_node WHERE id = $1 AND ($2 = -1 OR beat = $3)", id, beat, beat)
	return err
}

// clear forgets all nodes; terms stay.
func clear(ctx context.Context, tx *sqldb.Tx) error {
	if _, err := tx.Exec(ctx, "DELETE FROM lease_node"); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, "UPDATE lease_lease SET holder = ''")
	return err
}
