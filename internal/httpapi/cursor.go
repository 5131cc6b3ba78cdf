package httpapi

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"reflect"

	"steward/internal/fault"
)

// A cursor is base64url of: one byte with the version, six bytes of checksum, the room's own position
// as JSON. The checksum covers the position's Go type, so that the cursor of one list is refused by
// another. It catches accidents, not attackers: what a caller may see is decided by their scope alone,
// so a forged cursor shows nothing that a search would not.
const (
	cursorVersion  = 1
	cursorSumBytes = 6
)

// MaxCursorBytes bounds the text of a cursor.
const MaxCursorBytes = 512

// EncodeCursor packs the position after the last item of a page, usually a small struct of the room's
// own. It panics when the position can't be encoded or is too long, which is a mistake in the code.
func EncodeCursor(position any) string {
	body, err := json.Marshal(position)
	if err != nil {
		panic(fmt.Sprintf("httpapi: encode cursor: %v", err))
	}
	raw := append([]byte{cursorVersion}, cursorSum(reflect.TypeOf(position), body)...)
	text := base64.RawURLEncoding.EncodeToString(append(raw, body...))
	if len(text) > MaxCursorBytes {
		panic(fmt.Sprintf("httpapi: cursor of %d bytes", len(text)))
	}
	return text
}

// DecodeCursor reads into position, a pointer to the type that was encoded. The empty cursor leaves
// it as it is. What EncodeCursor did not write for this type is refused with a *fault.Invalid.
func DecodeCursor(cursor string, position any) error {
	if cursor == "" {
		return nil
	}
	refused := fault.Bad("query.cursor", "this cursor is damaged or belongs to another list: start again without it")
	if len(cursor) > MaxCursorBytes {
		return refused
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(raw) < 1+cursorSumBytes || raw[0] != cursorVersion {
		return refused
	}
	sum, body := raw[1:1+cursorSumBytes], raw[1+cursorSumBytes:]
	if subtle.ConstantTimeCompare(sum, cursorSum(reflect.TypeOf(position), body)) != 1 {
		return refused
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(position); err != nil {
		return refused
	}
	if _, err := dec.Token(); err != io.EOF {
		return refused
	}
	return nil
}

func cursorSum(t reflect.Type, body []byte) []byte {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	h := sha256.New()
	fmt.Fprintf(h, "%v\x00", t)
	h.Write(body)
	return h.Sum(nil)[:cursorSumBytes]
}
