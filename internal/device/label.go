package device

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Limits of labels. A key has the form of Kubernetes' label keys: an optional DNS prefix and a slash,
// then a name of up to 63 characters.
const (
	MaxLabels          = 64
	MaxLabelValueBytes = 63
)

var (
	labelKeyPattern   = regexp.MustCompile(`^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	labelValuePattern = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$`)
)

// CheckLabels returns an error that names the first key or value of the wrong form.
func CheckLabels(labels map[string]string) error {
	if len(labels) > MaxLabels {
		return fmt.Errorf("%d labels: at most %d", len(labels), MaxLabels)
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		if err := checkLabelKey(k); err != nil {
			return err
		}
		if err := checkLabelValue(k, labels[k]); err != nil {
			return err
		}
	}
	return nil
}

func checkLabelKey(k string) error {
	if !labelKeyPattern.MatchString(k) {
		return fmt.Errorf("label key %q: use [prefix/]name with letters, digits, dots, dashes and underscores", k)
	}
	return nil
}

func checkLabelValue(k, v string) error {
	if !labelValuePattern.MatchString(v) {
		return fmt.Errorf("label %s=%q: the value has at most %d letters, digits, dots, dashes and underscores", k, v, MaxLabelValueBytes)
	}
	return nil
}

// ParseLabels reads labels as people write them: "a=1, b=2", separated by commas, blanks or lines. A
// word without "=" is a label with an empty value. It reads what FormatLabels writes.
func ParseLabels(text string) (map[string]string, error) {
	labels := map[string]string{}
	words := strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' || r == '\r' })
	for _, word := range words {
		k, v, _ := strings.Cut(word, "=")
		if _, twice := labels[k]; twice {
			return nil, fmt.Errorf("label %s is named twice", k)
		}
		labels[k] = v
	}
	return labels, CheckLabels(labels)
}

// FormatLabels writes labels as "a=1,b=2" in the order of their keys.
func FormatLabels(labels map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, k+"="+labels[k])
	}
	return strings.Join(parts, ",")
}
