package move

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func TestValuesBecomeWhatTheTargetTakes(t *testing.T) {
	for _, c := range []struct {
		in   any
		kind kind
		want any
		fail string
	}{
		{nil, integer, nil, ""},
		{int64(7), integer, int64(7), ""},
		{int64(7), float, 7.0, ""},
		{1.5, float, 1.5, ""},
		{"é", text, "é", ""},
		{[]byte("é"), text, "é", ""},
		{"abc", bytea, []byte("abc"), ""},
		{[]byte{0, 255}, bytea, []byte{0, 255}, ""},
		{"7", integer, nil, "should hold a number"},
		{int64(7), text, nil, "does not fit"},
		{1.5, integer, nil, "does not fit"},
		{"a\x00b", text, nil, "NUL"},
		{"\xff", text, nil, "UTF-8"},
	} {
		got, err := convert(c.in, c.kind)
		if c.fail == "" && (err != nil || !reflect.DeepEqual(got, c.want)) {
			t.Errorf("%#v: got %#v, %v", c.in, got, err)
		}
		if c.fail != "" && (err == nil || !strings.Contains(err.Error(), c.fail)) {
			t.Errorf("%#v: want a refusal with %q, got %v", c.in, c.fail, err)
		}
	}
}

func TestDigestSeesEveryDifferenceButOrder(t *testing.T) {
	sum := func(rows ...[]any) (d digest) {
		for _, r := range rows {
			if err := d.add(r); err != nil {
				t.Fatal(err)
			}
		}
		return d
	}
	a, b := []any{int64(1), "x", []byte{1}, nil}, []any{int64(2), "y", []byte{2}, 1.5}
	if sum(a, b) != sum(b, a) {
		t.Error("the order counts")
	}
	base := sum(a)
	for _, other := range [][]any{
		{int64(2), "x", []byte{1}, nil}, {int64(1), "xx", []byte{1}, nil}, {int64(1), "x", []byte{}, nil}, {int64(1), "x", nil, nil},
		{int64(1), []byte("x"), []byte{1}, nil}, {int64(1), "x", []byte{1}, ""}, {int64(1), "x\x01", []byte{}, nil},
	} {
		if sum(other) == base {
			t.Errorf("%v has the same sum", other)
		}
	}
	if sum(a, a) == base || sum() == base {
		t.Error("the number of rows does not count")
	}
	if err := (&digest{}).add([]any{bytes.Buffer{}}); err == nil {
		t.Error("an unknown type is taken")
	}
}
