package purchase

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"steward/internal/device"
	"steward/internal/fault"
)

// Bounds of a delivery file.
const (
	MaxFileBytes = 16 << 20
	MaxFileRows  = 100_000
	maxProblems  = 100 // how many wrong cells are named before reading stops
	maxCellBytes = 500
)

// Row is one delivered unit as the supplier's file names it.
type Row struct {
	FileLine int    `json:"file_line"` // line of the file, the header is 1
	Serial   string `json:"serial"`
	Model    string `json:"model"`          // model ID or part number, as written
	Line     int    `json:"line,omitempty"` // order line; 0 when the file names none
	MAC      string `json:"mac,omitempty"`
	Note     string `json:"note,omitempty"`
}

// File is a delivery file that was read without a problem.
type File struct {
	SHA256 string // of the file's bytes, hex: the same file is booked once
	Rows   []Row

	lineColumn int // number of the column "line"; 0 when the file has none
}

// columns of a delivery file; serial and model are required.
var columns = []string{"serial", "model", "line", "mac", "note"}

var utf8BOM = []byte{0xef, 0xbb, 0xbf}

// ReadFile reads a delivery file: CSV as of RFC 4180 in UTF-8, with or without byte order mark, with
// a header that names at least serial and model, in any order. It returns fault.TooLarge, or an
// *fault.Invalid that names line and column of up to 100 wrong cells. The column is the number of the
// cell in its line, from 1.
func ReadFile(r io.Reader) (File, error) {
	sum := sha256.New()
	bounded := &io.LimitedReader{R: r, N: MaxFileBytes + 1}
	buf := bufio.NewReader(io.TeeReader(bounded, sum))
	if head, _ := buf.Peek(len(utf8BOM)); bytes.Equal(head, utf8BOM) {
		_, _ = buf.Discard(len(utf8BOM))
	}
	p := fileReader{csv: csv.NewReader(buf)}
	p.csv.FieldsPerRecord = -1 // counted here, so that the problem names the line
	p.csv.ReuseRecord = true
	err := p.read()
	if bounded.N <= 0 {
		return File{}, fault.New(fault.TooLarge, "the delivery file has more than %d MiB", MaxFileBytes>>20)
	}
	if err != nil {
		return File{}, err
	}
	if err := p.bad.OrNil(); err != nil {
		return File{}, err
	}
	return File{SHA256: hex.EncodeToString(sum.Sum(nil)), Rows: p.rows, lineColumn: p.column("line")}, nil
}

type fileReader struct {
	csv   *csv.Reader
	place map[string]int // column name → cell index
	width int
	rows  []Row
	bad   fault.Invalid
}

func (p *fileReader) problem(line, column int, format string, args ...any) {
	p.bad.Add(fmt.Sprintf("line %d, column %d", line, column), format, args...)
}

func (p *fileReader) read() error {
	header, err := p.csv.Read()
	switch {
	case errors.Is(err, io.EOF):
		return fault.Bad("line 1, column 1", "the file is empty: the first line names the columns, e.g. serial,model")
	case err != nil:
		return p.broken(header, err)
	}
	if p.header(header); len(p.bad.Fields) > 0 {
		return nil
	}
	for len(p.bad.Fields) < maxProblems {
		record, err := p.csv.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if err := p.broken(record, err); err != nil {
				return err
			}
			continue // the reader goes on with the next line
		}
		if len(p.rows) == MaxFileRows {
			return fault.New(fault.TooLarge, "the delivery file has more than %d rows: split it", MaxFileRows)
		}
		p.row(record)
	}
	if len(p.rows) == 0 && len(p.bad.Fields) == 0 {
		p.problem(2, 1, "there is no row below the header")
	}
	return nil
}

// broken notes a quoting mistake; any other error is the source's own.
func (p *fileReader) broken(record []string, err error) error {
	var parse *csv.ParseError
	if !errors.As(err, &parse) {
		return fmt.Errorf("read delivery file: %w", err)
	}
	// What was read of the record before the mistake tells the number of the cell.
	p.problem(parse.StartLine, len(record)+1, "%v; a quote inside a quoted cell is written twice", parse.Err)
	return nil
}

// column returns the number of a column, or 0.
func (p *fileReader) column(name string) int {
	if i, ok := p.place[name]; ok {
		return i + 1
	}
	return 0
}

func (p *fileReader) header(cells []string) {
	p.place = map[string]int{}
	p.width = len(cells)
	if len(cells) == 1 && strings.ContainsAny(cells[0], ";\t") {
		p.problem(1, 1, "the columns are not separated by commas: save the file as comma-separated CSV")
		return
	}
	for i, cell := range cells {
		name := strings.ToLower(strings.TrimSpace(cell))
		if _, twice := p.place[name]; twice {
			p.problem(1, i+1, "column %q is named twice", name)
			continue
		}
		if !slices.Contains(columns, name) {
			p.problem(1, i+1, "unknown column %.60q: the columns are %s", cell, strings.Join(columns, ", "))
			continue
		}
		p.place[name] = i
	}
	for _, name := range columns[:2] {
		if _, ok := p.place[name]; !ok {
			p.problem(1, len(cells)+1, "column %s is missing", name)
		}
	}
}

func (p *fileReader) row(record []string) {
	line, _ := p.csv.FieldPos(0)
	if len(record) != p.width {
		p.problem(line, min(len(record), p.width)+1, "the line has %d cells, the header %d", len(record), p.width)
		return
	}
	row := Row{FileLine: line}
	before := len(p.bad.Fields)
	p.cell(record, line, "serial", func(s string) (err error) {
		row.Serial, err = device.ParseSerial(s)
		return err
	})
	p.cell(record, line, "model", func(s string) error {
		row.Model = s
		if s == "" {
			return errors.New("the model is missing")
		}
		return nil
	})
	p.cell(record, line, "line", func(s string) (err error) {
		if s == "" {
			return nil
		}
		if row.Line, err = strconv.Atoi(s); err != nil || row.Line < 1 || row.Line > MaxLines {
			return fmt.Errorf("%.20q is no order line: want a number from 1", s)
		}
		return nil
	})
	p.cell(record, line, "mac", func(s string) (err error) {
		row.MAC, err = parseMAC(s)
		return err
	})
	p.cell(record, line, "note", func(s string) error {
		row.Note = s
		return nil
	})
	if len(p.bad.Fields) == before {
		p.rows = append(p.rows, row)
	}
}

// cell hands a column's trimmed text to set and notes its error with line and column.
func (p *fileReader) cell(record []string, line int, name string, set func(string) error) {
	i, ok := p.place[name]
	if !ok {
		return
	}
	s := strings.TrimSpace(record[i])
	switch {
	case !utf8.ValidString(s):
		p.problem(line, i+1, "%s is not valid UTF-8: save the file as UTF-8", name)
	case len(s) > maxCellBytes:
		p.problem(line, i+1, "%s has %d bytes: at most %d", name, len(s), maxCellBytes)
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\n' && r != '\r' && r != '\t' }):
		p.problem(line, i+1, "%s has control characters", name)
	default:
		if err := set(strings.Clone(s)); err != nil {
			p.problem(line, i+1, "%v", err)
		}
	}
}

// parseMAC reads a hardware address (EUI-48 or EUI-64) into lower case with colons; empty stays empty.
func parseMAC(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) > 8 {
		return "", fmt.Errorf("%.30q is no hardware address: write it as 00:11:22:33:44:55", s)
	}
	return mac.String(), nil
}
