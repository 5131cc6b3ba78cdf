package twin

import (
	"context"
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

// readSessions returns a picture with the session, empty when nobody has reported yet, of each device. Rows
// are locked in the order of the numbers, so that two transactions don't wait for each other.
func readSessions(ctx context.Context, q reader, nums []int64, lock bool) (map[int64]*picture, error) {
	out := make(map[int64]*picture, len(nums))
	for _, num := range nums {
		out[num] = &picture{reported: map[wire.Section]wire.Hash{}, pending: map[wire.Section]pending{}}
	}
	these, arg := q.Dialect().Among("num", nums)
	query := sqldb.NewQuery("SELECT num, "+sessionColumns+" FROM twin_session WHERE "+these, arg)
	if lock && q.Dialect() == sqldb.Postgres { // SQLite has one writer: nothing to lock
		query.Add("ORDER BY num FOR UPDATE")
	}
	rows, err := q.QueryContext(ctx, query.SQL(), query.Args()...)
	if err != nil {
		return nil, fmt.Errorf("read sessions: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	for rows.Next() {
		var num int64
		var s session
		var past string
		if err := rows.Scan(&num, &s.instance, &s.boot, &s.sequence, &past, &s.strange, sqldb.ScanMicros(&s.cloned),
			&s.accepted, sqldb.ScanMicros(&s.acceptedAt), sqldb.ScanMicros(&s.reportedAt)); err != nil {
			return nil, err
		}
		s.past = strings.Fields(past)
		out[num].session = s
	}
	return out, rows.Err()
}

// sessionRows are sessions to be written.
type sessionRows struct {
	nums, sequence, strange, cloned, accepted, acceptedAt, reportedAt []int64
	instance, boot, past                                              []string
}

func (w *sessionRows) add(num int64, s session) {
	w.nums = append(w.nums, num)
	w.instance, w.boot, w.past = append(w.instance, s.instance), append(w.boot, s.boot), append(w.past, strings.Join(s.past, " "))
	w.sequence, w.strange, w.cloned = append(w.sequence, s.sequence), append(w.strange, s.strange), append(w.cloned, sqldb.Micros(s.cloned))
	w.accepted, w.acceptedAt = append(w.accepted, s.accepted), append(w.acceptedAt, sqldb.Micros(s.acceptedAt))
	w.reportedAt = append(w.reportedAt, sqldb.Micros(s.reportedAt))
}

// write stores all columns.
func (w *sessionRows) write(ctx context.Context, tx *sqldb.Tx) error {
	_, err := tx.ExecRows(ctx, `INSERT INTO twin_session (num, `+sessionColumns+`) SELECT num, `+sessionColumns+` FROM v WHERE true
		ON CONFLICT (num) DO UPDATE SET instance = excluded.instance, boot = excluded.boot, sequence = excluded.sequence,
		past = excluded.past, strange = excluded.strange, cloned = excluded.cloned, accepted = excluded.accepted,
		accepted_at = excluded.accepted_at, reported_at = excluded.reported_at`,
		sqldb.Column{Name: "num", Values: w.nums}, sqldb.Column{Name: "instance", Values: w.instance}, sqldb.Column{Name: "boot", Values: w.boot},
		sqldb.Column{Name: "sequence", Values: w.sequence}, sqldb.Column{Name: "past", Values: w.past}, sqldb.Column{Name: "strange", Values: w.strange},
		sqldb.Column{Name: "cloned", Values: w.cloned}, sqldb.Column{Name: "accepted", Values: w.accepted},
		sqldb.Column{Name: "accepted_at", Values: w.acceptedAt}, sqldb.Column{Name: "reported_at", Values: w.reportedAt})
	if err != nil {
		return fmt.Errorf("write sessions: %w", err)
	}
	return nil
}

// advance stores how far known speakers have come: what most reports change of a session.
func (w *sessionRows) advance(ctx context.Context, tx *sqldb.Tx) error {
	_, err := tx.ExecRows(ctx, `UPDATE twin_session SET sequence = v.sequence, accepted = v.accepted, accepted_at = v.accepted_at,
		reported_at = v.reported_at FROM v WHERE twin_session.num = v.num`,
		sqldb.Column{Name: "num", Values: w.nums}, sqldb.Column{Name: "sequence", Values: w.sequence}, sqldb.Column{Name: "accepted", Values: w.accepted},
		sqldb.Column{Name: "accepted_at", Values: w.acceptedAt}, sqldb.Column{Name: "reported_at", Values: w.reportedAt})
	if err != nil {
		return fmt.Errorf("write sessions: %w", err)
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
	tx.AfterCommit(func() { s.wake(num) }) // no node may remember the instance
	return nil
}
