// Package lease lets the nodes of one installation know each other and share out what must be done once.
//
// Each node has a row in which it counts up a number every Beat. Whether another node lives is judged by
// watching that number change with one's own monotonic clock, so that neither clocks that differ between
// machines nor ones that are set forth or back, the database's included, end a lease or keep a dead one:
//
//	holder   beat ─ beat ─ beat ✗ (killed, paused, cut off)
//	                          ├─ holder gives up by itself: ¾ Life after its last beat began ─┤
//	another                   ├─ sees no change for Life ─────────────────────────────────────────┤ takes over
//
// A node that is paused and goes on later may still be in the middle of a step when another has taken
// over. A step that must not happen then calls Fence in its transaction.
//
// On SQLite there is one node: it holds every lease at once and for as long as it runs.
package lease

import (
	"embed"
	"errors"
	"io/fs"
	"log/slog"
	"time"

	"steward/internal/sqldb"
)

// ErrLost says that the lease is another node's by now.
var ErrLost = errors.New("the lease of this work went to another node")

// Node is one running server process, or one that ran lately.
type Node struct {
	ID      string    // random, of this start of the process
	Name    string    // as the operator calls it; not necessarily unique
	Version string    // of the program
	Console string    // URL of console and API
	Link    string    // URL of the devices' door
	Bus     string    // host:port where other nodes reach its part of the bus; "" when they can't
	Started time.Time // by the node's own clock
	Seen    time.Time // the last sign of life, by the database's clock
	Alive   bool
	Self    bool     // it is the one that was asked
	Leases  []string // what it does for all nodes, by name
}

// Config of Nodes. DB is required.
type Config struct {
	DB *sqldb.DB
	// Self describes this node: Name, Version, Console, Link and Bus are taken from it.
	Self Node
	// Beat is how often a node gives a sign of life; 0 means 2 s, on SQLite a minute.
	Beat time.Duration
	// Life is how long a node is believed to live after its last sign; 0 means four beats. The work of
	// a killed node stands still for this long and two beats at most.
	Life time.Duration
	// Looked is called after each beat with all nodes, by one goroutine at a time and also within Open;
	// nil is fine.
	Looked func([]Node)
	Now    func() time.Time // nil means time.Now; it is only shown, never counted with
	Log    *slog.Logger     // nil discards
}

const (
	defaultBeat = 2 * time.Second
	sqliteBeat  = time.Minute
	// forgetAfter is how long a node that is gone stays in the list, unless one of its name runs again.
	forgetAfter = time.Hour
)

func (c Config) withDefaults() Config {
	if c.Beat == 0 {
		c.Beat = defaultBeat
		if c.DB.Dialect() == sqldb.SQLite {
			c.Beat = sqliteBeat
		}
	}
	if c.Life == 0 {
		c.Life = 4 * c.Beat
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

//go:embed migrations/*.sql
var migrations embed.FS

// Migration makes the tables of nodes and leases.
func Migration() sqldb.Migration {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the folder is embedded above
	}
	return sqldb.Migration{Room: "lease", Files: files}
}
