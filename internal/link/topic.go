package link

import (
	"strings"

	"steward/internal/mqtt"
	"steward/internal/wire"
)

// subscriptions are the filters that a session has: for each form of each, one more than its QoS. All that
// a device can subscribe to is its own, so a few bytes say everything.
type subscriptions struct {
	by    [2][downNames]byte // by 0: with the word "me", 1: with the device's ID
	exact map[string]byte    // of documents by their hash: filters of one document; made when needed
}

// downName is one of the names below down/, or a wildcard over them.
type downName byte

const (
	downDesired downName = iota
	downReport
	downDocument // all of them
	downCommand
	downProblem
	downAll // down/#
	downOne // down/+, which does not reach documents
	downNames
)

var downByName = map[string]downName{
	wire.TopicDesired: downDesired, wire.TopicReport: downReport, wire.TopicCommand: downCommand, wire.TopicProblem: downProblem,
	"#": downAll, "+": downOne,
}

var downTopics = [...]string{downDesired: wire.TopicDesired, downReport: wire.TopicReport, downDocument: wire.TopicDocument, downCommand: wire.TopicCommand, downProblem: wire.TopicProblem}

// filter is a topic filter that is a device's own.
type filter struct {
	name  downName
	exact string // hash of one document; then name is downDocument
	form  int    // index of subscriptions.by
}

// filterOf reads a topic filter of the device; false when it is not, or not wholly, its own.
func filterOf(id, text string) (f filter, ok bool) {
	device, direction, name, rest, ok := wire.ParseTopic(text)
	if !ok || direction != wire.TopicDown {
		return f, false
	}
	switch device {
	case wire.Me:
	case id:
		f.form = 1
	default:
		return f, false
	}
	if name == wire.TopicDocument {
		f.name = downDocument
		if rest == "+" || rest == "#" {
			return f, true
		}
		if _, err := wire.ParseHash(rest); err != nil {
			return f, false
		}
		f.exact = rest
		return f, true
	}
	f.name, ok = downByName[name]
	return f, ok && (rest == "" || (rest == "#" && f.name != downAll)) && !strings.HasSuffix(text, "/")
}

// maxExact bounds the filters of single documents.
const maxExact = 64

// set notes a filter with its QoS and returns whether there was room for it.
func (s *subscriptions) set(f filter, qos byte) bool {
	if f.exact == "" {
		s.by[f.form][f.name] = qos + 1
		return true
	}
	key := exactKey(f)
	if _, has := s.exact[key]; !has && len(s.exact) >= maxExact {
		return false
	}
	if s.exact == nil {
		s.exact = map[string]byte{}
	}
	s.exact[key] = qos + 1
	return true
}

// unset returns whether there was such a subscription.
func (s *subscriptions) unset(f filter) bool {
	if f.exact == "" {
		had := s.by[f.form][f.name] > 0
		s.by[f.form][f.name] = 0
		return had
	}
	key := exactKey(f)
	_, had := s.exact[key]
	delete(s.exact, key)
	return had
}

func exactKey(f filter) string { return string(rune('0'+f.form)) + f.exact }

// find returns with which QoS and in which form of the topic a message of the name goes out. When several
// filters match, it goes out once, with the highest QoS of them.
func (s *subscriptions) find(name downName, rest string) (qos byte, form int, ok bool) {
	best := byte(0)
	for i := range s.by {
		got := max(s.by[i][name], s.by[i][downAll])
		if rest == "" {
			got = max(got, s.by[i][downOne])
		} else if s.exact != nil {
			got = max(got, s.exact[exactKey(filter{form: i, exact: rest})])
		}
		if got > best {
			best, form = got, i
		}
	}
	return max(best, 1) - 1, form, best > 0
}

// wants tells whether messages of the name go out at all.
func (s *subscriptions) wants(name downName) bool {
	_, _, ok := s.find(name, "")
	return ok
}

// upTopic is a topic that a device publishes to.
type upTopic struct{ name, rest string }

// upNames are the names below up/, and whether something follows them.
var upNames = map[string]bool{
	wire.TopicReport: false, wire.TopicDocument: true, wire.TopicFetch: true, wire.TopicDesired: false,
	wire.TopicMetrics: false, wire.TopicTelemetry: false, wire.TopicEvent: false, wire.TopicResult: true,
}

// maxRest bounds what follows a name: a hash or a command's ID.
const maxRest = 128

// address reads the topic of a message. Another device's is refused in other words than one that does not
// exist; whether that other device does is not told.
func (ss *session) address(topic string) (upTopic, error) {
	device, direction, name, rest, ok := wire.ParseTopic(topic)
	if ok && device != wire.Me && device != string(ss.id) || strings.HasPrefix(topic, "$") {
		return upTopic{}, &mqtt.PacketError{Code: mqtt.NotAuthorized, Detail: "the topic is not this device's own"}
	}
	follows, known := upNames[name]
	if !ok || direction != wire.TopicUp || !known || follows != (rest != "") || len(rest) > maxRest || strings.Count(topic, "/") > 5 || (!follows && strings.HasSuffix(topic, "/")) {
		return upTopic{}, &mqtt.PacketError{Code: mqtt.TopicNameInvalid, Detail: "there is no such topic; see docs/device-contract.md"}
	}
	return upTopic{name, rest}, nil
}
