package monitoring

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"steward/internal/sqldb"
)

// Samples lie outside of the database's transactions, and each node may have some of a device, so a device that
// is forgotten is noted in the transaction, and every node deletes what it has, up to that time. How far a
// node has come stands in a file beside its samples.

// forgetter is how far this node has come. It belongs to Run alone.
type forgetter struct {
	file   string
	loaded bool
	upTo   int64                // micros; what was noted before is done
	done   map[forgotten]bool   // and these since
	again  map[string]time.Time // outside stores are asked twice: device, when
}

// forgotten is a device whose samples up to a time, in microseconds, are to be deleted.
type forgotten struct {
	at     int64
	device string
}

const (
	// forgetOverlap is how much later than others a row may be committed.
	forgetOverlap = int64(time.Minute / time.Microsecond)
	// askAgain is when an outside store is asked for the second time: Prometheus doesn't reach late samples
	// that it has not put into blocks yet, which it does every two hours.
	askAgain = 6 * time.Hour
	// forgottenSlack is how much longer rows are kept than metrics, for nodes that are away.
	forgottenSlack = 48 * time.Hour
)

// load reads how far this node has come, but no further than to before: of what was done since, who has to ask
// again has forgotten it with the process.
func (f *forgetter) load(before time.Time) error {
	if f.loaded {
		return nil
	}
	text, err := os.ReadFile(f.file)
	switch {
	case err == nil:
		if f.upTo, err = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err != nil {
			return fmt.Errorf("read %s: %w", f.file, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	f.upTo = min(f.upTo, sqldb.Micros(before))
	f.done, f.again, f.loaded = map[forgotten]bool{}, map[string]time.Time{}, true
	return nil
}

// advance notes that all rows before this time are done.
func (f *forgetter) advance(upTo int64) error {
	if upTo <= f.upTo {
		return nil
	}
	if err := os.WriteFile(f.file+".new", []byte(strconv.FormatInt(upTo, 10)+"\n"), 0o600); err != nil {
		return err
	}
	if err := os.Rename(f.file+".new", f.file); err != nil {
		return err
	}
	f.upTo = upTo
	for row := range f.done {
		if row.at < upTo { // those of the same time are read again
			delete(f.done, row)
		}
	}
	return nil
}

// forgetSeries deletes the samples of devices that were forgotten since the last time. Doing so twice is the
// same as once.
func (s *Service) forgetSeries(ctx context.Context) error {
	f := &s.forgets
	before := s.now()
	if s.cfg.Outside != nil {
		before = before.Add(-2 * askAgain)
	}
	if err := f.load(before); err != nil {
		return fmt.Errorf("forget series: %w", err)
	}
	newest := f.upTo
	for from := (forgotten{at: f.upTo}); ; {
		rows, err := readForgotten(ctx, s.cfg.DB, from)
		if err != nil {
			return fmt.Errorf("forget series: %w", err)
		}
		var todo []string
		var until int64
		for _, row := range rows {
			newest = max(newest, row.at)
			if !f.done[row] {
				todo, until = append(todo, row.device), max(until, row.at)
			}
		}
		if len(todo) > 0 {
			if err := s.series.Forget(ctx, sqldb.FromMicros(until), todo...); err != nil {
				return err
			}
		}
		for _, row := range rows {
			f.done[row], from = true, row
		}
		s.noteAgain(todo, until)
		if len(rows) < rowsPerStatement {
			break
		}
	}
	if err := s.forgetAgain(ctx); err != nil {
		return err
	}
	return f.advance(min(newest, sqldb.Micros(s.now())-forgetOverlap))
}

func (s *Service) noteAgain(devices []string, until int64) {
	if s.cfg.Outside == nil {
		return
	}
	for _, d := range devices {
		s.forgets.again[d] = sqldb.FromMicros(until)
	}
}

func (s *Service) forgetAgain(ctx context.Context) error {
	for d, until := range s.forgets.again {
		if s.now().Sub(until) < askAgain {
			continue
		}
		if err := s.series.Forget(ctx, until, d); err != nil {
			return err
		}
		delete(s.forgets.again, d)
	}
	return nil
}

func readForgotten(ctx context.Context, q sqldb.Reader, after forgotten) ([]forgotten, error) {
	rows, err := q.QueryContext(ctx, "SELECT at, device FROM monitoring_forgotten WHERE (at, device) > ($1, $2) ORDER BY at, device LIMIT $3", after.at, after.device, rowsPerStatement)
	if err != nil {
		return nil, err
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	var out []forgotten
	for rows.Next() {
		var row forgotten
		if err := rows.Scan(&row.at, &row.device); err != nil {
			return nil, err
		}
		out = append(out, row)
	}
	return out, rows.Err()
}

// forgetForgotten deletes rows of which all samples are gone by their age.
func (s *Service) forgetForgotten(ctx context.Context) error {
	keep := s.cfg.Keep
	if keep == 0 {
		keep = defaultKeep
	}
	err := s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error {
		_, err := tx.Exec(ctx, "DELETE FROM monitoring_forgotten WHERE at < $1", sqldb.Micros(s.now().Add(-keep-forgottenSlack)))
		return err
	})
	if err != nil {
		return fmt.Errorf("forget old notes: %w", err)
	}
	return nil
}

// forgottenFile is where a node notes how far it has come, in the directory of its metrics.
func forgottenFile(dir string) string { return filepath.Join(dir, "forgotten") }
