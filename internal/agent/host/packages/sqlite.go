package packages

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"steward/internal/wire"
)

// A reader of one table of an SQLite file, as far as rpmdb.sqlite needs it: table b-trees with overflow
// pages (https://www.sqlite.org/fileformat2.html), and committed frames of a write-ahead log that was
// not checkpointed. A driver would add five times the agent's size.

var errSQLite = errors.New("broken SQLite file")

// Limits of a walk: a loop among pages must end.
const (
	maxDepth = 24
	maxPages = 4 << 20
)

// page types of a table b-tree.
const (
	interiorTable = 5
	leafTable     = 13
)

type sqliteFile struct {
	main     io.ReaderAt
	wal      io.ReaderAt
	frames   map[uint32]int64 // page number → offset of its newest committed image in the log
	pageSize int
	usable   int // page size without the reserved bytes at the end of each page
	visited  int
}

func readRPMSQLite(path string) ([]wire.Package, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // nothing was written
	var wal io.ReaderAt
	if w, err := os.Open(path + "-wal"); err == nil {
		defer func() { _ = w.Close() }()
		wal = w
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return parseRPMSQLite(f, wal)
}

func parseRPMSQLite(main, wal io.ReaderAt) ([]wire.Package, error) {
	db, err := openSQLite(main, wal)
	if err != nil {
		return nil, err
	}
	root, err := db.rootOf("Packages")
	if err != nil {
		return nil, err
	}
	var c collector
	// CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)
	err = db.walk(root, 0, func(columns []column) error {
		if len(columns) < 2 || columns[1].kind != blobColumn {
			return errSQLite
		}
		return c.add(columns[1].bytes)
	})
	if err != nil {
		return c.pkgs, err
	}
	return c.pkgs, c.err
}

func openSQLite(main, wal io.ReaderAt) (*sqliteFile, error) {
	head := make([]byte, 100)
	if _, err := main.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("SQLite header: %w", err)
	}
	if string(head[:16]) != "SQLite format 3\x00" {
		return nil, errors.New("not an SQLite file")
	}
	size := int(binary.BigEndian.Uint16(head[16:]))
	if size == 1 {
		size = 65536
	}
	usable := size - int(head[20])
	if size < 512 || size&(size-1) != 0 || usable < 480 {
		return nil, errSQLite
	}
	db := &sqliteFile{main: main, wal: wal, pageSize: size, usable: usable}
	if wal != nil {
		db.frames = walFrames(wal, size)
	}
	return db, nil
}

