package monitoring

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"steward/internal/device"
	"steward/internal/fault"
	"steward/internal/httpapi"
	"steward/internal/sqldb"
	"steward/internal/wire"
)

// Severity of what a device says that has happened.
type Severity int

// The severities, kept in the database by number.
const (
	Info Severity = iota
	Warning
	Error
)

var severityNames = [...]string{"info", "warning", "error"}

func (s Severity) String() string {
	if s < 0 || int(s) >= len(severityNames) {
		return severityNames[0]
	}
	return severityNames[s]
}

// MarshalText writes the severity by its name.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads the form that MarshalText writes; with it the API describes a severity as text.
func (s *Severity) UnmarshalText(text []byte) (err error) {
	*s, err = parseSeverity("severity", string(text))
	return err
}

func parseSeverity(where, name string) (Severity, error) {
	for s, n := range severityNames {
		if n == name {
			return Severity(s), nil
		}
	}
	return Info, fault.Bad(where, "want info, warning or error, not %.40q", name)
}

// DeviceEvent is something that a device says has happened on it.
type DeviceEvent struct {
	Device     device.ID       `json:"device"`
	Number     int64           `json:"number" doc:"Counts this device's events"`
	At         time.Time       `json:"at" doc:"When it arrived"`
	Name       string          `json:"name"`
	Severity   Severity        `json:"severity" enum:"info,warning,error"`
	Text       string          `json:"text,omitempty"`
	Data       json.RawMessage `json:"data,omitempty"`
	DeviceTime time.Time       `json:"device_time,omitzero" doc:"The device's clock when it happened"`

	num int64
}

// Bounds of events.
const (
	MaxEvents      = 1000                // kept of one device; older ones go
	KeepEvents     = 30 * 24 * time.Hour // and none longer
	maxEventText   = 1 << 10             // bytes
	maxEventData   = 8 << 10             // bytes
	eventBurst     = 60                  // of one device at once
	eventPerSecond = 0.2                 // and on average: 12 a minute
)

var eventNamePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// newEvent checks what a device sent and brings it into the form in which it is kept.
func newEvent(e wire.DeviceEvent) (DeviceEvent, error) {
	bad := &fault.Invalid{}
	out := DeviceEvent{Name: e.Name, Text: cleanText(e.Text)}
	if !eventNamePattern.MatchString(e.Name) {
		bad.Add("name", "want 1 to 64 letters, digits or . _ -, beginning with a letter or digit")
	}
	if e.Severity != "" {
		var err error
		if out.Severity, err = parseSeverity("severity", e.Severity); err != nil {
			bad.Add("severity", "want info, warning or error, not %.40q", e.Severity)
		}
	}
	if len(e.Text) > maxEventText {
		bad.Add("text", "%d bytes: at most %d", len(e.Text), maxEventText)
	}
	var data bytes.Buffer
	switch err := json.Compact(&data, e.Data); {
	case len(e.Data) == 0:
	case err != nil:
		bad.Add("data", "want a JSON value: %s", err)
	case data.Len() > maxEventData:
		bad.Add("data", "%d bytes: at most %d", data.Len(), maxEventData)
	case data.String() != "null":
		out.Data = bytes.ToValidUTF8(data.Bytes(), []byte("\uFFFD"))
	}
	if e.Time.After(minTime) && e.Time.Before(maxTime) {
		out.DeviceTime = e.Time.UTC().Truncate(time.Microsecond)
	}
	return out, bad.OrNil()
}

// cleanText replaces what PostgreSQL refuses in a text: NUL and bytes that are not UTF-8.
func cleanText(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

// digest tells an event with a time from all others of its device. One without a time can't be told from
// its repetition.
func (e DeviceEvent) digest() string {
	if e.DeviceTime.IsZero() {
		return ""
	}
	h := sha256.New()
	for _, part := range []string{e.Name, e.Severity.String(), e.Text, string(e.Data), strconv.FormatInt(e.DeviceTime.UnixMicro(), 10)} {
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil)[:12])
}

