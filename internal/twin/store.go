package twin

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"steward/internal/fault"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// pictures returns what is stored of the devices' reports, for each of them. With lock, in a transaction,
// no other report of these devices is taken until it ends.
func pictures(ctx context.Context, q reader, nums []int64, lock bool) (map[int64]*picture, error) {
	out, err := readSessions(ctx, q, nums, lock)
	if err != nil {
		return nil, err
	}
	dialect := q.Dialect()
	epochs, these := dialect.Among("e.num", nums)
	reported, _ := dialect.Among("r.num", nums)
	asked, _ := dialect.Among("p.num", nums)
	query := sqldb.NewQuery("SELECT e.num, '', '', e.epoch FROM twin_epoch e WHERE "+epochs, these).
		Add("UNION ALL SELECT r.num, r.section, doc.hash, -1 FROM twin_reported r JOIN twin_document doc ON doc.document = r.document WHERE "+reported, these).
		Add(`UNION ALL SELECT p.num, p.section, p.hash, -2 - (SELECT COUNT(*) FROM twin_document k WHERE k.hash = p.hash)
			FROM twin_pending p WHERE `+asked, these)
	rows, err := q.QueryContext(ctx, query.SQL(), query.Args()...)
	if err != nil {
		return nil, fmt.Errorf("read reported state: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	for rows.Next() {
		var num, what int64 // what: the epoch, -1 for a reported section, -2 for a pending one, -3 for one that is known
		var section wire.Section
		var hash wire.Hash
		if err := rows.Scan(&num, &section, &hash, &what); err != nil {
			return nil, err
		}
		switch p := out[num]; {
		case what >= 0:
			p.epoch = what
		case what == -1:
			p.reported[section] = hash
		default:
			p.pending[section] = pending{hash: hash, known: what == -3}
		}
	}
	return out, rows.Err()
}

// reader is a *sqldb.DB or a *sqldb.Tx.
type reader interface {
	sqldb.Reader
	Dialect() sqldb.Dialect
}

// Reported returns the document that a device has last reported in a section and since when it is so,
// or fault.NotFound.
func (s *Service) Reported(ctx context.Context, q sqldb.Reader, num int64, section wire.Section) (body []byte, at time.Time, err error) {
	err = q.QueryRowContext(ctx, `SELECT doc.body, r.at FROM twin_reported r JOIN twin_document doc ON doc.document = r.document
		WHERE r.num = $1 AND r.section = $2`, num, section).Scan(&body, sqldb.ScanMicros(&at))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, time.Time{}, fault.New(fault.NotFound, "the device has not reported the section %s", section)
	}
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read reported section %s: %w", section, err)
	}
	return body, at, nil
}

// Desired returns the document that a device should have in a section and since when, or fault.NotFound.
func (s *Service) Desired(ctx context.Context, q sqldb.Reader, num int64, section wire.Section) (body []byte, since time.Time, err error) {
	err = q.QueryRowContext(ctx, `SELECT doc.body, t.since FROM twin_desired t JOIN twin_document doc ON doc.document = t.document
		WHERE t.num = $1 AND t.section = $2`, num, section).Scan(&body, sqldb.ScanMicros(&since))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, time.Time{}, fault.New(fault.NotFound, "nothing is desired in the section %s", section)
	}
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read desired section %s: %w", section, err)
	}
	return body, since, nil
}

// Side is one section in one direction.
type Side struct {
	Hash      wire.Hash `json:"hash"`
	SizeBytes int64     `json:"size_bytes"`
	Since     time.Time `json:"since"`
	Problem   string    `json:"problem,omitempty" doc:"Why the server could not use what the device reported"`
}

// State is both pictures of one device by hashes.
type State struct {
	Epoch      int64                 `json:"epoch" doc:"Of the desired state; grows with each change"`
	Accepted   int64                 `json:"accepted_epoch" doc:"The one that the device has last accepted"`
	AcceptedAt time.Time             `json:"accepted_at,omitzero"`
	Changed    time.Time             `json:"changed,omitzero" doc:"When the desired state last changed"`
	Reported   time.Time             `json:"last_change_reported,omitzero" doc:"When the device last reported something new"`
	Cloned     time.Time             `json:"cloned,omitzero" doc:"When two agents were last seen to speak for this device"`
	Desired    map[wire.Section]Side `json:"desired"`
	Known      map[wire.Section]Side `json:"reported"`
}

// State returns both pictures of a device.
func (s *Service) State(ctx context.Context, num int64) (State, error) {
	sessions, err := readSessions(ctx, s.db, []int64{num}, false)
	if err != nil {
		return State{}, err
	}
	sess := sessions[num].session
	st := State{Accepted: sess.accepted, AcceptedAt: sess.acceptedAt, Reported: sess.reportedAt, Cloned: sess.cloned}
	err = s.db.QueryRowContext(ctx, "SELECT epoch, since FROM twin_epoch WHERE num = $1", num).Scan(&st.Epoch, sqldb.ScanMicros(&st.Changed))
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return State{}, fmt.Errorf("read epoch: %w", err)
	}
	if st.Desired, err = s.sides(ctx, `SELECT t.section, doc.hash, doc.size, t.since, '' FROM twin_desired t
		JOIN twin_document doc ON doc.document = t.document WHERE t.num = $1`, num); err != nil {
		return State{}, err
	}
	st.Known, err = s.sides(ctx, `SELECT r.section, doc.hash, doc.size, r.at, r.problem FROM twin_reported r
		JOIN twin_document doc ON doc.document = r.document WHERE r.num = $1`, num)
	return st, err
}

func (s *Service) sides(ctx context.Context, query string, num int64) (map[wire.Section]Side, error) {
	rows, err := s.db.QueryContext(ctx, query, num)
	if err != nil {
		return nil, fmt.Errorf("read sections: %w", err)
	}
	defer rows.Close() //nolint:errcheck // rows.Err tells
	out := map[wire.Section]Side{}
	for rows.Next() {
		var section wire.Section
		var side Side
		if err := rows.Scan(&section, &side.Hash, &side.SizeBytes, sqldb.ScanMicros(&side.Since), &side.Problem); err != nil {
			return nil, err
		}
		out[section] = side
	}
	return out, rows.Err()
}
