package twin

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"steward/internal/sqldb"
	"steward/internal/wire"
)

// session is who speaks for a device: the instance (made once with the agent's state directory), the
// boot (made at each start of the agent) and how far that boot has counted.
type session struct {
	instance   string
	boot       string
	sequence   int64
	past       []string // boots before this one, newest first
	strange    int64
	cloned     time.Time
	accepted   int64
	acceptedAt time.Time
	reportedAt time.Time
}

// maxPast bounds the boots that are remembered.
const maxPast = 8

// strangeLimit is how many strange contacts make a clone. One can be a report that was on its way while
// the agent started anew; an agent sends one at a time, so there is no second.
const strangeLimit = 2

// cloneAgain is how often a lasting clone is told.
const cloneAgain = time.Hour

// verdict says what a report is worth.
type verdict int

const (
	fresh verdict = iota
	stale         // a replay, or a boot that another one has replaced: it changes nothing
)

// judge takes a report into the session and says what it is worth. Two agents with one identity show as
//
//	instances A B A: the state directory was made anew without enrolling, then the old one is back
//	boots     1 2 1 2 1: the whole directory was copied, and a boot that was replaced is still alive
func (s *session) judge(r wire.Report) verdict {
	switch {
	case s.boot == "":
		s.instance, s.boot, s.sequence = r.Instance, r.Boot, r.Sequence
		return fresh
	case r.Boot == s.boot:
		if r.Instance != s.instance {
			s.strange++
			s.instance = r.Instance
		}
		if r.Sequence < s.sequence {
			return stale
		}
		s.sequence = r.Sequence
		return fresh
	case slices.Contains(s.past, r.Boot):
		s.strange++
		return stale
	}
	if r.Instance == s.instance {
		s.strange = 0 // an ordinary start
	} else {
		s.strange++
	}
	s.past = append([]string{s.boot}, s.past[:min(len(s.past), maxPast-1)]...)
	s.instance, s.boot, s.sequence = r.Instance, r.Boot, r.Sequence
	return fresh
}

// suspect tells whether the clone has to be told now.
func (s *session) suspect(now time.Time) bool {
	return s.strange >= strangeLimit && (s.cloned.IsZero() || now.Sub(s.cloned) >= cloneAgain)
}

const sessionColumns = "instance, boot, sequence, past, strange, cloned, accepted, accepted_at, reported_at"

// readSession returns an empty session when nobody has reported yet.
func readSession(ctx context.Context, q sqldb.Reader, num int64, suffix string) (session, error) {
	var s session
	var past string
	err := q.QueryRowContext(ctx, "SELECT "+sessionColumns+" FROM twin_session WHERE num = $1"+suffix, num).
		Scan(&s.instance, &s.boot, &s.sequence, &past, &s.strange, sqldb.ScanMicros(&s.cloned),
			&s.accepted, sqldb.ScanMicros(&s.acceptedAt), sqldb.ScanMicros(&s.reportedAt))
	if errors.Is(err, sql.ErrNoRows) {
		return session{}, nil
	}
	if err != nil {
		return s, fmt.Errorf("read session: %w", err)
	}
	s.past = strings.Fields(past)
	return s, nil
}

// lockSession reads the session so that no other report of the device is handled meanwhile.
func lockSession(ctx context.Context, tx *sqldb.Tx, num int64) (session, error) {
	if tx.Dialect() == sqldb.SQLite { // one writer: nothing to lock
		return readSession(ctx, tx, num, "")
	}
	if err := writeSession(ctx, tx, num, session{}, "DO NOTHING"); err != nil { // a row to lock
		return session{}, err
	}
	return readSession(ctx, tx, num, " FOR UPDATE")
}

const replaceSession = `DO UPDATE SET instance = excluded.instance, boot = excluded.boot, sequence = excluded.sequence,
	past = excluded.past, strange = excluded.strange, cloned = excluded.cloned, accepted = excluded.accepted,
	accepted_at = excluded.accepted_at, reported_at = excluded.reported_at`

func writeSession(ctx context.Context, tx *sqldb.Tx, num int64, s session, onConflict string) error {
	_, err := tx.Exec(ctx, "INSERT INTO twin_session (num, "+sessionColumns+") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (num) "+onConflict,
		num, s.instance, s.boot, s.sequence, strings.Join(s.past, " "), s.strange, sqldb.Micros(s.cloned),
		s.accepted, sqldb.Micros(s.acceptedAt), sqldb.Micros(s.reportedAt))
	if err != nil {
		return fmt.Errorf("write session: %w", err)
	}
	return nil
}

// ForgetInstance is called when a device has enrolled anew: whoever reports next is the device.
func (s *Service) ForgetInstance(ctx context.Context, tx *sqldb.Tx, num int64) error {
	for _, table := range []string{"twin_session", "twin_pending"} {
		if _, err := tx.Exec(ctx, "DELETE FROM "+table+" WHERE num = $1", num); err != nil {
			return fmt.Errorf("forget instance: %w", err)
		}
	}
	return nil
}
