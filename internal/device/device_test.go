package device

import (
	"fmt"
	"strings"
	"testing"
)

func TestNewIDsAreWellFormedAndDifferent(t *testing.T) {
	seen := map[ID]bool{}
	for range 1000 {
		id := NewID()
		if _, err := ParseID(string(id)); err != nil || seen[id] {
			t.Fatalf("%s: %v, seen before: %v", id, err, seen[id])
		}
		seen[id] = true
	}
}

func TestWrongFormsOfNamesAreRefused(t *testing.T) {
	tests := []struct {
		what  string
		parse func(string) error
		good  []string
		bad   []string
	}{
		{"device ID", func(s string) error { _, err := ParseID(s); return err },
			[]string{"dev-0k3v9m2xq7ah5ptd"},
			[]string{"", "dev-", "dev-0k3v9m2xq7ah5pt", "dev-0k3v9m2xq7ah5ptdd", "DEV-0k3v9m2xq7ah5ptd", "dev-ik3v9m2xq7ah5ptd", "dev-0k3v9m2xq7ah5ptd\n"}},
		{"serial number", func(s string) error { _, err := ParseSerial(s); return err },
			[]string{"A", " 00:11/22-x+y.z_1 ", strings.Repeat("9", MaxSerialBytes)},
			[]string{"", " ", "-1", "a b", "a\tb", "ä", "a,b", strings.Repeat("9", MaxSerialBytes+1)}},
		{"tenant", func(s string) error { _, err := ParseTenantID(s); return err },
			[]string{"default", "a", "a-1", strings.Repeat("a", 40)},
			[]string{"", "-a", "a-", "A", "a_b", strings.Repeat("a", 41)}},
	}
	for _, tt := range tests {
		for _, s := range tt.good {
			if err := tt.parse(s); err != nil {
				t.Errorf("%s %q: %v", tt.what, s, err)
			}
		}
		for _, s := range tt.bad {
			if tt.parse(s) == nil {
				t.Errorf("%s %q was accepted", tt.what, s)
			}
		}
	}
}

func TestDisplayNameFallsBackToSerialThenID(t *testing.T) {
	d := Device{ID: "dev-1", Serial: "SN1", Name: "pump"}
	for _, want := range []string{"pump", "SN1", "dev-1"} {
		if got := d.DisplayName(); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
		if d.Name != "" {
			d.Name = ""
		} else {
			d.Serial = ""
		}
	}
}

func TestScopeNeedsTenantAndSelector(t *testing.T) {
	scope := Scope{Tenant: "a", Selector: MustSelector("site=x")}
	in := map[string]string{"site": "x"}
	for _, tt := range []struct {
		d    Device
		want bool
	}{
		{Device{Tenant: "a", Labels: in}, true},
		{Device{Tenant: "b", Labels: in}, false},
		{Device{Tenant: "a"}, false},
	} {
		if scope.Allows(tt.d) != tt.want {
			t.Errorf("%+v: %v", tt.d, !tt.want)
		}
	}
}

func TestWrongLabelsAreNamed(t *testing.T) {
	many := map[string]string{}
	for i := range MaxLabels + 1 {
		many[fmt.Sprintf("k%d", i)] = "v"
	}
	tests := []struct {
		labels map[string]string
		want   string // part of the error; empty accepts
	}{
		{nil, ""},
		{map[string]string{"site": "berlin", "example.com/ring": "", "A_b.c-1": "x.y_z-1"}, ""},
		{many, "at most 64"},
		{map[string]string{"": "x"}, `label key ""`},
		{map[string]string{"a b": "x"}, `label key "a b"`},
		{map[string]string{"/a": "x"}, `label key "/a"`},
		{map[string]string{"a/b/c": "x"}, `label key "a/b/c"`},
		{map[string]string{"a": "x y"}, `label a="x y"`},
		{map[string]string{"a": strings.Repeat("x", 64)}, "at most 63"},
		{map[string]string{"a": "x\n"}, "label a="},
	}
	for _, tt := range tests {
		err := CheckLabels(tt.labels)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%.60v: %v, want %q", tt.labels, err, tt.want)
		}
	}
}

func TestLabelsAreWrittenInTheOrderOfTheirKeys(t *testing.T) {
	if got := FormatLabels(map[string]string{"b": "2", "a": "1", "c": ""}); got != "a=1,b=2,c=" {
		t.Fatal(got)
	}
}

func TestParseLabelsReadsWhatPeopleWrite(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "",
		" b=2,a=1\n c  gpu=\r\n": "a=1,b=2,c=,gpu=",
		"example.com/x=y":        "example.com/x=y",
	} {
		got, err := ParseLabels(in)
		if err != nil || FormatLabels(got) != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"a=1,a=2", "=x", "a=b=c", "ä=1"} {
		if got, err := ParseLabels(in); err == nil {
			t.Errorf("%q was read as %v", in, got)
		}
	}
}
