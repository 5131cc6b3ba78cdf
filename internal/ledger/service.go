package ledger

import (
	"context"
	"embed"
	"errors"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"steward/internal/bus"
	"steward/internal/device"
	"steward/internal/sqldb"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migration makes the ledger's tables.
func Migration() sqldb.Migration {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the directory is embedded above
	}
	return sqldb.Migration{Room: "ledger", Files: files}
}

// Config of a Ledger.
type Config struct {
	DB     *sqldb.DB        // required
	Key    *Key             // signs tree heads; without one events are kept and never sequenced
	Origin string           // first line of checkpoints; empty means the key's own name, as it should be
	Bus    *bus.Bus         // wakes other nodes; nil for a single one
	Now    func() time.Time // nil means time.Now
	Log    *slog.Logger     // nil means no log
	// Shared says that other nodes sign the same log with the same key: Run then fails on a head signed
	// with another one, instead of going on with its own.
	Shared bool

	// Devices gives a sub-SELECT, with "?" placeholders, of the public IDs of the devices in a scope.
	// Without it people whose scope has a selector see no event at all.
	Devices func(scope device.Scope) (query string, args []any)
	// Describe turns an event into a sentence for people, by kind. Without an entry, or when it gives
	// "", the sentence is made from the kind.
	Describe map[string]func(Event) string
}

// Ledger is safe for concurrent use. It has no goroutine of its own: Run and Consume are run by the
// program, on as many nodes as there are; the database lets one at a time work.
type Ledger struct {
	cfg    Config
	wake   chan struct{} // holds one token when events may wait to be sequenced
	growth growth
}

// New returns a ledger on a migrated database.
func New(cfg Config) *Ledger {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Origin == "" && cfg.Key != nil {
		cfg.Origin = cfg.Key.Origin()
	}
	return &Ledger{cfg: cfg, wake: make(chan struct{}, 1), growth: growth{size: -1, changed: make(chan struct{})}}
}

// Subjects on the bus. The messages are empty: the truth is in the database.
const (
	SubjectAppended = "ledger.appended" // events have been committed
	SubjectGrown    = "ledger.grown"    // the tree has grown
)

// safetyInterval is how long a lost wake-up can delay anything.
const safetyInterval = 2 * time.Second

// Append adds events in the transaction of the change that they tell: both come to be or neither.
func (l *Ledger) Append(ctx context.Context, tx *sqldb.Tx, events ...Event) error {
	if len(events) == 0 {
		return nil
	}
	now := l.cfg.Now()
	settled := make([]Event, len(events))
	for i, e := range events {
		var err error
		if settled[i], err = e.settle(newEventID(), now); err != nil {
			return err
		}
	}
	if err := insertEvents(ctx, tx, settled); err != nil {
		return err
	}
	tx.AfterCommit(l.appended)
	return nil
}

func newEventID() string { return "evt-" + device.RandomName(10) }

func (l *Ledger) appended() {
	l.nudge()
	l.publish(SubjectAppended)
}

func (l *Ledger) nudge() {
	select {
	case l.wake <- struct{}{}:
	default: // a token is waiting already
	}
}

// publish tells other nodes. A message that can't be sent only costs them time.
func (l *Ledger) publish(subject string) {
	if l.cfg.Bus == nil {
		return
	}
	if err := l.cfg.Bus.Publish(subject, nil); err != nil {
		l.cfg.Log.Debug("wake-up not sent", "subject", subject, "error", err)
	}
}

// growth tells all waiting pages and consumers of this node at once that the tree has grown.
type growth struct {
	mu      sync.Mutex
	size    int64         // as far as this node knows; -1 until it has looked
	changed chan struct{} // closed and replaced when size grows
}

func (g *growth) set(size int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if size > g.size {
		g.size = size
		close(g.changed)
		g.changed = make(chan struct{})
	}
}

func (g *growth) get() (size int64, changed <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.size, g.changed
}

// Wait blocks until the tree holds more than after events and returns how many it holds; -1 asks for
// the present number. It costs no query per waiter while it waits: Run of this node tells all of them. The error is ctx's or the database's.
func (l *Ledger) Wait(ctx context.Context, after int64) (head int64, err error) {
	size, changed := l.growth.get()
	if size <= after { // perhaps this node has not heard of it yet
		if size, err = readSize(ctx, l.cfg.DB); err != nil {
			return 0, err
		}
		l.growth.set(size)
	}
	for {
		if size > after {
			return size, nil
		}
		select {
		case <-changed:
			size, changed = l.growth.get()
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// Run sequences events until ctx ends, and tells waiting pages and consumers of this node what any
// node has sequenced. Every node runs it. An error of the database is logged and tried again.
func (l *Ledger) Run(ctx context.Context) error {
	if l.cfg.Key == nil {
		return errors.New("the ledger has no key to sign with")
	}
	stop, err := l.listen()
	if err != nil {
		return err
	}
	defer stop()
	if err := l.adopt(ctx); err != nil && ctx.Err() == nil {
		return err
	}
	tick := time.NewTicker(safetyInterval)
	defer tick.Stop()
	for ctx.Err() == nil {
		if err := l.drain(ctx); err != nil && ctx.Err() == nil {
			l.cfg.Log.ErrorContext(ctx, "sequence ledger events", "error", err)
		}
		select {
		case <-l.wake:
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return nil
}

// drain sequences until nothing waits, and notes how far the tree is.
func (l *Ledger) drain(ctx context.Context) error {
	for {
		n, err := l.Sequence(ctx)
		if err != nil {
			return err
		}
		if n < sequenceBatch {
			break
		}
	}
	size, err := readSize(ctx, l.cfg.DB)
	if err != nil {
		return err
	}
	l.growth.set(size)
	return nil
}

// listen lets messages of other nodes wake this one.
func (l *Ledger) listen() (stop func(), err error) {
	if l.cfg.Bus == nil {
		return func() {}, nil
	}
	// Both wake the loop: after another node has sequenced, it reads the new size.
	return l.cfg.Bus.Subscribe("ledger.*", func(string, []byte) { l.nudge() })
}
