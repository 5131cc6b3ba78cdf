package move

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"steward/internal/backup"
	"steward/internal/server"
)

// Errors that callers branch on.
var (
	// ErrRunning says that everything that can be done beside a running server is done.
	ErrRunning = errors.New("the server still runs")
	// ErrNotEmpty says that the target holds something.
	ErrNotEmpty = errors.New("the target is not empty")
	// ErrDifferent says that source and target don't have the same contents after all.
	ErrDifferent = errors.New("source and target differ")
	// ErrVersion says that the source was not last opened by this version of Steward.
	ErrVersion = errors.New("the source is of another version of Steward")
)

// Config of Run.
type Config struct {
	DataDir string // of the server
	Target  string // postgres://… of a database with nothing in the schema that servers would use
	// Wait makes Run wait for the server to stop in the place of ErrRunning.
	Wait bool
	// MasterKeyFile is given to servers on the target that keep their keys sealed in it: keys are copied there.
	MasterKeyFile string

	Progress Progress
	Now      func() time.Time // nil means time.Now
	// Running is called once when Run waits for the server to stop; nil is fine.
	Running func()
}

// Progress is told how far the work is, in rows. Total is 0 while it isn't known.
type Progress func(what string, done, total int64)

func (p Progress) tell(what string, done, total int64) {
	if p != nil {
		p(what, done, total)
	}
}

// Result of Run.
type Result struct {
	Tables  int    `json:"tables"`
	Rows    int64  `json:"rows"`
	Changed int64  `json:"changed"` // rows that were written or deleted after the first pass
	Keys    int    `json:"keys"`    // copied into the database
	Events  int64  `json:"events"`
	Root    string `json:"root"` // of the ledger's tree, recomputed on the target
}

const (
	databaseName = "steward.db"
	snapshotDir  = ".move"
	snapshotName = "snapshot.db"
	incoming     = "steward_incoming" // the schema in which the copy is made
)

// mover is one run.
type mover struct {
	cfg    Config
	source string // path of SQLite's file
	snap   string // path of the snapshot
	home   string // schema that servers use
	pg     *pgx.Conn
	tables []table
	sealed bool // the source keeps its keys sealed in itself
	out    Result
}

// Run moves the database. It can be repeated after any error. With ErrRunning the first pass is done: stop
// the server and call it again.
func Run(ctx context.Context, cfg Config) (out Result, err error) {
	m := &mover{cfg: cfg}
	if m.cfg.Now == nil {
		m.cfg.Now = time.Now
	}
	if m.cfg.DataDir, err = filepath.Abs(cfg.DataDir); err != nil {
		return out, err
	}
	m.source = filepath.Join(m.cfg.DataDir, databaseName)
	m.snap = filepath.Join(m.cfg.DataDir, snapshotDir, snapshotName)
	if _, err := os.Stat(m.source); err != nil {
		return out, fmt.Errorf("%w: %w", backup.ErrNotEmbedded, err)
	}
	if err := m.connect(ctx); err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, m.pg.Close(context.WithoutCancel(ctx))) }()
	err = m.run(ctx)
	return m.out, err
}

func (m *mover) run(ctx context.Context) error {
	if err := m.prepare(ctx); err != nil {
		return err
	}
	if err := m.copyAll(ctx); err != nil {
		return err
	}
	unlock, err := m.lock(ctx)
	if err != nil {
		return err
	}
	return errors.Join(m.finish(ctx), unlock())
}

// connect opens the target, finds out which schema servers would use, and keeps other movers away.
func (m *mover) connect(ctx context.Context) (err error) {
	if !strings.HasPrefix(m.cfg.Target, "postgres://") && !strings.HasPrefix(m.cfg.Target, "postgresql://") {
		return errors.New("the target: want postgres://…")
	}
	if m.pg, err = pgx.Connect(ctx, m.cfg.Target); err != nil {
		return fmt.Errorf("connect to the target: %w", err)
	}
	var free bool
	var home *string
	err = m.pg.QueryRow(ctx, "SELECT current_schema(), pg_try_advisory_lock(hashtext('steward move'))").Scan(&home, &free)
	switch {
	case err != nil:
		err = fmt.Errorf("look at the target: %w", err)
	case home == nil:
		err = errors.New("the target: none of the schemas in its search_path exists")
	case !free:
		err = errors.New("another migration into the target is under way")
	default:
		m.home = *home
		return nil
	}
	return errors.Join(err, m.pg.Close(context.WithoutCancel(ctx)))
}

// lock takes the data directory from the server, or waits until it can.
func (m *mover) lock(ctx context.Context) (unlock func() error, err error) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for told := false; ; told = true {
		unlock, err = server.Lock(m.cfg.DataDir)
		if !errors.Is(err, server.ErrRunning) {
			return unlock, err
		}
		if !m.cfg.Wait {
			return nil, ErrRunning
		}
		if !told && m.cfg.Running != nil {
			m.cfg.Running()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// finish does what needs the server stopped.
func (m *mover) finish(ctx context.Context) error {
	live, err := openLive(ctx, m.source, m.snap)
	if err != nil {
		return err
	}
	defer live.close()
	if m.sealed, err = live.sealed(ctx); err != nil {
		return err
	}
	if m.sealed && m.cfg.MasterKeyFile == "" {
		return errors.New("the keys are sealed in the database: give the server's master key with --master-key-file")
	}
	if err := m.applyDifference(ctx, live); err != nil {
		return err
	}
	if err := m.compare(ctx, live); err != nil {
		return err
	}
	if err := m.verifyLedger(ctx, live); err != nil {
		return err
	}
	if err := m.copyKeys(ctx); err != nil {
		return err
	}
	why := "the database was moved to PostgreSQL (" + nameOf(m.cfg.Target) + "): start the server with --database"
	if err := server.Hold(m.cfg.DataDir, why, m.cfg.Now()); err != nil {
		return err
	}
	if err := m.switchOver(ctx); err != nil {
		// A commit whose answer was lost may have happened: then the source must stay held.
		if moved, lookErr := m.moved(context.WithoutCancel(ctx)); lookErr == nil && !moved {
			err = errors.Join(err, server.Unhold(m.cfg.DataDir))
		}
		return err
	}
	return m.dropSnapshot()
}

func (m *mover) dropSnapshot() error {
	if err := os.RemoveAll(filepath.Dir(m.snap)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the snapshot: %w", err)
	}
	return nil
}

// nameOf is a database's URL as people may read it: without user and password.
func nameOf(target string) string {
	u, err := url.Parse(target)
	if err != nil {
		return "postgres://…"
	}
	host := u.Host
	if host == "" {
		host = u.Query().Get("host")
	}
	return "postgres://" + host + u.Path
}

// inside is the target's URL with the incoming schema as the one that is used.
func (m *mover) inside() (string, error) {
	u, err := url.Parse(m.cfg.Target)
	if err != nil {
		return "", errors.New("the target is no URL") // never quote a password
	}
	q := u.Query()
	q.Set("search_path", incoming)
	u.RawQuery = q.Encode()
	return u.String(), nil
}