// Event stores what a device says has happened; it returns after the commit. An event with a time may be
// sent again: it is stored once. It returns fault.Invalid, and fault.TooMany to a device that talks too
// much, with the time after which it may go on.
func (s *Service) Event(ctx context.Context, d device.Device, in wire.DeviceEvent) error {
	e, err := newEvent(in)
	if err != nil {
		return err
	}
	if wait, ok := s.events.Take(strconv.FormatInt(d.Num, 10)); !ok {
		refused := fault.Later(fault.TooMany, "", wait, "more than %d events in a row, or %d a minute: wait %s", eventBurst, int(eventPerSecond*60), wait.Round(time.Second))
		return &httpapi.Later{Err: refused, After: wait}
	}
	s.clockOf(d, e.DeviceTime)
	s.seen(d)
	e.Device, e.num, e.At = d.ID, d.Num, s.now().UTC().Truncate(time.Microsecond)
	err = s.cfg.DB.Write(ctx, func(tx *sqldb.Tx) error { return insertEvent(ctx, tx, d.Tenant, e) })
	if err != nil {
		return fmt.Errorf("event of %s: %w", d.ID, err)
	}
	return nil
}

// EventFilter picks events for a list; what is empty picks all.
type EventFilter struct {
	Device   string   // ID
	Name     string   // exactly
	Least    Severity // this severity or a worse one
	From, To time.Time
	Limit    int // 1 to 1000
	Cursor   string
}

// eventPosition is where a page of a list ends.
type eventPosition struct {
	At, Num, Nr int64
}

// Events returns a page of events of the devices in the scope, newest first, and the cursor of the next.
func (s *Service) Events(ctx context.Context, scope device.Scope, f EventFilter) (list []DeviceEvent, next string, err error) {
	var after eventPosition
	if err := httpapi.DecodeCursor(f.Cursor, &after); err != nil {
		return nil, "", err
	}
	q := sqldb.NewQuery("SELECT " + eventColumns + " FROM monitoring_event e WHERE")
	order := "ORDER BY e.at DESC, e.num DESC, e.nr DESC"
	if f.Device != "" {
		d, err := s.findIn(ctx, scope, f.Device)
		if err != nil {
			return nil, "", err
		}
		q.Add("e.num = ?", d.Num)
		order = "ORDER BY e.nr DESC" // a device's numbers grow with time
		if f.Cursor != "" {
			q.Add("AND e.nr < ?", after.Nr)
		}
	} else {
		q.Add("e.tenant = ?", string(scope.Tenant))
		if !scope.Selector.Empty() {
			nums, args := s.cfg.Devices.Matching(scope, device.Selector{}, nil)
			q.Add("AND e.num IN ("+nums+")", args...)
		}
		if f.Cursor != "" {
			q.Add("AND (e.at, e.num, e.nr) < (?, ?, ?)", after.At, after.Num, after.Nr)
		}
	}
	f.narrow(q)
	f.Limit = min(max(f.Limit, 1), 1000)
	q.Add(order+" LIMIT ?", f.Limit+1)
	if list, err = scanEvents(s.cfg.DB.QueryContext(ctx, q.SQL(), q.Args()...)); err != nil {
		return nil, "", fmt.Errorf("list events: %w", err)
	}
	if len(list) > f.Limit {
		list = list[:f.Limit]
		last := list[f.Limit-1]
		next = httpapi.EncodeCursor(eventPosition{sqldb.Micros(last.At), last.num, last.Number})
	}
	return list, next, nil
}

// narrow adds what a filter says beside whose events. The severity is written as a number, since SQLite
// takes a partial index only for what it reads in the query.
func (f EventFilter) narrow(q *sqldb.Builder) {
	switch f.Least {
	case Warning:
		q.Add("AND e.severity > 0")
	case Error:
		q.Add("AND e.severity > 1")
	}
	if f.Name != "" {
		q.Add("AND e.name = ?", f.Name)
	}
	if !f.From.IsZero() {
		q.Add("AND e.at >= ?", sqldb.Micros(f.From))
	}
	if !f.To.IsZero() {
		q.Add("AND e.at < ?", sqldb.Micros(f.To))
	}
}
