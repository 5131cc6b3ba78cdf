package twin

import (
	"container/list"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// bodies keeps the documents that were used last: a whole fleet fetches the same one after a change, and
// rooms react to the same one of many devices. A document is what its hash says, so nothing here can be
// out of date; who may have it is asked elsewhere.
type bodies struct {
	mu    sync.Mutex
	of    map[wire.Hash]*list.Element
	used  list.List // of keptBody, the most recently used first
	bytes int
}

type keptBody struct {
	hash wire.Hash
	body []byte // shared: not to be changed
}

const (
	maxBodiesBytes = 16 << 20
	maxBodyBytes   = 1 << 20 // a larger one is not kept
)

func (b *bodies) get(hash wire.Hash) ([]byte, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, has := b.of[hash]
	if !has {
		return nil, false
	}
	b.used.MoveToFront(e)
	return e.Value.(keptBody).body, true
}

func (b *bodies) put(hash wire.Hash, body []byte) {
	if len(body) > maxBodyBytes {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, has := b.of[hash]; has {
		return
	}
	if b.of == nil {
		b.of = map[wire.Hash]*list.Element{}
	}
	b.of[hash] = b.used.PushFront(keptBody{hash, body})
	for b.bytes += len(body); b.bytes > maxBodiesBytes; {
		oldest := b.used.Remove(b.used.Back()).(keptBody)
		delete(b.of, oldest.hash)
		b.bytes -= len(oldest.body)
	}
}

// body returns a document's bytes, or sql.ErrNoRows.
func (s *Service) body(ctx context.Context, q sqldb.Reader, hash wire.Hash) ([]byte, error) {
	if body, has := s.bodies.get(hash); has {
		return body, nil
	}
	var body []byte
	if err := q.QueryRowContext(ctx, "SELECT body FROM twin_document WHERE hash = $1", hash).Scan(&body); err != nil {
		return nil, fmt.Errorf("read document %s: %w", hash, err)
	}
	s.bodies.put(hash, body)
	return body, nil
}

// fetchCall is a device's wish for a document.
type fetchCall struct {
	num  int64
	hash wire.Hash
	body *[]byte
}

// Document returns the body of a document of the device's desired state. Every other document is
// fault.NotFound, whether it exists or not, and so is every document for a quarantined device. The bytes
// are shared: they must not be changed.
func (s *Service) Document(ctx context.Context, d device.Device, hash wire.Hash) (body []byte, err error) {
	if withheld(d) {
		return nil, errWithheld
	}
	err = s.fetches.do(ctx, fetchCall{d.Num, hash, &body})
	return body, err
}

// fetch asks in one statement which documents the devices may have at this moment, and reads those that are
// not in memory, each once.
func (s *Service) fetch(ctx context.Context, calls []*call[fetchCall]) {
	nums, hashes := make([]int64, len(calls)), map[wire.Hash]struct{}{}
	named := make([]string, 0, 1)
	for i, c := range calls {
		nums[i] = c.item.num
		if _, has := hashes[c.item.hash]; !has {
			hashes[c.item.hash] = struct{}{}
			named = append(named, string(c.item.hash))
		}
	}
	type grant struct {
		num  int64
		hash wire.Hash
	}
	these, arg := s.db.Dialect().Among("t.num", nums)
	docs, texts := s.db.Dialect().AmongTexts("doc.hash", named)
	q := sqldb.NewQuery("SELECT t.num, doc.hash FROM twin_document doc JOIN twin_desired t ON t.document = doc.document WHERE "+these, arg).
		Add("AND "+docs, texts)
	found, err := sqldb.Collect(ctx, s.db, func(rows *sql.Rows) (g grant, err error) {
		err = rows.Scan(&g.num, &g.hash)
		return g, err
	}, q.SQL(), q.Args()...)
	granted := make(map[grant]bool, len(found))
	for _, g := range found {
		granted[g] = true
	}
	for _, c := range calls {
		switch {
		case err != nil:
			c.err = fmt.Errorf("read desired document: %w", err)
		case !granted[grant{c.item.num, c.item.hash}]:
			c.err = errNotDesired(c.item.hash)
		default:
			*c.item.body, c.err = s.body(ctx, s.db, c.item.hash)
			if errors.Is(c.err, sql.ErrNoRows) { // swept between the two statements: no longer desired
				c.err = errNotDesired(c.item.hash)
			}
		}
	}
}

func errNotDesired(hash wire.Hash) error {
	return fault.New(fault.NotFound, "the desired state of this device has no document %s", hash)
}
