package device

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func TestSelectorMatches(t *testing.T) {
	berlin := map[string]string{"site": "berlin", "ring": "canary", "gpu": ""}
	tests := []struct {
		selector string
		labels   map[string]string
		want     bool
	}{
		{"", nil, true},
		{"", berlin, true},
		{"site=berlin", berlin, true},
		{"site == berlin", berlin, true},
		{"site=paris", berlin, false},
		{"site=berlin", nil, false},
		{"site!=paris", berlin, true},
		{"site!=berlin", berlin, false},
		{"tier!=lab", berlin, true}, // without the key: matches, as in Kubernetes
		{"ring in (canary, early)", berlin, true},
		{"ring in (early)", berlin, false},
		{"ring notin (early, late)", berlin, true},
		{"ring notin (canary)", berlin, false},
		{"arch notin (mips)", berlin, true},
		{"gpu", berlin, true},
		{"gpu=", berlin, true},
		{"!gpu", berlin, false},
		{"!legacy", berlin, true},
		{"legacy", berlin, false},
		{"site=berlin, ring=canary, !legacy", berlin, true},
		{"site=berlin, ring=early", berlin, false},
		{"example.com/site=x", map[string]string{"example.com/site": "x"}, true},
	}
	for _, tt := range tests {
		sel, err := ParseSelector(tt.selector)
		if err != nil {
			t.Errorf("%q: %v", tt.selector, err)
			continue
		}
		if got := sel.Matches(tt.labels); got != tt.want {
			t.Errorf("%q on %v: %v", tt.selector, tt.labels, got)
		}
	}
}

func TestSelectorIsWrittenInOneForm(t *testing.T) {
	for in, want := range map[string]string{
		" site = berlin ":            "site=berlin",
		"site==berlin,ring!=x":       "site=berlin,ring!=x",
		"a in (z, b,b)":              "a in (b,z)",
		"a in (b)":                   "a=b",
		"a notin(b,c) , !d,e":        "a notin (b,c),!d,e",
		"in in (notin)":              "in=notin",
		"a=":                         "a=",
		"example.com/a\n in\t(b, c)": "example.com/a in (b,c)",
	} {
		sel, err := ParseSelector(in)
		if err != nil || sel.String() != want {
			t.Errorf("%q: %q, %v; want %q", in, sel, err, want)
		}
	}
}

func TestWrongSelectorsAreRefusedWithTheirPlace(t *testing.T) {
	for in, want := range map[string]string{
		"site=berlin,":                 "nothing after the last comma",
		",site":                        `label key ""`,
		"=x":                           `label key ""`,
		"a b":                          "want =, !=, in or notin",
		"a in b":                       "want (",
		"a in (b":                      "want , or )",
		"a in (b c)":                   "want , or )",
		"a=b c":                        "want a comma",
		"a=ü":                          "letters, digits",
		"-a":                           "label key",
		"!a=b":                         "want a comma",
		"a'; DROP TABLE x --":          "label key",
		strings.Repeat("a", 2049):      "at most 2048",
		strings.Repeat("a,", 40) + "a": "more than 32 requirements",
		"a=" + strings.Repeat("v", 64): "at most 63",
		strings.Repeat("k", 64) + "=v": "label key",
		"a in(" + pad(2042) + ")":      "at most 2048",
	} {
		if _, err := ParseSelector(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want it to say %q", in, err, want)
		}
	}
}

// pad returns a list of different values of n bytes.
func pad(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n-20; i++ {
		fmt.Fprintf(&b, "v%d,", i)
	}
	return b.String() + strings.Repeat("x", n-b.Len())
}

func TestMustSelectorPanicsOnAWrongText(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Fatal("no panic")
		}
	}()
	MustSelector("a in")
}

func TestSelectorTranslatesToSQLWithItsArgumentsInOrder(t *testing.T) {
	cond, args := MustSelector("a=1,!b,c in (2,3),d").Where("labels", "d.num")
	if n := strings.Count(cond, "?"); n != len(args) {
		t.Fatalf("%d placeholders, %d arguments", n, len(args))
	}
	if want := []any{"a", "1", "b", "c", "2", "3", "d"}; !reflect.DeepEqual(args, want) {
		t.Fatalf("arguments %v, want %v", args, want)
	}
	if cond, args = (Selector{}).Where("labels", "d.num"); cond != "TRUE" || args != nil {
		t.Fatalf("empty selector: %q %v", cond, args)
	}
}

func TestAnchorsAreTheRequirementsThatNeedALabel(t *testing.T) {
	got := MustSelector("a=1,!b,c notin (x),d in (2,3),e").Anchors()
	want := []Anchor{{"a", []string{"1"}}, {"d", []string{"2", "3"}}, {Key: "e"}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("anchors %v, want %v", got, want)
	}
}

func TestJoinedSelectorsNeedBoth(t *testing.T) {
	both := MustSelector("a=1").And(MustSelector("b"))
	if both.Matches(map[string]string{"a": "1"}) || !both.Matches(map[string]string{"a": "1", "b": ""}) {
		t.Fatalf("%s matches wrongly", both)
	}
}

func TestSelectorStandsInJSONAsItsText(t *testing.T) {
	var sel Selector
	if err := sel.UnmarshalText([]byte("a in (b,c)")); err != nil {
		t.Fatal(err)
	}
	if text, err := sel.MarshalText(); err != nil || string(text) != "a in (b,c)" {
		t.Fatalf("%s, %v", text, err)
	}
	if err := sel.UnmarshalText([]byte("a in")); err == nil {
		t.Fatal("a wrong text was accepted")
	}
}

func FuzzParseSelector(f *testing.F) {
	for _, s := range []string{"", "a=b", "a in (b,c),!d", "x/y notin (,z)", "a!=", "in in (in)", "a=b,,", "(", "!\x00"} {
		f.Add(s, "a", "b")
	}
	f.Fuzz(func(t *testing.T, text, key, value string) {
		sel, err := ParseSelector(text)
		if err != nil {
			return
		}
		again, err := ParseSelector(sel.String())
		if err != nil || !reflect.DeepEqual(sel, again) {
			t.Fatalf("%q is written as %q, which parses to %#v, %v", text, sel, again, err)
		}
		labels := map[string]string{key: value}
		if sel.Matches(labels) != again.Matches(labels) {
			t.Fatalf("%q and %q disagree on %v", text, sel, labels)
		}
		if cond, args := sel.Where("l", "n"); strings.Count(cond, "?") != len(args) {
			t.Fatalf("%q: %d arguments for %q", text, len(args), cond)
		}
	})
}
