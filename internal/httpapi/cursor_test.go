package httpapi_test

import (
	"encoding/base64"
	"errors"
	"testing"

	"steward/internal/fault"
	"steward/internal/httpapi"
)

type position struct {
	Name string `json:"n"`
	Num  int64  `json:"i"`
}

func TestCursorComesBackAsItWas(t *testing.T) {
	want := position{"Straße 7 🛰", 1 << 60}
	var got position
	if err := httpapi.DecodeCursor(httpapi.EncodeCursor(want), &got); err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := httpapi.DecodeCursor(httpapi.EncodeCursor(&want), &got); err != nil || got != want {
		t.Errorf("by pointer: got %+v, %v", got, err)
	}
	if err := httpapi.DecodeCursor("", &got); err != nil || got != want {
		t.Errorf("the empty cursor changed the position: %+v, %v", got, err)
	}
}

func TestTamperedCursorIsRefused(t *testing.T) {
	good := httpapi.EncodeCursor(position{"a", 1})
	raw, err := base64.RawURLEncoding.DecodeString(good)
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		bad := append([]byte{}, raw...)
		bad[i] ^= 1
		var p position
		if err := httpapi.DecodeCursor(base64.RawURLEncoding.EncodeToString(bad), &p); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
	var other struct{ Name string }
	for _, bad := range []string{"x", "====", good + "A", good[:len(good)-2], " " + good} {
		var p position
		if err := httpapi.DecodeCursor(bad, &p); !errors.Is(err, fault.Unprocessable) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := httpapi.DecodeCursor(good, &other); !errors.Is(err, fault.Unprocessable) {
		t.Errorf("another list's cursor: %v", err)
	}
}

func FuzzDecodeCursor(f *testing.F) {
	f.Add("")
	f.Add("AQ")
	f.Add(httpapi.EncodeCursor(position{"a", 1}))
	f.Fuzz(func(t *testing.T, cursor string) {
		var p position
		err := httpapi.DecodeCursor(cursor, &p)
		if err != nil && !errors.Is(err, fault.Unprocessable) {
			t.Fatalf("%q: %v is not the caller's fault", cursor, err)
		}
		if err == nil && cursor != "" && httpapi.EncodeCursor(p) != cursor {
			t.Fatalf("%q was accepted, but is no cursor that we write", cursor)
		}
	})
}

func FuzzCheckMatch(f *testing.F) {
	f.Add(`"1", W/"2"`)
	f.Add("*")
	f.Fuzz(func(t *testing.T, header string) {
		err := httpapi.CheckMatch(header, 1)
		if err != nil && !errors.Is(err, fault.Precondition) && !errors.Is(err, fault.Unprocessable) {
			t.Fatalf("%q: %v", header, err)
		}
		httpapi.NotModified(header, httpapi.ETag(1))
	})
}