// walFrames finds each page's newest image that a commit covers. It ends at the first frame of another
// generation or with a wrong checksum, as SQLite does after a crash.
func walFrames(wal io.ReaderAt, pageSize int) map[uint32]int64 {
	head := make([]byte, 32)
	if _, err := wal.ReadAt(head, 0); err != nil {
		return nil
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch binary.BigEndian.Uint32(head) {
	case 0x377f0682:
	case 0x377f0683:
		order = binary.BigEndian
	default:
		return nil
	}
	sum := walSum{order: order}
	sum.add(head[:24])
	if !sum.equals(head[24:32]) || int(binary.BigEndian.Uint32(head[8:])) != pageSize {
		return nil
	}
	committed, pending := map[uint32]int64{}, map[uint32]int64{}
	frame := make([]byte, 24+pageSize)
	for offset := int64(32); ; offset += int64(len(frame)) {
		if _, err := wal.ReadAt(frame, offset); err != nil {
			return committed
		}
		if string(frame[8:16]) != string(head[16:24]) {
			return committed
		}
		sum.add(frame[:8])
		sum.add(frame[24:])
		if !sum.equals(frame[16:24]) {
			return committed
		}
		pending[binary.BigEndian.Uint32(frame)] = offset + 24
		if binary.BigEndian.Uint32(frame[4:]) != 0 { // a commit
			for page, at := range pending {
				committed[page] = at
			}
			clear(pending)
		}
	}
}

// walSum is the log's running checksum.
type walSum struct {
	order  binary.ByteOrder
	s0, s1 uint32
}

func (w *walSum) add(data []byte) {
	for i := 0; i+8 <= len(data); i += 8 {
		w.s0 += w.order.Uint32(data[i:]) + w.s1
		w.s1 += w.order.Uint32(data[i+4:]) + w.s0
	}
}

func (w *walSum) equals(stored []byte) bool {
	return binary.BigEndian.Uint32(stored) == w.s0 && binary.BigEndian.Uint32(stored[4:]) == w.s1
}

func (db *sqliteFile) page(number uint32) ([]byte, error) {
	db.visited++
	if number == 0 || db.visited > maxPages {
		return nil, errSQLite
	}
	page := make([]byte, db.pageSize)
	if at, has := db.frames[number]; has {
		_, err := db.wal.ReadAt(page, at)
		return page, err
	}
	if _, err := db.main.ReadAt(page, int64(number-1)*int64(db.pageSize)); err != nil {
		return nil, fmt.Errorf("page %d: %w", number, err)
	}
	return page, nil
}

// rootOf finds the table's first page in sqlite_schema (type, name, tbl_name, rootpage, sql).
func (db *sqliteFile) rootOf(table string) (uint32, error) {
	var root uint32
	err := db.walk(1, 0, func(c []column) error {
		if len(c) >= 4 && string(c[0].bytes) == "table" && string(c[1].bytes) == table {
			root = uint32(c[3].number)
		}
		return nil
	})
	if err == nil && root == 0 {
		err = fmt.Errorf("no table %s", table)
	}
	return root, err
}

// walk calls each with every row of the b-tree below the page.
func (db *sqliteFile) walk(number uint32, depth int, each func([]column) error) error {
	if depth > maxDepth {
		return errSQLite
	}
	page, err := db.page(number)
	if err != nil {
		return err
	}
	head := 0
	if number == 1 {
		head = 100 // the file's header stands before the first page's
	}
	cells := int(binary.BigEndian.Uint16(page[head+3:]))
	switch page[head] {
	case leafTable:
		return db.leaf(page, head+8, cells, each)
	case interiorTable:
		for i := range cells {
			at, err := cellAt(page, head+12, i)
			if err != nil || at+4 > len(page) {
				return errSQLite
			}
			if err := db.walk(binary.BigEndian.Uint32(page[at:]), depth+1, each); err != nil {
				return err
			}
		}
		return db.walk(binary.BigEndian.Uint32(page[head+8:]), depth+1, each)
	}
	return errSQLite
}

// cellAt returns where cell i begins; its pointer stands in the array at pointers.
func cellAt(page []byte, pointers, i int) (int, error) {
	p := pointers + 2*i
	if p+2 > len(page) {
		return 0, errSQLite
	}
	at := int(binary.BigEndian.Uint16(page[p:]))
	if at >= len(page) {
		return 0, errSQLite
	}
	return at, nil
}

func (db *sqliteFile) leaf(page []byte, pointers, cells int, each func([]column) error) error {
	for i := range cells {
		at, err := cellAt(page, pointers, i)
		if err != nil {
			return err
		}
		payload, err := db.payload(page[:db.usable], at)
		if err != nil {
			return err
		}
		columns, err := parseRecord(payload)
		if err != nil {
			return err
		}
		if err := each(columns); err != nil {
			return err
		}
	}
	return nil
}

// payload gathers a row that may spill to overflow pages (section 1.6 of the format).
func (db *sqliteFile) payload(page []byte, at int) ([]byte, error) {
	if at > len(page) {
		return nil, errSQLite
	}
	size, n := varint(page[at:])
	_, m := varint(page[min(at+n, len(page)):])
	at += n + m
	if n == 0 || m == 0 || size > maxHeaderBytes {
		return nil, errSQLite
	}
	local := db.localBytes(int(size))
	if at+local > len(page) {
		return nil, errSQLite
	}
	out := append([]byte(nil), page[at:at+local]...)
	if local == int(size) {
		return out, nil
	}
	if at+local+4 > len(page) {
		return nil, errSQLite
	}
	next := binary.BigEndian.Uint32(page[at+local:])
	for len(out) < int(size) {
		over, err := db.page(next)
		if err != nil {
			return nil, err
		}
		out = append(out, over[4:4+min(int(size)-len(out), db.usable-4)]...)
		next = binary.BigEndian.Uint32(over)
	}
	return out, nil
}

// localBytes is how much of a payload stands on its leaf page.
func (db *sqliteFile) localBytes(size int) int {
	if size <= db.usable-35 {
		return size
	}
	least := (db.usable-12)*32/255 - 23
	local := least + (size-least)%(db.usable-4)
	if local > db.usable-35 {
		return least
	}
	return local
}

type columnKind int

const (
	otherColumn columnKind = iota
	numberColumn
	textColumn
	blobColumn
)

type column struct {
	kind   columnKind
	number int64
	bytes  []byte
}

// parseRecord splits a row into its columns (section 2.1 of the format).
func parseRecord(payload []byte) ([]column, error) {
	headBytes, n := varint(payload)
	if n == 0 || headBytes > uint64(len(payload)) || headBytes < uint64(n) {
		return nil, errSQLite
	}
	head, body := payload[n:headBytes], payload[headBytes:]
	var columns []column
	for len(head) > 0 {
		serial, n := varint(head)
		if n == 0 {
			return nil, errSQLite
		}
		head = head[n:]
		c, size, err := columnOf(serial, body)
		if err != nil {
			return nil, err
		}
		columns = append(columns, c)
		body = body[size:]
	}
	return columns, nil
}

func columnOf(serial uint64, body []byte) (c column, size int, err error) {
	widths := [...]int{0, 1, 2, 3, 4, 6, 8, 8, 0, 0}
	switch {
	case serial < uint64(len(widths)):
		size = widths[serial]
	case serial < 12 || (serial-12)/2 > maxHeaderBytes:
		return c, 0, errSQLite
	default:
		size = int((serial - 12) / 2)
	}
	if size > len(body) {
		return c, 0, errSQLite
	}
	value := body[:size]
	switch {
	case serial >= 12 && serial%2 == 0:
		return column{kind: blobColumn, bytes: value}, size, nil
	case serial >= 13:
		return column{kind: textColumn, bytes: value}, size, nil
	case serial >= 1 && serial <= 6:
		for i, b := range value {
			if i == 0 {
				c.number = int64(int8(b)) // two's complement, big endian
				continue
			}
			c.number = c.number<<8 | int64(b)
		}
		c.kind = numberColumn
	case serial == 9:
		c = column{kind: numberColumn, number: 1}
	}
	return c, size, nil
}

// varint reads SQLite's variable-length integer and its length; 0 when the bytes end before.
func varint(b []byte) (v uint64, n int) {
	for n < len(b) && n < 8 {
		v = v<<7 | uint64(b[n]&0x7f)
		n++
		if b[n-1] < 0x80 {
			return v, n
		}
	}
	if n == 8 && n < len(b) {
		return v<<8 | uint64(b[n]), 9
	}
	return 0, 0
}
