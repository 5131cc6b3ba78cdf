package twin

import (
	"context"
	"encoding/json"
	"fmt"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// Upload takes the body of a document that the server has asked this device for, makes it the reported
// one and runs the reactions. Sending it again is fine. It returns fault.Invalid when the body is not
// what the hash says or no JSON, fault.TooLarge, and fault.Conflict when nobody has asked for it.
func (s *Service) Upload(ctx context.Context, d device.Device, hash wire.Hash, body []byte) error {
	switch {
	case len(body) > wire.MaxDocumentBytes:
		return fault.New(fault.TooLarge, "a document has at most %d bytes", wire.MaxDocumentBytes)
	case wire.HashOf(body) != hash:
		return fault.Bad("body", "the SHA-256 of the %d bytes is %s, not %s", len(body), wire.HashOf(body), hash)
	case !json.Valid(body):
		return fault.Bad("body", "the document is not valid JSON")
	}
	under := s.seen.begin(d.Num, s.now())
	defer s.seen.end(under, nil)
	err := s.db.WriteShared(ctx, func(tx *sqldb.Tx) error {
		sections, err := askedFor(ctx, tx, d.Num, hash)
		if err != nil || len(sections) == 0 {
			return err
		}
		number, err := s.putDocument(ctx, tx, hash, body)
		if err != nil {
			return err
		}
		c := s.changes()
		p := &deviceChange{picture: &picture{reported: map[wire.Section]wire.Hash{}, pending: map[wire.Section]pending{}}}
		c.devices = map[int64]*deviceChange{d.Num: p}
		for _, section := range sections {
			p.pending[section] = pending{hash: hash}
			doc := document{number: number, hash: hash, size: int64(len(body)), touched: c.now}
			if err := c.adoptAndReact(ctx, tx, d, section, doc, body); err != nil {
				return err
			}
		}
		return c.write(ctx, tx)
	})
	if err != nil {
		return fmt.Errorf("document of %s: %w", d.ID, err)
	}
	return nil
}

// askedFor locks the device's session and returns the sections for which the document was asked from the
// device. None and no error: the device has reported it already, so an answer was lost.
func askedFor(ctx context.Context, tx *sqldb.Tx, num int64, hash wire.Hash) ([]wire.Section, error) {
	sections, err := sqldb.Collect(ctx, tx, sqldb.Value[wire.Section], `SELECT p.section FROM twin_session s
		JOIN twin_pending p ON p.num = s.num AND p.hash = $1 WHERE s.num = $2 ORDER BY p.section`+
		tx.Dialect().Pick("", " FOR UPDATE OF s"), hash, num)
	if err != nil || len(sections) > 0 {
		return sections, err
	}
	var has int
	err = tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM twin_reported r JOIN twin_document doc ON doc.document = r.document
		WHERE r.num = $1 AND doc.hash = $2`, num, hash).Scan(&has)
	if err == nil && has == 0 {
		err = fault.New(fault.Conflict, "the server has not asked this device for the document %s: report it first", hash)
	}
	return nil, err
}
