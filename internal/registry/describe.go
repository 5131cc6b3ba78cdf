package registry

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"steward/internal/device"
	"steward/internal/ledger"
)

// Describe turns this room's events into sentences for people, by kind.
func Describe() map[string]func(ledger.Event) string {
	return map[string]func(ledger.Event) string{
		"device.created":    describeCreated,
		"device.moved":      describeMoved,
		"device.identified": describeIdentified,
		"device.renamed":    describeRenamed,
		"device.labeled":    describeLabeled,
		"device.bulk_begun": ledger.Tell("A change of {devices} devices began: {what}"),
		"device.bulk_ended": ledger.Tell("A change of many devices ended: {what}; {done} done, {refused} refused"),
	}
}

// facts reads an event's data; events of a later version that don't fit give the zero value.
func facts[T any](e ledger.Event) (v T) {
	_ = json.Unmarshal(e.Data, &v)
	return v
}

func stageName(s device.Stage) string { return strings.ReplaceAll(string(s), "_", " ") }

func describeCreated(e ledger.Event) string {
	f := facts[struct{ Serial, Stage string }](e)
	text := "Came into being as " + stageName(device.Stage(f.Stage))
	if device.Stage(f.Stage) == device.Ordered {
		text = "Was ordered"
	}
	if f.Serial != "" {
		text += " with the serial number " + f.Serial
	}
	return text
}

func describeMoved(e ledger.Event) string {
	f := facts[struct{ From, To device.Stage }](e)
	switch f.To { // the usual way needs no word on where it came from
	case device.Received, device.Staged, device.Enrolled, device.Active, device.Disposed:
		if slices.Index(device.Stages, f.From)+1 == slices.Index(device.Stages, f.To) || f.To == device.Disposed {
			return "Moved to " + stageName(f.To)
		}
	}
	return "Moved from " + stageName(f.From) + " to " + stageName(f.To)
}

func describeIdentified(e ledger.Event) string {
	return "Got the serial number " + facts[struct{ Serial string }](e).Serial
}

func describeRenamed(e ledger.Event) string {
	f := facts[struct{ From, To string }](e)
	switch {
	case f.To == "":
		return "Lost the name " + f.From
	case f.From == "":
		return "Is called " + f.To
	}
	return "Is called " + f.To + " instead of " + f.From
}

func describeLabeled(e ledger.Event) string {
	f := facts[struct {
		Set     map[string]string
		Removed []string
	}](e)
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(f.Set)) {
		parts = append(parts, k+"="+f.Set[k])
	}
	for _, k := range f.Removed {
		parts = append(parts, "without "+k)
	}
	return "Labels: " + strings.Join(parts, ", ")
}
