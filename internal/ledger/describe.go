package ledger

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Sentence tells an event to people: by the room's own function (Config.Describe), else by its kind
// and, where the facts have them, from and to: "Device moved from active to retired".
func (l *Ledger) Sentence(e Event) string {
	if describe := l.cfg.Describe[e.Kind]; describe != nil {
		if s := describe(e); s != "" {
			return s
		}
	}
	words := strings.ReplaceAll(strings.ReplaceAll(e.Kind, ".", " "), "_", " ")
	sentence := strings.ToUpper(words[:1]) + words[1:]
	facts := factsOf(e)
	if from, to := facts["from"], facts["to"]; from != "" && to != "" {
		return sentence + " from " + from + " to " + to
	}
	return sentence
}

// Tell makes a room's function for Config.Describe of a sentence with names of facts in braces:
// "{release} {version} was rolled back". {subject} is the event's. A time is written as its day. An event
// that lacks one of the facts, since another version wrote it, gives "", and Sentence makes its own.
func Tell(sentence string) func(Event) string {
	return func(e Event) string {
		facts := factsOf(e)
		var b strings.Builder
		rest := sentence
		for {
			before, after, found := strings.Cut(rest, "{")
			b.WriteString(before)
			if !found {
				return b.String()
			}
			name, tail, _ := strings.Cut(after, "}")
			value := facts[name]
			if name == "subject" {
				value = e.Subject
			}
			if value == "" {
				return ""
			}
			if at, err := time.Parse(time.RFC3339, value); err == nil {
				value = at.UTC().Format("2 January 2006")
			}
			b.WriteString(value)
			rest = tail
		}
	}
}

// Fact is one of an event's facts as text.
type Fact struct{ Name, Value string }

// maxFactBytes bounds the text of one fact in a list; the event's own page shows everything.
const maxFactBytes = 120

// Details are the facts that fit into a line: numbers, words and yes or no, in alphabetical order.
func (e Event) Details() []Fact {
	facts := factsOf(e)
	var out []Fact
	for _, name := range slices.Sorted(maps.Keys(facts)) {
		out = append(out, Fact{strings.ReplaceAll(name, "_", " "), facts[name]})
	}
	return out
}

func factsOf(e Event) map[string]string {
	var tree map[string]json.RawMessage
	if json.Unmarshal(e.Data, &tree) != nil {
		return nil // no facts
	}
	out := map[string]string{}
	for name, raw := range tree {
		switch raw[0] {
		case '{', '[', 'n':
			continue
		case '"':
			var s string
			if json.Unmarshal(raw, &s) == nil && s != "" {
				out[name] = cutText(s, maxFactBytes)
			}
		default:
			out[name] = string(raw)
		}
	}
	return out
}

// tones mark what went well and what did not by the words that kinds end with.
var tones = map[string][]string{
	"bad":  {"failed", "rolled_back", "revoked", "suspected", "reused", "rekeyed", "refused", "quarantined", "expired", "offline"},
	"good": {"committed", "healthy", "enrolled", "renewed", "received", "certified", "accepted", "sanitized", "online", "delivery_booked"},
}

// Tone is the event's mark in a timeline: "good", "bad" or "info".
func (e Event) Tone() string {
	_, verb, _ := strings.Cut(e.Kind, ".")
	for tone, words := range tones {
		if slices.ContainsFunc(words, func(w string) bool { return verb == w || strings.HasSuffix(verb, "_"+w) }) {
			return tone
		}
	}
	return "info"
}

// ActorName is who it was, as people know them.
func (e Event) ActorName() string {
	if e.Actor.Name != "" {
		return e.Actor.Name
	}
	if e.Actor.Kind == "system" {
		return fmt.Sprintf("Steward (%s)", e.Actor.ID)
	}
	return e.Actor.ID
}
