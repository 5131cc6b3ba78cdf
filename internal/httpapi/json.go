package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
)

// formats reads and writes JSON for huma.
func formats() map[string]huma.Format {
	f := huma.Format{
		Marshal: func(w io.Writer, v any) error {
			enc := json.NewEncoder(w)
			enc.SetEscapeHTML(false)
			return enc.Encode(v)
		},
		Unmarshal: unmarshal,
	}
	return map[string]huma.Format{"application/json": f, "json": f}
}

// unmarshal is json.Unmarshal with stricter input and errors that name line and column. huma calls it
// first with a *any, to validate, and then with the input's type; the strictness is in the first.
func unmarshal(data []byte, v any) error {
	if loose, ok := v.(*any); ok {
		if err := checkJSON(data); err != nil {
			return err
		}
		return json.Unmarshal(data, loose)
	}
	err := json.Unmarshal(data, v)
	var wrongType *json.UnmarshalTypeError
	if errors.As(err, &wrongType) {
		return fmt.Errorf("%s: %s does not fit there: want %s", position(data, wrongType.Offset), wrongType.Value, wrongType.Type)
	}
	return err
}

// checkJSON refuses what is not one JSON value (RFC 8259), and what some readers take for one thing
// and others for another: names that stand twice in an object, broken UTF-8, NUL characters (which
// PostgreSQL can't keep).
func checkJSON(data []byte) error {
	if !utf8.Valid(data) {
		return errors.New("the body is not UTF-8")
	}
	var whole json.RawMessage
	if err := json.Unmarshal(data, &whole); err != nil {
		return syntaxError(data, err)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	return checkValue(dec, data, 0)
}

// maxDepth bounds how deep objects and arrays may nest.
const maxDepth = 64

func checkValue(dec *json.Decoder, data []byte, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: nested more than %d deep", position(data, dec.InputOffset()), maxDepth)
	}
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	switch tok {
	case json.Delim('{'):
		return checkObject(dec, data, depth)
	case json.Delim('['):
		for dec.More() {
			if err := checkValue(dec, data, depth+1); err != nil {
				return err
			}
		}
		_, err := dec.Token()
		return err
	}
	return checkString(dec, data, tok)
}

func checkObject(dec *json.Decoder, data []byte, depth int) error {
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return err
		}
		if err := checkString(dec, data, tok); err != nil {
			return err
		}
		name, _ := tok.(string)
		if seen[name] {
			return fmt.Errorf("%s: %q stands twice in the same object", position(data, dec.InputOffset()), shorten(name, maxValueBytes))
		}
		seen[name] = true
		if err := checkValue(dec, data, depth+1); err != nil {
			return err
		}
	}
	_, err := dec.Token()
	return err
}

func checkString(dec *json.Decoder, data []byte, tok json.Token) error {
	if s, ok := tok.(string); ok && strings.ContainsRune(s, 0) {
		return fmt.Errorf("%s: a NUL character in a text", position(data, dec.InputOffset()))
	}
	return nil
}

// syntaxError says in words where the syntax breaks.
func syntaxError(data []byte, err error) error {
	var syntax *json.SyntaxError
	switch {
	case !errors.As(err, &syntax):
		return err
	case syntax.Offset >= int64(len(data)) && strings.Contains(syntax.Error(), "unexpected end"):
		return fmt.Errorf("%s: the JSON ends too early", position(data, syntax.Offset))
	}
	return fmt.Errorf("%s: %s", position(data, syntax.Offset), syntax)
}

// position writes an offset as people count; the column counts characters, from 1.
func position(data []byte, offset int64) string {
	before := data[:min(max(offset, 0), int64(len(data)))]
	line := bytes.Count(before, []byte{'\n'}) + 1
	column := utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:])
	return fmt.Sprintf("line %d, column %d", line, max(column, 1))
}
